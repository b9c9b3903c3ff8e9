"""Checks of a COCO annotation file: JSON, structure, ids and class names.

Format: https://cocodataset.org/#format-data. Pure functions without framework imports. Faults that
prevent training raise a ``DataError`` that names the file and the entry.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain, compress
from typing import Any, NamedTuple

import numpy as np

from gfl_det.errors import DataError

NAMED = 3  # entries named in a message; further ones are only counted
MAX_LISTED = 25  # class names listed in a message
MAX_SHOWN = 80  # characters of a value in a message
ID_TYPES = {int, float, str}  # some tools write 12.0 for 12
PACKED = (b'PK', b'\x1f\x8b')  # zip, gzip
LISTS = {  # fields of the entries -> format of the list
    ('image_id', 'score'): 'results of a detector',
    ('data', 'annotations'): "tasks of Label Studio's own export",
    ('image', 'annotations'): 'CreateML annotations',
    ('name', 'labels'): 'BDD100K annotations',
}

Entry = dict[str, Any]


class Findings(NamedTuple):
    """Number of entries with a fault, and the ids of the first few."""

    number: int
    ids: list[Any]

    def __str__(self) -> str:
        more = ', ...' if self.number > len(self.ids) else ''
        return f'{self.number} (id {", ".join(map(shown, self.ids))}{more})'


def find(ids: Iterable[Any]) -> Findings:
    """Count ids and remember the first few."""
    found = list(ids)
    return Findings(len(found), found[:NAMED])


def shown(value: Any) -> str:
    """Return the Python repr of a value, truncated if long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f'{text[:MAX_SHOWN]}...'


