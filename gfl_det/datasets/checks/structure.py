"""Checks of entries, fields, ids and references of an annotation file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from math import isfinite
from typing import Any

import numpy as np

from gfl_det.datasets.annotations import ID_TYPES, Entry, as_number, is_id, is_name, is_size
from gfl_det.datasets.checks.draft import LISTS, WITH_BOXES, BoxRows, Draft
from gfl_det.datasets.columns import Columns
from gfl_det.datasets.table import EVALUATOR_IDS, misjudged_ids
from gfl_det.datasets.tidying import tidy
from gfl_det.errors import DataError

REFERENCES = {'image_id': 'images', 'category_id': 'categories'}
REMOVED = 'removed'
WITHOUT_SIZE = f'{WITH_BOXES}; --images DIR --decode reads sizes from the images instead'
MAX_GIVEN = EVALUATOR_IDS // 2  # new ids follow the highest id below this


def start(dataset: Entry, source: str) -> Draft:
    """Start a check: require the three lists and normalise their values.

    Args:
        dataset: Parsed annotation file.
        source: File name for messages.

    Raises:
        DataError: If a list is missing or not a list, or the file has another format: no repair is
            possible.
    """
    dataset, changes = tidy(dataset, source)
    for key in ('images', 'categories', *(['annotations'] if 'annotations' in dataset else [])):
        if not isinstance(dataset.get(key), list):
            state = 'has no list' if key not in dataset else 'has no list but another value for'
            raise DataError(f'{source} {state} "{key}": it is not a COCO annotation file.')
    draft = Draft(source, dataset)
    for change in changes:
        draft.tell('warning', *change)
    if 'annotations' not in dataset:
        draft.tell('warning', 'annotations.none', 'the file has no list "annotations", so no boxes')
    for key in LISTS:
        entries = getattr(draft, key)
        if set(map(type, entries)) <= {dict}:
            continue
        wrong = [i for i, entry in enumerate(entries) if not isinstance(entry, dict)]
        draft.tell('error', f'{key}.kind', f'{key} that are not objects, at', wrong, REMOVED)
        setattr(draft, key, [entry for entry in entries if isinstance(entry, dict)])
    return draft


def start_columns(columns: Columns, source: str) -> Draft:
    """Start a check of a plain file, to which nothing of the above can apply."""
    lists = dict(images=columns.images(), categories=columns.category_list())
    return Draft(source, {**lists, 'annotations': BoxRows(columns)})


def check_structure(draft: Draft, sizes_follow: bool = False) -> None:
    """Check fields, ids and references, and remove invalid entries.

    Args:
        draft: Draft from :func:`start`.
        sizes_follow: Keep images without a size, because they will be decoded.
    """
    check_images(draft, sizes_follow)
    check_categories(draft)
    check_annotations(draft)


def check_images(draft: Draft, sizes_follow: bool = False) -> None:
    """Check that each image has a unique id and file, and a size."""
    _keep(draft, 'images', 'id', is_id, WITH_BOXES)
    _refuse_shared_ids(draft)
    for field, is_right, text in (
        ('file_name', is_name, 'images without a file_name'),
        ('height', is_size, 'images without a usable height'),
        ('width', is_size, 'images without a usable width'),
    ):
        if sizes_follow and is_right is is_size:
            continue
        wrong = [image['id'] for image in draft.images if not is_right(image.get(field))]
        if wrong:
            fix = WITHOUT_SIZE if is_right is is_size else WITH_BOXES
            draft.tell('error', f'images.{field}', text, wrong, fix)
            draft.remove_images(wrong)
    _merge_same_files(draft)


def check_categories(draft: Draft) -> None:
    """Check that each category has a unique id and name."""
    _keep(draft, 'categories', 'id', is_id, REMOVED)
    _keep(draft, 'categories', 'name', is_name, REMOVED)
    by_id: dict[Any, Entry] = {}
    wrong = []
    for category in draft.categories:
        if by_id.setdefault(category['id'], category) is not category:
            wrong.append(category['id'])
    if wrong:
        text = 'categories that share an id, so references are ambiguous'
        draft.tell('error', 'categories.id_twice', text, wrong, 'the first is kept')
        draft.categories = list(by_id.values())
    first: dict[str, Any] = {}
    new = {each['id']: first.setdefault(each['name'], each['id']) for each in draft.categories}
    twice = [old for old, kept in new.items() if old != kept]
    if twice:
        text = 'categories that share a name'
        draft.tell('error', 'categories.name_twice', text, twice, 'merged into the first')
        draft.categories = [each for each in draft.categories if each['id'] not in set(twice)]
        draft.annotations = _renamed(draft.annotations, 'category_id', new)


def check_annotations(draft: Draft) -> None:
    """Check that annotations have unique ids, a known image and a known category."""
    for field, key in REFERENCES.items() if not isinstance(draft.annotations, BoxRows) else ():
        _keep(draft, 'annotations', field, is_id, REMOVED)
        known = {entry['id'] for entry in getattr(draft, key)}
        if {entry[field] for entry in draft.annotations} <= known:
            continue
        wrong = [_name(i, e) for i, e in enumerate(draft.annotations) if e[field] not in known]
        text = f'annotations whose {field} is not among the {key}'
        draft.tell('error', f'annotations.{field}_unknown', text, wrong, REMOVED)
        draft.annotations = [each for each in draft.annotations if each[field] in known]
    _give_ids(draft)
    for key in ('images', 'categories'):
        odd = _unordered([entry['id'] for entry in getattr(draft, key)])
        if odd:
            text = f'ids of {key} that pycocotools cannot distinguish or sort'
            draft.tell('warning', f'{key}.id_pycocotools', text, odd)


def _give_ids(draft: Draft) -> None:
    """Assign new ids to annotations with missing or duplicate ids."""
    if isinstance(draft.annotations, BoxRows):
        _number_odd(draft, draft.annotations)
        return
    ids = [entry.get('id') for entry in draft.annotations]
    misjudged = set(misjudged_ids(ids))
    if set(map(type, ids)) <= ID_TYPES and len(set(ids)) == len(ids) and not misjudged:
        return
    numbers = (as_number(value) for value in ids)
    highest = max((int(e) for e in numbers if e and isfinite(e) and e < MAX_GIVEN), default=0)
    free = count(max(highest, 0) + 1)
    seen: set[Any] = set()
    lacking, twice, odd, entries = [], [], [], []
    for index, entry in enumerate(draft.annotations):
        own = entry.get('id')
        if not is_id(own):
            lacking.append(index)
        elif own in seen:
            twice.append(own)
        elif own in misjudged:
            odd.append(own)
            seen.add(own)
        else:
            seen.add(own)
            entries.append(entry)
            continue
        entries.append({**entry, 'id': next(free)})
    for code, text, found in (
        ('id', 'annotations without an id, at', lacking),
        ('id_twice', 'annotations with a duplicate id', twice),
    ):
        if found:
            draft.tell('error', f'annotations.{code}', text, found, 'numbered anew')
    _tell_odd(draft, odd)
    draft.annotations = entries


def _tell_odd(draft: Draft, odd: list[Any]) -> None:
    if odd:
        text = (
            'annotations with ids that pycocotools misjudges: 0 counts as not found, '
            'strings and numbers beyond 2**53 are rejected or confused'
        )
        draft.tell('warning', 'annotations.id_pycocotools', text, odd, 'numbered anew')


def _number_odd(draft: Draft, rows: BoxRows) -> None:
    """Assign new ids to misjudged ones, where all are unique integers."""
    odd = np.flatnonzero((rows.ids == 0) | (np.abs(rows.ids) >= EVALUATOR_IDS))
    if not len(odd):
        return
    _tell_odd(draft, rows.ids[odd].tolist())
    usable = rows.ids[(rows.ids != 0) & (rows.ids < MAX_GIVEN)]
    first = max(int(usable.max(initial=0)), 0) + 1
    rows.update('ids', odd, np.arange(first, first + len(odd)))


def _unordered(ids: list[Any]) -> list[Any]:
    """Return ids beyond float64's integers, and strings mixed with numbers."""
    if set(map(type, ids)) <= {int} and (not ids or max(map(abs, ids)) < EVALUATOR_IDS):
        return []
    numbers = [each for each in ids if not isinstance(each, str)]
    texts = [each for each in ids if isinstance(each, str)]
    large = [each for each in numbers if not abs(each) < EVALUATOR_IDS]
    return [*large, *texts] if numbers else []


