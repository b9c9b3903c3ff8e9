"""The examples in docstrings run and give what they say."""

from __future__ import annotations

import ast
import doctest
from importlib import import_module

import pytest

from tests.helpers.paths import ROOT

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
FOLDERS = ('ops', 'evaluation', 'calibration', 'models/losses')
MODULES = [
    path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')
    for folder in FOLDERS
    for path in sorted((ROOT / 'gfl_det' / folder).glob('*.py'))
    if path.stem != '__init__' and '>>>' in path.read_text()
]


@pytest.mark.parametrize('name', MODULES)
def test_the_examples_of(name: str) -> None:
    found = doctest.testmod(import_module(name), optionflags=FLAGS)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize('name', MODULES)
def test_each_public_function_has_one(name: str) -> None:
    tree = ast.parse((ROOT / name.replace('.', '/')).with_suffix('.py').read_text())
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith('_')
        and '>>>' not in (ast.get_docstring(node) or '')
    ]
    assert missing == []
