"""Tiles of large pictures: their layout, and the merging of their detections.

Tiles overlap, so an object may appear in several. A tile with only a part of an object ends the box
at its border (a seam), or is uncertain there: an edge closer to a seam than one standard deviation
of its distribution counts as cut. Two boxes belong to the same object if they agree within the
region that both tiles share.

A box that several tiles see whole gets the mean of their edges, weighted by the inverse of their
variance, and the mean of their scores, where a tile without such a box counts as 0. The best box of
each object is kept. Whole boxes rank before cut ones, and a cut edge is replaced by that of another
tile in which it is not cut.
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

SEAM_PX = 2.0  # an edge this close to a seam is cut, whatever its standard deviation
DEVIATIONS = 1.0
SAME_IOU = 0.6  # least IoU of two whole boxes of one object, as in non-maximum suppression
SAME_PART_IOU = 0.5  # if one is cut: of what lies in both tiles
CUT_RANK = 0.2  # factor on the score of a cut box in the ranking
MIN_STD = 0.01  # px
SCORES = ('scores', 'raw_scores', 'class_scores')
SIGNS = np.array([1, 1, -1, -1])  # inward direction of each side: left, top, right, bottom


class Tile(NamedTuple):
    """Part of a picture, xyxy px."""

    left: int
    top: int
    right: int
    bottom: int


class View(NamedTuple):
    """Boxes that another tile sees whole too, and its boxes of the same objects."""

    rows: np.ndarray
    matches: np.ndarray  # -1: it has none


class TileGrid(NamedTuple):
    """Size of tiles and their minimum overlap, px of the picture."""

    height: int
    width: int
    overlap: int

    @classmethod
    def of(cls, tile: int | Sequence[int], overlap: int | None = None) -> TileGrid:
        """Grid from a user's values.

        Args:
            tile: Side of a square, or height and width, px.
            overlap: Minimum overlap, px; None: a fifth of the shorter side.

        Raises:
            ConfigError: If a side is not a positive integer, or the overlap is not below it.
        """
        sides: list[Any] = list(tile) if isinstance(tile, Sequence) else [tile, tile]
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
        """Tiles of equal size that cover a picture, row by row; a smaller picture is one tile."""
        rows, columns = min(self.height, height), min(self.width, width)
        return [
            Tile(left, top, left + columns, top + rows)
            for top in _starts(height, rows, self.overlap)
            for left in _starts(width, columns, self.overlap)
        ]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Evenly spaced starts of the fewest tiles that cover a side."""
    if tile >= side:
        return [0]
    number = -(-(side - overlap) // (tile - overlap))
    return np.linspace(0, side - tile, number).round().astype(int).tolist()


def join(
    parts: Sequence[InstanceData], tiles: Sequence[Tile], size: tuple[int, int]
) -> InstanceData:
    """Merge the detections of tiles into those of the picture.

    Args:
        parts: Detections per tile, px of the tile, with ``edge_std``.
        tiles: Tiles of the picture.
        size: Height and width of the picture.

    Returns:
        Detections by descending score, px of the picture, without distributions.

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
    limits = _limits(np.array(tiles), size)
    cut = _cut_edges(boxes, found.edge_std.double().numpy(), limits[owner])
    near, views = _same_objects(found, cut, owner, np.array(tiles), limits)
    found = _averaged(found, cut, views)
    return _joined(found, _groups(found.scores.double().numpy(), cut, near), cut)


def _moved(part: InstanceData, tile: Tile) -> InstanceData:
    shift = torch.tensor([tile.left, tile.top] * 2)
    kept = {name: value for name, value in part.items() if name not in DISTRIBUTIONS}
    for name in ('bboxes', 'edge_low', 'edge_high'):
        if name in kept:
            kept[name] = kept[name] + shift
    return InstanceData(**kept)


def _limits(tiles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Seams ``(T, 4)``: the borders of the tiles, infinitely far where the picture ends."""
    height, width = size
    return np.where(tiles == [0, 0, width, height], -SIGNS * np.inf, tiles)


def _cut_edges(boxes: np.ndarray, std: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Mask ``(N, 4)`` of the edges that lie at or beyond a seam."""
    return np.asarray(SIGNS * (boxes - limits) <= SEAM_PX + DEVIATIONS * std)


def _same_objects(
    found: InstanceData,
    cut: np.ndarray,
    owner: np.ndarray,
    tiles: np.ndarray,
    limits: np.ndarray,
) -> tuple[list[list[int]], list[View]]:
    """Boxes of other tiles that belong to the same object, per box, and what each tile sees."""
    boxes, std = found.bboxes.double().numpy(), found.edge_std.double().numpy()
    labels = found.labels.numpy()
    near: list[list[int]] = [[] for _ in boxes]
    views = []
    whole = np.asarray(~cut.any(axis=1))
    first = np.searchsorted(owner, np.arange(len(tiles) + 1))
    for a in range(len(tiles)):
        shared = np.concatenate(
            [
                np.maximum(tiles[a, :2], tiles[a + 1 :, :2]),
                np.minimum(tiles[a, 2:], tiles[a + 1 :, 2:]),
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
            same = (iou >= np.where(both, SAME_IOU, SAME_PART_IOU)) & (
                labels[mine][:, None] == labels[theirs]
            )
            for i, j in zip(*np.nonzero(same)):
                near[mine[i]].append(int(theirs[j]))
                near[theirs[j]].append(int(mine[i]))
            agreement = np.where(same, iou, 0.0)
            for rows, others, tile, table in (
                (mine, theirs, other, agreement),
                (theirs, mine, a, agreement.T),
            ):
                sees = whole[rows] & ~_cut_edges(boxes[rows], std[rows], limits[tile]).any(axis=1)
                views.append(_view(rows[sees], others, table[sees]))
    return near, views


def _view(rows: np.ndarray, others: np.ndarray, agreement: np.ndarray) -> View:
    """What a tile says of boxes of another tile that it sees whole."""
    if not len(others):
        return View(rows, np.full(len(rows), -1))
    best = agreement.argmax(axis=1)
    return View(rows, np.where(agreement.max(axis=1) > 0, others[best], -1))


def _averaged(found: InstanceData, cut: np.ndarray, views: Sequence[View]) -> InstanceData:
    """Detections with the means over the tiles that see each box whole."""
    rows = np.concatenate([np.arange(len(found)), *(each.rows for each in views)])
    matches = np.concatenate([np.arange(len(found)), *(each.matches for each in views)])
    seen = torch.from_numpy(np.bincount(rows, minlength=len(found)))
    places, sources = (torch.from_numpy(each[matches >= 0]) for each in (rows, matches))

    def summed(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(values).index_add_(0, places, values[sources])

    averaged = InstanceData(**dict(found.items()))
    weight = 1 / found.edge_std.double().clamp(min=MIN_STD) ** 2
    for name in ('bboxes', *EDGE_FIELDS):
        if name in found:
            averaged[name] = (summed(weight * found[name]) / summed(weight)).to(found[name])
    for name in SCORES:
        if name in found:
            sums = summed(found[name].double())
            averaged[name] = (sums / seen.view(-1, *[1] * (sums.dim() - 1))).to(found[name])
    return averaged


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
    """Groups of boxes per object, highest-ranked first; the others only if that one is cut."""
    is_cut = np.asarray(cut.any(axis=1))
    order = np.argsort(-scores * np.where(is_cut, CUT_RANK, 1), kind='stable')
    free = np.ones(len(scores), bool)
    groups = []
    for leader in order.tolist():
        if not free[leader]:
            continue
        group, reached = [leader], {leader}
        for member in group:  # the list grows: parts of parts, until a whole box is reached
            free[member] = False
            for other in near[member]:
                # A whole box needs no other edges: it only suppresses the boxes that match it.
                if free[other] and other not in reached:
                    reached.add(other)
                    if is_cut[member] and is_cut[leader]:
                        group.append(other)
                    else:
                        free[other] = False
        groups.append(group)
    return groups


def _joined(found: InstanceData, groups: list[list[int]], cut: np.ndarray) -> InstanceData:
    """Best box of each group, with cut edges replaced by uncut edges of other members."""
    scores = found.scores
    best = [max(group, key=lambda row: float(scores[row])) for group in groups]
    kept = found[torch.tensor(best)]
    kept.bboxes = kept.bboxes.clone()
    for place, group in enumerate(groups):
        if len(group) == 1:
            continue
        for side in range(4):
            source = next((row for row in group if not cut[row, side]), None)
            if source is None:  # cut in all tiles: take the outermost
                outward = -SIGNS[side] * found.bboxes[group, side].numpy()
                source = group[int(outward.argmax())]
            for name in ('bboxes', *EDGE_FIELDS):
                if name in kept:
                    kept[name][place, side] = found[name][source, side]
    return kept[kept.scores.sort(descending=True, stable=True).indices]
