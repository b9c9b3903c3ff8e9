"""Checks of a COCO annotation file: its JSON, its structure, its ids and its class names.

Format: https://cocodataset.org/#format-data. Pure functions, no framework is imported. What cannot
be trained on stops with a `DataError` that names the file and the entry.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from gfl_det.errors import DataError

NAMED = 3  # entries that a message names before it only counts
MAX_LISTED = 25  # class names that a message lists
MAX_SHOWN = 80  # characters of a value
ID_TYPES = {int, float, str}  # some tools write 12.0 for 12

Entry = dict[str, Any]


class Findings(NamedTuple):
    """How many entries share a fault, and the ids of the first few."""

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
    """Return a value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f'{text[:MAX_SHOWN]}...'


def as_number(value: Any) -> float | None:
    """Return a JSON number as a float, and None for all else, true and false among it."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    try:
        return float(value)
    except OverflowError:
        return float('inf')


def listed(values: Sequence[Any]) -> str:
    """Show the first values and, of a long list, how many there are."""
    first = ', '.join(map(shown, values[:MAX_LISTED]))
    return f'[{first}{f", ... {len(values)} in all" if len(values) > MAX_LISTED else ""}]'


def parse(content: bytes, source: str) -> Entry:
    """Parse a COCO annotation file.

    Args:
        content: The file's bytes.
        source: The file's name for messages.

    Raises:
        DataError: The content is no JSON (with the position) or its top level is no object.
    """
    try:
        dataset = json.loads(content)
    except json.JSONDecodeError as error:
        what = 'is empty' if not content.strip() else 'is not valid JSON'
        where = f'{error.msg} at line {error.lineno}, column {error.colno}'
        raise DataError(f'{source} {what} ({where}): give a COCO annotation file.') from error
    except UnicodeDecodeError as error:
        raise DataError(f'{source} is not a text file, so it is no COCO JSON: {error}.') from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nested lists
        raise DataError(
            f'{source} holds JSON beyond all measure ({error}): it is no COCO.'
        ) from error
    if not isinstance(dataset, dict):
        raise DataError(
            f'{source} holds a JSON {type(dataset).__name__} where COCO has an object with the '
            'lists "images", "annotations" and "categories".'
        )
    return dataset


def check_structure(dataset: Entry, source: str, need_annotations: bool = True) -> None:
    """Check that the three lists are there and that their entries have the fields COCO demands.

    Args:
        dataset: A parsed annotation file.
        source: The file's name for messages.
        need_annotations: False for files that only list images, as COCO's test sets do.

    Raises:
        DataError: A list, an entry or a field is missing or of the wrong kind.
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
                f'{source}: {key}[{wrong}] is {entries[wrong]!r:.60} where COCO has an object.'
            )
    _need(dataset['images'], 'images', source, file_name=is_name, height=is_size, width=is_size)
    _need(dataset['categories'], 'categories', source, name=is_name)
    _need(dataset.get('annotations', []), 'annotations', source, image_id=None, category_id=None)


def check_ids(dataset: Entry, source: str) -> None:
    """Check that ids are unique and that every annotation refers to an image and a category.

    Raises:
        DataError: An id occurs twice, or an annotation names an unknown image or category.
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
    """Return the category ids of the classes, in the file's order, as mmdet numbers its labels.

    Args:
        classes: The names in ``metainfo['classes']``.
        categories: The file's categories.
        source: The file's name for messages.

    Raises:
        DataError: A name is missing in the file or occurs twice, or the order differs from the
            file's: mmdet and its metric number labels by the file, names would be swapped.
    """
    if isinstance(classes, str):
        raise DataError(f'metainfo classes is the text {classes!r}: write ({classes!r},).')
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
            f'The classes of metainfo come in another order than in {source}: {both}. Labels are '
            "numbered in the file's order, so put metainfo's classes in that order."
        )
    return [category['id'] for category in chosen]


def _need(
    entries: list[Entry], key: str, source: str, **fields: Callable[[Any], bool] | None
) -> None:
    """Check that each entry has an ``id`` and the given fields, and the fields their kind."""
    for field, is_right in {'id': None, **fields}.items():
        try:
            values = [entry[field] for entry in entries]
        except KeyError:
            index = next(i for i, entry in enumerate(entries) if field not in entry)
            name = f'entry {entries[index]["id"]!r}' if 'id' in entries[index] else f'[{index}]'
            raise DataError(f'{source}: {key} {name} has no "{field}": add it.') from None
        check = is_right or is_id
        # The kinds of a million ids are checked at once; only a fault is worth a search.
        if check is is_id and set(map(type, values)) <= ID_TYPES:
            continue
        wrong = next((i for i, value in enumerate(values) if not check(value)), None)
        if wrong is not None:
            raise DataError(
                f'{source}: {key} entry {entries[wrong].get("id", wrong)!r} has the {field} '
                f'{values[wrong]!r:.60}, which is not a usable value: correct it.'
            )


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id."""
    return type(value) in ID_TYPES


def is_name(value: Any) -> bool:
    """Whether a JSON value can be a name: of a file or a class."""
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
    raise DataError(f'{source}: {key} have ids that occur twice: {twice}; make ids unique.')


def with_nearest(name: Any, names: Sequence[str]) -> str:
    """Show a name and the one of a list that is most like it."""
    by_lower = {other.lower(): other for other in names}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f' (nearest: {shown(by_lower[nearest[0]])})' if nearest else ''
    return f'{shown(name)}{hint}'
