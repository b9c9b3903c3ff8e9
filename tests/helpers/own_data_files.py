"""One small data set, written in the formats of labelling tools."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('cat', 'dog')
SPLITS = {'train': range(6), 'val': range(6, 9), 'test': range(9, 11)}
WIDTH, HEIGHT = 96, 64
Box = tuple[int, int, int, int, int]  # label, xywh


def boxes_of(number: int) -> list[Box]:
    """Boxes of a picture; picture 2 is background."""
    random = np.random.default_rng(number)
    if number == 2:
        return []
    return [
        (int(random.integers(2)), *map(int, random.integers((0, 0, 16, 16), (56, 30, 40, 34))))
        for _ in range(1 + number % 3)
    ]


def draw(path: Path, number: int) -> None:
    """Write a picture with its boxes in colours."""
    pixels = np.random.default_rng(100 + number).integers(0, 60, (8, 12, 3), dtype=np.uint8)
    pixels = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for label, x, y, width, height in boxes_of(number):
        pixels[y : y + height, x : x + width] = (40, 220, 40) if label else (220, 40, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def coco_of(numbers: range, names: tuple[str, ...] = CLASSES, first: int = 1) -> dict:
    """The content of a COCO file of some pictures."""
    images = [
        dict(id=number, file_name=f'{number:02}.png', width=WIDTH, height=HEIGHT)
        for number in numbers
    ]
    annotations: list[dict] = []
    for number in numbers:
        for label, x, y, width, height in boxes_of(number):
            entry = dict(id=len(annotations) + 1, image_id=number, category_id=label + first)
            entry.update(bbox=[x, y, width, height], area=width * height, iscrowd=0)
            annotations.append(entry)
    categories = [dict(id=first + label, name=name) for label, name in enumerate(names)]
    return dict(images=images, annotations=annotations, categories=categories)


def write_coco(root: Path) -> Path:
    """train.json, val.json, test.json and images/."""
    for split, numbers in SPLITS.items():
        for number in numbers:
            draw(root / 'images' / f'{number:02}.png', number)
        (root / f'{split}.json').write_text(json.dumps(coco_of(numbers)))
    return root


def write_exported(root: Path) -> Path:
    """As labelling services export COCO: a dummy super-category, ids from 0, ``valid``."""
    for split, numbers in SPLITS.items():
        place = root / split.replace('val', 'valid')
        content = coco_of(numbers)
        for category in content['categories']:
            category['supercategory'] = 'pets'
        content['categories'].insert(0, dict(id=0, name='pets', supercategory='none'))
        for number in numbers:
            draw(place / f'{number:02}.png', number)
        (place / '_annotations.coco.json').write_text(json.dumps(content))
    return root


def yolo_lines(number: int) -> str:
    """The text of a picture's boxes."""
    lines = [
        f'{label} {(x + w / 2) / WIDTH:.8f} {(y + h / 2) / HEIGHT:.8f} '
        f'{w / WIDTH:.8f} {h / HEIGHT:.8f}'
        for label, x, y, w, h in boxes_of(number)
    ]
    return '\n'.join(lines)


def write_yolo(root: Path, split_first: bool = False, **entries: object) -> Path:
    """data.yaml with images/train, or train/images as services export it; returns the yaml."""
    names: dict[str, object] = {}
    for split, numbers in SPLITS.items():
        pictures = f'{split}/images' if split_first else f'images/{split}'
        names[split] = f'../{pictures}' if split_first else pictures
        for number in numbers:
            draw(root / pictures / f'{number:02}.png', number)
            labels = root / pictures.replace('images', 'labels') / f'{number:02}.txt'
            labels.parent.mkdir(parents=True, exist_ok=True)
            if boxes_of(number):
                labels.write_text(yolo_lines(number))
    content = {**names, 'names': list(CLASSES), 'nc': len(CLASSES), **entries}
    (root / 'data.yaml').write_text(json.dumps(content))  # JSON is YAML
    return root / 'data.yaml'


def voc_xml(number: int, extra: str = '') -> str:
    """The XML of a picture."""
    objects = ''.join(
        f'<object><name>{CLASSES[label]}</name>{extra}<bndbox><xmin>{x}</xmin><ymin>{y}</ymin>'
        f'<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>'
        for label, x, y, w, h in boxes_of(number)
    )
    return f'<annotation><filename>other.jpg</filename>{objects}</annotation>'


def write_voc(root: Path, lists: bool = True, beside: bool = False) -> Path:
    """Annotations/, JPEGImages/ and lists, or without; or train/, valid/, test/ with both."""
    for split, numbers in SPLITS.items():
        place = root / split.replace('val', 'valid')
        for number in numbers:
            draw((place if beside else root / 'JPEGImages') / f'{number:02}.png', number)
            xml = (place if beside else root / 'Annotations') / f'{number:02}.xml'
            xml.parent.mkdir(parents=True, exist_ok=True)
            xml.write_text(voc_xml(number))
        if lists and not beside:
            file = root / 'ImageSets' / 'Main' / f'{split}.txt'
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('\n'.join(f'{number:02}' for number in numbers))
    return root