def _refuse_shared_ids(draft: Draft) -> None:
    ids = [image['id'] for image in draft.images]
    if len(set(ids)) == len(ids):
        return
    shared = {value for value, times in Counter(ids).items() if times > 1}
    first: dict[Any, Entry] = {}
    ambiguous = set()
    for image in draft.images:
        if image['id'] not in shared:
            continue
        known = first.setdefault(image['id'], image)
        if known.get('file_name') != image.get('file_name'):
            ambiguous.add(image['id'])
    repeated = shared - ambiguous
    if repeated:
        draft.tell(
            'error', 'images.repeated', 'images listed twice', sorted(repeated, key=repr), 'once'
        )
        draft.images = [
            image
            for image in draft.images
            if image['id'] not in repeated or first[image['id']] is image
        ]
    if ambiguous:
        found = sorted(ambiguous, key=repr)
        text = 'ids shared by different images, so their boxes are ambiguous'
        draft.tell('error', 'images.id_twice', text, found, WITH_BOXES)
        draft.remove_images(found)


def _merge_same_files(draft: Draft) -> None:
    """Merge images of the same file: each one lacks the boxes of the other."""
    first: dict[str, Any] = {}
    new = {each['id']: first.setdefault(each['file_name'], each['id']) for each in draft.images}
    if len(first) == len(new):
        return
    twice = [old for old, kept in new.items() if old != kept]
    text = 'images with the same file, so that each lacks the boxes of the other'
    draft.tell('warning', 'images.file_twice', text, twice, 'merged into the first')
    left_out = set(twice)
    draft.images = [image for image in draft.images if image['id'] not in left_out]
    draft.annotations = _renamed(draft.annotations, 'image_id', new)


def _renamed(entries: list[Entry], field: str, new: dict[Any, Any]) -> list[Entry]:
    def is_old(value: Any) -> bool:
        return is_id(value) and new.get(value, value) != value

    return [
        {**each, field: new[each[field]]} if is_old(each.get(field)) else each for each in entries
    ]


def _keep(draft: Draft, key: str, field: str, is_right: Callable[[Any], bool], fix: str) -> None:
    """Keep the entries with a valid field."""
    entries = getattr(draft, key)
    values = [entry.get(field) for entry in entries]
    if is_right is is_id and set(map(type, values)) <= ID_TYPES:  # fast path for millions of ids
        return
    right = [is_right(value) for value in values]
    if all(right):
        return
    wrong = [_name(i, each) for i, (each, ok) in enumerate(zip(entries, right)) if not ok]
    text = f'{key} whose {field} is missing or unusable, {"at" if field == "id" else "of"}'
    draft.tell('error', f'{key}.{field}', text, wrong, fix)
    setattr(draft, key, [each for each, ok in zip(entries, right) if ok])


def _name(index: int, entry: Entry) -> Any:
    """Return an entry's id, or its index in the list if it has none."""
    return entry['id'] if is_id(entry.get('id')) else index
