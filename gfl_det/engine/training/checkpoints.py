"""Checkpoint files: written whole with a checksum, and chosen when a training resumes."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mmengine.fileio import LocalBackend, register_backend

from gfl_det.compat.checkpoint import is_archive, load_file
from gfl_det.errors import CheckpointError
from gfl_det.utils.files import AnyPath, is_intact, remove_whole, write_whole

LAST_CHECKPOINT = 'last_checkpoint'  # mmengine's file with the path of the newest
CANNOT_LOAD = re.compile(r'cannot be loaded \(.*\)(?=:)', re.DOTALL)


class Candidate(NamedTuple):
    """A checkpoint file: how far it had come, and why it cannot be used, or None."""

    path: Path
    epoch: int
    iteration: int
    fault: str | None


class Choice(NamedTuple):
    """The newest good checkpoint, or None, and the newer ones that were passed over."""

    found: Candidate | None
    passed_over: list[Candidate]


def newest_checkpoint(work_dir: AnyPath) -> Choice:
    """Find the newest checkpoint that is whole and holds the state of a training.

    Looks at every ``*.pth`` in the work dir and beside the file that ``last_checkpoint`` names, for
    a run may have been killed after a checkpoint was written and before that was noted. Files of
    weights alone are left aside.

    Args:
        work_dir: It may be missing.

    Raises:
        CheckpointError: There are damaged checkpoints, and no good one.
    """
    outlines = [outline(path) for path in _files(Path(work_dir))]
    newest_first = sorted(
        (each for each in outlines if each is not None),
        key=lambda each: (each.iteration, each.path.stat().st_mtime_ns),
        reverse=True,
    )
    damaged = [each for each in newest_first if each.fault]
    for candidate in newest_first:
        if candidate.fault:
            continue
        candidate = verify(candidate)
        if candidate.fault is None:
            return Choice(candidate, damaged)
        damaged.append(candidate)
    if damaged:
        reasons = '; '.join(f'{each.path}: {each.fault}' for each in damaged)
        raise CheckpointError(
            f'No checkpoint in {work_dir} can be resumed from ({reasons}): remove them to train '
            'from the start, or name another with --resume.'
        )
    return Choice(None, [])


def choose_checkpoint(path: AnyPath, work_dir: AnyPath) -> Candidate:
    """Check a checkpoint that was named to go on from.

    Raises:
        CheckpointError: It is missing, damaged or no state of a training; the newest good one in
            the work dir is told.
    """
    path = Path(path)
    if path.is_file():
        candidate = outline(path)
        if candidate is None:
            fault = 'holds weights and no training state: start from it with load_from'
        else:
            candidate = verify(candidate)
            if candidate.fault is None:
                return candidate
            fault = f'cannot be resumed from: {candidate.fault}'
    else:
        fault = 'is a folder' if path.is_dir() else 'does not exist'
    try:
        found = newest_checkpoint(work_dir).found
    except CheckpointError:
        found = None
    hint = 'check the path' if not path.exists() else 'name another, or train from the start'
    hint = f'the newest good one in {work_dir} is {found.path}' if found else hint
    raise CheckpointError(f'--resume {path} {fault}; {hint}.')


def outline(path: Path) -> Candidate | None:
    """Look at what a checkpoint says of itself, without reading its tensors.

    Returns:
        None for a file of weights alone, with which no training can go on.
    """
    try:
        checkpoint = load_file(str(path), 'cpu', mmap=is_archive(path))
    except CheckpointError as error:
        return Candidate(path, -1, -1, _reason(error))
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict) or not {'optimizer', 'state_dict'} <= checkpoint.keys():
        return None
    epoch, iteration = meta.get('epoch'), meta.get('iter')
    if not isinstance(epoch, int) or not isinstance(iteration, int):
        return None
    return Candidate(path, epoch, iteration, None)


def verify(candidate: Candidate) -> Candidate:
    """Read all of a checkpoint's file; returns the candidate with the fault that was found."""
    if candidate.fault:
        return candidate
    intact = is_intact(candidate.path)
    if intact is False:
        return candidate._replace(fault='its content is not what was written (SHA-256 differs)')
    if intact is None:  # written by another program: the archive's own sums must do
        try:
            load_file(str(candidate.path), 'cpu')
            torn = _torn_member(candidate.path)
        except CheckpointError as error:
            return candidate._replace(fault=_reason(error))
        if torn:
            return candidate._replace(fault=f'its part {torn} is damaged (CRC-32 differs)')
    return candidate


def _files(work_dir: Path) -> Iterator[Path]:
    folders = [work_dir]
    note = work_dir / LAST_CHECKPOINT
    if note.is_file():
        named = Path(note.read_text(errors='replace').strip())
        with suppress(OSError, ValueError):  # no possible name of a file
            if named.is_file():
                folders.append(named.parent)  # CheckpointHook(out_dir=...) writes elsewhere
    seen = set()
    for folder in folders:
        for path in sorted(folder.glob('*.pth')):
            if path.is_file() and path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _torn_member(path: Path) -> str | None:
    """Check the sums inside torch's archives, which torch itself does not look at."""
    if not is_archive(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except Exception:  # damaged headers fail in any way
        return 'with the list of parts'


def _reason(error: CheckpointError) -> str:
    found = CANNOT_LOAD.search(str(error))
    return found[0] if found else str(error).rstrip('.')


class WholeFileBackend(LocalBackend):
    """mmengine's backend for local files, writing by :func:`write_whole` with a checksum."""

    NAME = 'gfl_det.whole_file'

    def put(self, obj: bytes, filepath: AnyPath) -> None:
        """Write bytes to a file and their checksum beside it."""
        write_whole(filepath, obj, checksum=True)

    def put_text(self, obj: str, filepath: AnyPath, encoding: str = 'utf-8') -> None:
        """Write text to a file and its checksum beside it."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: AnyPath) -> None:
        """Remove a file and its checksum."""
        remove_whole(filepath)


register_backend(WholeFileBackend.NAME, WholeFileBackend, force=True)
