"""Lookup of evaluated images in an annotation file, by id, name and path.

A metric and the data set that feeds the detector each read their own file. The files may differ:
other images under the same ids, more images, or fewer. Only images that are identified without
doubt are evaluated.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.logging import print_log

from gfl_det.datasets.annotations import shown
from gfl_det.datasets.table import CocoTable, table_of
from gfl_det.datasets.tidying import ODD_SIGNS, path_tails
from gfl_det.errors import DataError


class Sample(NamedTuple):
    """Identification of a data sample's image."""

    image_id: Any
    path: str = ''  # of the image file; empty if the pipeline keeps none


def match_samples(
    samples: Sequence[Sample], image_ids: Sequence[Any], file_names: Sequence[str], source: str
) -> list[int]:
    """Find each sample's image in an annotation file.

    The order of preference: the image with the sample's id, if its file name matches the sample's
    path; the image whose file name the path ends in; the image with the sample's id, if the sample
    or the file has no name for it.

    Args:
        samples: Samples of the data set, in order.
        image_ids: Image ids of the file.
        file_names: File names of these images; empty if the file has none.
        source: Reader and name of the file, for messages.

    Returns:
        A row of the file for each sample.

    Raises:
        DataError: If an image is not in the file, or two samples match the same image.

    Example:
        >>> match_samples([Sample(7, '/data/img/a.png')], [5, 7], ['b.png', 'a.png'], 'labels.json')
        [1]
    """
    finder = _Finder(image_ids, file_names)
    rows = [finder.row(sample) for sample in samples]
    missing = [sample for sample, row in zip(samples, rows) if row is None]
    if missing:
        first = missing[0]
        there = finder.by_id.get(first.image_id)
        other = '' if there is None else f' (it has {shown(file_names[there])} under that id)'
        path = f', {first.path:.200}' if first.path else ''
        raise DataError(
            f'{len(missing)} images of the data set are missing in the ann_file of {source}, the '
            f'first has the id {first.image_id!r:.80}{path}{other}: give both the same file.'
        )
    found = [row for row in rows if row is not None]
    _refuse_shared(samples, found, source)
    return found


def once(samples: Sequence[Any], rows: Sequence[int]) -> list[int]:
    """Indices of the samples to count: the first sample of each row.

    Example:
        >>> once(['first', 'second'], rows=[4, 2])
        [0, 1]
    """
    first = {row: place for place, row in reversed(list(enumerate(rows)))}
    if len(first) < len(samples):
        text = f'{len(samples) - len(first)} images were shown twice: each is judged once.'
        print_log(text, 'current', logging.WARNING)
    return sorted(first.values())


def tell_share(number: int, total: int, source: str) -> None:
    """Log that some images of a file were not evaluated.

    Example:
        >>> tell_share(16, 16, 'labels.json')  # all were shown
    """
    if number < total:
        text = f'Judged on the {number} images that were shown, of {total} in the file of {source}.'
        print_log(text, 'current', logging.WARNING)


def samples_once(samples: Sequence[Sample], gts: Sequence[Any]) -> list[int]:
    """Index of the first sample of the same image, for each sample, without an annotation file.

    Concatenated data sets may use one id for several images: paths distinguish them, or gt boxes if
    there are no paths.

    Example:
        >>> samples_once([Sample(7, 'a.png'), Sample(7, 'b.png'), Sample(7, 'a.png')], [None] * 3)
        [0, 1, 0]
    """
    first: dict[tuple[str, str], int] = {}
    return [
        first.setdefault((repr(sample.image_id), sample.path or repr(gt)), place)
        for place, (sample, gt) in enumerate(zip(samples, gts))
    ]


class _Finder:
    """Images of a file by id, by name and by the last part of the name."""

    def __init__(self, image_ids: Sequence[Any], file_names: Sequence[str]) -> None:
        self.by_id = {each: row for row, each in enumerate(image_ids)}
        self.names = [_names(name) for name in file_names]
        self.by_name: dict[str, list[int]] = defaultdict(list)
        for row, names in enumerate(self.names):
            for name in names:
                self.by_name[name].append(row)

    def row(self, sample: Sample) -> int | None:
        """Return the row of a sample; None if it is ambiguous."""
        own = self.by_id.get(sample.image_id)
        tails = _tails(sample.path)
        if own is not None and (not tails or not self.names[own]):
            return own
        for tail in tails:  # longest first
            rows = self.by_name.get(tail, [])
            if own in rows:
                return own
            if len(rows) == 1:
                return rows[0]
        if own is not None:  # same name with another extension, as after a conversion of images
            ends = {os.path.splitext(tail)[0] for tail in tails}
            if any(os.path.splitext(name)[0] in ends for name in self.names[own]):
                return own
        return None


