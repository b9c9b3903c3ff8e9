"""Draft of a checked annotation file: the remaining entries and the findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from gfl_det.datasets.annotations import ID_TYPES, Entry, find
from gfl_det.datasets.columns import Columns, NotPlainError

Level = Literal['error', 'warning', 'note']
LEVELS: tuple[Level, ...] = ('error', 'warning', 'note')
WITH_BOXES = 'removed, with their boxes'  # effect of a repair on images


class Finding(NamedTuple):
    """Fault or remark, and the affected entries.

    An error stops or spoils training, a warning costs boxes or images, a note informs.
    """

    level: Level
    code: str  # list and fault, such as boxes.outside
    text: str
    ids: list[Any]  # of all entries; positions of entries without id
    fix: str = ''  # repair in the fixed file; empty: no change

    def __str__(self) -> str:
        return f'{self.text}: {find(self.ids)}' if self.ids else self.text


class BoxRows(Sequence):
    """Annotations of a plain file as columns, in the place of a list of entries.

    Checks that need whole entries iterate over it, and so leave the file to the tolerant reader.
    """

    def __init__(self, columns: Columns) -> None:
        self.ids, self.boxes, self.area = columns.ids, columns.boxes, columns.area
        self.image, self.label, self.crowd = columns.image, columns.label, columns.crowd
        self._image_ids = columns.image_ids.tolist()
        self._category_ids = [each['id'] for each in columns.category_list()]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        return dict(id=self.ids[row].item())

    def __iter__(self) -> Any:
        raise NotPlainError

    def take(self, keep: np.ndarray) -> BoxRows:
        """Select annotations by a mask."""
        chosen = object.__new__(BoxRows)
        chosen.__dict__.update(self.__dict__)
        if not keep.all():
            for name in ('ids', 'boxes', 'area', 'image', 'label', 'crowd'):
                setattr(chosen, name, getattr(self, name)[keep])
        return chosen

    def update(self, name: str, rows: np.ndarray, values: Any) -> None:
        """Change values of a column; the file's own column stays as it is."""
        column = getattr(self, name).copy()
        column[rows] = values
        setattr(self, name, column)

    def among(self, images: list[Entry], categories: list[Entry]) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices (N,) of each annotation's image and category in these lists."""
        place = {entry['id']: row for row, entry in enumerate(images)}
        number = {entry['id']: row for row, entry in enumerate(categories)}
        rows = np.array([place.get(each, -1) for each in self._image_ids])
        labels = np.array([number.get(each, -1) for each in self._category_ids])
        return rows[self.image], labels[self.label]

    def of_images(self, gone: set[Any]) -> BoxRows:
        """Return the annotations without those of some images."""
        stays = np.array([each not in gone for each in self._image_ids], bool)
        return self.take(stays[self.image])


class Draft:
    """Lists of a file; checks replace lists and entries instead of editing them in place.

    Args:
        source: File name for messages.
        dataset: Parsed content; not modified.
    """

    def __init__(self, source: str, dataset: Entry) -> None:
        self.source = source
        self.rest = {key: value for key, value in dataset.items() if key not in LISTS}
        self.images: list[Entry] = list(dataset['images'])
        given = dataset.get('annotations', [])
        self.annotations: Any = given if isinstance(given, BoxRows) else list(given)  # of entries
        self.categories: list[Entry] = list(dataset['categories'])
        self.findings: list[Finding] = []
        self.gone: set[Any] = set()  # ids of removed images

    def tell(
        self, level: Level, code: str, text: str, ids: Iterable[Any] = (), fix: str = ''
    ) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, code, text, list(ids), fix))

    def remove_images(self, ids: Sequence[Any]) -> None:
        """Remove images and their annotations."""
        if not ids:
            return
        self.gone |= set(ids)
        self.images = [image for image in self.images if image['id'] not in self.gone]
        if isinstance(self.annotations, BoxRows):
            self.annotations = self.annotations.of_images(self.gone)
            return
        self.annotations = [
            entry
            for entry in self.annotations
            # Invalid ids may not be hashable.
            if type(entry.get('image_id')) not in ID_TYPES or entry['image_id'] not in self.gone
        ]

    def result(self) -> Entry:
        """Return the file with the remaining entries."""
        lists = (self.images, self.annotations, self.categories)
        return {**self.rest, **dict(zip(LISTS, lists))}


LISTS = ('images', 'annotations', 'categories')