def as_number(value: Any) -> float | None:
    """Return a JSON number as a float; None for anything else, including booleans."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    try:
        return float(value)
    except OverflowError:
        return float('inf')


def listed(values: Sequence[Any]) -> str:
    """Show the first values and, for a long list, their number."""
    first = ', '.join(map(shown, values[:MAX_LISTED]))
    return f'[{first}{f", ... {len(values)} in all" if len(values) > MAX_LISTED else ""}]'


def parse(content: bytes, source: str) -> Entry:
    """Parse a COCO annotation file.

    Args:
        content: Bytes of the file.
        source: File name for messages.

    Raises:
        DataError: If the content is not valid JSON (the message states the position) or not an
            object.
    """
    try:
        dataset = json.loads(content)
    except json.JSONDecodeError as error:
        what = _kind_of_text(content)
        where = f'{error.msg} at line {error.lineno}, column {error.colno}'
        raise DataError(f'{source} {what} ({where}): give a COCO annotation file.') from error
    except UnicodeDecodeError as error:
        what = 'is a compressed file, so extract it' if content[:2] in PACKED else 'is not UTF-8'
        raise DataError(
            f'{source} {what}: give a COCO annotation file in UTF-8 ({error}).'
        ) from error
    except (ValueError, RecursionError) as error:  # huge numbers, deeply nested lists
        raise DataError(
            f'{source} holds unreadable JSON ({error}): it is not a COCO file.'
        ) from error
    check_object(dataset, source)
    return dataset


def _kind_of_text(content: bytes) -> str:
    begin = content.lstrip()[:1]
    if content[:2] in PACKED:
        return 'is a compressed file, so extract it'
    return {b'': 'is empty', b'<': 'is XML'}.get(begin, 'is not valid JSON')


def check_object(dataset: Any, source: str) -> None:
    """Check that a parsed file is an object, and name known formats of lists.

    Raises:
        DataError: If the file is not an object.
    """
    if isinstance(dataset, dict):
        return
    kind = f'a JSON {type(dataset).__name__}'
    first = dataset[0] if isinstance(dataset, list) and dataset else None
    if isinstance(first, dict):
        known = (name for keys, name in LISTS.items() if set(keys) <= set(first))
        kind = next(known, kind)
    raise DataError(
        f'{source} holds {kind} instead of an object with the lists "images", "annotations" '
        'and "categories".'
    )


def check_structure(dataset: Entry, source: str, need_annotations: bool = True) -> None:
    """Check the three lists and the required COCO fields of their entries.

    Args:
        dataset: Parsed annotation file.
        source: File name for messages.
        need_annotations: False for files that only list images, such as COCO's test sets.

    Raises:
        DataError: If a list, an entry or a field is missing or of the wrong type.
    """
    for key in ('images', 'annotations', 'categories'):
        if key == 'annotations' and not need_annotations and key not in dataset:
            continue
        entries = dataset.get(key)
        if not isinstance(entries, list):
            state = 'has no list' if entries is None else f'holds a {type(entries).__name__} as'
            raise DataError(f'{source} {state} "{key}": it is not a COCO annotation file.')
        wrong = next((i for i, entry in enumerate(entries) if not isinstance(entry, dict)), None)
        if wrong is not None:
            raise DataError(
                f'{source}: {key}[{wrong}] is {entries[wrong]!r:.60} instead of an object.'
            )
    _need(dataset['images'], 'images', source, file_name=is_name, height=is_size, width=is_size)
    _need(dataset['categories'], 'categories', source, name=is_name)
    _need(dataset.get('annotations', []), 'annotations', source, image_id=None, category_id=None)


def check_ids(dataset: Entry, source: str) -> None:
    """Check that ids are unique and that every annotation refers to a listed image and category.

    Raises:
        DataError: If an id occurs twice, or an annotation refers to an unknown image or category.
    """
    annotations = dataset.get('annotations', [])
    for key in ('images', 'categories', 'annotations'):
        _refuse_duplicates(dataset.get(key, []), key, source)
    for field, key in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in dataset[key]}
        unknown = {entry[field] for entry in annotations} - known
        if not unknown:
            continue
        found = find(entry['id'] for entry in annotations if entry[field] in unknown)
        values = ', '.join(map(shown, sorted(unknown, key=repr)[:NAMED]))
        raise DataError(
            f'{source}: annotations {found} have the {field} {values}, which its "{key}" do not '
            f'list (known: {listed(sorted(known, key=repr))}): correct or remove them.'
        )


def match_classes(classes: Sequence[str], categories: list[Entry], source: str) -> list[Any]:
    """Return the category ids of the classes, in file order, as mmdet numbers its labels.

    Args:
        classes: Class names of ``metainfo['classes']``.
        categories: Categories of the file.
        source: File name for messages.

    Raises:
        DataError: If a name is missing in the file or occurs twice, or the order differs from the
            file's: mmdet numbers labels in file order, so names would be swapped.
    """
    if isinstance(classes, str):
        raise DataError(f'metainfo classes is the string {classes!r}: write ({classes!r},).')
    in_file = [category['name'] for category in categories]
    both = f'metainfo lists {listed(classes)}; the file lists {listed(in_file)}'
    for names, where in ((in_file, f'"categories" of {source}'), (list(classes), 'metainfo')):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f'The class {shown(twice[0])} occurs twice in {where}: rename one.')
    missing = [name for name in classes if name not in in_file]
    if missing:
        hints = ', '.join(with_nearest(name, in_file) for name in missing[:MAX_LISTED])
        raise DataError(
            f'{source} has no class named {hints}; {both}. Set metainfo=dict(classes=(...)) of '
            "the dataset (and the head's num_classes) to the file's names."
        )
    wanted = set(classes)
    chosen = [category for category in categories if category['name'] in wanted]
    if [category['name'] for category in chosen] != list(classes):
        raise DataError(
            f'The classes of metainfo are in another order than in {source}: {both}. Labels are '
            "numbered in the file's order, so put metainfo's classes in that order."
        )
    return [category['id'] for category in chosen]


def add_absent(categories: list[Entry], classes: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Add classes that the file of a split omits because it has no box of them.

    Only if every name in the file is among the classes: another name may be a misspelled class, and
    :func:`match_classes` rejects the file.

    >>> add_absent([{'id': 7, 'name': 'cat'}], ('cat', 'cow'))
    ([{'id': 7, 'name': 'cat'}, {'id': 8, 'name': 'cow'}], ['cow'])

    Args:
        categories: Categories of the file; not modified.
        classes: Class names of ``metainfo['classes']``.

    Returns:
        Categories including the absent classes, each in its place, and the names of the absent
        classes.
    """
    in_file = [category['name'] for category in categories]
    absent = [name for name in classes if name not in in_file]
    in_doubt = not in_file or not set(in_file) <= set(classes)
    if isinstance(classes, str) or in_doubt or len(set(absent)) < len(absent):
        return categories, []
    ids = dict(zip(absent, free_ids([category['id'] for category in categories], len(absent))))
    added = list(categories)
    for place, name in enumerate(classes):  # keeps the file's order, right or wrong
        if name in ids:
            before = [each['name'] for each in added].index(classes[place - 1]) if place else -1
            added.insert(before + 1, dict(id=ids[name], name=name))
    return added, absent


