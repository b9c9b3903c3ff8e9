"""The tools, run in processes of their own that need not import torch and mmdet again.

A server imports them once; each tool runs in a fork of it, as ``python tools/NAME.py`` would from
there on. Starting from nothing is tested where it matters: test_compat_ops.py, test_doctor.py,
test_packaging.py, and the shell scripts in test_tools.py.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import random
import runpy
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from tests.helpers.paths import ROOT

SECONDS = 300  # a tool that takes longer hangs

START = 'forkserver'
# Optimizers import torch._dynamo, for seconds.
_servers = multiprocessing.get_context(START)
_servers.set_forkserver_preload(['gfl_det', 'torch._dynamo', 'tests.helpers.remembered'])


def run_tool(
    name: str, *words: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python tools/NAME.py WORDS`` in a folder.

    Args:
        name: of the tool, without ``.py``.
        *words: of the command line.
        cwd: The folder.
        **environment: Variables beyond those of the tests; no proxies, and none can be reached.
    """
    return _run_file(ROOT / 'tools' / f'{name}.py', words, cwd, environment)


def run_command(
    *words: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``gfl-det WORDS`` in a folder; otherwise as :func:`run_tool`."""
    return _run_file(ROOT / 'gfl_det' / '__main__.py', words, cwd, environment)


def _run_file(
    path: Path, words: Sequence[object], cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [str(path), *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, stream) for stream in ('stdout', 'stderr')]
        settings = (command, str(cwd), variables(cwd, environment), outputs)
        process = _servers.Process(target=_run, args=settings)
        process.start()
        process.join(SECONDS)
        texts = [Path(path).read_text() for path in outputs]
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, SECONDS, *texts)
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


@contextlib.contextmanager
def running_tool(
    name: str, *words: object, cwd: Path, **environment: str
) -> Iterator[tuple[BaseProcess, Path]]:
    """``python tools/NAME.py WORDS`` while it runs, and the file of its standard output."""
    command = [str(ROOT / 'tools' / f'{name}.py'), *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, stream) for stream in ('stdout', 'stderr')]
        for path in outputs:
            Path(path).touch()
        settings = (command, str(cwd), variables(cwd, environment), outputs)
        process = _servers.Process(target=_run, args=settings)
        process.start()
        try:
            yield process, Path(outputs[0])
        finally:
            process.kill()
            process.join()


def shown_by(path: Path, **environment: str) -> bytes:
    """What a terminal shows that ``python PATH`` runs in, to its end."""
    ours, theirs = os.openpty()
    terminal = os.ttyname(theirs)
    settings = ([str(path)], str(path.parent), variables(path.parent, environment), [terminal] * 2)
    process = _servers.Process(target=_run, args=settings)
    process.start()
    shown, end = b'', time.monotonic() + SECONDS
    while (process.is_alive() and time.monotonic() < end) or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            shown += os.read(ours, 4096)
    process.kill()
    process.join()
    os.close(ours)
    os.close(theirs)
    return shown


def run_script(
    name: str, *words: object, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``tools/NAME`` from nothing; otherwise as :func:`run_tool`."""
    return subprocess.run(
        [str(ROOT / 'tools' / name), *map(str, words)],
        cwd=cwd,
        env=variables(cwd, environment),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def variables(cwd: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment of a tool: no display, and any attempt to reach a host fails at once."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith('_proxy')}
    paths = dict(PYTHONPATH=str(ROOT), PYTHON=sys.executable, https_proxy='http://127.0.0.1:9')
    paths['TORCH_HOME'] = str(cwd / 'cache')
    return kept | paths | dict(OMP_NUM_THREADS='1', MPLBACKEND='Agg') | environment


def _run(command: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    for stream, path in zip((1, 2), outputs):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    script = Path(command[0])
    first = cwd if script.name == '__main__.py' else str(script.parent)  # as Python does
    sys.path[:0] = [first, *environment['PYTHONPATH'].split(os.pathsep)]
    sys.argv = command
    for module in (random, np.random):
        module.seed()  # the server's numbers would be the same in each of its forks
    status: int | str | None = 0
    try:
        runpy.run_path(command[0], run_name='__main__')
    except SystemExit as end:
        status = end.code
    atexit._run_exitfuncs()  # as Python does at its end; a fork of multiprocessing does not
    sys.exit(status)
