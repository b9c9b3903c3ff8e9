"""Ground truth and detections as flat arrays, with what tells one data set from another.

Classes are numbered in the order of the annotation file's categories, whatever their ids, and
images in the order of their sorted ids, in which COCO's evaluation runs through them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from mmengine import fileio

from gfl_det.datasets.annotations import Entry, add_absent, as_number, find, listed
from gfl_det.datasets.columns import read_columns
from gfl_det.datasets.table import (
    CocoTable,
    check_id_kinds,
    finite_boxes,
    read_table,
    rows_of,
    table_of,
    table_of_columns,
)
from gfl_det.errors import DataError
from gfl_det.ops.boxes import xyxy_to_xywh

DIGEST = 16  # hex digits that tell images apart


class GroundTruth(NamedTuple):
    """The ground truth of a data set: I images, K classes, M boxes."""

    image_ids: list[Any]  # I, sorted
    image_keys: list[str]  # I, digests of id and file name
    category_ids: list[Any]  # K, in the file's order
    class_names: list[str]  # K
    image: np.ndarray  # (M,) int64, index into image_ids
    label: np.ndarray  # (M,) int64, index into category_ids
    boxes: np.ndarray  # (M, 4) float64, xywh px
    crowd: np.ndarray  # (M,) bool

    def counts(self) -> np.ndarray:
        """How many boxes that are not crowds each class has, ``(K,)``."""
        return np.bincount(self.label[~self.crowd], minlength=len(self.category_ids))

    def of_classes(self, names: Sequence[str], source: str = 'the ground truth') -> GroundTruth:
        """The same images with the named classes alone, in the order of the names.

        A class that is absent for sure (`add_absent`) has no box.

        Raises:
            DataError: If a class is unknown.
        """
        pairs = zip(self.category_ids, self.class_names)
        known, _ = add_absent([dict(id=each, name=name) for each, name in pairs], names)
        ids = {category['name']: category['id'] for category in known}
        unknown = [name for name in names if name not in ids]
        if unknown:
            raise DataError(
                f'{source} has no class named {listed(unknown)}; it has '
                f'{listed(self.class_names)}: correct the names.'
            )
        place = {name: index for index, name in enumerate(names)}
        new = np.array([place.get(name, -1) for name in self.class_names], np.int64)
        label = new[self.label]
        kept = label >= 0
        return self._replace(
            category_ids=[ids[name] for name in names],
            class_names=list(names),
            image=self.image[kept],
            label=label[kept],
            boxes=self.boxes[kept],
            crowd=self.crowd[kept],
        )

    def of_images(self, chosen: Sequence[int] | np.ndarray) -> GroundTruth:
        """Some of the images, in the order of ``chosen``, indices into ``image_ids``."""
        new = np.full(len(self.image_ids), -1)
        new[chosen] = np.arange(len(chosen))
        image = new[self.image]
        kept = image >= 0
        return self._replace(
            image_ids=[self.image_ids[index] for index in chosen],
            image_keys=[self.image_keys[index] for index in chosen],
            image=image[kept],
            label=self.label[kept],
            boxes=self.boxes[kept],
            crowd=self.crowd[kept],
        )


Truths = GroundTruth  # its name in 0.1, also in pickles


class Detections(NamedTuple):
    """Detections in the order of their file or list."""

    image: np.ndarray  # (N,) int64, index into GroundTruth.image_ids
    label: np.ndarray  # (N,) int64, index into GroundTruth.category_ids
    boxes: np.ndarray  # (N, 4) float64, xywh px
    scores: np.ndarray  # (N,) float64 in [0, 1]

    def take(self, chosen: np.ndarray) -> Detections:
        """Those of a mask or of indices, in order."""
        return Detections(*(values[chosen] for values in self))


def check_detections(detections: Detections, source: str = 'the detections') -> Detections:
    """Return detections whose numbers can be judged.

    Raises:
        DataError: If a score is NaN or outside [0, 1], or a box is not finite.

    Example:
        >>> image = label = np.zeros(1, int)
        >>> found = Detections(image, label, np.zeros((1, 4)), np.array([0.5]))
        >>> check_detections(found) is found
        True
    """
    scores = detections.scores
    wrong = np.flatnonzero(~((scores >= 0) & (scores <= 1)))  # NaN fails both
    if len(wrong):
        number = f' ({len(wrong)} such in all)' if len(wrong) > 1 else ''
        raise DataError(
            f'{source}: entry {wrong[0]} has the score {scores[wrong[0]]}, which is not in '
            f'[0, 1]{number}: give probabilities after NMS.'
        )
    wrong = np.flatnonzero(~np.isfinite(detections.boxes).all(1))
    if len(wrong):
        raise DataError(
            f'{source}: {find(wrong.tolist())} boxes are not finite: did the training diverge?'
        )
    return detections


def fingerprint(gts: GroundTruth, detections: Detections) -> str:
    """Hex digest of all that a calibrator is fitted on; the order of images does not matter.

    Example:
        >>> image = label = np.zeros(1, int)
        >>> square, crowd = np.array([[0.0, 0, 4, 4]]), np.zeros(1, bool)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, crowd)
        >>> found = Detections(image, label, square, np.array([0.5]))
        >>> len(fingerprint(gts, found))
        64
    """
    digest = hashlib.sha256()
    for names in (gts.image_keys, gts.class_names, gts.category_ids):
        digest.update(json.dumps([str(name) for name in names]).encode())
    for array in (*gts[4:], *detections):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def image_key(image_id: Any, file_name: str = '') -> str:
    """Digest that tells an image from others.

    The id alone does not: most converters number the images of each split from 1.

    Example:
        >>> image_key(7, 'a.png') == image_key(7, 'b.png')
        False
    """
    return hashlib.sha256(json.dumps([str(image_id), file_name]).encode()).hexdigest()[:DIGEST]


def read_json(path: str | PathLike[str], backend_args: dict | None = None) -> Any:
    """Read a JSON file, from wherever mmengine's file backends reach.

    Raises:
        DataError: If the file is missing, or not JSON.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> path = Path(folder.name) / 'results.json'
        >>> _ = path.write_text('[]')
        >>> read_json(path)
        []
    """
    content = _content(path, backend_args)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{path} is not a JSON file ({error}): write it anew, or name another.'
        ) from error


def _content(path: str | PathLike[str], backend_args: dict | None) -> bytes:
    try:
        return fileio.get(str(path), backend_args=backend_args)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f'{path} cannot be read ({reason}): correct the path.') from error


def read_annotations(path: str | PathLike[str], backend_args: dict | None = None) -> CocoTable:
    """Read a COCO annotation file into columns, from wherever mmengine's file backends reach.

    Raises:
        DataError: If the file is missing, or `.table.table_of` refuses it.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> dataset = dict(images=[dict(id=7)], categories=[dict(id=3, name='cat')], annotations=[])
        >>> folder = TemporaryDirectory()
        >>> path = Path(folder.name) / 'labels.json'
        >>> _ = path.write_text(json.dumps(dataset))
        >>> read_annotations(path).class_names
        ['cat']
    """
    columns = None if backend_args else read_columns(path)
    if columns is not None:
        return table_of_columns(columns, str(path))
    return read_table(_content(path, backend_args), str(path))


def gts_from_coco(dataset: Any, source: str = 'the ground truth') -> GroundTruth:
    """Flatten a parsed COCO annotation file.

    Every box counts, as in COCO's evaluation; those marked ``iscrowd`` as crowds. Ids may be of any
    kind that COCO files have: 0, negative, beyond 64 bits, texts.

    Args:
        dataset: the parsed file.
        source: its name for messages.

    Raises:
        DataError: If it is not a COCO file, ids contradict each other, or a box has other than four
            numbers.

    Example:
        >>> dataset = dict(images=[dict(id=7)], categories=[dict(id=3, name='cat')], annotations=[])
        >>> gts = gts_from_coco(dataset)
        >>> gts.class_names, len(gts.boxes)
        (['cat'], 0)
    """
    return gts_of_table(table_of(dataset, source))


truths_from_coco = gts_from_coco  # its name in 0.1


def gts_of_table(table: CocoTable) -> GroundTruth:
    """The ground truth of a file in columns, its images sorted by id.

    Example:
        >>> import json
        >>> dataset = dict(images=[dict(id=7)], categories=[dict(id=3, name='cat')], annotations=[])
        >>> table = read_table(json.dumps(dataset).encode(), 'labels.json')
        >>> gts_of_table(table).class_names
        ['cat']
    """
    order = sorted_rows(table.image_ids)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return GroundTruth(
        [table.image_ids[row] for row in order],
        [image_key(table.image_ids[row], table.file_names[row]) for row in order],
        table.category_ids,
        table.class_names,
        place[table.image],
        table.label,
        table.boxes,
        table.crowd,
    )


def gts_of_rows(table: CocoTable, rows: Sequence[int]) -> tuple[GroundTruth, list[int]]:
    """The gt boxes of some images of a file, and the place of each row among them.

    Example:
        >>> images = [dict(id=9, file_name='b'), dict(id=7, file_name='a')]
        >>> dataset = dict(images=images, categories=[dict(id=3, name='cat')], annotations=[])
        >>> gts, places = gts_of_rows(table_of(dataset, 'the file'), [0, 1])
        >>> gts.image_ids, places
        ([7, 9], [1, 0])
    """
    place = {row: index for index, row in enumerate(sorted_rows(table.image_ids))}
    order = sorted(place[row] for row in rows)
    chosen = {index: new for new, index in enumerate(order)}
    return gts_of_table(table).of_images(order), [chosen[place[row]] for row in rows]


def sorted_rows(ids: Sequence[Any]) -> list[int]:
    """Rows in the order of their ids; numbers and texts that meet are sorted by kind.

    Example:
        >>> sorted_rows([30, 4]), sorted_rows(['30', 4])
        ([1, 0], [1, 0])
    """
    try:
        return sorted(range(len(ids)), key=lambda row: ids[row])
    except TypeError:
        return sorted(range(len(ids)), key=lambda row: (type(ids[row]).__name__, str(ids[row])))


def detections_from_coco(
    results: Any, truths: GroundTruth, source: str = 'the detections'
) -> Detections:
    """Flatten a list of COCO results.

    Args:
        results: entries with ``image_id``, ``category_id``, ``bbox`` (xywh px) and ``score``.
        truths: whose images and classes the entries name.
        source: the list's name for messages.

    Raises:
        DataError: If it is not a list of results, an image or class is not in the ground truth, a
            box is not four finite numbers, or a score is outside [0, 1] or NaN.

    Example:
        >>> dataset = dict(images=[dict(id=7)], categories=[dict(id=3, name='cat')], annotations=[])
        >>> result = dict(image_id=7, category_id=3, bbox=[0, 0, 4, 4], score=0.9)
        >>> detections_from_coco([result], gts_from_coco(dataset)).scores
        array([0.9])
    """
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise DataError(f'{source} is not a list of COCO results: give [{{"image_id": ...}}, ...].')
    for field in ('image_id', 'category_id', 'bbox', 'score'):
        lacking = next((i for i, each in enumerate(results) if field not in each), None)
        if lacking is not None:
            raise DataError(f'{source}: entry {lacking} has no "{field}": add it.')
    for field, known, what in (
        ('image_id', truths.image_ids, 'an image'),
        ('category_id', truths.category_ids, 'a class'),
    ):
        check_id_kinds(results, field, f'{source}: entry ')
        unknown = {each[field] for each in results} - set(known)
        if unknown:
            # Numbers in their order, texts behind them.
            ordered = sorted(unknown, key=lambda each: (isinstance(each, str), each))
            raise DataError(
                f'{source}: the {field} {listed(ordered)} is not {what} of the '
                f'ground truth ({listed(known)}): give the annotations of these detections.'
            )
    return check_detections(
        Detections(
            rows_of([each['image_id'] for each in results], truths.image_ids),
            rows_of([each['category_id'] for each in results], truths.category_ids),
            finite_boxes(results, f'{source}: entry', range(len(results))),
            _scores(results, source),
        ),
        source,
    )


def result_column(
    entries: Sequence[dict[str, Any]],
    name: str,
    shape: tuple[int, ...],
    source: str = 'the detections',
    least: float = -np.inf,
) -> np.ndarray | None:
    """Further field of all entries of COCO results ``(N, *shape)``; None if no entry has it.

    Args:
        entries: the results.
        name: the field, such as ``edge_std``.
        shape: of a value: ``()`` or ``(n,)``.
        source: the list's name for messages.
        least: smallest valid value.

    Raises:
        DataError: If some entries lack it, or a value is not finite numbers of that shape, or less
            than the smallest.

    Example:
        >>> result_column([dict(edge_std=[1, 2, 1, 3])], 'edge_std', (4,))
        array([[1., 2., 1., 3.]])
    """
    if not any(name in entry for entry in entries):
        return None
    lacking = next((i for i, entry in enumerate(entries) if name not in entry), None)
    if lacking is not None:
        raise DataError(
            f'{source}: entry {lacking} lacks "{name}", others have it: write it again.'
        )
    try:
        values = np.array([entry[name] for entry in entries], float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (len(entries), *shape) or not np.isfinite(values).all():
        what = f'{shape[0]} finite numbers' if shape else 'a finite number'
        raise DataError(f'{source}: "{name}" is not {what} in every entry: correct it.')
    wrong = (values < least).reshape(len(values), -1).any(1)
    if wrong.any():
        entry = int(wrong.argmax())
        raise DataError(
            f'{source}: entry {entry} has the {name} {entries[entry][name]!r}, which is below '
            f'{least:g}: correct it.'
        )
    return values


def collect(results: Sequence[dict], images: Sequence[int]) -> Detections:
    """The detections of predictions.

    Args:
        results: with ``bboxes`` (xyxy px), ``scores`` and ``labels`` of each image.
        images: their indices in the ground truth.

    Example:
        >>> boxes = np.array([[1.0, 1.0, 4.0, 5.0]])
        >>> result = dict(bboxes=boxes, scores=np.array([0.9]), labels=np.array([2]))
        >>> found = collect([result], images=[5])
        >>> found.image, found.label, found.boxes
        (array([5]), array([2]), array([[1., 1., 3., 4.]]))
    """
    counts = [len(entry['labels']) for entry in results]
    corners = np.concatenate([entry['bboxes'] for entry in results] or [np.zeros((0, 4))])
    corners = corners.astype(float).reshape(-1, 4)
    scores = np.concatenate([entry['scores'] for entry in results] or [np.zeros(0)])
    labels = np.concatenate([entry['labels'] for entry in results] or [np.zeros(0)])
    boxes = xyxy_to_xywh(corners)
    return Detections(
        np.repeat(np.array(images, np.int64), counts),
        labels.astype(np.int64),
        boxes,
        scores.astype(float),
    )


def _scores(results: Sequence[Entry], source: str) -> np.ndarray:
    values = [each['score'] for each in results]
    if not set(map(type, values)) <= {int, float}:
        wrong = next(i for i, value in enumerate(values) if type(value) not in (int, float))
        raise DataError(
            f'{source}: entry {wrong} has the score {values[wrong]!r:.60}, which is not '
            'a number: correct it.'
        )
    return np.array([as_number(value) for value in values], float)  # of any size
