"""A contact sheet of the embedded data set, to look at what a model is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from gfl_det.datasets.digits.build import CLASSES
from gfl_det.errors import DataError


def write_preview(
    root: Path, path: Path, split: str = 'val', columns: int = 4, rows: int = 4
) -> None:
    """Write one PNG with the first pictures of a split at double size, boxes and classes drawn."""
    content = json.loads((root / 'annotations' / f'{split}.json').read_text())
    tiles = []
    for image in content['images'][: columns * rows]:
        tile = cv2.imread(str(root / split / image['file_name']))
        tile = cv2.resize(tile, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        for item in content['annotations']:
            if item['image_id'] == image['id']:
                _draw_box(tile, [2 * edge for edge in item['bbox']], item['category_id'] - 1)
        tiles.append(tile)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    strips = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.vstack(strips)):
        raise DataError(f'{path} cannot be written: name a .png file in a folder that is writable.')


def _draw_box(tile: np.ndarray, box: list[int], label: int) -> None:
    x, y, width, height = box
    cv2.rectangle(tile, (x - 1, y - 1), (x + width, y + height), (0, 255, 0), 1)
    place = (x, max(10, y - 3))
    cv2.putText(tile, CLASSES[label], place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 255, 255))
