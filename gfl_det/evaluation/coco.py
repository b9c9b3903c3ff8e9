"""Truths and detections from COCO JSON, checked (format: https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
from mmengine import fileio

from gfl_det.datasets.annotations import ID_TYPES, Entry, as_number, check_ids, listed
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import Detections, Truths, check_detections, image_key


def read_json(path: str | PathLike[str], backend_args: dict | None = None) -> Any:
    """Read a JSON file, from wherever mmengine's file backends reach.

    Raises:
        DataError: the file is missing, or no JSON.
    """
    try:
        return json.loads(fileio.get(str(path), backend_args=backend_args))
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f'{path} cannot be read ({reason}): correct the path.') from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{path} is no JSON file ({error}): write it anew, or name another.'
        ) from error


def truths_from_coco(dataset: Any, source: str = 'the truths') -> Truths:
    """Flatten a COCO annotation file.

    Every box counts, as in COCO's evaluation; those marked ``iscrowd`` as crowds. Ids may be 0.

    Args:
        dataset: the parsed file.
        source: its name for messages.

    Raises:
        DataError: no COCO file, ids that contradict each other, or a box that is not four numbers.
    """
    _check_lists(dataset, source)
    check_ids(dataset, source)
    images, categories = dataset['images'], dataset['categories']
    annotations = dataset.get('annotations', [])
    if not images or not categories:
        what = 'categories' if images else 'images'
        raise DataError(f'{source} lists no {what}: give the annotations of the data set judged.')
    image_ids, image_keys = _sorted_images(images)
    category_ids = [category['id'] for category in categories]
    return Truths(
        image_ids,
        image_keys,
        category_ids,
        [str(category.get('name', category['id'])) for category in categories],
        _indices((entry['image_id'] for entry in annotations), image_ids),
        _indices((entry['category_id'] for entry in annotations), category_ids),
        _boxes(annotations, f'{source}: annotation', [entry['id'] for entry in annotations]),
        np.array([bool(entry.get('iscrowd', 0)) for entry in annotations], bool),
    )


def detections_from_coco(
    results: Any, truths: Truths, source: str = 'the detections'
) -> Detections:
    """Flatten a list of COCO results.

    Args:
        results: entries with ``image_id``, ``category_id``, ``bbox`` (xywh px) and ``score``.
        truths: whose images and classes the entries name.
        source: the list's name for messages.

    Raises:
        DataError: no list of results, an image or class that the truths lack, a box that is not
            four finite numbers, or a score that is no number in [0, 1].
    """
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise DataError(f'{source} is no list of COCO results: give [{{"image_id": ...}}, ...].')
    for field in ('image_id', 'category_id', 'bbox', 'score'):
        lacking = next((i for i, each in enumerate(results) if field not in each), None)
        if lacking is not None:
            raise DataError(f'{source}: entry {lacking} has no "{field}": add it.')
    for field, known, what in (
        ('image_id', truths.image_ids, 'image'),
        ('category_id', truths.category_ids, 'class'),
    ):
        _check_ids(results, field, f'{source}: entry ')
        unknown = {each[field] for each in results} - set(known)
        if unknown:
            # Numbers in their order, texts behind them.
            ordered = sorted(unknown, key=lambda each: (isinstance(each, str), each))
            raise DataError(
                f'{source}: the {field} {listed(ordered)} is no {what} of the '
                f'truths ({listed(known)}): give the truths that these detections belong to.'
            )
    return check_detections(
        Detections(
            _indices((each['image_id'] for each in results), truths.image_ids),
            _indices((each['category_id'] for each in results), truths.category_ids),
            _boxes(results, f'{source}: entry', range(len(results))),
            _scores(results, source),
        ),
        source,
    )


def _check_lists(dataset: Any, source: str) -> None:
    if not isinstance(dataset, dict):
        raise DataError(f'{source} is no COCO annotation file: its top level is no object.')
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
                _check_ids(entries, field, f'{source}: {key}')


def _check_ids(entries: Sequence[Entry], field: str, what: str) -> None:
    values = [entry[field] for entry in entries]
    if not set(map(type, values)) <= ID_TYPES:
        wrong = next(i for i, value in enumerate(values) if type(value) not in ID_TYPES)
        raise DataError(
            f'{what}[{wrong}] has the {field} {values[wrong]!r:.60}, which is neither a number nor '
            'a text: correct it.'
        )


def _sorted_images(images: Sequence[Entry]) -> tuple[list[Any], list[str]]:
    try:
        ordered = sorted(images, key=lambda each: each['id'])
    except TypeError:  # numbers beside texts
        ordered = sorted(images, key=lambda each: (type(each['id']).__name__, str(each['id'])))
    keys = [image_key(each['id'], str(each.get('file_name', ''))) for each in ordered]
    return [each['id'] for each in ordered], keys


def _indices(values: Iterable[Any], known: Sequence[Any]) -> np.ndarray:
    place = {value: index for index, value in enumerate(known)}
    return np.array([place[value] for value in values], np.int64)


def _boxes(entries: Sequence[Entry], what: str, names: Sequence[Any]) -> np.ndarray:
    """Boxes ``(N, 4)``; a fault names its entry by ``what`` and one of ``names``."""
    try:
        boxes = np.array([entry['bbox'] for entry in entries], float).reshape(len(entries), 4)
    except (OverflowError, TypeError, ValueError):
        boxes = np.array([_row(entry['bbox']) for entry in entries])
    wrong = np.flatnonzero(~np.isfinite(boxes).all(1))
    if len(wrong):
        raise DataError(
            f'{what} {names[wrong[0]]!r} has the bbox {entries[wrong[0]]["bbox"]!r:.60}, which is '
            'not four finite numbers [x, y, width, height]: correct it.'
        )
    return boxes


def _row(value: Any) -> list[float]:
    try:
        row = [float(each) for each in value]
    except (OverflowError, TypeError, ValueError):
        row = []
    return row if len(row) == 4 else [np.nan] * 4


def _scores(results: Sequence[Entry], source: str) -> np.ndarray:
    values = [each['score'] for each in results]
    if not set(map(type, values)) <= {int, float}:
        wrong = next(i for i, value in enumerate(values) if type(value) not in (int, float))
        raise DataError(
            f'{source}: entry {wrong} has the score {values[wrong]!r:.60}, which is no '
            'number: correct it.'
        )
    return np.array([as_number(value) for value in values], float)  # of any size
