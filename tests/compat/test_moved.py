"""Import paths of version 0.1 give the modules that the code lies in now."""

from __future__ import annotations

import importlib
import pickle
import sys

import pytest

import gfl_det
from gfl_det.compat.imports import MOVED, MovedFinder, find_moved


@pytest.mark.parametrize('old', MOVED)
def test_an_old_package_is_the_new_one(old: str) -> None:
    assert importlib.import_module(old) is importlib.import_module(MOVED[old])
    assert sys.modules[old] is sys.modules[MOVED[old]]
    assert sys.modules[MOVED[old]].__name__ == MOVED[old]


def test_modules_below_are_not_loaded_again() -> None:
    from gfl_det.heads.gfl_head import GFLHead
    from gfl_det.losses import functional

    assert GFLHead is gfl_det.models.heads.GFLHead
    assert functional is gfl_det.models.losses.functional
    assert pickle.loads(b'cgfl_det.heads.gfl_head\nGFLHead\n.') is GFLHead


@pytest.mark.parametrize(
    'name', ['datasets', 'evaluation', 'calibration', 'visualization', 'inference']
)
def test_packages_that_stayed(name: str) -> None:
    assert importlib.import_module(f'gfl_det.{name}').__name__ == f'gfl_det.{name}'


def test_missing_modules_are_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r'gfl_det\.models\.heads\.nothing'):
        importlib.import_module('gfl_det.heads.nothing')


def test_a_second_call_changes_nothing() -> None:
    find_moved()
    assert sum(isinstance(finder, MovedFinder) for finder in sys.meta_path) == 1
