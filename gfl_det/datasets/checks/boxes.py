"""Vectorised checks of the boxes of an annotation file: unusable and suspicious ones."""

from __future__ import annotations

import math
from itertools import compress
from typing import NamedTuple

import numpy as np

from gfl_det.datasets.annotations import (
    AREA_FIELD,
    BAD_FORMAT,
    MIN_SIDE_PX,
    NO_AREA,
    NOT_FINITE,
    OUTSIDE,
    ROUNDING_PX,
    TOO_THIN,
    Entry,
    areas_of,
    as_boxes,
    as_number,
    box_faults,
    image_sizes,
    is_crowd,
)
from gfl_det.datasets.checks.draft import Draft

CODES = {
    BAD_FORMAT: 'boxes.format',
    NOT_FINITE: 'boxes.not_finite',
    NO_AREA: 'boxes.no_area',
    TOO_THIN: 'boxes.thin',
    OUTSIDE: 'boxes.outside',
}
ENOUGH = 10  # number of boxes needed to infer their format
OVERHANGING = 0.2  # fraction of boxes beyond their image that makes the format suspicious


class Table(NamedTuple):
    """Remaining boxes, as arrays in the order of the annotations."""

    boxes: np.ndarray  # (N, 4) float64 xywh, px
    image: np.ndarray  # (N,) int64, index into the images
    label: np.ndarray  # (N,) int64, index into the categories
    image_wh: np.ndarray  # (N, 2) float64, px
    crowd: np.ndarray  # (N,) bool

    def take(self, keep: np.ndarray) -> Table:
        """Select boxes by a mask."""
        return Table(*(values[keep] for values in self))


def check_boxes(draft: Draft) -> Table:
    """Check all boxes, remove those that mmdet cannot use, and clip the others to their image.

    Args:
        draft: Draft with valid ids and references.

    Returns:
        Remaining boxes.
    """
    boxes, is_numeric = as_boxes([entry.get('bbox') for entry in draft.annotations])
    table = Table(
        boxes,
        _rows(draft.annotations, 'image_id', draft.images),
        _rows(draft.annotations, 'category_id', draft.categories),
        image_sizes(draft.annotations, draft.images),
        np.fromiter((is_crowd(e.get('iscrowd')) for e in draft.annotations), bool, len(boxes)),
    )
    _tell_format(draft, table, is_numeric)
    table = _drop_unusable(draft, table, is_numeric)
    table = _drop_repeated(draft, table)
    table = _cut(draft, table)
    _fill_fields(draft, table)
    return table


def _drop_unusable(draft: Draft, table: Table, is_numeric: np.ndarray) -> Table:
    with np.errstate(invalid='ignore', over='ignore'):
        area, _ = areas_of(draft.annotations, table.boxes)
        faults = box_faults(table.boxes, is_numeric, area, table.image_wh)
    bad_area = faults.pop(AREA_FIELD)
    for reason, mask in faults.items():
        if mask.any():
            draft.tell('warning', CODES[reason], f'boxes: {reason}', _ids(draft, mask), 'removed')
    if bad_area.any():
        fix = 'area set to width * height'
        draft.tell('warning', 'boxes.area', f'boxes: {AREA_FIELD}', _ids(draft, bad_area), fix)
        for i in np.flatnonzero(bad_area):
            width, height = table.boxes[i, 2:].tolist()
            draft.annotations[i] = {**draft.annotations[i], 'area': width * height}
    keep = ~np.logical_or.reduce(list(faults.values()))
    draft.annotations = list(compress(draft.annotations, keep.tolist()))
    return table.take(keep)


def _drop_repeated(draft: Draft, table: Table) -> Table:
    """Remove duplicate boxes, which count double; report those with different classes."""
    keys = (*table.boxes.T, table.crowd, table.image)
    order = np.lexsort((table.label, *keys))

    def equals_previous(*columns: np.ndarray) -> np.ndarray:
        same = np.ones(max(len(order) - 1, 0), bool)
        for column in columns:
            values = column[order]
            same &= values[1:] == values[:-1]
        mask = np.zeros(len(order), bool)
        mask[order[1:][same]] = True
        return mask

    same_place = equals_previous(*keys)
    repeated = same_place & equals_previous(*keys, table.label)
    if repeated.any():
        text = 'duplicate boxes with the same class'
        draft.tell('warning', 'boxes.repeated', text, _ids(draft, repeated), 'one is kept')
    two_classes = same_place & ~repeated
    if two_classes.any():
        text = 'identical boxes with different classes'
        draft.tell('warning', 'boxes.two_classes', text, _ids(draft, two_classes))
    draft.annotations = list(compress(draft.annotations, (~repeated).tolist()))
    return table.take(~repeated)


