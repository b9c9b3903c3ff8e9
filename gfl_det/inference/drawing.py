"""Pictures of results: edges as soft as their distributions, where results hold them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from mmdet.structures import DetDataSample

from gfl_det.datasets.images import read_image
from gfl_det.errors import DataError
from gfl_det.inference.results import ImageResult
from gfl_det.inference.sources import ImageSource
from gfl_det.registry import VISUALIZERS
from gfl_det.utils.files import make_folder

VISUALIZER = 'gfl_det.GFLVisualizer'


class Drawer:
    """Draws results into a folder, which is made.

    Args:
        folder: of the pictures: the image's name with the ending .jpg, of a video with the number
            of the frame; a number is added where a name comes twice.
        classes: names in the order of the labels.
        score_thr: least score of a box that is drawn.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, classes: tuple[str, ...], score_thr: float) -> None:
        self.folder, self.score_thr = make_folder(folder), score_thr
        self._name = PictureNames()
        self._visualizer = VISUALIZERS.build(dict(type=VISUALIZER, name='gfl_det.inference'))
        self._visualizer.dataset_meta = dict(classes=classes)

    def __call__(self, result: ImageResult) -> Path:
        """Draw a result; returns the picture's path.

        Raises:
            DataError: the image was not kept, and cannot be read again.
        """
        image = image_of(result)
        path = self.folder / f'{self._name(result)}.jpg'
        sample = DetDataSample(pred_instances=result.instances)
        self._visualizer.add_datasample(
            path.stem,
            np.ascontiguousarray(image[..., ::-1]),
            sample,
            draw_gt=False,
            out_file=str(path),
            pred_score_thr=self.score_thr,
        )
        return path


def draw(result: ImageResult, score_thr: float) -> np.ndarray:
    """The picture of a result, ``(H, W, 3)`` uint8 RGB.

    Raises:
        DataError: the image was not kept, and cannot be read again.
    """
    image = np.ascontiguousarray(image_of(result)[..., ::-1])
    visualizer = VISUALIZERS.build(dict(type=VISUALIZER, name='gfl_det.inference'))
    visualizer.dataset_meta = dict(classes=result.classes)
    sample = DetDataSample(pred_instances=result.instances)
    return visualizer.draw(image, sample, draw_gt=False, score_thr=score_thr)


def image_of(result: ImageResult) -> np.ndarray:
    """The image that a result is of, BGR: the one that was kept, or its file read again.

    Raises:
        DataError: there is none.
    """
    if result.error is not None:
        raise DataError(result.error)
    if result.image is not None:
        return _in_colour(result.image)
    if result.frame is None and Path(result.source).is_file():
        image = read_image(result.source)
        if image.shape[:2] == tuple(result.size):
            return image
    raise DataError(
        f'The image of {result.name} was not kept, and there is no file to read it from again: '
        'detect with keep_images=True.'
    )


def _in_colour(image: np.ndarray) -> np.ndarray:
    """The first three channels as BGR, or the first as grey."""
    if image.ndim == 3 and image.shape[2] >= 3:
        return image[..., :3]
    return np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)


class PictureNames:
    """Names of pictures without their endings: the image's, with a number where one comes twice."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, result: ImageResult) -> str:
        """The name for a result; of a video it has the number of the frame."""
        stem = Path(result.source.partition('?')[0]).stem or 'image'
        stem = stem if result.frame is None else f'{stem}_{result.frame:06d}'
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f'{stem}_{number}'
        self._taken.add(name)
        return name


def check_apart(sources: Iterable[ImageSource], folder: str | Path) -> None:
    """Refuse to draw into a folder that holds the images themselves.

    Raises:
        DataError: a drawing could replace one.
    """
    place = Path(folder).resolve()
    for source in sources:
        path = Path(source.name)
        if path.is_file() and path.resolve().parent == place:
            raise DataError(f'{folder} holds the images, as {source.name}: draw into another.')
