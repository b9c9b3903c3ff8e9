"""Where a figure comes from: the code's commit, the processor, the versions."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import gfl_det

ROOT = Path(__file__).parents[1]
CODE = ('gfl_det', 'configs', 'projects/*.py')


def processor() -> str:
    """Name of the processor."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    return dict(
        processor=processor(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        mmdet=version('mmdet'),
        gfl_det=gfl_det.__version__,
        python=platform.python_version(),
    )


def commit() -> str:
    """The checkout's commit, with a plus where code differs from it; empty outside one."""

    def ask(*words: str) -> str:
        done = subprocess.run(
            ['git', '-C', str(ROOT), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = ask('status', '--porcelain', '-uno', '--', *CODE)
    return ask('rev-parse', '--short=12', 'HEAD') + ('+' if changed else '')


def commit_at_start(work_dir: Path) -> str:
    """The commit at which the training in a work dir began, however often it was cut."""
    path = work_dir / 'commit.txt'
    if not path.is_file():
        work_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(commit())
    return path.read_text()


def provenance() -> dict[str, Any]:
    """Commit and machine, for a file of results."""
    return dict(commit=commit(), machine=machine())