def _cut(draft: Draft, table: Table) -> Table:
    """Clip boxes to their image, like training, and report those that are far too large."""
    low, high = table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]
    huge = np.any(table.boxes[:, 2:] > table.image_wh + ROUNDING_PX, axis=1)
    outside = np.maximum(-low, high - table.image_wh).max(1, initial=-np.inf) > ROUNDING_PX
    fix = 'cut to the image'
    if huge.any():
        text = 'boxes larger than their image'
        draft.tell('warning', 'boxes.huge', text, _ids(draft, huge), fix)
    overhanging = np.logical_and(outside, ~huge)
    if overhanging.any():
        text = 'boxes that extend beyond their image'
        draft.tell('note', 'boxes.overhanging', text, _ids(draft, overhanging), fix)
    low, high = np.clip(low, 0, table.image_wh), np.clip(high, 0, table.image_wh)
    cut = (huge | outside) & (high - low >= MIN_SIDE_PX).all(1)  # a sliver is kept unchanged
    boxes = np.where(cut[:, None], np.hstack([low, high - low]), table.boxes)
    for i in np.flatnonzero(cut):
        box = boxes[i].tolist()
        entry = draft.annotations[i]
        draft.annotations[i] = {**entry, 'bbox': box, 'area': _cut_area(entry, box)}
    return table._replace(boxes=boxes)


def _cut_area(entry: Entry, box: list[float]) -> float:
    """Return the area of a clipped box, at most that of its outline."""
    given = as_number(entry.get('area'))
    full = box[2] * box[3]
    return full if given is None else min(given, full)


def _fill_fields(draft: Draft, table: Table) -> None:
    for field in ('area', 'iscrowd'):
        lacking = [i for i, entry in enumerate(draft.annotations) if not _is_usable(entry, field)]
        if not lacking:
            continue
        text = f'annotations without a usable {field}, which the COCO metric reads'
        fix = 'area set to width * height' if field == 'area' else 'iscrowd set to 0'
        ids = [draft.annotations[i]['id'] for i in lacking]
        draft.tell('warning', f'annotations.{field}', text, ids, fix)
        for i in lacking:
            value = float(table.boxes[i, 2:].prod()) if field == 'area' else 0
            draft.annotations[i] = {**draft.annotations[i], field: value}


def _is_usable(entry: Entry, field: str) -> bool:
    """Whether the COCO metric can use a field: a number as area, 0 or 1 as crowd mark."""
    value = entry.get(field)
    if field == 'iscrowd':
        return isinstance(value, (int, float)) and value in (0, 1)
    number = as_number(value)
    return number is not None and math.isfinite(number)


def _tell_format(draft: Draft, table: Table, is_numeric: np.ndarray) -> None:
    """Report boxes that hold corners or fractions of the image instead of xywh pixels."""
    boxes, image_wh = table.boxes[is_numeric], table.image_wh[is_numeric]
    with np.errstate(invalid='ignore', over='ignore'):
        finite = np.isfinite(boxes).all(1)
        boxes, image_wh = boxes[finite], image_wh[finite]
        if len(boxes) < ENOUGH:
            return
        low, second = boxes[:, :2], boxes[:, 2:]
        overhang = ((low + second) > image_wh + ROUNDING_PX).any(1).mean()
        are_corners = ((second > low) & (second <= image_wh + ROUNDING_PX)).all(1).mean()
        are_fractions = ((boxes >= 0) & (boxes <= 1)).all(1).mean()
    if are_fractions > 0.99:
        text = 'the boxes look like fractions of the image: COCO uses pixels, [x, y, width, height]'
        draft.tell('error', 'boxes.fractions', text)
    elif overhang > OVERHANGING and are_corners > 0.99:
        text = (
            f'{overhang:.0%} of the boxes exceed their image, but all would fit as corners '
            '[x1, y1, x2, y2]: COCO uses [x, y, width, height]'
        )
        draft.tell('error', 'boxes.corners', text)


def _ids(draft: Draft, mask: np.ndarray) -> list:
    return [draft.annotations[i]['id'] for i in np.flatnonzero(mask)]


def _rows(entries: list[Entry], field: str, targets: list[Entry]) -> np.ndarray:
    rows = {target['id']: row for row, target in enumerate(targets)}
    return np.fromiter((rows[entry[field]] for entry in entries), np.int64, len(entries))
