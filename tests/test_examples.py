"""The examples in docstrings run and give what they say."""

from __future__ import annotations

import ast
import doctest
from importlib import import_module

import pytest

from tests.helpers.paths import ROOT

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
COMPLETE = ('ops', 'evaluation', 'calibration', 'models/losses')  # an example per function
SOURCES = {
    '.'.join(file.relative_to(ROOT).with_suffix('').parts): file
    for file in sorted((ROOT / 'gfl_det').rglob('*.py'))
    if '.mim' not in file.parts and file.stem != '__init__'
}


@pytest.mark.parametrize('name', [n for n, file in SOURCES.items() if '>>>' in file.read_text()])
def test_the_examples_of(name: str) -> None:
    found = doctest.testmod(import_module(name), optionflags=FLAGS)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize('folder', COMPLETE)
def test_each_public_function_has_one(folder: str) -> None:
    files = (ROOT / 'gfl_det' / folder).glob('*.py')
    missing = [
        f'{file.name}: {node.name}'
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith('_')
        and '>>>' not in (ast.get_docstring(node) or '')
    ]
    assert missing == []
