"""Draft of a checked annotation file: the remaining entries and the findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from gfl_det.datasets.annotations import ID_TYPES, Entry, find

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
        self.annotations: list[Entry] = list(dataset.get('annotations', []))
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
