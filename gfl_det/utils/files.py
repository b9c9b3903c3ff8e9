"""Files that tools write: one sentence where that fails, before the work where possible."""

from __future__ import annotations

import contextlib
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

from mmengine.fileio import LocalBackend, register_backend

from gfl_det.errors import CheckpointError, DataError


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
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


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse what could not be written after the work; the file's folder is made.

    Raises:
        DataError: the file or its folder cannot be written.
    """
    with writing(path) as target:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(target if target.exists() else target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def make_folder(folder: str | os.PathLike[str]) -> Path:
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


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write text so that whoever opens the file finds the old content or the new one, whole.

    It is written beside the file, flushed to the disk and renamed; the file's folder is made. In
    place is written what cannot be replaced: a device, a pipe, a file in a folder that is not
    writable.

    Raises:
        DataError: the file or its folder cannot be written; what is replaced is still there.
    """
    with writing(path) as named:
        target = Path(os.path.realpath(named))  # a link stays a link
        there = target.exists()
        if there and not (target.is_file() and os.access(target.parent, os.W_OK)):
            target.write_text(content, encoding='utf-8')
            return
        part = target.with_name(f'{target.name[:40]}.{uuid4().hex[:8]}.part')
        try:
            with open(part, 'x', encoding='utf-8') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if there:
                shutil.copymode(target, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = None) -> None:
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


PART_ENDING = '.part'  # no checkpoint: no pattern of checkpoints ends with it
SUM_ENDING = '.sha256'
BLOCK_BYTES = 1 << 20
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

AnyPath = Union[str, Path]


def write_whole(path: AnyPath, content: bytes, checksum: bool = False) -> None:
    """Write a file so that no crash, full disk or kill leaves a part of it under its name.

    Args:
        path: The file; what it held before stays until the new content is on the disk.
        content: All of it.
        checksum: Write its SHA-256 beside it as well.

    Raises:
        CheckpointError: It cannot be written; what it held before is still there.
    """
    path = Path(path)
    with _explained(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _write_part(path, content)
        try:
            if checksum:
                _replace_summed(part, path, hashlib.sha256(content).hexdigest())
            else:
                _sum_path(path).unlink(missing_ok=True)  # of the old content
                _settle(part, path)
        finally:
            part.unlink(missing_ok=True)


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


def _replace_summed(part: Path, path: Path, new: str) -> None:
    old = _sums(path) if path.exists() else []
    unsummed = path.exists() and not old  # beside the new sum alone it would look damaged
    if not unsummed:
        _write_sums(path, [*old, new])
    _settle(part, path)
    if old or unsummed:
        _write_sums(path, [new])


def _write_sums(path: Path, sums: list[str]) -> None:
    target = _sum_path(path)
    part = _write_part(target, _sum_text(path, sums))
    try:
        _settle(part, target)
    finally:
        part.unlink(missing_ok=True)


def _sum_path(path: Path) -> Path:
    return path.with_name(path.name + SUM_ENDING)


def _sum_text(path: Path, sums: list[str]) -> bytes:
    return ''.join(f'{each}  {path.name}\n' for each in dict.fromkeys(sums)).encode()


def _sums(path: Path) -> list[str]:
    try:
        lines = _sum_path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line.split()[0] for line in lines if line.strip()]


def _write_part(path: Path, content: bytes) -> Path:
    part = path.with_name(f'{path.name}.{os.getpid()}{PART_ENDING}')
    try:
        with open(part, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def _settle(part: Path, path: Path) -> None:
    """Rename, and flush the folder: until then a power cut may undo the renaming."""
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
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
