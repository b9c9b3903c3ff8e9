"""Errors of known kinds in the labels of a data set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.label_errors import move_edges
from gfl_det.evaluation.label_evidence import Labels, near_pairs
from gfl_det.ops.boxes import xywh_to_xyxy, xyxy_to_xywh

RATE = 0.05  # of the labels, of each kind
JITTER = 0.05  # of the side: deviation of the edges of a label drawn twice
KINDS = ('loose', 'class', 'missing', 'spurious', 'duplicate')


class Spoilt(NamedTuple):
    """Labels with errors; masks tell which labels are wrong."""

    labels: Labels
    loose: np.ndarray  # (M,) bool
    swapped: np.ndarray  # (M,) bool
    spurious: np.ndarray  # (M,) bool
    twin: np.ndarray  # (M,) int64, of a duplicate the label that it repeats; else -1
    dropped: Labels  # the missing ones


def spoil(
    labels: Labels,
    classes: int,
    image_wh: np.ndarray,
    share: float,
    kinds: tuple[str, ...],
    rng: np.random.Generator,
) -> Spoilt:
    """Put errors of some kinds into labels, each kind into other ones.

    Args:
        labels: M labels.
        classes: Number of classes.
        image_wh: Widths and heights of the images.
        share: Of the side by which an edge is moved.
        kinds: Of `KINDS`.
        rng: Random numbers.
    """
    number = len(labels.image)
    each = max(1, round(RATE * number))
    order = rng.permutation(number)
    parts = {kind: order[place * each : (place + 1) * each] for place, kind in enumerate(KINDS)}
    rows = {kind: parts[kind] if kind in kinds else parts[kind][:0] for kind in KINDS}
    boxes, label = labels.boxes.copy(), labels.label.copy()
    boxes[rows['loose']] = move_edges(boxes[rows['loose']], rng, share, share)[0]
    swapped = rows['class']
    label[swapped] = (label[swapped] + rng.integers(1, classes, len(swapped))) % classes
    kept = np.ones(number, bool)
    kept[rows['missing']] = False
    again = rows['duplicate']
    edges = xywh_to_xyxy(boxes[again])
    edges += rng.normal(0, JITTER, edges.shape) * np.tile(boxes[again, 2:], 2)
    added = [labels.take(again)._replace(boxes=xyxy_to_xywh(edges), label=label[again])]
    if 'spurious' in kinds:
        added.append(_anywhere(labels, each, image_wh, rng))
    places = np.full(number, -1)
    places[kept] = np.arange(kept.sum())
    base = Labels(labels.image[kept], label[kept], boxes[kept])
    every = Labels(*map(np.concatenate, zip(base, *added)))
    extra = len(every.image) - kept.sum()

    def mask(chosen: np.ndarray) -> np.ndarray:
        found = np.zeros(len(every.image), bool)
        found[places[chosen]] = True
        return found

    twin = np.full(len(every.image), -1)
    twin[kept.sum() : kept.sum() + len(again)] = places[again]
    spurious = np.zeros(len(every.image), bool)
    spurious[kept.sum() + len(again) : kept.sum() + extra] = True
    return Spoilt(every, mask(rows['loose']), mask(swapped), spurious, twin, labels.take(~kept))


def _anywhere(
    labels: Labels, number: int, image_wh: np.ndarray, rng: np.random.Generator
) -> Labels:
    """Boxes of other labels at random places that no label covers."""
    chosen: list[Labels] = []
    while sum(len(each.image) for each in chosen) < number:
        one = labels.take(rng.integers(0, len(labels.image), number))
        image = rng.integers(0, len(image_wh), number)
        room = image_wh[image]
        sides = np.minimum(one.boxes[:, 2:], 0.95 * room)
        boxes = np.concatenate([rng.random((number, 2)) * (room - sides), sides], 1)
        placed = Labels(image, one.label, boxes)
        covers = np.isin(np.arange(number), near_pairs(placed, labels, 0.3)[0])
        chosen.append(placed.take(~covers))
    return Labels(*map(np.concatenate, zip(*chosen))).take(np.arange(number))
