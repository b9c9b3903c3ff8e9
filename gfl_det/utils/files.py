"""Files that tools write: one sentence where that fails, before the work where possible."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from gfl_det.errors import DataError


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