def _tails(path: str) -> list[str]:
    """Return a path and its trailing parts unchanged, longest first."""
    steps = [step for step in path.replace(os.sep, '/').split('/') if step]
    return [path, *('/'.join(steps[index:]) for index in range(len(steps)))] if steps else []


def _names(name: str) -> list[str]:
    """Return the possible endings of an image's path; for a path of another machine, its tails."""
    if not name:
        return []
    return [name] if ODD_SIGNS.isdisjoint(name) else list(dict.fromkeys([name, *path_tails(name)]))


def _refuse_shared(samples: Sequence[Sample], rows: Sequence[int], source: str) -> None:
    """Refuse two image files that match the same image of the annotation file."""
    paths: dict[int, str] = {}
    for sample, row in zip(samples, rows):
        other = paths.setdefault(row, sample.path)
        if other != sample.path:
            raise DataError(
                f'{other:.200} and {sample.path:.200} are one image in the ann_file of {source}, '
                f'of the id {shown(sample.image_id)}: give it a file that has both.'
            )


def table_of_samples(
    gts: Sequence[Sequence[dict]],
    classes: Sequence[str],
    sizes: Sequence[dict[str, int]] | None = None,
) -> CocoTable:
    """Table of the gt boxes that mmdet's data sets attach to their samples; images by position.

    Args:
        gts: Per image, ``bbox`` (xyxy px), ``bbox_label`` (from 0), ``ignore_flag`` and ``mask``.
        classes: Class names in the order of the labels.
        sizes: ``width`` and ``height`` of the images, px.

    Example:
        >>> box = dict(bbox=[10, 20, 30, 60], bbox_label=1)
        >>> table = table_of_samples([[], [box]], ['cat', 'dog'])
        >>> table.image.tolist(), table.boxes.tolist()
        ([1], [[10.0, 20.0, 20.0, 40.0]])
    """
    annotations: list[dict[str, Any]] = []
    for image, own in enumerate(gts):
        for each in own:
            left, top, right, bottom = (float(side) for side in each['bbox'])
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=image,
                    category_id=int(each['bbox_label']),
                    bbox=[left, top, right - left, bottom - top],
                    iscrowd=int(bool(each.get('ignore_flag', 0))),
                    segmentation=each.get('mask'),
                )
            )
    images = [dict(size, id=image) for image, size in enumerate(sizes or [{}] * len(gts))]
    categories = [dict(id=label, name=name) for label, name in enumerate(classes)]
    dataset = dict(images=images, categories=categories, annotations=annotations)
    return table_of(dataset, 'the gt boxes of the samples')


def ids_by_name(entries: Iterable[Mapping[str, Any]], key: str, what: str) -> dict[str, Any]:
    """Ids of images or categories by the name under ``key``.

    Raises:
        DataError: If a name occurs twice.

    Example:
        >>> ids_by_name([dict(id=7, name='cat')], 'name', 'class')
        {'cat': 7}
    """
    ids: dict[str, Any] = {}
    for entry in entries:
        name = str(entry.get(key, ''))
        if name in ids:
            raise DataError(f'The annotations have two of the {what} {name!r}: rename one.')
        ids[name] = entry['id']
    return ids


def path_ends(path: str) -> list[str]:
    """A path and its trailing parts, longest first.

    Example:
        >>> path_ends('a/b.png')
        ['a/b.png', 'b.png']
    """
    parts = Path(path).parts
    return ['/'.join(parts[index:]) for index in range(len(parts))]


def image_ids(images: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Ids of images by file name; for addresses and paths of other machines also by their tails.

    Raises:
        DataError: If two images have the same name.

    Example:
        >>> image_ids([dict(id=7, file_name='my%20pictures/a.png')])['a.png']
        7
    """
    ids = ids_by_name(images, 'file_name', 'image')
    odd = {name: path_tails(name) for name in ids if not ODD_SIGNS.isdisjoint(name)}
    times = Counter(end for ends in odd.values() for end in ends)
    ends = {end: ids[name] for name in odd for end in odd[name] if times[end] == 1}
    return {**ends, **ids}


def find_id(ids: Mapping[str, Any], names: Sequence[str], shown: str, what: str) -> Any:
    """Id of the first known name.

    Raises:
        DataError: If no name is known.

    Example:
        >>> find_id({'b.png': 3}, ['a/b.png', 'b.png'], 'a/b.png', 'image')
        3
    """
    for name in names:
        if name in ids:
            return ids[name]
    raise DataError(f'The annotations have no {what} {shown!r}: give those of these images.')
