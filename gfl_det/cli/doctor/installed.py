"""Checks of installed packages by pip's records, of folders, and of shared memory.

Only the standard library is imported. Run as a program, ``-m gfl_det.cli.doctor.installed FILE``,
it imports the packages one by one and records which of them fails or crashes: each step is recorded
before it starts and when it ends.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from gfl_det.compat.imports import LINES, RANGES, SETUPTOOLS_LINE, explain
from gfl_det.errors import GFLDetError

TIME_LIMIT = 300  # seconds; from a cold disk, importing torch alone may take a minute
ROOT = Path(__file__).resolve().parents[3]


class StepOutcome(NamedTuple):
    """Outcome of a step."""

    name: str
    ok: bool
    seconds: float
    facts: dict[str, Any]  # findings
    error: str = ''  # the problem, and the remedy if known


class Steps:
    """Recorder of steps to a file, in the child process."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> Steps:
        self.file = open(self.path, 'w', encoding='utf-8')
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def take(self, name: str, step: Callable[[], dict[str, Any]]) -> bool:
        """Run a step; return whether it succeeded."""
        self._write(name=name, begun=True)
        begin = time.perf_counter()
        error, facts = '', {}
        try:
            facts = step()
        except GFLDetError as refusal:
            error = str(refusal)
        except (Exception, SystemExit) as failure:
            error = f'{type(failure).__name__}: {failure}'
        seconds = time.perf_counter() - begin
        self._write(name=name, ok=not error, seconds=seconds, facts=facts, error=error)
        return not error

    def _write(self, **line: Any) -> None:
        self.file.write(json.dumps(line) + '\n')
        self.file.flush()  # a crash must not lose the line


