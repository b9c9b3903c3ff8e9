"""Pictures and videos of results, with soft edges where distributions were kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from mmdet.structures import DetDataSample

from gfl_det.datasets.images import read_image
from gfl_det.errors import DataError
from gfl_det.inference.results import ImageResult
from gfl_det.inference.sources import ImageSource
from gfl_det.registry import VISUALIZERS
from gfl_det.utils.files import check_writable, make_folder

VISUALIZER = 'gfl_det.GFLVisualizer'
DEFAULT_RATE, MAX_RATE = 25.0, 1000.0  # frames per second


class Drawer:
    """Draws results into a folder, which is created if missing.

    Args:
        folder: Folder of the pictures. A picture has its image's name, the frame number for videos,
            a number where a name occurs twice, and the ending .jpg.
        classes: Class names in label order.
        score_thr: Minimum score of drawn boxes.

    Raises:
        DataError: If the folder cannot be written.
    """

    def __init__(self, folder: str | Path, classes: tuple[str, ...], score_thr: float) -> None:
        self.folder, self.score_thr = make_folder(folder), score_thr
        self._name = PictureNames()
        self._visualizer = VISUALIZERS.build(dict(type=VISUALIZER, name='gfl_det.inference'))
        self._visualizer.dataset_meta = dict(classes=classes)

    def __call__(self, result: ImageResult) -> Path:
        """Draw a result; returns the path of the picture.

        Raises:
            DataError: If the image was not kept and cannot be read again.
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
    """Draw a result; returns ``(H, W, 3)`` uint8 RGB.

    Raises:
        DataError: If the image was not kept and cannot be read again.
    """
    image = np.ascontiguousarray(image_of(result)[..., ::-1])
    visualizer = VISUALIZERS.build(dict(type=VISUALIZER, name='gfl_det.inference'))
    visualizer.dataset_meta = dict(classes=result.classes)
    sample = DetDataSample(pred_instances=result.instances)
    return visualizer.draw(image, sample, draw_gt=False, score_thr=score_thr)


def image_of(result: ImageResult) -> np.ndarray:
    """Image of a result, BGR: the kept one, or its file read again.

    Raises:
        DataError: If the image was not kept and cannot be read again.
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
        f'The image of {result.name} was not kept and has no file to read it from: '
        'detect with keep_images=True.'
    )


def _in_colour(image: np.ndarray) -> np.ndarray:
    """The first three channels as BGR, or the first one as grey."""
    if image.ndim == 3 and image.shape[2] >= 3:
        return image[..., :3]
    return np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)


class PictureNames:
    """Unique picture names without extension: image names, numbered where one occurs twice."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, result: ImageResult) -> str:
        """Name for a result, with the frame number for videos."""
        stem = Path(result.source.partition('?')[0]).stem or 'image'
        stem = stem if result.frame is None else f'{stem}_{result.frame:06d}'
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f'{stem}_{number}'
        self._taken.add(name)
        return name


class VideoDrawer:
    """Writes the drawn frames of one video as mp4, upright as the decoder gives them.

    Args:
        path: Path of the file, ending in .mp4; its folder is created if missing.
        rate: Frames per second.
        score_thr: Minimum score of drawn boxes.

    Raises:
        DataError: If the path does not end in .mp4, or cannot be written.
    """

    def __init__(self, path: str | Path, rate: float, score_thr: float) -> None:
        if Path(path).suffix.lower() != '.mp4':
            raise DataError(f'{path} must end in .mp4: videos are written in that format.')
        check_writable(path)
        self.path, self.rate, self.score_thr = Path(path), rate, score_thr
        self.frames = 0
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def __call__(self, result: ImageResult) -> None:
        """Add a frame.

        Raises:
            DataError: If this OpenCV cannot write mp4.
        """
        frame = draw(result, self.score_thr)[..., ::-1]
        if self._writer is None:
            height, width = frame.shape[:2]
            self._size = (width + width % 2, height + height % 2)  # players need even sides
            code = cv2.VideoWriter.fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(str(self.path), code, self.rate, self._size)
            if not self._writer.isOpened():
                raise DataError(f'{self.path} cannot be written: this OpenCV writes no mp4.')
        canvas = np.zeros((self._size[1], self._size[0], 3), np.uint8)
        height, width = (min(pair) for pair in zip(frame.shape[:2], canvas.shape[:2]))
        canvas[:height, :width] = frame[:height, :width]
        self._writer.write(canvas)
        self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None


def frame_rate(path: str) -> float:
    """Frames per second from a video's header; 25 if the header has no plausible value."""
    capture = cv2.VideoCapture(path)
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return rate if 0 < rate < MAX_RATE else DEFAULT_RATE


def check_apart(sources: Iterable[ImageSource], folder: str | Path) -> None:
    """Refuse to draw into a folder that contains input images.

    Raises:
        DataError: If a picture could overwrite an input image.
    """
    place = Path(folder).resolve()
    for source in sources:
        path = Path(source.name)
        if path.is_file() and path.resolve().parent == place:
            raise DataError(f'{folder} contains the input {source.name}: draw into another folder.')
