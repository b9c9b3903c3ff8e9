"""Labelled pictures from readers of other formats, and their conversion to COCO.

Boxes are converted to COCO's form, and pictures are referenced, never copied. The data set, its
checks and the metrics therefore need a reader for one format only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gfl_det.datasets.annotations import Entry
from gfl_det.datasets.images import ENDINGS
from gfl_det.errors import DataError
from gfl_det.utils.pixels import header_of, is_endless


class LabelledBox(NamedTuple):
    """Box of an object."""

    label: int
    xywh: tuple[float, float, float, float]  # px
    ignore: bool = False  # used neither in training nor in evaluation


class LabelledPicture(NamedTuple):
    """Picture and its objects; background pictures have none."""

    path: Path
    size: tuple[int, int]  # width and height, px
    boxes: list[LabelledBox]


class DataPart(NamedTuple):
    """One split of a data set."""

    dataset: Entry  # the content of a COCO file
    folder: Path  # picture folder, to which file names are relative
    file: Path | None = None  # file with this content, if it exists already


class OwnData(NamedTuple):
    """Custom data set."""

    kind: str  # 'COCO', 'YOLO' or 'VOC'
    source: Path  # path given by the user
    classes: list[str]
    parts: dict[str, DataPart]  # existing splits by 'train', 'val', 'test'
    notes: list[str]  # unexpected decisions of the reader


def as_part(pictures: Sequence[LabelledPicture], classes: Sequence[str]) -> DataPart:
    """Convert pictures to COCO; file names are relative to their common folder."""
    folder = Path(os.path.commonpath([each.path.parent.absolute() for each in pictures]))
    images: list[Entry] = []
    annotations: list[Entry] = []
    for number, picture in enumerate(pictures, start=1):
        width, height = picture.size
        name = picture.path.absolute().relative_to(folder).as_posix()
        images.append(dict(id=number, file_name=name, width=width, height=height))
        for box in picture.boxes:
            entry: Entry = dict(id=len(annotations) + 1, image_id=number, category_id=box.label + 1)
            entry.update(bbox=list(box.xywh), area=box.xywh[2] * box.xywh[3], iscrowd=0)
            annotations.append({**entry, 'ignore': 1} if box.ignore else entry)
    categories = [dict(id=label, name=name) for label, name in enumerate(classes, start=1)]
    dataset = dict(images=images, annotations=annotations, categories=categories)
    return DataPart(dataset, folder)


def is_picture(path: Path) -> bool:
    """Whether a file name has the extension of a picture."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith('.')


def pictures_below(folder: Path) -> list[Path]:
    """List the pictures of a folder and its subfolders, sorted by name."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(real)
        found += [path for name in names if is_picture(path := Path(root) / name)]
    return sorted(found)


def picture_size(path: Path) -> tuple[int, int]:
    """Read width and height, px, from a picture's header, after its EXIF rotation.

    Raises:
        DataError: If the file cannot be read or is not a picture.
    """
    try:
        if is_endless(path):
            raise DataError(f'{path} is a device or a pipe: give an image file.')
        with path.open('rb') as file:
            header = header_of(file)
    except OSError as error:
        raise DataError(f'The picture {path} cannot be read: {error.strerror or error}.') from error
    if header is None or header.size is None:
        raise DataError(
            f'The picture {path} is damaged or of no known format: restore or remove it.'
        )
    return header.size


def some_of(items: Iterable[object], number: int = 3) -> str:
    """Text with the first items and the number of the others."""
    names = list(map(str, items))
    more = f' and {len(names) - number} more' if len(names) > number else ''
    return ', '.join(names[:number]) + more
