"""An annotation file while it is checked: the entries that are left, and the findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from gfl_det.datasets.annotations import ID_TYPES, Entry, find

Level = Literal['error', 'warning', 'note']
LEVELS: tuple[Level, ...] = ('error', 'warning', 'note')
WITH_BOXES = 'removed, with their boxes'  # what a repair does to images


class Finding(NamedTuple):
    """One fault or remark, and the entries that it is about.

    An error stops a training or spoils it, a warning costs boxes or images, a note is worth
    knowing.
    """

    level: Level
    code: str  # such as boxes.outside: the list, and what is wrong
    text: str
    ids: list[Any]  # of all entries; positions where there is no id
    fix: str = ''  # what a repaired file has in their place; empty: nothing is changed

    def __str__(self) -> str:
        return f'{self.text}: {find(self.ids)}' if self.ids else self.text


class Draft:
    """The lists of a file; checks replace lists and entries, and edit none in place.

    Args:
        source: The file's name for messages.
        dataset: What was parsed; it is not changed.
    """

    def __init__(self, source: str, dataset: Entry) -> None:
        self.source = source
        self.rest = {key: value for key, value in dataset.items() if key not in LISTS}
        self.images: list[Entry] = list(dataset['images'])
        self.annotations: list[Entry] = list(dataset.get('annotations', []))
        self.categories: list[Entry] = list(dataset['categories'])
        self.findings: list[Finding] = []
        self.gone: set[Any] = set()  # ids of images taken away

    def tell(
        self, level: Level, code: str, text: str, ids: Iterable[Any] = (), fix: str = ''
    ) -> None:
        """Note a finding."""
        self.findings.append(Finding(level, code, text, list(ids), fix))

    def remove_images(self, ids: Sequence[Any]) -> None:
        """Take images away together with their annotations."""
        if not ids:
            return
        self.gone |= set(ids)
        self.images = [image for image in self.images if image['id'] not in self.gone]
        self.annotations = [
            entry
            for entry in self.annotations
            # What is not an id may not even be hashable.
            if type(entry.get('image_id')) not in ID_TYPES or entry['image_id'] not in self.gone
        ]

    def result(self) -> Entry:
        """Return the file as it is left."""
        lists = (self.images, self.annotations, self.categories)
        return {**self.rest, **dict(zip(LISTS, lists))}


LISTS = ('images', 'annotations', 'categories')
