"""Files written whole: after a crash or on a full disk, either the old content is there or the new.

What cannot be written is told in one sentence, before the work where possible.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union
from uuid import uuid4

from gfl_det.errors import CheckpointError, DataError

PART_ENDING = '.part'  # no checkpoint: no pattern of checkpoints ends with it
PART_NAME = 40  # characters of the file's name in its part's: names may be as long as allowed
SUM_ENDING = '.sha256'
BLOCK_BYTES = 1 << 20
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

AnyPath = Union[str, os.PathLike[str]]


@contextmanager
def writing(path: AnyPath) -> Iterator[Path]:
    """Make a file's folder, to write the file then.

    Raises:
        DataError: the file or its folder cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield target
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f'{path} cannot be written ({reason}): name another file.') from error


def check_writable(path: AnyPath) -> None:
    """Refuse what could not be written after the work; the file's folder is made.

    Raises:
        DataError: the file or its folder cannot be written.
    """
    with writing(path) as target:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(target if target.exists() else target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def make_folder(folder: AnyPath) -> Path:
    """Make a folder for files, with those that it lies in.

    Raises:
        DataError: it cannot be made, or no file in it.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = 'it is a file' if target.is_file() else error.strerror or error
        raise DataError(f'The folder {target} cannot be made ({reason}): name another.') from error
    if not os.access(target, os.W_OK | os.X_OK):
        raise DataError(f'The folder {target} may not be written: name another.')
    return target


def write_text(path: AnyPath, content: str) -> None:
    """Write text so that whoever opens the file finds the old content or the new one, whole.

    The file's folder is made. In place is written what cannot be replaced: a device, a pipe, a file
    in a folder that is not writable.

    Raises:
        DataError: the file or its folder cannot be written; what is replaced is still there.
    """
    with writing(path) as named:
        target = Path(os.path.realpath(named))
        is_fixed = target.exists() and not os.access(target.parent, os.W_OK)
        _replace(target, content.encode('utf-8'), in_place=is_fixed)


def write_json(path: AnyPath, content: Any, indent: int | None = None) -> None:
    """Write plain values as JSON that every reader accepts, whole as :func:`write_text` does.

    JSON has no word for NaN and infinity: they are written as null.

    Args:
        path: of the file.
        content: of dicts, lists, tuples, texts and numbers.
        indent: None for one line.

    Raises:
        DataError: the file or its folder cannot be written.
    """
    write_text(path, json.dumps(_finite(content), indent=indent, allow_nan=False) + '\n')


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: AnyPath, content: bytes, checksum: bool = False) -> None:
    """Write a file that must not be lost, such as a checkpoint: whole, and never in place.

    Args:
        path: The file; what it held before stays until the new content is on the disk.
        content: All of it.
        checksum: Write its SHA-256 beside it as well.

    Raises:
        CheckpointError: It cannot be written; what it held before is still there.
    """
    target = Path(os.path.realpath(path))
    with _explained(Path(path), len(content)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, content, checksum)


def is_intact(path: AnyPath) -> bool | None:
    """Tell whether a file has the content that was written.

    Returns:
        None where no checksum lies beside it.
    """
    path = Path(path)
    sums = _sums(path)
    return file_sum(path) in sums if sums else None


def file_sum(path: AnyPath) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def remove_whole(path: AnyPath) -> None:
    """Remove a file and its checksum, the file first: a sum without a file misleads nobody."""
    for each in (Path(path), _sum_path(Path(path))):
        each.unlink(missing_ok=True)


def clear_parts(folder: AnyPath) -> list[Path]:
    """Remove what writers that were killed have left in a folder; return what it was."""
    parts = sorted(Path(folder).glob(f'*{PART_ENDING}'))
    for part in parts:
        part.unlink(missing_ok=True)
    return parts


def _replace(target: Path, content: bytes, checksum: bool = False, in_place: bool = False) -> None:
    """Put content in the place of a file's: write it beside, flush it to the disk, rename.

    Args:
        target: The file itself, so that a link to it stays one; devices and pipes are written to.
        content: All of it.
        checksum: Leave its SHA-256 beside it; otherwise none, not even that of the old content.
        in_place: Overwrite the file, where no other can be made beside it.
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
    """Rename while the sums of both contents lie beside: each of them is then known to be whole."""
    old = _sums(path) if path.exists() else []
    unsummed = path.exists() and not old  # beside the new sum alone it would look damaged
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
def _flushed_part(target: Path, content: bytes) -> Iterator[Path]:
    """Yield a file beside the target with the content on the disk and the target's permissions."""
    part = target.with_name(f'{target.name[:PART_NAME]}.{uuid4().hex[:8]}{PART_ENDING}')
    try:
        with open(part, 'xb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, part)
        yield part
    finally:
        part.unlink(missing_ok=True)


def _settle(part: Path, path: Path) -> None:
    """Rename, and flush the folder: until then a power cut may undo the renaming."""
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _explained(path: Path, size: int) -> Iterator[None]:
    """Say of a failed write what was written where, and what it would have needed."""
    try:
        yield
    except OSError as error:
        cure = 'make the folder writable, or name another with --work-dir'
        if error.errno in FULL_DISK:
            free = shutil.disk_usage(path.parent).free
            cure = (
                f'it needs {_megabytes(size)} and {_megabytes(free)} are free: make room and go '
                'on with --resume, nothing written before is lost'
            )
        raise CheckpointError(f'{path} cannot be written ({error.strerror}): {cure}.') from error


def _megabytes(size: int) -> str:
    return f'{size / 1e6:,.1f} MB'
