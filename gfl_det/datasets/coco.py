"""MMDetection's COCO data set with a message for every silent fault.

Its records are made from columns when they are asked for, instead of a dict per box.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import mmcv
import numpy as np
from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmengine import fileio
from mmengine.logging import print_log

from gfl_det.datasets.annotations import (
    BoxColumns,
    BoxReport,
    Entry,
    absent_text,
    add_absent,
    check_ids,
    check_structure,
    fill_areas,
    judge_boxes,
    match_classes,
    parse,
    shown,
    usable_boxes,
)
from gfl_det.datasets.columns import Columns, read_columns
from gfl_det.datasets.images import dark_floats, why_not
from gfl_det.datasets.tidying import Correction, renamed_files, tidy
from gfl_det.errors import DataError, GFLDetError
from gfl_det.registry import DATASETS
from gfl_det.utils.pixels import Header, header_of, is_endless, too_large


def usable_rows(columns: Columns, category_ids: Iterable[Any]) -> tuple[np.ndarray, BoxReport]:
    """Select the annotations to train on, like :func:`.annotations.usable_boxes`.

    Args:
        columns: Columns of a file.
        category_ids: Categories to keep; annotations of others are left out and counted.

    Returns:
        Indices (M,) of the remaining annotations, in file order, and the report.
    """
    wanted = set(category_ids)
    is_wanted = np.array([each['id'] in wanted for each in columns.category_list()], bool)
    asked = is_wanted[columns.label]
    used = np.flatnonzero(asked & ~columns.ignored)
    chosen = slice(None) if len(used) == len(asked) else used  # no copy of all
    boxes = np.asarray(columns.boxes)[chosen]
    area, has_area = fill_areas(columns.area[chosen], boxes)
    image_wh = columns.image_wh.astype(float)[columns.image[chosen]]
    rows = BoxColumns(boxes, np.ones(len(used), bool), area, has_area, image_wh)
    keep, report = judge_boxes(_Ids(columns.ids, used), rows)
    total, number = len(columns.ids), int(asked.sum())
    return used[keep], report._replace(
        total=total, ignored=number - len(used), other_classes=total - number
    )


class _Ids(Sequence):
    """Ids of some rows as Python numbers, of which few are looked at."""

    def __init__(self, ids: np.ndarray, rows: np.ndarray) -> None:
        self._ids, self._rows = ids, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._ids[self._rows[place]].tolist()


class Samples(Sequence):
    """mmdet's records of images, in order.

    Args:
        columns: Columns of the annotation file.
        rows: Indices (M,) of the annotations to use, ascending.
        labels: Label of each category id.
        files: File names that differ from those in the annotations.
        describe: Makes the record of an image without boxes from its id, file name and size.
    """

    def __init__(
        self,
        columns: Columns,
        rows: np.ndarray,
        labels: Mapping[Any, int],
        files: Mapping[str, str],
        describe: Callable[[Entry], Entry],
    ) -> None:
        number = len(columns.image_ids)
        image = columns.image[rows]
        self._columns, self._files, self._describe = columns, files, describe
        self._in_order = rows
        self._labels = np.array([labels.get(e['id'], -1) for e in columns.category_list()])
        self._rows = rows[np.argsort(image, kind='stable')]  # by image, else in file order
        self._ends = np.bincount(image, minlength=number).cumsum()
        self._images = np.arange(number)  # of this sequence

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, place: int) -> Entry: ...

    @overload
    def __getitem__(self, place: slice) -> Samples: ...

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        return self._record(int(self._images[place]))

    def __deepcopy__(self, memo: Any) -> Samples:
        return self  # never modified

    def take(self, places: np.ndarray | Sequence[int]) -> Samples:
        """Select images by their places or by a mask."""
        chosen = object.__new__(Samples)
        chosen.__dict__.update(self.__dict__)
        chosen._images = self._images[np.asarray(places, None if len(places) else int)]
        return chosen

    @property
    def sides(self) -> np.ndarray:
        """The shorter side (N,) of each image, px."""
        return self._columns.image_wh[self._images].min(1)

    @property
    def counts(self) -> np.ndarray:
        """Number (N,) of boxes of each image."""
        return np.diff(self._ends, prepend=0)[self._images]

    def images_by_category(self) -> dict[Any, list[Any]]:
        """Return the ids of images of each category, one per annotation in file order."""
        rows, columns = self._in_order, self._columns
        ids = columns.image_ids.tolist()  # shared: a number of its own per box takes gigabytes
        label, image = columns.label[rows], columns.image[rows]
        kind = np.min_scalar_type(len(self._labels))  # small integers are sorted faster
        image = image[np.argsort(label.astype(kind), kind='stable')].tolist()
        ends = np.bincount(label, minlength=len(self._labels)).cumsum().tolist()
        places = zip(columns.category_list(), [0, *ends], ends)
        return {
            each['id']: [ids[row] for row in image[begin:end]]
            for each, begin, end in places
            if end > begin
        }

    def _record(self, image: int) -> Entry:
        columns = self._columns
        name = columns.file_name(image)
        width, height = columns.image_wh[image].tolist()
        record = self._describe(
            dict(
                id=columns.image_ids[image].item(),
                file_name=self._files.get(name, name),
                width=width,
                height=height,
            )
        )
        rows = self._rows[self._ends[image - 1] if image else 0 : self._ends[image]]
        corner, size = np.split(columns.boxes[rows], 2, axis=1)
        boxes = np.hstack([corner, corner + size]).tolist()
        labels = self._labels[columns.label[rows]].tolist()
        crowds = (columns.crowd[rows] == 1).astype(int).tolist()
        record['instances'] = [
            dict(ignore_flag=crowd, bbox=box, bbox_label=label)
            for crowd, box, label in zip(crowds, boxes, labels)
        ]
        if len(columns.outlines):
            for instance, row in zip(record['instances'], rows.tolist()):
                if outline := columns.outline(row):
                    instance['mask'] = outline
        return record


Key = tuple[str, int, int]  # path, modification time, bytes
_kept: dict[Key, Entry | Columns] = {}


def keep(path: str, dataset: Entry | Columns) -> None:
    """Keep a parsed file for the next :func:`take`."""
    key = _key(path)
    if key is not None:
        _kept[key] = dataset


def take(path: str) -> Entry | Columns | None:
    """Return and forget a kept file, if it has not changed since."""
    key = _key(path)
    return _kept.pop(key, None) if key is not None and _kept else None


def _key(path: str) -> Key | None:
    try:
        state = os.stat(path)
    except OSError:  # a URL, or deleted
        return None
    return os.path.realpath(path), state.st_mtime_ns, state.st_size


MAX_PATH = 1000  # characters shown in a message


@DATASETS.register_module()
class CocoDataset(MMDetCocoDataset):
    """Drop-in for mmdet's ``CocoDataset``: same arguments, same samples for valid files.

    Unusable boxes are dropped with one warning that counts them. Faults that prevent training raise
    a ``DataError`` that names file and entry: a file that is not COCO JSON, class names missing in
    the file, inconsistent ids, a data set without remaining images, and, during training, missing
    or damaged image files.

    Attributes:
        box_report: Outcome for the file's boxes (None before the file is read).
    """

    box_report: BoxReport | None = None

    def load_data_list(self) -> list[Entry]:
        """Read and check ``ann_file``.

        Raises:
            DataError: As described in the class.
        """
        # mmdet's own default is img_path, which its parse_data_info ignores.
        self.data_prefix.setdefault('img', self.data_prefix.get('img_path', self.data_root))
        dataset = take(self.ann_file)  # already parsed by the check before training
        if self._takes_columns():
            columns = read_columns(self.ann_file) if dataset is None else dataset
            if isinstance(columns, Columns):
                return self._samples(columns)
        if not isinstance(dataset, dict):
            dataset = parse(self._read(self.ann_file), self.ann_file)
        dataset, changes = tidy(dataset, self.ann_file)
        check_structure(dataset, self.ann_file, need_annotations=self._needs_boxes())
        check_ids(dataset, self.ann_file)
        absent = self._match_classes(dataset['categories'])
        boxes, self.box_report = usable_boxes(dataset, self.cat_ids)
        self._log_reading(absent, changes, self.box_report)
        files = self._files([image['file_name'] for image in dataset['images']])

        boxes_by_image = defaultdict(list)
        self.cat_img_map = defaultdict(list)  # used by mmdet's samplers and filters
        for box in boxes:
            boxes_by_image[box['image_id']].append(box)
            self.cat_img_map[box['category_id']].append(box['image_id'])
        return [
            self.parse_data_info(
                {
                    'raw_img_info': {
                        **image,
                        'img_id': image['id'],
                        'file_name': files.get(image['file_name'], image['file_name']),
                    },
                    'raw_ann_info': boxes_by_image.get(image['id'], []),
                }
            )
            for image in dataset['images']
        ]

    def _takes_columns(self) -> bool:
        """Whether records can be made one by one: nothing else reads or edits all of them."""
        is_ours = type(self).parse_data_info is MMDetCocoDataset.parse_data_info
        is_local = not self.backend_args and '://' not in self.ann_file
        return is_ours and is_local and self.proposal_file is None

    def _samples(self, columns: Columns) -> Any:  # Samples, where mmdet has lists
        absent = self._match_classes(columns.category_list())
        rows, self.box_report = usable_rows(columns, self.cat_ids)
        self._log_reading(absent, [], self.box_report)
        files = self._files(columns.file_names())
        self.serialize_data = False  # processes share the columns as they are
        samples = Samples(columns, rows, self.cat2label, files, self._describe)
        self.cat_img_map = defaultdict(list, samples.images_by_category())
        return samples

    def _describe(self, image: Entry) -> Entry:
        """Return mmdet's record of an image without its boxes."""
        image = {**image, 'img_id': image['id']}
        return self.parse_data_info({'raw_img_info': image, 'raw_ann_info': []})

    def _match_classes(self, categories: list[Entry]) -> list[str]:
        """Number the labels; return the classes that the file lacks."""
        categories, absent = add_absent(categories, self.metainfo['classes'])
        self.cat_ids = match_classes(self.metainfo['classes'], categories, self.ann_file)
        self.cat2label = {cat_id: label for label, cat_id in enumerate(self.cat_ids)}
        return absent

    def get_data_info(self, idx: int) -> Entry:
        """Return the record of an image."""
        if not isinstance(self.data_list, Samples):
            return super().get_data_info(idx)
        return {**self.data_list[idx], 'sample_idx': idx if idx >= 0 else len(self) + idx}

    def filter_data(self) -> list[Entry]:
        """Apply ``filter_cfg`` like mmdet and log the number of removed images.

        Raises:
            DataError: If no image remains.
        """
        remaining: Any
        samples, filters = self.data_list, self.filter_cfg or {}
        min_size, total = filters.get('min_size', 0), len(samples)
        if isinstance(samples, Samples):
            is_small = samples.sides < min_size
            is_empty = filters.get('filter_empty_gt', False) & (samples.counts == 0)
            has_all = self.test_mode or self.filter_cfg is None
            remaining = samples if has_all else samples.take(~is_small & ~is_empty)
            small, boxes = int(is_small.sum()), bool(remaining.counts.any())
        else:
            remaining = super().filter_data()
            small = sum(min(info['height'], info['width']) < min_size for info in samples)
            boxes = any(info['instances'] for info in remaining)
        taken = (
            f'{total - len(remaining)} of {total} images are left out: {small} with a side below '
            f'min_size={min_size} px, {total - len(remaining) - small} without a box to train on '
            f'(filter_empty_gt={filters.get("filter_empty_gt", False)})'
        )
        if not remaining:
            self._refuse_empty(total, taken)
        if len(remaining) < total:
            self._log(taken, logging.INFO)
        if not self.test_mode and not boxes:
            self._tell_no_boxes()
        return remaining

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on one image.

        Raises:
            DataError: If the image file is missing or damaged. Other errors pass unchanged.
        """
        info = self.get_data_info(idx)
        path, image_id = info['img_path'], info['img_id']
        cause: Exception | None = None
        fault = self._early_fault(path)
        if fault is None:
            try:
                return self.pipeline(info)
            except GFLDetError:
                raise
            except Exception as error:
                cause, fault = error, self._image_fault(path)
                if fault is None:
                    raise
        raise DataError(
            f'{path:.{MAX_PATH}} {fault}; it is image id {shown(image_id)} of {self.ann_file}: '
            'restore the file or remove its entry.'
        ) from cause

    def _get_unserialized_subset(self, indices: Sequence[int] | int) -> list[Entry]:
        if isinstance(self.data_list, Samples) and not isinstance(indices, int):
            subset: Any = self.data_list.take(indices)
        else:
            subset = super()._get_unserialized_subset(indices)
        if not subset:
            raise DataError(f'{self.ann_file}: indices={indices!r:.60} selects no image.')
        return subset

    def _files(self, names: list[str]) -> dict[str, str]:
        """Return the files matched by names with foreign paths, URLs or encoded characters."""
        folder = (self.data_prefix or {}).get('img', '')
        if self.backend_args or '://' in folder:
            return {}
        files = renamed_files(folder, names)
        if files:
            name, file = next(iter(files.items()))
            text = f'{len(files)} images are found by the end of their file_name: {shown(name)}'
            self._log(f'{text} is {shown(file)} in {folder}', logging.WARNING)
        return files

    def _needs_boxes(self) -> bool:
        """Whether annotations are required; test sets and unlabelled sets may list only images."""
        return not self.test_mode and bool((self.filter_cfg or {}).get('filter_empty_gt', False))

    def _read(self, path: str) -> bytes:
        try:
            return fileio.get(path, backend_args=self.backend_args)
        except FileNotFoundError as error:
            raise DataError(
                f'The annotation file {path} does not exist: correct data_root or ann_file of the '
                'dataset in the config.'
            ) from error
        except OSError as error:
            raise DataError(f'The annotation file {path} cannot be read: {error}.') from error

    def _early_fault(self, path: str) -> str | None:
        """Explain why a file must not be read at all; None if it may be read.

        Not every decoder has a pixel limit, and OpenCV's works only if gfl_det was imported before
        it.
        """
        if self.backend_args or '://' in path:
            return None
        try:
            if is_endless(path):
                return 'is a device or a pipe'
            with open(path, 'rb') as file:
                header = header_of(file)
                file.seek(0)
                is_pfm = file.read(2) in (b'PF', b'Pf')
        except (OSError, ValueError):  # the pipeline may not need the file
            return None
        fault = _too_large(header)
        return dark_floats(Path(path).read_bytes()) if is_pfm and fault is None else fault

    def _image_fault(self, path: str) -> str | None:
        """Explain why an image file does not load; None if it loads."""
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        except FileNotFoundError:
            return 'does not exist'
        except OSError as error:
            return f'cannot be read ({error.strerror or error})'
        except ValueError as error:
            return f'is not a valid file name ({error})'
        fault = _too_large(header_of(content))
        if fault is not None:
            return fault
        try:
            image = mmcv.imfrombytes(content)
        except Exception:  # decoding backends raise their own types
            image = None
        if image is not None:
            return None
        return why_not(content) or 'is damaged or not a readable image'

    def _tell_no_boxes(self) -> None:
        """Warn that all images are background; raise an error if every box was dropped."""
        report = self.box_report
        if report is not None and report.dropped and not report.kept:
            raise DataError(
                f'{self.ann_file} leaves no box to train on: {report.warning()}; run '
                f'gfl-det check {self.ann_file} --fix OUT.json.'
            )
        self._log('no box to train on: every image is background', logging.WARNING)

    def _refuse_empty(self, total: int, taken: str) -> None:
        if not total:
            raise DataError(f'{self.ann_file} lists no images: nothing to train or test on.')
        report = self.box_report
        boxes = 'its boxes are unknown'
        if report is not None:
            parts = [f'{report.total} boxes in the file', report.warning(), *report.notes()]
            boxes = '; '.join(part for part in parts if part)
        raise DataError(f'{self.ann_file} leaves nothing to train on: {taken}; {boxes}.')

    def _log_reading(self, absent: list[str], changes: list[Correction], report: BoxReport) -> None:
        """Log what the file lacks, what was normalised, and which boxes are not used."""
        for text in [absent_text(absent)] if absent else []:
            self._log(text, logging.WARNING)
        for change in changes:
            self._log(str(change), logging.WARNING)
        warning = report.warning()
        if warning is not None:
            where = (
                ' (a metric that reads this file by itself still counts them)'
                if self.test_mode
                else ''
            )
            self._log(warning + where, logging.WARNING)
        for note in report.notes():
            self._log(note, logging.INFO)

    def _log(self, message: str, level: int) -> None:
        print_log(f'{self.ann_file}: {message}', logger='current', level=level)


def _too_large(header: Header | None) -> str | None:
    return None if header is None else too_large(header.pixels)
