"""Which folders can be written, and how much room there is."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from gfl_det.cli.doctor.checks import Check

GIB = 2**30
LITTLE_ROOM = 1 * GIB  # a training with a few checkpoints of GFL R50 takes as much
LITTLE_SHARED_MEMORY = GIB // 4  # containers give 64 MiB, and workers then die with a bus error


def check_places() -> list[Check]:
    """Check the folders that the tools write to, and the memory that data workers share."""
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
    """Check that a folder, or the nearest one above it, takes a file. Nothing stays behind.

    Args:
        name: What the folder is for.
        folder: It need not exist.
        cure: How to choose another.
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
