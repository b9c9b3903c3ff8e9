"""Parsed annotation files on their way from the check before a training to the data set.

COCO's training file takes ten seconds to parse: the check keeps what it has parsed for the data
set, which takes it once.
"""

from __future__ import annotations

import os

from gfl_det.datasets.annotations import Entry

Key = tuple[str, int, int]  # path, time of the last change, bytes
_kept: dict[Key, Entry] = {}


def keep(path: str, dataset: Entry) -> None:
    """Keep a parsed file for the next :func:`take`."""
    key = _key(path)
    if key is not None:
        _kept[key] = dataset


def take(path: str) -> Entry | None:
    """Hand over a file that was kept and has not changed since; it is kept no longer."""
    key = _key(path)
    return _kept.pop(key, None) if key is not None and _kept else None


def _key(path: str) -> Key | None:
    try:
        state = os.stat(path)
    except OSError:  # an address, or gone
        return None
    return os.path.realpath(path), state.st_mtime_ns, state.st_size
