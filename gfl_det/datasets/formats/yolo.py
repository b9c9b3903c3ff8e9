"""YOLO data sets: a data.yaml, pictures, and a label file per picture.

The labels of ``images/train/a.jpg`` are in ``labels/train/a.txt``, those of ``train/images/a.jpg``
in ``train/labels/a.txt``: the last folder named ``images`` becomes ``labels``. Without such a
folder they are in the folder of the picture. A line contains a class and either a box (centre,
width, height) or the points of an outline, in fractions of the picture size. A picture without a
label file is background.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gfl_det.datasets.annotations import Entry
from gfl_det.datasets.formats.pictures import (
    LabelledBox,
    LabelledPicture,
    OwnData,
    as_part,
    is_picture,
    picture_size,
    pictures_below,
    some_of,
)
from gfl_det.errors import DataError

SPLIT_KEYS = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}
BOX_NUMBERS = 4
LEAST_POINTS = 3  # in an outline
ROUNDING = 0.01  # tolerance for edges outside the picture, as a fraction of its side


def read_yolo(path: Path) -> OwnData:
    """Read a ``data.yaml`` with its pictures and labels.

    Args:
        path: Path of the file.

    Raises:
        DataError: If the file is not a ``data.yaml``, its pictures are missing, or a label file is
            invalid.
    """
    content = _parse(path)
    classes = _class_names(content, path)
    notes: list[str] = []
    parts = {}
    for split, keys in SPLIT_KEYS.items():
        given = next((content[key] for key in keys if content.get(key)), None)
        if given is None:
            continue
        files = list(_pictures(given, path, content, split))
        if not files:
            if split == 'train':
                raise DataError(f'{path}: {given!r:.80} ("{split}") holds no picture.')
            notes.append(f'{path.name} names {given!r:.80} as "{split}", which is not there')
            continue
        pictures = [_picture(file, classes) for file in files]
        parts[split] = as_part(pictures, classes)
        empty = [each.path.name for each in pictures if not each.boxes]
        if empty:
            notes.append(f'{split}: {len(empty)} pictures without a box are background')
    if not any(part.dataset['annotations'] for part in parts.values()):
        number = sum(len(part.dataset['images']) for part in parts.values())
        raise DataError(
            f'{path}: none of its {number} pictures has a text with boxes: labels belong in '
            'a folder "labels" beside "images", with the names of the pictures.'
        )
    return OwnData('YOLO', path, classes, parts, notes)


def _parse(path: Path) -> Entry:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f'{path} is not YAML: {" ".join(str(error).split()):.200}.') from error
    lacking = [
        key for key in ('train', 'names') if not isinstance(content, dict) or key not in content
    ]
    if lacking:
        raise DataError(
            f'{path} is not a YOLO data.yaml, as it has no "{lacking[0]}": give one with "train", '
            '"val" and "names".'
        )
    return content


def _class_names(content: Entry, path: Path) -> list[str]:
    names = content['names']
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(
                f'{path}: the keys of "names" are not 0 to {len(names) - 1}: number them so.'
            )
        names = [names[number] for number in range(len(names))]
    if (
        not isinstance(names, list)
        or not names
        or any(isinstance(each, (dict, list)) for each in names)
    ):
        raise DataError(f'{path}: "names" is not a list of class names: write one.')
    if len(set(map(str, names))) < len(names):
        raise DataError(f'{path}: "names" lists a class twice: number each class once.')
    return list(map(str, names))


def _pictures(given: Any, yaml_path: Path, content: Entry, split: str) -> Iterator[Path]:
    """Yield the pictures of a split: from a folder, a text file of paths, or several of these."""
    if isinstance(given, (list, tuple)):
        for each in given:
            yield from _pictures(each, yaml_path, content, split)
        return
    place = _find(str(given), yaml_path, content)
    if place is None:
        return
    if place.is_dir():
        yield from pictures_below(place)
        return
    if place.suffix != '.txt':
        raise DataError(
            f'{yaml_path}: "{split}" names {place}, which is neither a folder nor a .txt.'
        )
    for line in place.read_text(encoding='utf-8').split('\n'):
        if line.strip():
            file = _find(line.strip(), place, content)
            if file is None:
                raise DataError(f'{place} lists {line.strip()!r:.80}, which is not there.')
            yield file


def _find(name: str, beside: Path, content: Entry) -> Path | None:
    """Find a path: unchanged, below "path", or below the folder of the file that contains it.

    Labelling services write ``../train/images`` for ``train/images``.
    """
    root = Path(str(content.get('path') or '.'))
    below = name[3:] if name.startswith('../') else name
    roots = [beside.parent / root, root, beside.parent, beside.parent / root.name]
    tried = [each / part for part in dict.fromkeys((name, below)) for each in roots]
    there = (each for each in tried if each.exists())
    return next((Path(os.path.abspath(each)) for each in there), None)


def _picture(path: Path, classes: list[str]) -> LabelledPicture:
    size = picture_size(path)
    labels = _label_file(path)
    if not labels.is_file():
        return LabelledPicture(path, size, [])
    try:
        lines = labels.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{labels} cannot be read: {error}.') from error
    boxes = [
        _box(line.split(), size, len(classes), f'{labels}, line {number}')
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return LabelledPicture(path, size, list(dict.fromkeys(boxes)))


def _label_file(path: Path) -> Path:
    parts = list(path.parts)
    if 'images' in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index('images')] = 'labels'
    return Path(*parts).with_suffix('.txt')


def _box(words: list[str], size: tuple[int, int], num_classes: int, where: str) -> LabelledBox:
    """Parse a line: a class and a box or an outline, in fractions of the picture size.

    Raises:
        DataError: If the line is neither a box nor an outline.
    """
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise DataError(f'{where}: {" ".join(words)!r:.80} is not a row of numbers.') from None
    label, values = numbers[0], numbers[1:]
    if label not in range(num_classes):
        raise DataError(
            f'{where}: class {words[0]:.20} is not one of the {num_classes} in "names": correct it.'
        )
    if len(values) == BOX_NUMBERS:
        x, y, width, height = values
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    elif len(values) % 2 == 0 and len(values) >= 2 * LEAST_POINTS:
        x_values, y_values = values[::2], values[1::2]
        corners = [min(x_values), min(y_values), max(x_values), max(y_values)]
    else:
        raise DataError(
            f'{where} has {len(numbers)} numbers: 5 make a box (class, centre, width, height), 7, '
            '9, ... an outline (class, corners).'
        )
    # A comparison rejects NaN; min and max would not.
    if not all(-ROUNDING <= each <= 1 + ROUNDING for each in corners):
        raise DataError(
            f'{where}: {" ".join(words)!r:.80} reaches beyond the picture: YOLO has fractions of '
            'its width and height, from 0 to 1.'
        )
    width, height = size
    left, top, right, bottom = (
        edge * side for edge, side in zip(corners, (width, height, width, height))
    )
    xywh = (round(left, 4), round(top, 4), round(right - left, 4), round(bottom - top, 4))
    return LabelledBox(int(label), xywh)


def yaml_of(folder: Path) -> Path | None:
    """Find the data.yaml of a folder: the file of that name, else the first with "names"."""
    found = sorted([*folder.glob('*.yaml'), *folder.glob('*.yml')])
    named = [each for each in found if each.stem in ('data', 'dataset')]
    for each in named or found:
        try:
            if 'names' in _parse(each):
                return each
        except DataError:
            if named:
                raise
    return None


def refuse_without_yaml(folder: Path) -> None:
    """Refuse labels without a data.yaml.

    Raises:
        DataError: If there are such labels.
    """
    labels = [path for path in folder.rglob('labels') if path.is_dir()]
    if labels:
        raise DataError(
            f'{folder} has YOLO labels ({some_of(labels, 1)}) and no data.yaml: write one with '
            '"train", "val" and "names".'
        )
    if any(
        is_picture(path) and path.with_suffix('.txt').is_file() for path in pictures_below(folder)
    ):
        raise DataError(
            f'{folder} has pictures with texts beside, as YOLO has, and no data.yaml: write one, '
            'with "train", "val" and "names".'
        )
