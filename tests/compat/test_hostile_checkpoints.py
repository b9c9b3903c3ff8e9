"""Malformed and malicious checkpoints: loaded, or refused in one sentence; nothing in them runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import CheckpointLoader

import gfl_det
from gfl_det.compat.checkpoint import load_file
from gfl_det.engine.training.checkpoints import choose_checkpoint, newest_checkpoint
from gfl_det.engine.training.replay import read_dump
from gfl_det.errors import CheckpointError
from gfl_det.inference.loading import load_detector
from gfl_det.inference.stored_config import parse, stored_config
from tests.helpers.checkpoint_files import CANARY, bombs, damaged, malicious, others
from tests.helpers.refusing import refusal

pytestmark = pytest.mark.usefixtures('bounds')

MALICIOUS, BOMBS = dict(malicious()), dict(bombs())
DAMAGED, OTHERS = dict(damaged()), dict(others())
PACKAGE = Path(gfl_det.__file__).parent


def through_mmengine(path: str) -> None:
    CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')


def resumed(path: str) -> None:
    choose_checkpoint(path, Path(path).parent)


def newest(path: str) -> None:
    newest_checkpoint(Path(path).parent)


def detecting(path: str) -> None:
    load_detector(path, None, 'cpu', {})


READERS = (load_file, through_mmengine, resumed, newest, read_dump, detecting)


def refusals(path: Path) -> list[str | None]:
    """What each reader says of a file, None where it takes it; all else fails the test."""
    said = [refusal(reader, str(path)) for reader in READERS]
    assert not any('\n' in each for each in said if each)
    return said


@pytest.mark.parametrize('name', MALICIOUS)
def test_no_program_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch, name: str) -> None:
    canary = tmp_path / 'canary'
    monkeypatch.setenv(CANARY, str(canary))
    path = tmp_path / 'bad.pth'
    path.write_bytes(MALICIOUS[name])
    said = refusals(path)
    assert None not in said[:3]
    assert not canary.exists()


def test_the_programs_would_run_without_care(tmp_path: Path, monkeypatch) -> None:
    """Or the test above proves nothing."""
    for index, name in enumerate(
        ('os.system, alone, zip', 'eval, in meta, legacy', 'exec, as a weight, zip')
    ):
        canary = tmp_path / f'canary{index}'
        monkeypatch.setenv(CANARY, str(canary))
        path = tmp_path / 'bad.pth'
        path.write_bytes(MALICIOUS[name])
        torch.load(path, weights_only=False)
        assert canary.exists()


@pytest.mark.parametrize('name', BOMBS)
def test_no_small_file_takes_large_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / 'bomb.pth'
    path.write_bytes(BOMBS[name])
    assert path.stat().st_size < 3_000_000
    assert None not in refusals(path)[:3]


@pytest.mark.parametrize('name', [*DAMAGED, *OTHERS])
def test_damaged_and_odd_files_load_or_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / 'odd.pth'
    path.write_bytes({**DAMAGED, **OTHERS}[name])
    refusals(path)


def test_a_file_that_only_says_where_the_newest_is_leads_nowhere_else(tmp_path: Path) -> None:
    for content in (b'', b'\xff\xfe\0', b'/dev/zero', b'x' * 10_000, b'a\0b', b'\n\n..\n'):
        (tmp_path / 'last_checkpoint').write_bytes(content)
        assert newest_checkpoint(tmp_path).found is None


def test_the_package_loads_no_pickle_but_by_the_safe_way() -> None:
    """``torch.load`` is written once, with ``weights_only=True``; no other reader of pickled files.

    What the processes of ``gfl-det infer-many`` send each other stays in memory.
    """
    messages = r"pickle\.loads\((row\['\w+'\]|(self\._)?pipe\.recv_bytes\(\))\)"
    readers = r'[= ]torch\.load\(|pickle\.loads?\(|np\.load\(|joblib|mmengine\.load\('
    found = [
        (path.relative_to(PACKAGE).as_posix(), line.strip())
        for path in PACKAGE.rglob('*.py')
        for line in path.read_text().splitlines()
        if re.search(readers, re.sub(messages, '', line))
    ]
    loads = [each for each in found if 'torch.load(' in each[1]]
    assert [path for path, _ in loads] == ['compat/checkpoint.py']
    assert 'weights_only=True' in loads[0][1]
    others_ = [path for path, _ in found if path != 'compat/checkpoint.py']
    assert others_ == ['compat/pretrained.py']  # mmengine's own table, a JSON file of its package


TEXTS = {
    'a call': f'model = open(__import__("os").environ["{CANARY}"], "w")',
    'a type that is a program': 'model = dict(type="os.system", command="true")',
    'a type of builtins': 'model = dict(type="builtins.eval")',
    'a type in a part': 'model = dict(type="GFL", backbone=dict(type="subprocess.Popen"))',
    'an import': 'custom_imports = dict(imports=["antigravity"])\nmodel = dict(type="this")',
    'a scope': 'default_scope = "antigravity"\nmodel = dict(type="GFL")',
    'a power': 'model = 9 ** 9 ** 9 ** 9',
    'a product of texts': 'model = "x" * 10**10',
    'deep brackets': 'model = ' + '[' * 5000 + ']' * 5000,
    'deep signs': 'model = ' + '-' * 100_000 + '1',
    'deep calls': 'model = ' + 'dict(a=' * 2000 + '1' + ')' * 2000,
    'a zero byte': 'model = "\0"',
    'a number of many digits': 'model = ' + '9' * 100_000,
    'half of a character': 'model = dict(type="\ud800")',
    'no text': '',
    'a long text': 'x = 1\n' * 1_000_000,
    'a list of a type': 'model = dict(type=["GFL"])',
    'a number of a type': 'model = dict(type=5)',
}


@pytest.mark.parametrize('name', TEXTS)
def test_a_config_in_a_checkpoint_is_no_program(monkeypatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv(CANARY, str(tmp_path / 'canary'))
    with pytest.raises(CheckpointError) as caught:
        stored_config(dict(cfg=TEXTS[name]), 'x.pth')
    assert len(str(caught.value)) < 3000
    assert not (tmp_path / 'canary').exists()


@given(text=st.text(max_size=80) | st.from_regex(r'model = [\[\](){}=a-z0-9,"\*]{0,40}'))
@settings(max_examples=150)
def test_any_text_is_values_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    assert isinstance(found, dict)
