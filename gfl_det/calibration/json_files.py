"""Values as JSON that every reader accepts."""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import DataError


def make_folder_of(path: str | PathLike[str]) -> None:
    """Make the folder of a file that is to be written, so that what forbids it is told before work.

    Raises:
        DataError: it cannot be made, or the path is a folder itself.
    """
    target = Path(path)
    make_folder(target.parent)
    if target.is_dir():
        raise DataError(f'{target} is a folder: name a file to write.')


def make_folder(folder: Path) -> None:
    """Make a folder, with those that it lies in.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f'{folder} is a file and no folder: write elsewhere.') from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f'{folder} cannot be made ({reason}): write elsewhere.') from error


def write_json(path: str | PathLike[str], content: Any, indent: int | None = None) -> None:
    """Write plain values; the file's folder is made.

    JSON has no word for NaN and infinity: they are written as null.

    Args:
        path: of the file.
        content: of dicts, lists, tuples, texts and numbers.
        indent: None for one line.

    Raises:
        DataError: the folder cannot be made.
    """
    make_folder_of(path)
    Path(path).write_text(json.dumps(_finite(content), indent=indent, allow_nan=False) + '\n')


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