def absent_text(absent: Sequence[str]) -> str:
    """Describe the classes added by :func:`add_absent`."""
    return f'classes missing in the file count as classes without a box: {listed(absent)}'


def free_ids(ids: Sequence[Any], number: int) -> list[int]:
    """Return unused ids, following the largest one."""
    numbers = [int(each) for each in ids if not isinstance(each, str) and math.isfinite(each)]
    first = max(numbers, default=0) + 1
    return list(range(first, first + number))


def _need(
    entries: list[Entry], key: str, source: str, **fields: Callable[[Any], bool] | None
) -> None:
    """Check that each entry has an ``id`` and the given fields with valid values."""
    for field, is_right in {'id': None, **fields}.items():
        try:
            values = [entry[field] for entry in entries]
        except KeyError:
            index = next(i for i, entry in enumerate(entries) if field not in entry)
            name = f'entry {entries[index]["id"]!r}' if 'id' in entries[index] else f'[{index}]'
            raise DataError(
                f'{source}: {key} {name} has no "{field}": add it{_cure(field)}.'
            ) from None
        check = is_right or is_id
        # The types of a million ids are checked at once; only a fault needs a search.
        if check is is_id and set(map(type, values)) <= ID_TYPES:
            continue
        wrong = next((i for i, value in enumerate(values) if not check(value)), None)
        if wrong is not None:
            raise DataError(
                f'{source}: {key} entry {entries[wrong].get("id", wrong)!r} has the {field} '
                f'{values[wrong]!r:.60}, which is not a usable value: correct it{_cure(field)}.'
            )


