"""Column table of an annotation file, used by every reader of COCO JSON.

Ids are only labels: images, categories and annotations are addressed by their row, whatever their
ids (0, negative, beyond 64 bits, strings). The file's own ids are kept for output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gfl_det.datasets.annotations import (
    ID_TYPES,
    Entry,
    add_absent,
    areas_of,
    as_number,
    check_ids,
    check_object,
    is_crowd,
    is_size,
    parse,
)
from gfl_det.datasets.columns import Columns, Outlines
from gfl_det.datasets.tidying import Correction, tidy
from gfl_det.errors import DataError

SIZE_KEYS = ('width', 'height')
EVALUATOR_IDS = 2**53  # pycocotools keeps ids as float64


class CocoTable(NamedTuple):
    """The I images, K categories and N annotations of a file, in file order."""

    source: str
    image_ids: list[Any]  # I, as in the file
    file_names: list[str]  # I, empty if missing
    image_wh: np.ndarray  # (I, 2) float64, px, NaN if unusable
    category_ids: list[Any]  # K
    class_names: list[str]  # K
    annotation_ids: list[Any]  # N
    image: np.ndarray  # (N,) int64, index into image_ids
    label: np.ndarray  # (N,) int64, index into category_ids
    boxes: np.ndarray  # (N, 4) float64, xywh px
    area: np.ndarray  # (N,) float64, px^2: as annotated, or width * height if unusable
    crowd: np.ndarray  # (N,) bool
    ignored: np.ndarray  # (N,) bool: marked "ignore"
    outlines: Sequence[Any]  # N, the "segmentation" of each, or None
    changes: list[Correction]  # normalised entries


def read_table(content: bytes, source: str) -> CocoTable:
    """Parse a file into columns.

    Raises:
        DataError: If the content is not JSON, or as in :func:`table_of`.
    """
    return table_of(parse(content, source), source)


def table_of(dataset: Any, source: str) -> CocoTable:
    """Convert a parsed file to columns.

    Args:
        dataset: Parsed file; not modified.
        source: File name for messages.

    Raises:
        DataError: If the file is not COCO JSON, has inconsistent ids, no image or no category, or a
            box is not four finite numbers.
    """
    check_object(dataset, source)
    dataset, changes = tidy(dataset, source)
    check_lists(dataset, source)
    check_ids(dataset, source)
    images, categories = dataset['images'], dataset['categories']
    entries = dataset.get('annotations', [])
    if not images or not categories:
        what = 'categories' if images else 'images'
        raise DataError(f'{source} lists no {what}: give the annotations of the data set.')
    image_ids = [each['id'] for each in images]
    category_ids = [each['id'] for each in categories]
    annotation_ids = [each['id'] for each in entries]
    boxes = finite_boxes(entries, f'{source}: annotation', annotation_ids)
    return CocoTable(
        source,
        image_ids,
        [str(each.get('file_name') or '') for each in images],
        _sizes(images),
        category_ids,
        [str(each.get('name', each['id'])) for each in categories],
        annotation_ids,
        rows_of([each['image_id'] for each in entries], image_ids),
        rows_of([each['category_id'] for each in entries], category_ids),
        boxes,
        usable_areas(entries, boxes),
        crowds_of(entries),
        np.array([bool(each.get('ignore', False)) for each in entries], bool),
        [each.get('segmentation') for each in entries],
        changes,
    )


def table_of_columns(columns: Columns, source: str) -> CocoTable:
    """Convert the columns of a plain file, with the values of :func:`table_of`."""
    categories = columns.category_list()
    given = columns.area
    usable = np.where(np.isfinite(given) & (given > 0), given, columns.boxes[:, 2:].prod(1))
    return CocoTable(
        source,
        columns.image_ids.tolist(),
        columns.file_names(),
        columns.image_wh.astype(float),
        [each['id'] for each in categories],
        [each['name'] for each in categories],
        columns.ids.tolist(),
        columns.image.astype(np.int64),
        columns.label.astype(np.int64),
        np.asarray(columns.boxes),
        usable,
        columns.crowd == 1,
        np.asarray(columns.ignored),
        Outlines(columns),
        [],
    )


def with_absent(table: CocoTable, classes: Sequence[str]) -> tuple[CocoTable, list[str]]:
    """Return the table including absent classes, and their names.

    :func:`add_absent` defines which classes are added.
    """
    pairs = zip(table.category_ids, table.class_names)
    categories, absent = add_absent([dict(id=each, name=name) for each, name in pairs], classes)
    if not absent:
        return table, []
    ids = [category['id'] for category in categories]
    names = [category['name'] for category in categories]
    label = rows_of(table.category_ids, ids)[table.label]
    return table._replace(category_ids=ids, class_names=names, label=label), absent


def _sizes(images: list[Entry]) -> np.ndarray:
    """Return widths and heights (I, 2), px."""
    rows = [
        [as_number(value) if is_size(value := image.get(key)) else np.nan for key in SIZE_KEYS]
        for image in images
    ]
    return np.array(rows, float).reshape(-1, 2)


def rows_of(values: Sequence[Any], known: Sequence[Any]) -> np.ndarray:
    """Return the indices (N,) int64 of values in a list of ids."""
    place = {value: index for index, value in enumerate(known)}
    return np.fromiter((place[value] for value in values), np.int64, len(values))


def usable_areas(entries: list[Entry], boxes: np.ndarray) -> np.ndarray:
    """Return areas (N,): as annotated, or width * height unless positive and finite."""
    given, _ = areas_of(entries, boxes)
    with np.errstate(invalid='ignore', over='ignore'):
        usable = np.isfinite(given) & (given > 0)
        return np.where(usable, given, boxes[:, 2] * boxes[:, 3])


def crowds_of(entries: list[Entry]) -> np.ndarray:
    """Return a mask (N,) of crowd entries, marked by 1 or true only."""
    return np.array([is_crowd(each.get('iscrowd')) for each in entries], bool)


def finite_boxes(entries: Sequence[Entry], what: str, names: Sequence[Any]) -> np.ndarray:
    """Return boxes (N, 4) float64, xywh px; errors name the entry by ``what`` and its name.

    Raises:
        DataError: If a box is not four finite numbers.
    """
    try:
        boxes = np.array([entry['bbox'] for entry in entries], float).reshape(len(entries), 4)
    except (OverflowError, TypeError, ValueError):
        boxes = np.array([_row(entry['bbox']) for entry in entries])
    wrong = np.flatnonzero(~np.isfinite(boxes).all(1))
    if len(wrong):
        raise DataError(
            f'{what} {names[wrong[0]]!r:.80} has the bbox {entries[wrong[0]]["bbox"]!r:.60}, which '
            'is not four finite numbers [x, y, width, height]: correct it.'
        )
    return boxes


def _row(value: Any) -> list[float]:
    try:
        row = [float(each) for each in value]
    except (OverflowError, TypeError, ValueError):
        row = []
    return row if len(row) == 4 else [np.nan] * 4


def check_lists(dataset: Entry, source: str) -> None:
    """Check the lists and the fields required for evaluation.

    Raises:
        DataError: If a list or field is missing or of another type.
    """
    for key, fields in (
        ('images', ('id',)),
        ('categories', ('id',)),
        ('annotations', ('id', 'image_id', 'category_id', 'bbox')),
    ):
        entries = dataset.get(key, [] if key == 'annotations' else None)
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise DataError(f'{source} has no list "{key}": give a COCO annotation file.')
        for field in fields:
            lacking = next((i for i, each in enumerate(entries) if field not in each), None)
            if lacking is not None:
                raise DataError(f'{source}: {key}[{lacking}] has no "{field}": add it.')
            if field != 'bbox':
                check_id_kinds(entries, field, f'{source}: {key}')


def check_id_kinds(entries: Sequence[Entry], field: str, what: str) -> None:
    """Check that a field holds numbers or strings.

    Raises:
        DataError: If a value is neither a number nor a string.
    """
    values = [entry[field] for entry in entries]
    if not set(map(type, values)) <= ID_TYPES:
        wrong = next(i for i, value in enumerate(values) if type(value) not in ID_TYPES)
        raise DataError(
            f'{what}[{wrong}] has the {field} {values[wrong]!r:.60}, which is neither a number nor '
            'a string: correct it.'
        )


def misjudged_ids(values: Sequence[Any]) -> list[Any]:
    """Return annotation ids that pycocotools misjudges or rejects; 0 counts as not found.

    Its matches are float64, so strings raise errors and numbers beyond 2 ** 53 lose digits.
    """
    if set(map(type, values)) <= {int} and values:
        if min(values) > 0 and max(values) < EVALUATOR_IDS:  # fast path for millions of ids
            return []
        return [each for each in values if not each or abs(each) >= EVALUATOR_IDS]
    return [
        each
        for each in values
        if type(each) in ID_TYPES
        and (isinstance(each, str) or not each or not abs(each) < EVALUATOR_IDS)
    ]