def run_steps(arguments: Sequence[str], time_limit: float = TIME_LIMIT) -> list[StepOutcome]:
    """Run a child process with steps, and read their outcomes.

    Args:
        arguments: Arguments for Python; the output file is appended.
        time_limit: Time limit, seconds.

    Returns:
        Outcomes in order. If the child crashed or timed out, the last step is the cause.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'steps'
        command = [sys.executable, *arguments, str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=time_limit, check=False
            )
            end, said = _manner(done.returncode), done.stderr.strip().rpartition('\n')[2]
        except subprocess.TimeoutExpired:
            end, said = f'did not end within {time_limit:.0f} seconds', ''
        lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    outcomes = []
    begun = ''
    for line in map(json.loads, lines):
        if line.get('begun'):
            begun = line['name']
            continue
        outcomes.append(StepOutcome(**line))
        begun = ''
    if begun or not lines:
        what = ' '.join(
            part for part in (end or 'ended early', f'({said})' if said else '') if part
        )
        outcomes.append(StepOutcome(begun or 'python', False, 0, {}, f'the process {what}'))
    return outcomes


def _manner(status: int) -> str:
    if status >= 0:
        return f'ended with status {status}' if status else ''
    try:
        return f'was ended by {signal.Signals(-status).name}'
    except ValueError:
        return f'was ended by signal {-status}'


State = Literal['ok', 'note', 'problem']
OLDEST_PYTHON = (3, 10)
# Distributions that may provide a module; the onedl forks keep the module names.
DISTRIBUTIONS = {
    'torch': ('torch',),
    'numpy': ('numpy',),
    'cv2': ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python'),
    'pycocotools': ('pycocotools',),
    'sklearn': ('scikit-learn',),
    'scipy': ('scipy',),
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
}
FORK = 'onedl-'
GIB = 2**30
LITTLE_ROOM = 1 * GIB  # disk space for a training with a few checkpoints of GFL R50
LITTLE_SHARED_MEMORY = GIB // 4  # with the 64 MiB of containers, workers die with a bus error


class Check(NamedTuple):
    """Result of a check."""

    name: str
    state: State
    text: str  # what is installed, or the problem
    cure: str = ''  # the exact command to run


def check_installed() -> list[Check]:
    """Check Python, versions and duplicates of packages, and ``pkg_resources``."""
    fits = sys.version_info >= OLDEST_PYTHON
    python = f'{platform.python_version()} in {sys.prefix}'
    checks = [
        Check('python', 'ok', python)
        if fits
        else Check('python', 'problem', f'{python}: 3.10 is the oldest', 'python3.11 -m venv .venv')
    ]
    checks += [check_package(module, names) for module, names in DISTRIBUTIONS.items()]
    return [*checks, check_pkg_resources()]


def check_package(module: str, names: Sequence[str]) -> Check:
    """Check that a package is installed exactly once, with a version in the supported range.

    Args:
        module: Module name.
        names: Distributions that may provide the module.
    """
    found = {name: version for name in names if (version := _version(name))}
    line = LINES.get(module, f'pip install {names[0]}')
    if not found:
        if find_spec(module) is not None:
            return Check(module, 'note', 'there, but pip does not know it')
        return Check(module, 'problem', 'not installed', line)
    text = ', '.join(f'{version} ({name})' for name, version in found.items())
    if module == 'mmcv' and len(found) > 1:
        cure = f'pip uninstall -y {" ".join(found)}; {line}'
        return Check(module, 'problem', f'{text}: they overwrite each other', cure)
    name, version = next(iter(found.items()))
    known = RANGES.get(module)
    if name.startswith(FORK):
        return Check(module, 'note', f'{text}: a fork, not among the versions tested together')
    if known is not None and not known.holds(version):
        cure = f'pip uninstall -y {name}; {line}' if module == 'mmcv' else line
        return Check(module, 'problem', f'{text}: gfl_det needs {module}{known}', cure)
    return Check(module, 'ok', text)


def check_pkg_resources() -> Check:
    """Check for the module with which mmengine 0.10 finds configs of other packages."""
    name, version = 'setuptools', _version('setuptools')
    if find_spec('pkg_resources') is not None:
        return Check(name, 'ok', f'{version} (has pkg_resources)')
    spec = find_spec('mmengine')
    folders = list((spec and spec.submodule_search_locations) or [])
    users = [Path(folder) / 'utils' / 'package_utils.py' for folder in folders]
    if any(path.is_file() and 'pkg_resources' in path.read_text() for path in users):
        text = f'{version or "not installed"}: no pkg_resources, which mmengine needs for "mmdet::"'
        return Check(name, 'problem', text, SETUPTOOLS_LINE)
    return Check(name, 'ok', f'{version}; this mmengine needs no pkg_resources')


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_places() -> list[Check]:
    """Check the folders that commands write to, and the shared memory of data workers."""
    home = Path(os.environ.get('TORCH_HOME') or Path.home() / '.cache' / 'torch')
    places = {
        'work dirs': (Path('work_dirs'), '--work-dir FOLDER'),
        'weights': (home, 'export TORCH_HOME=FOLDER'),
        'temporary files': (Path(tempfile.gettempdir()), 'export TMPDIR=FOLDER'),
    }
    checks = [check_place(name, path, cure) for name, (path, cure) in places.items()]
    shared = Path('/dev/shm')
    if shared.is_dir():
        total = shutil.disk_usage(shared).total
        small = total < LITTLE_SHARED_MEMORY
        checks.append(
            Check(
                'shared memory',
                'problem' if small else 'ok',
                f'{total / GIB:.2f} GiB{": data workers may die of a bus error" if small else ""}',
                'docker run --shm-size=8g ...' if small else '',
            )
        )
    return checks


def check_place(name: str, folder: Path, cure: str) -> Check:
    """Check that a folder, or its nearest existing parent, is writable. Leaves no files.

    Args:
        name: Purpose of the folder.
        folder: Path of the folder, which need not exist.
        cure: How to choose another folder.
    """
    path = folder.absolute()
    existing = next(each for each in (path, *path.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Check(name, 'problem', f'{path} cannot be written ({reason})', cure)
    free = shutil.disk_usage(existing).free
    text = f'{path}, {free / GIB:.1f} GiB free'
    if free < LITTLE_ROOM:
        return Check(name, 'problem', f'{text}: too little for checkpoints', cure)
    return Check(name, 'ok', text)


def import_one(name: str) -> dict[str, str]:
    """Import a package.

    Returns:
        Version of the package.

    Raises:
        SetupError: If the import fails; the message explains the failure.
    """
    try:
        module = importlib.import_module(name)
    except Exception as error:
        said = explain(error)
        if said is None:
            raise
        raise said from error
    return {'version': str(getattr(module, '__version__', ''))}


def main() -> None:
    """Run the steps."""
    with Steps(sys.argv[1]) as steps:
        for name in DISTRIBUTIONS:
            steps.take(name, partial(import_one, name))


if __name__ == '__main__':
    main()
