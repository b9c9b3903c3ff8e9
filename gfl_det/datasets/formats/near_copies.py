"""A random split of pictures in which near copies stay together.

A frame of a video or an augmented copy that is trained on says nothing when it is judged too.
Pictures belong together where the names say so (``a_jpg.rf.1.jpg`` and ``a_jpg.rf.2.jpg``) or where
their brightness, on a grid of 9 x 8 cells, falls and rises in the same places.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

EXPORTED = re.compile(r'\.rf\.[0-9a-zA-Z]{8,}$')  # what Roboflow adds to the name of a picture
GRID = (9, 8)
BITS = 64
MOST_DIFFERENT = 7  # of 64, of near copies; other photographs differ in 31, and in 11 at least
BAND_BITS = 8  # near copies share one of eight bands in full
FLAT = 8  # fewer comparisons that are not equal say nothing about a picture


def group_near_copies(paths: Sequence[Path]) -> list[int]:
    """Return the group of each picture, named by its first member.

    Args:
        paths: Files of N pictures; one that cannot be decoded is a group of its own.
    """
    pairs: list[tuple[int, int]] = []
    by_name: dict[str, int] = {}
    for index, path in enumerate(paths):
        if EXPORTED.search(path.stem):
            pairs.append((by_name.setdefault(EXPORTED.sub('', path.stem), index), index))
    signs = [sign_of(path) for path in paths]
    known = np.array([index for index, sign in enumerate(signs) if sign is not None], int)
    bits = np.array([signs[index] for index in known], np.uint8).reshape(-1, BITS)
    for start in range(0, BITS, BAND_BITS):
        bands = defaultdict(list)
        packed = np.packbits(bits[:, start : start + BAND_BITS], axis=1)
        for row, band in enumerate(packed):
            bands[band.tobytes()].append(row)
        for rows in bands.values():
            for place, row in enumerate(rows[:-1]):
                others = np.array(rows[place + 1 :])
                different = (bits[others] != bits[row]).sum(1)
                alike = others[different <= MOST_DIFFERENT]
                pairs += [(known[row], other) for other in known[alike]]
    ends = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), tuple(ends)), shape=(len(paths), len(paths)))
    _, group = connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    return first[group].tolist()


def sign_of(path: Path) -> np.ndarray | None:
    """Return which cells (64,) are brighter than their right neighbours; None of flat pictures."""
    try:
        with Image.open(path) as picture:
            picture.draft('L', (16 * GRID[0], 16 * GRID[1]))  # JPEGs are decoded at a small size
            grid = np.asarray(picture.convert('L').resize(GRID, Image.Resampling.BOX), int)
    except Exception:  # a damaged or a too large one fails in any way; the checks tell
        return None
    steps = grid[:, :-1] - grid[:, 1:]
    return None if (steps != 0).sum() < FLAT else (steps > 0).ravel()


def split_groups(
    groups: Sequence[int], keys: Sequence[str], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split in two; the members of a group stay together.

    What falls where depends on the seed and on the names alone.

    Args:
        groups: Group of each of N pictures.
        keys: Names of the pictures.
        share: Share of the second part, as near as groups allow; neither part is empty if there
            are two groups or more.
        seed: Seed of the split.

    Returns:
        Ascending indices of the first and the second part.

    Example:
        >>> split_groups([0, 0, 2, 3, 4], ['a', 'b', 'c', 'd', 'e'], 0.4, seed=0)
        ([0, 1, 3], [2, 4])
    """
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    first_key = {group: min(keys[index] for index in found) for group, found in members.items()}
    order = sorted(
        members, key=lambda group: hashlib.sha256(f'{seed} {first_key[group]}'.encode()).digest()
    )
    wanted = share * len(keys)
    second: set[int] = set()
    for group in order[:-1]:
        size, lacking = len(members[group]), wanted - len(second)
        if size <= lacking or (not second and size < len(keys) / 2):
            second |= set(members[group])
        if len(second) >= wanted:
            break
    return [i for i in range(len(keys)) if i not in second], sorted(second)
