"""Which boxes of a COCO annotation file can be trained on, vectorised; no framework is imported.

mmdet's own loader drops unusable boxes without a word and lets a NaN through to the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, compress
from typing import Any, NamedTuple

import numpy as np

from gfl_det.datasets.annotations import NAMED, Entry, Findings, as_number

MIN_SIDE_PX = 1.0  # mmdet trains on no box that is thinner
ROUNDING_PX = 1.0  # annotation tools round: a box this far outside still counts as inside

# Why a box is dropped, in order of precedence: an entry counts once, under the first that applies.
BAD_FORMAT = 'bbox is not four numbers [x, y, width, height]'
NOT_FINITE = 'NaN or infinite coordinates'
NO_AREA = 'zero or negative width or height'
TOO_THIN = 'thinner than one pixel'
OUTSIDE = 'wholly outside the image'
AREA_FIELD = 'area field of zero or less'
DROPPED = (BAD_FORMAT, NOT_FINITE, NO_AREA, TOO_THIN, OUTSIDE, AREA_FIELD)


class BoxReport(NamedTuple):
    """What became of the annotation entries of one file.

    Attributes:
        total: Entries in the file.
        kept: Entries that remain, boxes of crowds among them.
        dropped: Reason -> findings, for boxes that cannot be used.
        ignored: Entries marked ``ignore``, which mmdet skips.
        other_classes: Entries of classes that the dataset does not ask for.
        partly_outside: Kept boxes that reach over the image's edge by more than a pixel.
        area_filled: Kept entries whose missing ``area`` was set to width * height.
    """

    total: int
    kept: int
    dropped: dict[str, Findings]
    ignored: int
    other_classes: int
    partly_outside: Findings
    area_filled: Findings

    def warning(self) -> str | None:
        """Return the counts of dropped boxes by reason, or None where all is well."""
        if not self.dropped:
            return None
        number = sum(found.number for found in self.dropped.values())
        reasons = '; '.join(f'{reason}: {found}' for reason, found in self.dropped.items())
        return f'{number} of {self.total} boxes cannot be used and are dropped: {reasons}'

    def notes(self) -> list[str]:
        """Return sentences on what was kept or left out on purpose, without the dropped boxes."""
        notes = []
        if self.partly_outside.number:
            notes.append(f'boxes that reach outside their image, kept: {self.partly_outside}')
        if self.area_filled.number:
            notes.append(f'boxes without a usable area field, set to w * h: {self.area_filled}')
        if self.other_classes:
            notes.append(f'boxes of classes that metainfo does not list: {self.other_classes}')
        if self.ignored:
            notes.append(f'boxes marked "ignore", skipped: {self.ignored}')
        return notes


def usable_boxes(dataset: Entry, category_ids: Iterable[Any]) -> tuple[list[Entry], BoxReport]:
    """Select the entries to train on: those of the given categories with a usable box.

    Args:
        dataset: A parsed annotation file that passed `check_structure` and `check_ids`.
        category_ids: The categories asked for; entries of others are left out and counted.

    Returns:
        The remaining entries, in order, each with a numeric ``area``; and the report.
    """
    wanted, entries = set(category_ids), dataset.get('annotations', [])
    asked = [entry for entry in entries if entry['category_id'] in wanted]
    used = [entry for entry in asked if not entry.get('ignore', False)]
    boxes, is_numeric = as_boxes([entry.get('bbox') for entry in used])  # (N, 4) xywh, px
    image_wh = image_sizes(used, dataset['images'])

    with np.errstate(invalid='ignore', over='ignore'):
        area, has_area = areas_of(used, boxes)
        faults = box_faults(boxes, is_numeric, area, image_wh)
        overhang = np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - image_wh)
    keep = ~np.logical_or.reduce(list(faults.values()))

    def where(mask: np.ndarray) -> Findings:
        return Findings(int(mask.sum()), [used[i]['id'] for i in np.flatnonzero(mask)[:NAMED]])

    kept, kept_area = list(compress(used, keep.tolist())), area[keep]
    for i in np.flatnonzero(~has_area[keep]):
        kept[i] = {**kept[i], 'area': float(kept_area[i])}
    report = BoxReport(
        total=len(entries),
        kept=len(kept),
        dropped={reason: where(mask) for reason, mask in faults.items() if mask.any()},
        ignored=len(asked) - len(used),
        other_classes=len(entries) - len(asked),
        partly_outside=where(keep & (overhang > ROUNDING_PX).any(-1)),
        area_filled=where(keep & ~has_area),
    )
    return kept, report


def box_faults(
    boxes: np.ndarray, is_numeric: np.ndarray, area: np.ndarray, image_wh: np.ndarray
) -> dict[str, np.ndarray]:
    """Return a mask (N,) for each reason in `DROPPED`; an entry is set in one at most."""
    corner, side = boxes[:, :2], boxes[:, 2:]
    overlap = np.minimum(corner + side, image_wh) - np.maximum(corner, 0)
    masks = (
        ~is_numeric,
        ~np.isfinite(boxes).all(-1),
        (side <= 0).any(-1),
        (side < MIN_SIDE_PX).any(-1),
        (overlap <= 0).any(-1),
        area <= 0,
    )
    faults, free = {}, np.ones(len(boxes), bool)
    for reason, mask in zip(DROPPED, masks):
        faults[reason] = mask & free
        free &= ~mask
    return faults


def image_sizes(entries: list[Entry], images: list[Entry]) -> np.ndarray:
    """Return the width and height (N, 2), px, of the image of each entry."""
    sizes = np.array([(image['width'], image['height']) for image in images], float)
    rows = {image['id']: row for row, image in enumerate(images)}
    chosen = np.fromiter((rows[entry['image_id']] for entry in entries), np.int64, len(entries))
    return sizes.reshape(-1, 2)[chosen]


_flat = chain.from_iterable


def as_boxes(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) float64 and which of them (N,) are four real numbers; others are NaN."""
    number, all_lists = len(values), set(map(type, values)) <= {list}
    if all_lists and set(map(len, values)) <= {4} and set(map(type, _flat(values))) <= {int, float}:
        with suppress(OverflowError):  # an integer beyond float64
            boxes = np.fromiter(_flat(values), float, 4 * number).reshape(-1, 4)
            return boxes, np.ones(number, bool)
    # Something is wrong: look at each value.
    rows = [
        [as_number(v) for v in value] if isinstance(value, list) and len(value) == 4 else [None] * 4
        for value in values
    ]
    is_numeric = np.array([None not in row for row in rows], bool)
    boxes = np.array([row if ok else [np.nan] * 4 for row, ok in zip(rows, is_numeric)], float)
    return boxes.reshape(-1, 4), is_numeric


def areas_of(entries: list[Entry], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return areas (N,), w * h where the field is no number, and which (N,) come from the file."""
    given = [as_number(entry.get('area')) for entry in entries]
    area = np.array([np.nan if value is None else value for value in given], float)
    from_file = ~np.isnan(area)
    return np.where(from_file, area, boxes[:, 2] * boxes[:, 3]), from_file
