"""Records of a data set made from columns when they are asked for, instead of a dict per box."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from gfl_det.datasets.annotations import BoxColumns, BoxReport, Entry, fill_areas, judge_boxes
from gfl_det.datasets.columns import Columns


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
