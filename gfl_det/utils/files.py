"""Atomic writing of files: after a crash or on a full disk, the old or the new content is intact.

Errors name what cannot be written, before the work if possible.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union
from uuid import uuid4

from gfl_det.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer

PART_ENDING = '.part'  # matches no pattern of checkpoints
PART_NAME = 40  # characters kept of the file's name, which may have the maximum length
SUM_ENDING = '.sha256'
BLOCK_BYTES = 1 << 20
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

AnyPath = Union[str, os.PathLike[str]]


@contextmanager
def writing(path: AnyPath) -> Iterator[Path]:
    """Create a file's folder, and explain errors while the file is written.

    Raises:
        DataError: If the file or its folder cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield target
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f'{path} cannot be written ({reason}): name another file.') from error


def check_writable(path: AnyPath, inputs: Iterable[AnyPath | None] = ()) -> None:
    """Check before the work that a file can be written; its folder is created.

    Args:
        path: Output file.
        inputs: Files that the same command reads, so that none of them is replaced; None entries
            are skipped.

    Raises:
        DataError: If the file or its folder cannot be written, or the file is one of the inputs.
    """
    for each in inputs:
        if each is not None and os.path.realpath(each) == os.path.realpath(path):
            raise DataError(f'{path} is an input of this command: name another file to write.')
    with writing(path) as target:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(target if target.exists() else target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def make_folder(folder: AnyPath) -> Path:
    """Create a folder for files, including its parents.

    Raises:
        DataError: If the folder cannot be created or is not writable.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = 'it is a file' if target.is_file() else error.strerror or error
        raise DataError(f'The folder {target} cannot be made ({reason}): name another.') from error
    if not os.access(target, os.W_OK | os.X_OK):
        raise DataError(f'The folder {target} is not writable: name another.')
    return target


def write_text(path: AnyPath, content: str) -> None:
    """Write text atomically: readers see either the old or the new content in full.

    The file's folder is created. Files that cannot be replaced (devices, pipes, files in a
    read-only folder) are written in place.

    Raises:
        DataError: If the file or its folder cannot be written; the old content remains.
    """
    with writing(path) as named:
        target = Path(os.path.realpath(named))
        is_fixed = target.exists() and not os.access(target.parent, os.W_OK)
        _replace(target, content.encode('utf-8'), in_place=is_fixed)


def write_json(path: AnyPath, content: Any, indent: int | None = None) -> None:
    """Write plain values as standard JSON, atomically like :func:`write_text`.

    NaN and infinity, which JSON lacks, become null.

    Args:
        path: Path of the file.
        content: Dicts, lists, tuples, strings and numbers.
        indent: Spaces per level; None writes one line.

    Raises:
        DataError: If the file or its folder cannot be written.
    """
    write_text(path, json.dumps(_finite(content), indent=indent, allow_nan=False) + '\n')


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: AnyPath, content: bytes, checksum: bool = False) -> None:
    """Write a file that must not be lost, such as a checkpoint, atomically and never in place.

    Args:
        path: Path of the file; its old content stays until the new one is on disk.
        content: Full content.
        checksum: Also write the SHA-256 beside the file.

    Raises:
        CheckpointError: If the file cannot be written; its old content remains.
    """
    target = Path(os.path.realpath(path))
    with _explained(Path(path), len(content)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, content, checksum)


def write_blocks(path: AnyPath, blocks: Iterable[Buffer]) -> None:
    """Write a large file atomically, block by block; an OSError leaves the old content.

    The target appears complete and on disk, or not at all.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _flushed_part(target, blocks) as part:
        _settle(part, target)


def is_intact(path: AnyPath) -> bool | None:
    """Whether a file matches its checksum.

    Returns:
        True or False; None if there is no checksum beside the file.
    """
    path = Path(path)
    sums = _sums(path)
    return file_sum(path) in sums if sums else None


def file_sum(path: AnyPath) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def remove_whole(path: AnyPath) -> None:
    """Remove a file, then its checksum; a checksum without a file does no harm."""
    for each in (Path(path), _sum_path(Path(path))):
        each.unlink(missing_ok=True)


def clear_parts(folder: AnyPath) -> list[Path]:
    """Remove and return the partial files that killed writers left in a folder."""
    parts = sorted(Path(folder).glob(f'*{PART_ENDING}'))
    for part in parts:
        part.unlink(missing_ok=True)
    return parts


def _replace(target: Path, content: bytes, checksum: bool = False, in_place: bool = False) -> None:
    """Replace a file's content: write a file beside it, flush it to disk, rename it.

    Args:
        target: Resolved path, so links are kept; devices and pipes are written directly.
        content: Full content.
        checksum: Write the SHA-256 beside the file; otherwise remove an old one.
        in_place: Overwrite the file if none can be created beside it.
    """
    if in_place or (target.exists() and not target.is_file()):
        target.write_bytes(content)
        return
    with _flushed_part(target, content) as part:
        if checksum:
            _settle_summed(part, target, hashlib.sha256(content).hexdigest())
        else:
            if os.path.exists(_sum_path(target)):
                _sum_path(target).unlink(missing_ok=True)
            _settle(part, target)


def _settle_summed(part: Path, path: Path, new: str) -> None:
    """Rename while the checksums of both contents exist, so that either content can be verified."""
    old = _sums(path) if path.exists() else []
    unsummed = path.exists() and not old  # with only the new checksum, it would look damaged
    if not unsummed:
        _write_sums(path, [*old, new])
    _settle(part, path)
    if old or unsummed:
        _write_sums(path, [new])


def _write_sums(path: Path, sums: list[str]) -> None:
    text = ''.join(f'{each}  {path.name}\n' for each in dict.fromkeys(sums))
    with _flushed_part(_sum_path(path), text.encode()) as part:
        _settle(part, _sum_path(path))


def _sum_path(path: Path) -> Path:
    return path.with_name(path.name + SUM_ENDING)


def _sums(path: Path) -> list[str]:
    try:
        lines = _sum_path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line.split()[0] for line in lines if line.strip()]


@contextmanager
def _flushed_part(target: Path, content: bytes | Iterable[Buffer]) -> Iterator[Path]:
    """Yield a file beside the target with the content, on disk, and the target's permissions."""
    part = target.with_name(f'{target.name[:PART_NAME]}.{uuid4().hex[:8]}{PART_ENDING}')
    try:
        with open(part, 'xb') as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, part)
        yield part
    finally:
        part.unlink(missing_ok=True)


def _settle(part: Path, path: Path) -> None:
    """Rename, and flush the folder so that a power cut cannot undo it."""
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _explained(path: Path, size: int) -> Iterator[None]:
    """Explain a failed write: the file, the reason and the space needed."""
    try:
        yield
    except OSError as error:
        cure = 'make the folder writable, or name another with --work-dir'
        if error.errno in FULL_DISK:
            free = shutil.disk_usage(path.parent).free
            cure = (
                f'it needs {_megabytes(size)} and {_megabytes(free)} are free: free some space and '
                'continue with --resume, earlier files are intact'
            )
        raise CheckpointError(f'{path} cannot be written ({error.strerror}): {cure}.') from error


def _megabytes(size: int) -> str:
    return f'{size / 1e6:,.1f} MB'
