"""Checkpoint files: written with a checksum, selected for resuming, or reduced to weights."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from mmengine.fileio import LocalBackend, register_backend

from gfl_det.compat.checkpoint import is_archive, load_file
from gfl_det.errors import CheckpointError
from gfl_det.utils.files import AnyPath, is_intact, remove_whole, write_whole

LAST_CHECKPOINT = 'last_checkpoint'  # mmengine's file with the path of the newest checkpoint
CANNOT_LOAD = re.compile(r'cannot be loaded \(.*\)(?=:)', re.DOTALL)
Kind = Literal['averaged', 'trained']
AVERAGED = 'ema_state_dict'  # where mmengine's EMAHook keeps the trained weights: it swaps the two
WRAPPED = 'module.'


class Candidate(NamedTuple):
    """A checkpoint file with its progress, and the fault that makes it unusable, or None."""

    path: Path
    epoch: int
    iteration: int
    fault: str | None


class Choice(NamedTuple):
    """The newest valid checkpoint, or None, and newer ones that were skipped."""

    found: Candidate | None
    passed_over: list[Candidate]


def newest_checkpoint(work_dir: AnyPath) -> Choice:
    """Find the newest valid checkpoint with a training state.

    All ``*.pth`` files in the work dir and beside the file named in ``last_checkpoint`` are
    considered, because a run may be killed after writing a checkpoint and before updating that
    file. Files with weights only are ignored.

    Args:
        work_dir: Work dir, which may not exist.

    Raises:
        CheckpointError: If all checkpoints are damaged.
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
            'from the start, or give another with --resume.'
        )
    return Choice(None, [])


def best_checkpoint(work_dir: AnyPath) -> Path:
    """Return the best checkpoint of a work dir, else the newest valid one.

    Raises:
        CheckpointError: If the work dir has no checkpoint.
    """
    best = sorted(Path(work_dir).glob('best_*.pth'), key=lambda path: path.stat().st_mtime_ns)
    if best:
        return best[-1]
    newest = newest_checkpoint(work_dir).found
    if newest is None:
        raise CheckpointError(f'{work_dir} has no checkpoint: give one, or train first.')
    return newest.path


def choose_checkpoint(path: AnyPath, work_dir: AnyPath) -> Candidate:
    """Check a checkpoint that was given to resume from.

    Raises:
        CheckpointError: If it is missing, damaged or without training state; the message names the
            newest valid one in the work dir.
    """
    path = Path(path)
    if path.is_file():
        candidate = outline(path)
        if candidate is None:
            fault = 'holds weights but no training state: start from it with load_from'
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
    hint = 'check the path' if not path.exists() else 'give another, or train from the start'
    hint = f'the newest valid one in {work_dir} is {found.path}' if found else hint
    raise CheckpointError(f'--resume {path} {fault}; {hint}.')


def outline(path: Path) -> Candidate | None:
    """Read the metadata of a checkpoint, without its tensors.

    Returns:
        None for a file with weights only, from which a training cannot resume.
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
    """Read the whole checkpoint file; returns the candidate with any fault found."""
    if candidate.fault:
        return candidate
    intact = is_intact(candidate.path)
    if intact is False:
        return candidate._replace(fault='its content was changed (SHA-256 differs)')
    if intact is None:  # from another program: rely on the archive's CRC
        try:
            load_file(str(candidate.path), 'cpu')
            torn = _torn_member(candidate.path)
        except CheckpointError as error:
            return candidate._replace(fault=_reason(error))
        if torn:
            return candidate._replace(fault=f'its entry {torn} is damaged (CRC-32 differs)')
    return candidate


def _files(work_dir: Path) -> Iterator[Path]:
    folders = [work_dir]
    note = work_dir / LAST_CHECKPOINT
    if note.is_file():
        named = Path(note.read_text(errors='replace').strip())
        with suppress(OSError, ValueError):  # not a valid file name
            if named.is_file():
                folders.append(named.parent)  # set by CheckpointHook(out_dir=...)
    seen = set()
    for folder in folders:
        for path in sorted(folder.glob('*.pth')):
            if path.is_file() and path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _torn_member(path: Path) -> str | None:
    """Check the CRCs in torch's archives, which torch ignores."""
    if not is_archive(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except Exception:  # damaged headers may raise anything
        return 'with the central directory'


def _reason(error: CheckpointError) -> str:
    found = CANNOT_LOAD.search(str(error))
    return found[0] if found else str(error).rstrip('.')


class WholeFileBackend(LocalBackend):
    """mmengine's backend for local files, with :func:`write_whole` and a checksum."""

    NAME = 'gfl_det.whole_file'

    def put(self, obj: bytes, filepath: AnyPath) -> None:
        """Write bytes to a file, with a checksum beside it."""
        write_whole(filepath, obj, checksum=True)

    def put_text(self, obj: str, filepath: AnyPath, encoding: str = 'utf-8') -> None:
        """Write text to a file, with a checksum beside it."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: AnyPath) -> None:
        """Remove a file and its checksum."""
        remove_whole(filepath)


register_backend(WholeFileBackend.NAME, WholeFileBackend, force=True)


def extract_weights(checkpoint: str, out: str, kind: Kind | None = None) -> dict[str, Any]:
    """Extract the weights of a checkpoint to a file, with a checksum beside it.

    Args:
        checkpoint: Checkpoint of a training.
        out: Output file.
        kind: Kind of weights; None for those that tests use.

    Returns:
        Metadata of the weights: ``kind``, ``epoch``, ``iter``, and classes and config if available.

    Raises:
        CheckpointError: If the checkpoint lacks these weights, or the file cannot be written.
    """
    content = take_weights(load_file(checkpoint, 'cpu'), checkpoint, kind)
    with io.BytesIO() as file:
        torch.save(content, file)
        write_whole(out, file.getvalue(), checksum=True)
    return content['meta']


def take_weights(checkpoint: dict[str, Any], name: str, kind: Kind | None = None) -> dict[str, Any]:
    """Return a checkpoint with weights only.

    Args:
        checkpoint: Content of a training checkpoint.
        name: File name, for error messages.
        kind: Kind of weights; None for those that tests use.

    Raises:
        CheckpointError: If the checkpoint lacks these weights.
    """
    if 'state_dict' not in checkpoint:
        raise CheckpointError(f'{name} is not a training checkpoint: it has no state_dict.')
    has_averages = AVERAGED in checkpoint
    if kind == 'averaged' and not has_averages:
        raise CheckpointError(
            f'{name} has no averaged weights: the training had no EMAHook; leave out --kind.'
        )
    weights = checkpoint['state_dict']
    if kind == 'trained' and has_averages:
        weights = {
            key.removeprefix(WRAPPED): value
            for key, value in checkpoint[AVERAGED].items()
            if key.startswith(WRAPPED)  # skips the EMA step counter
        }
    found = 'averaged' if has_averages and kind != 'trained' else 'trained'
    meta = checkpoint.get('meta', {})
    known = {key: meta.get(key) for key in ('epoch', 'iter', 'dataset_meta', 'cfg') if key in meta}
    return dict(meta=dict(dict(epoch=None, iter=None) | known, kind=found), state_dict=weights)
