"""Values as JSON that every reader accepts."""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path
from typing import Any


def write_json(path: str | PathLike[str], content: Any, indent: int | None = None) -> None:
    """Write plain values; the file's folder is made.

    JSON has no word for NaN and infinity: they are written as null.

    Args:
        path: of the file.
        content: of dicts, lists, tuples, texts and numbers.
        indent: None for one line.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(_finite(content), indent=indent, allow_nan=False) + '\n')


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
