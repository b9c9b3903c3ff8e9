"""What the doctor finds in broken installations, and that no import failure is a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gfl_det.cli.doctor import __main__, installed
from gfl_det.cli.doctor import installed as places
from gfl_det.cli.doctor.__main__ import merge, of_outcome, split_cure
from gfl_det.cli.doctor.installed import Check, StepOutcome, run_steps
from gfl_det.compat import imports
from gfl_det.compat.imports import RANGES, release
from gfl_det.errors import DataError, SetupError
from gfl_det.utils.console import format_table
from tests.helpers.paths import ROOT

DEVELOPERS = ('benchmark.py', 'benchmark_head.py')
BLOCK = """
import sys

class Blind:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name in {names!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Blind, sys.meta_path)
"""


def site(folder: Path, gone: tuple[str, ...] = (), **modules: str) -> Path:
    """Site-packages before the real ones: modules that fail, and modules that are not there."""
    (folder / 'sitecustomize.py').write_text(BLOCK.format(names=gone))
    for name, code in modules.items():
        (folder / name).mkdir()
        (folder / name / '__init__.py').write_text(code)
    return folder


def run(*words: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(map(str, [*([path] if path else []), ROOT]))
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'PYTHONPATH': search, 'OMP_NUM_THREADS': '1'},
        check=False,
    )


def found(done: subprocess.CompletedProcess[str]) -> dict[str, Check]:
    assert 'Traceback' not in done.stderr, done.stderr
    return {entry['name']: Check(**entry) for entry in json.loads(done.stdout)}


class TestDoctor:
    def test_a_sound_installation(self, tmp_path):
        out = tmp_path / 'found.json'
        done = run('-m', 'gfl_det.cli.doctor', '--json', out)
        checks = {entry['name']: Check(**entry) for entry in json.loads(out.read_text())}
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ''
        assert done.stdout.rstrip().endswith('All is well.')
        assert 'boxes predicted' in checks['self-test on cpu'].text
        assert checks['mmdet'].text.startswith('3.3')
        assert {'nms', 'processor', 'work dirs', 'setuptools'} <= set(checks)

    def test_without_torch_and_with_more_that_is_broken(self, tmp_path):
        broken = site(
            tmp_path,
            gone=('torch', 'pkg_resources'),
            cv2='raise ImportError("libGL.so.1: cannot open shared object file: No such file")',
            pycocotools='import os, signal; os.kill(os.getpid(), signal.SIGSEGV)',
        )
        done = run(ROOT / 'tools' / 'doctor.py', '--json', '-', path=broken)
        checks = found(done)
        assert done.returncode == 1
        assert checks['torch'].cure == 'pip install "torch==2.13.0"'
        assert checks['cv2'].cure == imports.HEADLESS_LINE
        assert 'SIGSEGV' in checks['pycocotools'].text
        assert checks['setuptools'].cure == 'pip install "setuptools<81"'
        assert checks['gfl_det'].state == 'problem'

    def test_the_report_names_each_line_once(self, tmp_path):
        broken = site(tmp_path, gone=('torch',))
        done = run('-m', 'gfl_det.cli.doctor', path=broken)
        assert done.returncode == 1
        assert done.stdout.count('\n  pip install "torch==2.13.0"    # torch') == 1
        assert 'Traceback' not in done.stdout + done.stderr


class TestImportingTheBrokenFamily:
    def test_every_tool_catches_what_the_package_raises(self):
        for path in (ROOT / 'tools').glob('*.py'):
            text = path.read_text()
            if 'cli.run(main)' in text and path.name not in DEVELOPERS:
                assert '\nexcept ImportError as error:' in text, path

    def test_tools_say_it_in_one_sentence(self, tmp_path):
        broken = site(tmp_path, gone=('mmengine',))
        done = run(ROOT / 'tools' / 'calibrate.py', 'fit', path=broken)
        assert done.returncode == 1
        first = done.stderr.splitlines()[0]
        assert first == (
            'error: The package mmengine is not installed: run `pip install "mmengine==0.10.7"`.'
        )

    def test_mmdet_refusing_mmcv(self, tmp_path):
        broken = site(tmp_path, mmcv='__version__ = "2.2.0"')
        done = run('-c', 'import gfl_det', path=broken)
        last = done.stderr.strip().splitlines()[-1]
        assert last == (
            'gfl_det.errors.SetupError: mmdet refuses mmcv 2.2.0: run `pip uninstall -y mmcv '
            'mmcv-lite; pip install mmcv-lite==2.1.0`.'
        )


def raised_in(module: str, error: Exception) -> Exception:
    """An error that comes out of a module of that name."""
    try:
        exec('raise error', {'__name__': module, 'error': error})
    except Exception as caught:
        return caught
    raise AssertionError


class TestExplanations:
    @pytest.mark.parametrize(
        ('error', 'meaning', 'line'),
        [
            (
                ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext'),
                'import gfl_det before mmdet.models',
                imports.BUILD_LINE,
            ),
            (
                ImportError('/x/mmcv/_ext.cpython-311.so: undefined symbol: _ZN3c104cuda'),
                'built for another torch',
                imports.BUILD_LINE,
            ),
            (
                AssertionError(
                    'MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.'
                ),
                'mmdet refuses mmcv 2.2.0',
                imports.LITE_LINE,
            ),
            (
                AssertionError('MMEngine==0.6.0 is used but incompatible. Please install'),
                'mmengine 0.6.0 is refused',
                'mmengine==0.10.7',
            ),
            (
                ImportError("cannot import name 'Config' from 'mmcv' (/x/mmcv/__init__.py)"),
                'another generation',
                'mmcv-full',
            ),
            (
                ModuleNotFoundError("No module named 'pkg_resources'", name='pkg_resources'),
                'setuptools lacks',
                'setuptools<81',
            ),
            (
                ValueError('numpy.dtype size changed, may indicate binary incompatibility.'),
                'another numpy',
                '--force-reinstall',
            ),
            (
                OSError('libcudnn.so.9: cannot open shared object file: No such file'),
                'libcudnn.so.9',
                'pip install --force-reinstall torch',
            ),
            (
                ModuleNotFoundError("No module named 'sklearn'", name='sklearn'),
                'sklearn is not installed',
                'pip install scikit-learn',
            ),
        ],
    )
    def test_each_failure_has_a_meaning_and_a_line(self, error, meaning, line):
        said = imports.explain(error)
        assert isinstance(said, SetupError)
        assert meaning in str(said)
        text, cure = split_cure(str(said))
        assert line in cure
        assert '`' not in text
        assert '\n' not in str(said)

    def test_what_breaks_inside_a_package_names_it(self):
        error = raised_in('mmdet.models', AttributeError("module 'x' has no attribute {y}"))
        said = str(imports.explain(error))
        assert "mmdet does not import (AttributeError: module 'x' has no attribute {y})" in said
        assert '--force-reinstall "mmdet==3.3.0"' in said

    @pytest.mark.parametrize(
        'error',
        [
            ModuleNotFoundError("No module named 'gfl_det.heds'", name='gfl_det.heds'),
            raised_in('gfl_det.models.heads', AttributeError('a slip of ours')),
            raised_in('somebody', RuntimeError('elsewhere')),
        ],
    )
    def test_unrelated_errors_are_not_reported(self, error):
        assert imports.explain(error) is None
        with pytest.raises(type(error)) as caught, imports.explained():
            raise error
        assert caught.value is error

    def test_our_own_refusals_pass(self):
        refusal = DataError('no')
        with pytest.raises(DataError) as caught, imports.explained():
            raise refusal
        assert caught.value is refusal


class TestVersions:
    def test_the_ranges_are_those_of_setup(self):
        asked = {}
        for line in (ROOT / 'setup.py').read_text().splitlines():
            text = line.strip().partition('#')[0].strip().rstrip(',').strip("'")
            for name in ('torch', 'mmengine', 'mmdet', 'mmcv-lite'):
                if text.startswith((f'{name}>', f"mmcv = [] if has_compiled_mmcv() else ['{name}")):
                    asked[name] = Requirement(text.partition("['")[2].rstrip("']") or text)
        assert set(asked) == {'torch', 'mmengine', 'mmdet', 'mmcv-lite'}
        for name, requirement in asked.items():
            known = RANGES[name.removesuffix('-lite')]
            assert {str(spec) for spec in requirement.specifier} == set(str(known).split(','))

    def test_the_cures_are_the_pinned_versions(self):
        pinned = (ROOT / 'requirements.txt').read_text().splitlines()
        assert {known.tested for known in RANGES.values()} <= set(pinned)

    @pytest.mark.parametrize(
        ('version', 'expected'),
        [
            ('2.0.0', False),
            ('2.0.1', True),
            ('2.1.0+cpu', True),
            ('2.2.0rc1', False),
            ('2.2', False),
        ],
    )
    def test_a_range(self, version, expected):
        assert RANGES['mmcv'].holds(version) is expected

    def test_releases_compare_as_numbers(self):
        assert release('2.10') > release('2.9.1')
        assert release('2.1') == release('2.1.0')
        assert release('unknown') == ()

    @pytest.mark.parametrize(
        ('versions', 'state', 'words'),
        [
            ({'mmcv-lite': '2.1.0'}, 'ok', '2.1.0 (mmcv-lite)'),
            ({'mmcv': '2.2.0'}, 'problem', 'needs mmcv>=2.0.1,<2.2'),
            ({'mmcv': '2.1.0', 'mmcv-lite': '2.1.0'}, 'problem', 'overwrite each other'),
            ({'onedl-mmcv': '2.3.2'}, 'note', 'a fork'),
        ],
    )
    def test_kinds_of_mmcv(self, monkeypatch, versions, state, words):
        monkeypatch.setattr(installed, '_version', versions.get)
        check = installed.check_package('mmcv', installed.DISTRIBUTIONS['mmcv'])
        assert check.state == state
        assert words in check.text
        if state == 'problem':
            assert check.cure.startswith(f'pip uninstall -y {" ".join(versions)}; pip install mmcv')


class TestParts:
    def test_a_place_without_permission_or_room(self, tmp_path, monkeypatch):
        (tmp_path / 'occupied').touch()
        check = places.check_place('work dirs', tmp_path / 'occupied' / 'run', 'choose')
        assert (check.state, check.cure) == ('problem', 'choose')
        monkeypatch.setattr(places, 'LITTLE_ROOM', 2**80)
        assert 'too little' in places.check_place('x', tmp_path / 'a' / 'b', '').text
        assert sorted(tmp_path.iterdir()) == [tmp_path / 'occupied']

    def test_a_child_that_does_not_end(self):
        code = (
            'import sys, time; open(sys.argv[1], "w").write("""{"name": "x", "begun": true}\\n""")'
        )
        (outcome,) = run_steps(['-c', f'{code}; time.sleep(60)'], time_limit=2)
        assert (outcome.name, outcome.ok) == ('x', False)
        assert 'did not end within 2 seconds' in outcome.error

    def test_a_failed_import_joins_the_record_of_pip(self):
        checks = [Check('torch', 'ok', '2.1 (torch)')]
        outcome = StepOutcome('torch', False, 0, {}, 'It is broken: run `mend it`.')
        assert merge(checks, [outcome]) == [
            Check('torch', 'problem', '2.1 (torch): It is broken', 'mend it')
        ]

    def test_a_card_that_torch_does_not_see(self):
        facts = {'processor': 'x86', 'unseen': 'built without CUDA'}
        checks = of_outcome(StepOutcome('devices', True, 0, facts), found_cause=False)
        assert checks[1].state == 'problem'
        assert checks[1].cure == 'pip install --force-reinstall torch'

    def test_a_plain_table_lines_up(self):
        text = format_table('', ('a', 'long'), [('wide cell', 'x'), ('y', 'z')])
        lines = text.splitlines()
        assert [line.index(word) for line, word in zip(lines, ('long', '-', 'x', 'z'))] == [
            11,
            0,
            11,
            11,
        ]

    def test_a_file_that_cannot_be_written(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(__main__, 'examine', lambda with_test: [])
        assert __main__.main(['--json', str(tmp_path / 'gone' / 'a.json')]) == 1
        said = capsys.readouterr().err
        assert said == f'error: {tmp_path}/gone/a.json cannot be used: No such file or directory.\n'
