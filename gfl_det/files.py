"""Files that tools write: one sentence where that fails, before the work where possible."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError


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
