"""Forks of a process that has imported everything but gfl_det, each with one module changed."""

from __future__ import annotations

import gc
import importlib.abc
import importlib.util
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Slow, or in processes that import the code as it is.
CHOSEN = 'not compile and not two_processes and not the_tool_trains'
# Plugins that cost a second in each fork and find nothing here.
LEFT_OUT = ('anyio', 'cacheprovider', 'unraisableexception', 'xdist')
BROKEN = 99  # status of a fork in which the tool itself failed


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from other code than its file's; the files stay as they are."""

    def __init__(self, path: Path, code: str) -> None:
        self.path, self.code = str(path), code
        parts = path.relative_to(ROOT).with_suffix('').parts
        self.name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.code.encode()

    def path_stats(self, path: str) -> dict[str, Any]:
        raise OSError  # no bytecode of the changed module is kept


class _Chosen:
    """Keeps the tests that run a line, in their order."""

    def __init__(self, tests: list[str]) -> None:
        self.place = {test: number for number, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        kept = [item for item in items if item.nodeid in self.place]
        items[:] = sorted(kept, key=lambda item: self.place[item.nodeid])


def run_pytest(files: list[str], plugin: Any) -> int:
    """Run test files without output, up to the first failure; return pytest's status."""
    os.chdir(ROOT)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with tempfile.TemporaryDirectory() as folder:
        options = [f'-pno:{name}' for name in LEFT_OUT]
        options += ['-x', '-q', '-k', CHOSEN, '--basetemp', f'{folder}/tests']
        return int(pytest.main([*options, *files], plugins=[plugin]))


def start_tests(path: Path, code: str, tests: list[str]) -> int:
    """Run tests on a module's changed code in a fork; return its process."""
    pid = os.fork()
    if pid:
        return pid
    status = BROKEN
    try:
        os.setpgid(0, 0)
        sys.meta_path.insert(0, Changed(path, code))
        files = list(dict.fromkeys(test.partition('::')[0] for test in tests))
        status = run_pytest(files, _Chosen(tests))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def import_what_is_not_ours() -> None:
    """Import what takes seconds, once for all forks; gfl_det itself must stay out."""
    import cv2  # noqa: F401
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import mmcv  # noqa: F401
    import mmengine.runner  # noqa: F401
    import pycocotools.coco  # noqa: F401
    import scipy.optimize  # noqa: F401
    import sklearn.cluster
    import sklearn.isotonic
    import sklearn.mixture  # noqa: F401
    import torch
    import torch._dynamo

    torch.set_num_threads(1)
    ours = [name for name in sys.modules if name.partition('.')[0] in ('gfl_det', 'tests')]
    assert not ours, ours
    gc.freeze()  # forks need not look through what lives on
