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
    fill_areas,
    image_sizes,
    is_crowd,
)
from gfl_det.datasets.checks.draft import BoxRows, Draft

CODES = {
    BAD_FORMAT: 'boxes.format',
    NOT_FINITE: 'boxes.not_finite',
    NO_AREA: 'boxes.no_area',
    TOO_THIN: 'boxes.thin',
    OUTSIDE: 'boxes.outside',
}
COLUMNS = {'area': 'area', 'bbox': 'boxes', 'iscrowd': 'crowd'}  # of BoxRows
HASH_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, so that no key loses bits
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
        return self if keep.all() else Table(*(values[keep] for values in self))


def check_boxes(draft: Draft) -> Table:
    """Check all boxes, remove those that mmdet cannot use, and clip the others to their image.

    Args:
        draft: Draft with valid ids and references.

    Returns:
        Remaining boxes.
    """
    table, is_numeric = _table(draft)
    _tell_format(draft, table, is_numeric)
    table = _drop_unusable(draft, table, is_numeric)
    table = _drop_repeated(draft, table)
    table = _cut(draft, table)
    _fill_fields(draft, table)
    return table


def _table(draft: Draft) -> tuple[Table, np.ndarray]:
    """Return all boxes and a mask (N,) of those that are four real numbers."""
    entries, number = draft.annotations, len(draft.annotations)
    if isinstance(entries, BoxRows):
        image, label = entries.among(draft.images, draft.categories)
        sizes = np.array([(each['width'], each['height']) for each in draft.images], float)
        image_wh = sizes.reshape(-1, 2)[image]
        table = Table(entries.boxes, image, label, image_wh, entries.crowd == 1)
        return table, np.ones(number, bool)
    boxes, is_numeric = as_boxes([entry.get('bbox') for entry in entries])
    table = Table(
        boxes,
        _rows(entries, 'image_id', draft.images),
        _rows(entries, 'category_id', draft.categories),
        image_sizes(entries, draft.images),
        np.fromiter((is_crowd(each.get('iscrowd')) for each in entries), bool, number),
    )
    return table, is_numeric


def _keep(draft: Draft, keep: np.ndarray) -> None:
    """Keep the annotations of a mask."""
    entries = draft.annotations
    is_rows = isinstance(entries, BoxRows)
    draft.annotations = entries.take(keep) if is_rows else list(compress(entries, keep.tolist()))


def _areas(draft: Draft, boxes: np.ndarray) -> np.ndarray:
    """Return the areas (N,) of the annotations, w * h where the field is invalid."""
    entries = draft.annotations
    if isinstance(entries, BoxRows):
        return fill_areas(entries.area, boxes)[0]
    return areas_of(entries, boxes)[0]


def _drop_unusable(draft: Draft, table: Table, is_numeric: np.ndarray) -> Table:
    with np.errstate(invalid='ignore', over='ignore'):
        area = _areas(draft, table.boxes)
        faults = box_faults(table.boxes, is_numeric, area, table.image_wh)
    bad_area = faults.pop(AREA_FIELD)
    for reason, mask in faults.items():
        if mask.any():
            draft.tell('warning', CODES[reason], f'boxes: {reason}', _ids(draft, mask), 'removed')
    if bad_area.any():
        fix = 'area set to width * height'
        draft.tell('warning', 'boxes.area', f'boxes: {AREA_FIELD}', _ids(draft, bad_area), fix)
        _set(draft, 'area', np.flatnonzero(bad_area), table.boxes[bad_area, 2:].prod(1))
    keep = ~np.logical_or.reduce(list(faults.values()))
    _keep(draft, keep)
    return table.take(keep)


def _drop_repeated(draft: Draft, table: Table) -> Table:
    """Remove duplicate boxes, which count double; report those with different classes."""
    alike = _alike(table)
    few = table if len(alike) == len(table.label) else Table(*(each[alike] for each in table))
    keys = (*few.boxes.T, few.crowd, few.image)
    order = np.lexsort((few.label, *keys))

    def equals_previous(*columns: np.ndarray) -> np.ndarray:
        same = np.ones(max(len(order) - 1, 0), bool)
        for column in columns:
            values = column[order]
            same &= values[1:] == values[:-1]
        mask = np.zeros(len(table.label), bool)
        mask[alike[order[1:][same]]] = True
        return mask

    same_place = equals_previous(*keys)
    repeated = same_place & equals_previous(*keys, few.label)
    if repeated.any():
        text = 'duplicate boxes with the same class'
        draft.tell('warning', 'boxes.repeated', text, _ids(draft, repeated), 'one is kept')
    two_classes = same_place & ~repeated
    if two_classes.any():
        text = 'identical boxes with different classes'
        draft.tell('warning', 'boxes.two_classes', text, _ids(draft, two_classes))
    _keep(draft, ~repeated)
    return table.take(~repeated)


