"""The version report, and what is said where setuptools no longer brings pkg_resources."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import mmcv
import mmdet
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.utils import is_installed

from gfl_det.compat import environment, ops
from gfl_det.errors import SetupError


def test_the_report_names_versions_and_the_operators_in_use() -> None:
    report = environment.report()
    for name, module in dict(torch=torch, numpy=np, mmengine=mmengine, mmdet=mmdet).items():
        assert report[name] == module.__version__
    assert report['python'] == platform.python_version()
    kind = 'lite, with stand-in operators' if ops.stand_in_is_used() else 'compiled'
    assert report['mmcv'] == f'{mmcv.__version__} ({kind})'
    assert report['nms'].startswith('gfl_det' if ops.stand_in_is_used() else 'compiled mmcv')


@pytest.fixture
def no_pkg_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with setuptools 81 and later: Python's own finders do not find it."""

    class Blind:
        def __init__(self, finder) -> None:
            self.finder = finder

        def find_spec(self, name: str, path=None, target=None):
            return None if name == 'pkg_resources' else self.finder.find_spec(name, path, target)

    guard = environment.PkgResourcesGuard
    finders = [finder for finder in sys.meta_path if finder is not guard]
    monkeypatch.setattr(sys, 'meta_path', [*map(Blind, finders), guard])
    monkeypatch.delitem(sys.modules, 'pkg_resources', raising=False)


@pytest.mark.usefixtures('no_pkg_resources')
@pytest.mark.skipif(
    'pkg_resources' not in Path(sys.modules[is_installed.__module__].__file__).read_text(),
    reason='this mmengine does without pkg_resources',
)
def test_mmengine_misses_pkg_resources_in_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / 'config.py'
    config.write_text('_base_ = ["mmdet::_base_/default_runtime.py"]')
    with pytest.raises(SetupError, match='pip install "setuptools<81"') as caught:
        Config.fromfile(config)
    assert '\n' not in str(caught.value)
    assert isinstance(caught.value, ModuleNotFoundError)
    assert caught.value.name == 'pkg_resources'


@pytest.mark.usefixtures('no_pkg_resources')
def test_others_miss_pkg_resources_as_usual() -> None:
    assert importlib.util.find_spec('pkg_resources') is None
    with pytest.raises(ModuleNotFoundError) as caught:
        import pkg_resources  # noqa: F401  (the import itself is the test)
    assert not isinstance(caught.value, SetupError)


def test_the_guard_comes_once_and_after_pythons_own_finders() -> None:
    environment.install()
    assert sys.meta_path.count(environment.PkgResourcesGuard) == 1
    guard = sys.meta_path.index(environment.PkgResourcesGuard)
    assert sys.meta_path.index(PathFinder) < guard
