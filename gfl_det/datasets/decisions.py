"""Decisions about suspicious labels, applied to a COCO annotation file.

``gfl-det find-label-errors`` lists suspicious labels, its page collects a decision for each, and
:func:`apply_decisions` makes a corrected copy of the annotations. Everything else in the file is
unchanged: other fields, other annotations, their order and their ids.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from gfl_det.datasets.annotations import Entry, as_number, free_ids
from gfl_det.errors import DataError

KINDS = ('loose', 'class', 'missing', 'spurious', 'duplicate')
DECISIONS = ('keep', 'take', 'mark')
REMOVED = ('spurious', 'duplicate')  # kinds whose suggestion is to remove the label
MARK = 'marked'  # field of annotations, and of images with a missing label, to look at again


def digest_of(content: bytes) -> str:
    """SHA-256 of an annotation file, with which decisions identify it.

    Example:
        >>> digest_of(b'{}')[:8]
        '44136fa3'
    """
    return hashlib.sha256(content).hexdigest()


def read_decisions(content: Any, source: str, digest: str, annotations: str) -> list[Entry]:
    """Return the decisions of a parsed file.

    Args:
        content: Parsed file of the review page.
        source: Name of that file, for messages.
        digest: Digest of the annotation file, see :func:`digest_of`.
        annotations: Name of the annotation file, for messages.

    Raises:
        DataError: If the file contains no decisions, or they are for another annotation file.
    """
    entries = content.get('decisions') if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise DataError(
            f'{source} holds no decisions: give the decisions.json that the review page saves.'
        )
    if content.get('sha256') != digest:
        raise DataError(
            f'{source} was decided about another annotation file than {annotations} '
            f'({content.get("annotations")!r:.80}): give that one, unchanged.'
        )
    for place, entry in enumerate(entries):
        for field, known in (('kind', KINDS), ('decision', DECISIONS)):
            if entry.get(field) not in known:
                raise DataError(
                    f'{source}: decision {place} has the {field} {entry.get(field)!r:.40}, not one '
                    f'of {", ".join(known)}: correct it.'
                )
    return entries


def apply_decisions(
    dataset: Mapping[str, Any], decisions: Sequence[Entry], source: str
) -> tuple[Entry, Counter[str]]:
    """Make a corrected copy of a parsed annotation file.

    An accepted suggestion moves a box (loose), changes its class (class), adds a box (missing) or
    removes one (spurious, duplicate). A marked annotation gets ``"marked": true``; for a missing
    label, the image gets it.

    Args:
        dataset: Parsed COCO file; not modified.
        decisions: Entries from :func:`read_decisions`.
        source: Name of the decisions, for messages.

    Returns:
        The copy, and the numbers of entries ``moved``, ``renamed``, ``added``, ``removed``,
        ``marked`` and ``kept``.

    Raises:
        DataError: If a decision names an unknown image, annotation or category, or has no usable
            box.

    Example:
        >>> image, label = dict(id=7), dict(id=1, image_id=7, category_id=3, bbox=[0, 0, 9, 9])
        >>> dataset = dict(images=[image], categories=[dict(id=3)], annotations=[label])
        >>> fix = dict(kind='spurious', decision='take', image_id=7, annotation_id=1)
        >>> new, counts = apply_decisions(dataset, [fix], 'decisions.json')
        >>> new['annotations'], dict(counts)
        ([], {'removed': 1})
    """
    new = deepcopy(dict(dataset))
    labels = {each['id']: each for each in new.get('annotations', [])}
    images = {each['id']: each for each in new['images']}
    categories = {each['id'] for each in new['categories']}
    counts: Counter[str] = Counter()
    removed: set[Any] = set()
    added: list[Entry] = []
    for place, entry in enumerate(decisions):
        what = f'{source}: decision {place}'
        kind, decision = entry['kind'], entry['decision']
        missing = kind == 'missing'
        target = _find(images, entry, 'image_id', what)
        if not missing:
            target = _find(labels, entry, 'annotation_id', what)
        if decision == 'keep':
            counts['kept'] += 1
        elif decision == 'mark':
            target[MARK] = True
            counts['marked'] += 1
        elif kind in REMOVED:
            removed.add(target['id'])
        elif missing:
            category = _category(entry, categories, what)
            added.append(_new_label(entry, category, _box(entry, what)))
        elif kind == 'class':
            target['category_id'] = _category(entry, categories, what)
            counts['renamed'] += 1
        else:
            _move(target, _box(entry, what))
            counts['moved'] += 1
    for label, number in zip(added, free_ids(list(labels), len(added))):
        label['id'] = number
    kept = [each for each in new.get('annotations', []) if each['id'] not in removed]
    new['annotations'] = [*kept, *added]
    counts.update(removed=len(removed), added=len(added))
    return new, +counts


def _find(known: Mapping[Any, Entry], entry: Entry, field: str, what: str) -> Entry:
    try:
        return known[entry[field]]
    except (KeyError, TypeError):
        raise DataError(
            f'{what} names the {field} {entry.get(field)!r:.60}, which the annotations do not '
            'have: give the file that it was decided about.'
        ) from None


def _category(entry: Entry, categories: set[Any], what: str) -> Any:
    category = entry.get('suggested_category_id')
    if not isinstance(category, (int, float, str)) or category not in categories:
        raise DataError(
            f'{what} suggests the category {category!r:.60}, which the annotations do not have: '
            'correct it.'
        )
    return category


def _box(entry: Entry, what: str) -> list[float]:
    box = entry.get('suggested_bbox')
    numbers = [as_number(each) for each in box] if isinstance(box, list) else []
    if len(numbers) == 4 and all(each is not None and math.isfinite(each) for each in numbers):
        left, top, width, height = (float(each or 0) for each in numbers)
        if width > 0 and height > 0:
            return [left, top, width, height]
    raise DataError(f'{what} suggests the box {box!r:.60}, which is not [x, y, w, h]: correct it.')


def _new_label(entry: Entry, category: Any, box: list[float]) -> Entry:
    return dict(
        id=0,
        image_id=entry['image_id'],
        category_id=category,
        bbox=box,
        area=box[2] * box[3],
        iscrowd=0,
    )


def _move(label: Entry, box: list[float]) -> None:
    """Move a box and drop the outline of the old one."""
    label['bbox'] = box
    label['area'] = box[2] * box[3]
    label.pop('segmentation', None)