def _cure(field: str) -> str:
    if field not in ('width', 'height'):
        return ''
    return ' (gfl-det check --images DIR --decode --fix OUT.json reads the pictures)'


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id."""
    return type(value) in ID_TYPES


def is_name(value: Any) -> bool:
    """Whether a JSON value can be the name of a file or a class."""
    return isinstance(value, str) and bool(value)


def is_size(value: Any) -> bool:
    """Whether a JSON value can be a height or width, px."""
    number = as_number(value)
    return number is not None and 0 < number < float('inf')


def _refuse_duplicates(entries: list[Entry], key: str, source: str) -> None:
    ids = [entry['id'] for entry in entries]
    if len(set(ids)) == len(ids):
        return
    twice = find(value for value, times in Counter(ids).items() if times > 1)
    raise DataError(f'{source}: {key} have duplicate ids: {twice}; make ids unique.')


def with_nearest(name: Any, names: Sequence[str]) -> str:
    """Show a name and the most similar name of a list."""
    by_lower = {other.lower(): other for other in names}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f' (nearest: {shown(by_lower[nearest[0]])})' if nearest else ''
    return f'{shown(name)}{hint}'


MIN_SIDE_PX = 1.0  # mmdet drops thinner boxes in training
ROUNDING_PX = 1.0  # rounding tolerance: a box this far outside counts as inside

# Reasons to drop a box, in order of precedence: an entry counts under the first that applies.
BAD_FORMAT = 'bbox is not four numbers [x, y, width, height]'
NOT_FINITE = 'NaN or infinite coordinates'
NO_AREA = 'zero or negative width or height'
TOO_THIN = 'thinner than one pixel'
OUTSIDE = 'wholly outside the image'
AREA_FIELD = 'area field of zero or less'
DROPPED = (BAD_FORMAT, NOT_FINITE, NO_AREA, TOO_THIN, OUTSIDE, AREA_FIELD)


class BoxReport(NamedTuple):
    """Outcome for the annotation entries of a file.

    Attributes:
        total: Number of entries in the file.
        kept: Number of remaining entries, including crowds.
        dropped: Findings of unusable boxes by reason.
        ignored: Number of entries marked ``ignore``, which mmdet skips.
        other_classes: Number of entries of classes that the data set does not use.
        partly_outside: Number of kept boxes that exceed the image by more than a pixel.
        area_filled: Number of kept entries whose missing ``area`` was set to width * height.
    """

    total: int
    kept: int
    dropped: dict[str, Findings]
    ignored: int
    other_classes: int
    partly_outside: Findings
    area_filled: Findings

    def warning(self) -> str | None:
        """Return the counts of dropped boxes by reason, or None if none was dropped."""
        if not self.dropped:
            return None
        number = sum(found.number for found in self.dropped.values())
        reasons = '; '.join(f'{reason}: {found}' for reason, found in self.dropped.items())
        return f'{number} of {self.total} boxes cannot be used and are dropped: {reasons}'

    def notes(self) -> list[str]:
        """Return sentences on kept, ignored and left out boxes, without the dropped ones."""
        notes = []
        if self.partly_outside.number:
            notes.append(f'boxes partly outside their image, kept: {self.partly_outside}')
        if self.area_filled.number:
            notes.append(f'boxes without a usable area field, set to w * h: {self.area_filled}')
        if self.other_classes:
            notes.append(f'boxes of classes that metainfo does not list: {self.other_classes}')
        if self.ignored:
            notes.append(f'boxes marked "ignore", skipped: {self.ignored}')
        return notes


def usable_boxes(dataset: Entry, category_ids: Iterable[Any]) -> tuple[list[Entry], BoxReport]:
    """Select the entries to train on: entries of the given categories with a usable box.

    Args:
        dataset: A parsed annotation file that passed `check_structure` and `check_ids`.
        category_ids: Categories to keep; entries of others are left out and counted.

    Returns:
        Remaining entries, in order, each with a numeric ``area``, and the report.
    """
    wanted, entries = set(category_ids), dataset.get('annotations', [])
    asked = [entry for entry in entries if entry['category_id'] in wanted]
    used = [entry for entry in asked if not entry.get('ignore', False)]
    boxes, is_numeric = as_boxes([entry.get('bbox') for entry in used])  # (N, 4) xywh, px
    area, has_area = areas_of(used, boxes)
    image_wh = image_sizes(used, dataset['images'])
    ids = [entry['id'] for entry in used]
    keep, report = judge_boxes(ids, BoxColumns(boxes, is_numeric, area, has_area, image_wh))
    kept, kept_area = list(compress(used, keep.tolist())), area[keep]
    for i in np.flatnonzero(~has_area[keep]):
        kept[i] = {**kept[i], 'area': float(kept_area[i])}
    for place in odd_crowds(kept):
        entry = kept[place]
        kept[place] = {**entry, 'iscrowd': int(is_crowd(entry['iscrowd']))}
    ignored, other = len(asked) - len(used), len(entries) - len(asked)
    return kept, report._replace(total=len(entries), ignored=ignored, other_classes=other)


class BoxColumns(NamedTuple):
    """Boxes of N entries, with what decides whether they are usable."""

    boxes: np.ndarray  # (N, 4) float64 xywh, px
    is_numeric: np.ndarray  # (N,) bool: four real numbers
    area: np.ndarray  # (N,) float64, px^2
    has_area: np.ndarray  # (N,) bool: the area is from the file
    image_wh: np.ndarray  # (N, 2), px


def judge_boxes(ids: Sequence[Any], rows: BoxColumns) -> tuple[np.ndarray, BoxReport]:
    """Return a mask (N,) of usable boxes and the report, as if these were all entries."""
    corner, size = rows.boxes[:, :2], rows.boxes[:, 2:]
    with np.errstate(invalid='ignore', over='ignore'):
        faults = box_faults(rows.boxes, rows.is_numeric, rows.area, rows.image_wh)
        overhang = np.maximum(-corner, corner + size - rows.image_wh)
    keep = ~np.logical_or.reduce(list(faults.values()))

    def where(mask: np.ndarray) -> Findings:
        return Findings(int(mask.sum()), [ids[i] for i in np.flatnonzero(mask)[:NAMED].tolist()])

    return keep, BoxReport(
        total=len(rows.boxes),
        kept=int(keep.sum()),
        dropped={reason: where(mask) for reason, mask in faults.items() if mask.any()},
        ignored=0,
        other_classes=0,
        partly_outside=where(keep & np.logical_or(*(overhang > ROUNDING_PX).T)),
        area_filled=where(keep & ~rows.has_area),
    )


def is_crowd(value: Any) -> bool:
    """Whether a value of "iscrowd" marks a crowd: only 1 or true does."""
    return value is True or as_number(value) == 1


def odd_crowds(entries: list[Entry]) -> list[int]:
    """Return the indices of entries whose "iscrowd" is present but not 0 or 1."""
    values = [entry.get('iscrowd', 0) for entry in entries]
    if set(map(type, values)) <= {int} and set(values) <= {0, 1}:
        return []
    return [i for i, value in enumerate(values) if type(value) is not int or value not in (0, 1)]


def box_faults(
    boxes: np.ndarray, is_numeric: np.ndarray, area: np.ndarray, image_wh: np.ndarray
) -> dict[str, np.ndarray]:
    """Return a mask (N,) for each reason in ``DROPPED``; each entry is set in at most one."""
    corner, side = boxes[:, :2], boxes[:, 2:]
    overlap = np.minimum(corner + side, image_wh) - np.maximum(corner, 0)
    masks = (  # both columns at once: any(-1) takes several times as long
        ~is_numeric,
        ~np.isfinite(boxes).all(-1),
        np.logical_or(*(side <= 0).T),
        np.logical_or(*(side < MIN_SIDE_PX).T),
        np.logical_or(*(overlap <= 0).T),
        area <= 0,
    )
    faults, free = {}, np.ones(len(boxes), bool)
    for reason, mask in zip(DROPPED, masks):
        faults[reason] = mask & free
        free &= ~mask
    return faults


def image_sizes(entries: list[Entry], images: list[Entry]) -> np.ndarray:
    """Return width and height (N, 2), px, of each entry's image."""
    sizes = np.array([(image['width'], image['height']) for image in images], float)
    rows = {image['id']: row for row, image in enumerate(images)}
    chosen = np.fromiter((rows[entry['image_id']] for entry in entries), np.int64, len(entries))
    return sizes.reshape(-1, 2)[chosen]


