"""The boxes of a COCO file as training sees them: usable ones, in resized images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gfl_det.datasets.annotations import (
    add_absent,
    check_ids,
    check_structure,
    match_classes,
    parse,
    usable_boxes,
)
from gfl_det.datasets.tidying import tidy
from gfl_det.engine.reach.resizing import Resizing
from gfl_det.errors import DataError
from gfl_det.ops.boxes import xywh_to_xyxy


class ResizedBoxes(NamedTuple):
    """Boxes of many images, those of one image together."""

    image_wh: np.ndarray  # (I, 2) int, px, after resizing
    image: np.ndarray  # (N,) int64, ascending
    xyxy: np.ndarray  # (N, 4) float32, px, after resizing
    num_classes: int
    dropped: str | None  # what was wrong with others

    def size(self) -> np.ndarray:
        """Square roots of the areas ``(N,)``, px."""
        return np.sqrt((self.xyxy[:, 2:] - self.xyxy[:, :2]).clip(min=0).prod(1))

    def sample(self, count: int, random: np.random.Generator) -> ResizedBoxes:
        """About ``count`` boxes: all of some images, drawn at random."""
        if len(self.xyxy) <= count:
            return self
        number = np.bincount(self.image, minlength=len(self.image_wh))
        order = random.permutation(np.flatnonzero(number))
        kept = np.sort(order[: int(np.searchsorted(number[order].cumsum(), count)) + 1])
        new_index = np.full(len(self.image_wh), -1)
        new_index[kept] = np.arange(len(kept))
        image = new_index[self.image]
        mine = image >= 0
        return self._replace(image_wh=self.image_wh[kept], image=image[mine], xyxy=self.xyxy[mine])


def read_boxes(
    path: str, resizing: Resizing, random: np.random.Generator, classes: list[str] | None = None
) -> ResizedBoxes:
    """Read a COCO annotation file.

    Args:
        path: of the JSON.
        resizing: of its images.
        random: draws the sizes of a resizing that is random.
        classes: those to count; None: all.

    Raises:
        DataError: The file is missing or is not a COCO file, or holds no box to train on.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}.') from error
    dataset, _ = tidy(parse(content, path), path)
    check_structure(dataset, path)
    check_ids(dataset, path)
    names = classes or [category['name'] for category in dataset['categories']]
    ids = match_classes(names, add_absent(dataset['categories'], names)[0], path)
    entries, report = usable_boxes(dataset, ids)
    entries = [entry for entry in entries if not entry.get('iscrowd')]
    if not entries:
        raise DataError(f'{path} has no box to train on: give annotations of objects.')
    place = {image['id']: index for index, image in enumerate(dataset['images'])}
    old = np.array([(image['width'], image['height']) for image in dataset['images']], float)
    new = resizing.sizes(old, random)
    image = np.array([place[entry['image_id']] for entry in entries])
    xywh = np.array([entry['bbox'] for entry in entries], float)
    order = np.argsort(image, kind='stable')
    image, xywh = image[order], xywh[order]
    limit = np.tile(new[image], 2)
    corners = xywh_to_xyxy(xywh) * np.tile((new / old)[image], 2)
    xyxy = np.clip(corners, 0, limit)  # mmdet clips as it resizes
    return ResizedBoxes(new, image, xyxy.astype(np.float32), len(names), report.warning())