def _alike(table: Table) -> np.ndarray:
    """Return the indices of all boxes that may have an equal one: few, and quick to sort."""
    key = table.image * len(table.image)  # wraps around; equal boxes have equal keys
    for column in table.boxes.T:
        key = key * HASH_FACTOR + (column + 0.0).view(np.int64)  # -0.0 equals 0.0
    ordered = np.sort(key)
    shared = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(shared):
        return np.zeros(0, int)
    return np.flatnonzero(shared[np.searchsorted(shared, key).clip(max=len(shared) - 1)] == key)


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
    rows = np.flatnonzero(huge | outside)
    low, high = (np.clip(each[rows], 0, table.image_wh[rows]) for each in (low, high))
    cut = (high - low >= MIN_SIDE_PX).all(1)  # a sliver is kept unchanged
    if not cut.any():
        return table
    rows, new = rows[cut], np.hstack([low, high - low])[cut]
    boxes = table.boxes.copy()
    boxes[rows] = new
    _set(draft, 'bbox', rows, new)
    _set(draft, 'area', rows, _cut_areas(draft, rows, new[:, 2:].prod(1)))
    return table._replace(boxes=boxes)


def _cut_areas(draft: Draft, rows: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Return the areas of clipped boxes, at most those of their outlines."""
    entries = draft.annotations
    if isinstance(entries, BoxRows):
        return np.fmin(entries.area[rows], full)
    given = [as_number(entries[row].get('area')) for row in rows.tolist()]
    pairs = zip(given, full.tolist())
    return np.array([most if own is None else min(own, most) for own, most in pairs], float)


def _set(draft: Draft, field: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Set a field of some annotations."""
    entries = draft.annotations
    if isinstance(entries, BoxRows):
        if len(rows) and field in COLUMNS:
            entries.update(COLUMNS[field], rows, values)
        return
    for row, value in zip(rows.tolist(), values.tolist()):
        entries[row] = {**entries[row], field: value}


def _lacking(draft: Draft, field: str) -> np.ndarray:
    """Return the indices of annotations without a usable field."""
    entries = draft.annotations
    if isinstance(entries, BoxRows):
        given = {'area': np.isfinite(entries.area), 'iscrowd': entries.crowd >= 0}[field]
        return np.flatnonzero(~given)
    return np.array([i for i, e in enumerate(entries) if not _is_usable(e, field)], int)


def _fill_fields(draft: Draft, table: Table) -> None:
    for field in ('area', 'iscrowd'):
        lacking = _lacking(draft, field)
        if not len(lacking):
            continue
        text = f'annotations without a usable {field}, which the COCO metric reads'
        fix = 'area set to width * height' if field == 'area' else 'iscrowd set to 0'
        draft.tell('warning', f'annotations.{field}', text, _ids_of(draft, lacking), fix)
        areas = table.boxes[lacking, 2:].prod(1)
        _set(draft, field, lacking, areas if field == 'area' else np.zeros(len(lacking), int))


def _is_usable(entry: Entry, field: str) -> bool:
    """Whether the COCO metric can use a field: a number as area, 0 or 1 as crowd mark."""
    value = entry.get(field)
    if field == 'iscrowd':
        return isinstance(value, (int, float)) and value in (0, 1)
    number = as_number(value)
    return number is not None and math.isfinite(number)


def _tell_format(draft: Draft, table: Table, is_numeric: np.ndarray) -> None:
    """Report boxes that hold corners or fractions of the image instead of xywh pixels."""
    usable = is_numeric & np.isfinite(table.boxes).all(1)
    boxes, image_wh = table.take(usable).boxes, table.take(usable).image_wh
    with np.errstate(invalid='ignore', over='ignore'):
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
    return _ids_of(draft, np.flatnonzero(mask))


def _ids_of(draft: Draft, rows: np.ndarray) -> list:
    entries = draft.annotations
    if isinstance(entries, BoxRows):
        return entries.ids[rows].tolist()
    return [entries[row]['id'] for row in rows.tolist()]


def _rows(entries: list[Entry], field: str, targets: list[Entry]) -> np.ndarray:
    rows = {target['id']: row for row, target in enumerate(targets)}
    return np.fromiter((rows[entry[field]] for entry in entries), np.int64, len(entries))
