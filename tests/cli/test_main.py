"""gfl-det: its commands and their help, what starts without torch, and who registers the parts."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import DictAction

import gfl_det
from gfl_det.calibration.distribution import DEFAULT_GROUPS
from gfl_det.calibration.distribution import GROUPS as EVIDENCE
from gfl_det.calibration.maps import FITS
from gfl_det.cli import digits, main
from gfl_det.cli.arguments import KeyValueAction, parse_value
from gfl_det.compat import imports
from gfl_det.datasets.digits.build import DigitsRecipe
from gfl_det.utils import choices
from tests.helpers.forks import Script, run_scripts
from tests.helpers.paths import ROOT

HEAVY = ('torch', 'mmdet', 'mmengine', 'mmcv', 'numpy', 'cv2', 'rich', 'shtab')
# Prints which heavy packages are loaded when a command has printed its help and Python ends.
PROBE = """
import atexit, json, runpy, sys
sys.orig_argv = ['python', '-m', 'gfl_det', *sys.argv[1:]]
@atexit.register
def tell():
    loaded = {{name.partition('.')[0] for name in sys.modules}}
    print('LOADED', json.dumps(sorted(loaded & {heavy!r})))
runpy.run_module('gfl_det', run_name='__main__', alter_sys=True)
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )


class TestWithoutTorch:
    @pytest.mark.parametrize(
        'words', [(), *((name, '--help') for name in main.COMMANDS), ('calibrate', 'fit', '--help')]
    )
    def test_help_loads_nothing_heavy(self, words):
        done = python('-c', PROBE.format(heavy=set(HEAVY)), *words)
        assert done.returncode == 0, done.stderr
        text, _, loaded = done.stdout.rpartition('LOADED ')
        assert json.loads(loaded) == []
        assert text.startswith(f'usage: gfl-det {" ".join(words[:-1])}'.rstrip())

    def test_the_module_is_the_command(self):
        assert python('-m', 'gfl_det').stdout.strip() == main.overview()
        assert python('-m', 'gfl_det', '--version').stdout.strip() == (
            f'gfl_det {gfl_det.__version__}'
        )


class TestCommandNames:
    def test_the_overview_has_a_line_for_each(self):
        lines = main.overview().splitlines()
        for name, command in main.COMMANDS.items():
            assert any(line.split()[:1] == [name] and command.summary in line for line in lines)
        assert max(map(len, lines)) < 100

    def test_a_reader_that_stops_is_no_fault(self):
        """As in gfl-det --help | head -1."""
        reading, written = os.pipe()
        os.close(reading)
        words = [sys.executable, '-m', 'gfl_det', '--help']
        done = subprocess.run(
            words, stdout=written, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False
        )
        os.close(written)
        assert done.stderr == ''

    def test_an_interrupt_is_one_word(self, monkeypatch, capsys):
        def interrupted(name, args):
            raise KeyboardInterrupt

        monkeypatch.setattr(main, '_work', interrupted)
        with pytest.raises(SystemExit, match='130'):
            main.main(['models'])
        assert capsys.readouterr().err == 'interrupted\n'

    def test_a_slip_names_the_nearest(self, capsys):
        for word, said in (('chekc', 'did you mean `gfl-det check`?'), ('xyz', 'lists them')):
            with pytest.raises(SystemExit) as caught:
                main.main([word])
            assert caught.value.code == 2
            assert said in capsys.readouterr().err

    def test_the_status_is_what_the_command_says(self, capsys, tmp_path):
        with pytest.raises(SystemExit) as caught:
            main.main(['weights', 'extract', str(tmp_path / 'absent.pth'), 'out.pth'])
        assert caught.value.code == 1
        assert 'absent.pth does not exist' in capsys.readouterr().err

    @pytest.mark.parametrize('shell', main.SHELLS)
    def test_completion_knows_commands_and_options(self, shell, capsys):
        main.main(['--print-completion', shell])
        script = capsys.readouterr().out
        for word in ('suggest-reg-max', 'loss-guard', 'max-megapixels', 'isotonic'):
            assert word in script

    def test_every_tool_still_has_its_script(self):
        scripts = {path.stem for path in (ROOT / 'tools').glob('*.py')}
        renamed = dict(check='check_dataset', digits='build_digits', demo='demo_web')
        renamed |= {'export': 'export_onnx'}
        no_script_before = {'models', 'compare', 'find-label-errors', 'infer-many', 'operate'}
        no_script_before |= {'what-to-label'}
        names = set(main.COMMANDS) - no_script_before
        assert {renamed.get(name, name.replace('-', '_')) for name in names} <= scripts


