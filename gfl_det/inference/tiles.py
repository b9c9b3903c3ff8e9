"""Tiles of large pictures: where they lie, and how their detections become those of the picture.

Tiles overlap, so an object is seen by several. A tile that sees only a part of one ends the box at
its border (a seam), or is unsure there: an edge within one standard deviation of its distribution
from a seam counts as cut. Two boxes are of one object if they agree within the region that both
tiles see. The best of them stays; whole boxes come before cut ones, and a cut edge is replaced by
that of another tile which sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import InstanceData

from gfl_det.errors import ConfigError
from gfl_det.inference.results import DISTRIBUTIONS, EDGE_FIELDS

SEAM_PX = 2.0  # an edge this close to a seam is cut, however sure it is
DEVIATIONS = 1.0
SAME_IOU = 0.5  # of two boxes of one object, or of their parts that both tiles see
CUT_RANK = 0.2  # a cut box comes before a whole one of less than this share of its score
SIGNS = np.array([1, 1, -1, -1])  # from an outer side inwards: left, top, right, bottom


class Tile(NamedTuple):
    """Part of a picture, px; xyxy."""

    left: int
    top: int
    right: int
    bottom: int


class TileGrid(NamedTuple):
    """Size of tiles and their least overlap, px of the picture."""

    height: int
    width: int
    overlap: int

    @classmethod
    def of(cls, tile: int | Sequence[int], overlap: int | None = None) -> TileGrid:
        """Check what a user gives.

        Args:
            tile: Side of a square, or height and width.
            overlap: Least overlap; None: a fifth of the shorter side.

        Raises:
            ConfigError: If a side is not a positive integer, or the overlap not below it.
        """
        sides: list[Any] = [tile, tile] if isinstance(tile, int) else list(tile)
        if len(sides) != 2 or not all(_is_whole(each, 1) for each in sides):
            raise ConfigError(
                f'tile must be a positive integer, or height and width, not {tile!r}.'
            )
        least = min(map(int, sides))
        chosen: Any = least // 5 if overlap is None else overlap
        if not _is_whole(chosen, 0) or chosen >= least:
            raise ConfigError(
                f'overlap must be an integer of at least 0 and below the tile ({least}), not '
                f'{overlap!r}.'
            )
        return cls(int(sides[0]), int(sides[1]), int(chosen))

    def tiles(self, height: int, width: int) -> list[Tile]:
        """Equal tiles that cover a picture, row by row; a smaller picture is one tile."""
        rows, columns = min(self.height, height), min(self.width, width)
        return [
            Tile(left, top, left + columns, top + rows)
            for top in _starts(height, rows, self.overlap)
            for left in _starts(width, columns, self.overlap)
        ]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and int(value) >= least


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Evenly spread starts of the fewest tiles along a side."""
    if tile >= side:
        return [0]
    number = -(-(side - overlap) // (tile - overlap))
    return np.linspace(0, side - tile, number).round().astype(int).tolist()


def join(
    parts: Sequence[InstanceData], tiles: Sequence[Tile], size: tuple[int, int]
) -> InstanceData:
    """Detections of a picture from those of its tiles.

    Args:
        parts: Per tile, in px of the tile, with ``edge_std``.
        tiles: The tiles.
        size: Height and width of the picture.

    Returns:
        By descending score, in px of the picture, without distributions.

    Raises:
        ConfigError: If the detections have no ``edge_std``.
    """
    if not all('edge_std' in each for each in parts):
        raise ConfigError(
            'Tiles are joined by the uncertainty of edges, which this detector does not give: take '
            'a GFL head of gfl_det, or an export with --uncertainty.'
        )
    found = InstanceData.cat([_moved(part, tile) for part, tile in zip(parts, tiles)])
    if not len(found):
        return found
    owner = np.repeat(np.arange(len(tiles)), [len(part) for part in parts])
    boxes = found.bboxes.double().numpy()
    cut = _cut_edges(boxes, found.edge_std.double().numpy(), np.array(tiles)[owner], size)
    near = _same_objects(boxes, found.labels.numpy(), cut, owner, tiles)
    groups = _groups(found.scores.double().numpy(), cut, near)
    return _joined(found, groups, cut)


def _moved(part: InstanceData, tile: Tile) -> InstanceData:
    shift = torch.tensor([tile.left, tile.top] * 2)
    kept = {name: value for name, value in part.items() if name not in DISTRIBUTIONS}
    for name in ('bboxes', 'edge_low', 'edge_high'):
        if name in kept:
            kept[name] = kept[name] + shift
    return InstanceData(**kept)


def _cut_edges(
    boxes: np.ndarray, std: np.ndarray, owners: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Mask ``(N, 4)`` of the edges at a seam, a border of the tile inside the picture."""
    height, width = size
    seam = owners != np.array([0, 0, width, height])
    return np.logical_and(seam, SIGNS * (boxes - owners) <= SEAM_PX + DEVIATIONS * std)


def _same_objects(
    boxes: np.ndarray,
    labels: np.ndarray,
    cut: np.ndarray,
    owner: np.ndarray,
    tiles: Sequence[Tile],
) -> list[list[int]]:
    """Per box, those of other tiles that are of the same object."""
    near: list[list[int]] = [[] for _ in boxes]
    whole = np.asarray(~cut.any(axis=1))
    areas = np.array(tiles)
    first = np.searchsorted(owner, np.arange(len(tiles) + 1))
    for a in range(len(tiles)):
        shared = np.concatenate(
            [
                np.maximum(areas[a, :2], areas[a + 1 :, :2]),
                np.minimum(areas[a, 2:], areas[a + 1 :, 2:]),
            ],
            axis=1,
        )
        for b in np.flatnonzero((shared[:, 2:] > shared[:, :2]).all(1)):
            region, other = shared[b], a + 1 + b
            mine, theirs = (
                first[each] + np.flatnonzero(_reach(boxes[first[each] : first[each + 1]], region))
                for each in (a, other)
            )
            parts = [_clip(boxes[each], region) for each in (mine, theirs)]
            both = whole[mine][:, None] & whole[theirs]
            iou = np.where(both, _ious(boxes[mine], boxes[theirs]), _ious(*parts))
            same = (iou >= SAME_IOU) & (labels[mine][:, None] == labels[theirs])
            for i, j in zip(*np.nonzero(same)):
                near[mine[i]].append(int(theirs[j]))
                near[theirs[j]].append(int(mine[i]))
    return near


def _reach(boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    inside = np.concatenate([boxes[:, :2] < region[2:], boxes[:, 2:] > region[:2]], axis=1)
    return np.asarray(inside.all(1))


def _clip(boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    low, high = np.maximum(boxes[:, :2], region[:2]), np.minimum(boxes[:, 2:], region[2:])
    return np.concatenate([low, high], axis=1)


def _ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    low = np.maximum(first[:, None, :2], second[:, :2])
    common = (np.minimum(first[:, None, 2:], second[:, 2:]) - low).clip(min=0).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (first, second)]
    return common / np.maximum(areas[0][:, None] + areas[1] - common, 1e-9)


def _groups(scores: np.ndarray, cut: np.ndarray, near: list[list[int]]) -> list[list[int]]:
    """Boxes of each object, the leading one first; the others only where it is cut."""
    is_cut = np.asarray(cut.any(axis=1))
    order = np.argsort(-scores * np.where(is_cut, CUT_RANK, 1), kind='stable')
    free = np.ones(len(scores), bool)
    groups = []
    for leader in order.tolist():
        if not free[leader]:
            continue
        group, reached = [leader], {leader}
        for member in group:  # grows: parts of parts, until a whole box
            free[member] = False
            for other in near[member]:
                # A whole box is of no other's doubt: it only gives up those that resemble it.
                if free[other] and other not in reached:
                    reached.add(other)
                    if is_cut[member] and is_cut[leader]:
                        group.append(other)
                    else:
                        free[other] = False
        groups.append(group)
    return groups


def _joined(found: InstanceData, groups: list[list[int]], cut: np.ndarray) -> InstanceData:
    """One box of each group: its best, with cut edges from members that see them."""
    scores = found.scores
    best = [max(group, key=lambda row: float(scores[row])) for group in groups]
    kept = found[torch.tensor(best)]
    kept.bboxes = kept.bboxes.clone()
    for place, group in enumerate(groups):
        if len(group) == 1:
            continue
        for side in range(4):
            source = next((row for row in group if not cut[row, side]), None)
            if source is None:  # no tile sees this edge: the one farthest out
                outward = -SIGNS[side] * found.bboxes[group, side].numpy()
                source = group[int(outward.argmax())]
            for name in ('bboxes', *EDGE_FIELDS):
                if name in kept:
                    kept[name][place, side] = found[name][source, side]
    return kept[kept.scores.sort(descending=True, stable=True).indices]