_flat = chain.from_iterable


def as_boxes(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) float64, NaN unless four real numbers, and a mask (N,) of valid ones."""
    number, all_lists = len(values), set(map(type, values)) <= {list}
    if all_lists and set(map(len, values)) <= {4} and set(map(type, _flat(values))) <= {int, float}:
        with suppress(OverflowError):  # an integer beyond float64
            boxes = np.fromiter(_flat(values), float, 4 * number).reshape(-1, 4)
            return boxes, np.ones(number, bool)
    # Some value is invalid: check each one.
    rows = [
        [as_number(v) for v in value] if isinstance(value, list) and len(value) == 4 else [None] * 4
        for value in values
    ]
    is_numeric = np.array([None not in row for row in rows], bool)
    boxes = np.array([row if ok else [np.nan] * 4 for row, ok in zip(rows, is_numeric)], float)
    return boxes.reshape(-1, 4), is_numeric


def areas_of(entries: list[Entry], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return areas (N,), w * h if the field is invalid, and a mask (N,) of areas from the file."""
    given = [as_number(entry.get('area')) for entry in entries]
    return fill_areas(np.array([np.nan if each is None else each for each in given], float), boxes)


def fill_areas(given: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return areas (N,) with w * h where NaN is given, and a mask (N,) of the given ones."""
    from_file = ~np.isnan(given)
    with np.errstate(invalid='ignore', over='ignore'):  # infinite areas are rejected later
        products = boxes[:, 2] * boxes[:, 3]
    return np.where(from_file, given, products), from_file