class TestRegistration:
    @pytest.mark.parametrize(
        ('line', 'expected'),
        [
            ('python -m gfl_det train c.py', True),
            ('python -X importtime -u -m gfl_det', True),
            ('python -um gfl_det.doctor --json -', True),
            ('python -W ignore /env/bin/gfl-det --help', True),
            (r'python.exe C:\\env\\gfl-det.exe', True),
            ('python -m gfl_det.cli.doctor.installed f', True),
            ('python -m gfl_detector', False),
            ('python -m mine gfl_det', False),
            ('python -m pytest tests -m gfl_det', False),
            ('python train.py gfl-det', False),
            ('python -c pass gfl-det', False),
            ('python tools/train.py c.py', False),
            ('python', False),
        ],
    )
    def test_whose_command_line_it_is(self, monkeypatch, line, expected):
        monkeypatch.setattr(sys, 'orig_argv', line.split(), raising=False)
        assert imports.is_own_command() is expected

    def test_what_is_offered_is_there_in_both_modes(self):
        """Registered by the import, or later where it is the command that imports."""
        names = registering()
        waiting = (
            'import sys; sys.orig_argv = ["python", "-m", "gfl_det"]; import gfl_det; '
            f'assert not set({names!r}) & set(sys.modules); gfl_det.register(); '
        )
        code = (
            'import sys, gfl_det; '
            f'print(sorted(set({names!r}) - set(sys.modules))); '
            'from mmdet.registry import MODELS; '
            'assert all(hasattr(gfl_det, name) for name in gfl_det.__all__); '
            'assert gfl_det.heads is gfl_det.models.heads; '
            'assert MODELS.get("gfl_det.GFLHead") is gfl_det.heads.GFLHead; '
            'assert not hasattr(gfl_det, "heds")'
        )
        printed = run_scripts(
            sys.executable, [Script(each, (), ROOT) for each in (waiting + code, code)]
        )
        # Every module that registers something is imported.
        assert printed.splitlines() == ['[]', '[]']


def registering() -> list[str]:
    """The modules that register something."""
    found = [
        path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')
        for path in (ROOT / 'gfl_det').rglob('*.py')
        if '.register_module(' in path.read_text()
    ]
    assert len(found) > 10
    return found


class TestKeyValues:
    @given(st.text(alphabet='(),[]\'" 1a.-etrueTNon', max_size=12))
    def test_values_are_those_of_mmengine(self, text):
        try:
            expected = DictAction._parse_iterable(text)
        except (AssertionError, RecursionError):
            with pytest.raises(ValueError, match='brackets'):
                parse_value(text)
        else:
            found = parse_value(text)
            assert repr(found) == repr(expected)  # 1 is not True, and NaN is NaN

    @pytest.mark.parametrize('words', ['a=1 b.c=[x,(1,2)] a=2', 'a==', 'a=', 'x=1e3 y=None z=True'])
    def test_options_are_those_of_mmengine(self, words):
        found = []
        for action in (KeyValueAction, DictAction):
            parser = argparse.ArgumentParser()
            parser.add_argument('--o', nargs='+', action=action)
            found.append(parser.parse_args(['--o', *words.split(), '--o', 'later=1']).o)
        assert found[0] == found[1]

    def test_brackets_that_do_not_match_are_a_usage_error(self, capsys):
        parser = argparse.ArgumentParser()
        parser.add_argument('--o', nargs='+', action=KeyValueAction)
        with pytest.raises(SystemExit):
            parser.parse_args(['--o', 'a=[1,(2]'])
        assert "'a=[1,(2]': its brackets do not match" in capsys.readouterr().err


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of a command, and those of its subcommands."""
    options = []
    for action in parser._actions:
        options.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                options += options_of(part)
    return options


def test_annotations_is_an_alias_of_truths():
    found = {}
    for name in main.COMMANDS:
        parser = main._module(name).make_parser()
        found[name] = [each for each in options_of(parser) if '--truths' in each.option_strings]
    assert {name: len(each) for name, each in found.items() if each} == {
        'calibrate': 3,
        'compare': 1,
        'find-label-errors': 1,
        'intervals': 2,
        'operate': 1,
        'report': 1,
        'show': 1,
    }
    for option in itertools.chain(*found.values()):
        assert set(option.option_strings) == {'--truths', '--annotations'}
        # Commands that never had --truths name their argument by --annotations.
        assert option.dest == option.option_strings[0].removeprefix('--')


def test_light_choices_are_those_at_work():
    assert set(choices.FIT_METHODS) == set(FITS)
    assert choices.EVIDENCE_GROUPS == EVIDENCE
    assert choices.DEFAULT_EVIDENCE == DEFAULT_GROUPS
    recipe = DigitsRecipe()
    given = digits.parse_arguments([])
    assert (recipe.train, recipe.val, recipe.seed) == (given.train, given.val, given.seed)
