"""Preprocessing as in a config's test pipeline, stored in the exported file.

A dozen numbers replace the config. The arithmetic is that of mmcv's ``Resize`` and mmengine's
``ImgDataPreprocessor``, so that inputs are bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from gfl_det.errors import ConfigError

Picture = NDArray[np.uint8]  # (H, W, 3) BGR
# Transform settings that this module supports.
DEFAULTS: dict[str, dict[str, Any]] = {
    'LoadImageFromFile': dict(to_float32=False, color_type='color', imdecode_backend='cv2'),
    'Resize': dict(interpolation='bilinear', backend='cv2', clip_object_border=True),
    'LoadAnnotations': {},
    'PackDetInputs': {},
}
READ = {'Resize': {'type', 'scale', 'keep_ratio'}}


class PreparedBatch(NamedTuple):
    """A batch of inputs."""

    images: NDArray[np.float32]  # (B, 3, H, W)
    img_shape: NDArray[np.float32]  # (B, 2) height, width before padding
    scale_factor: NDArray[np.float32]  # (B, 2) along x and y, from the original picture


@dataclass(frozen=True)
class Preprocessing:
    """Settings to resize, normalise and pad pictures.

    Args:
        scale: Longest and shortest side to fit a picture into, px, in any order; with
            ``keep_ratio=False`` its width and height.
        keep_ratio: Resize both sides by the same factor.
        mean: Mean per channel, in the order after ``bgr_to_rgb``; None: no normalisation.
        std: Standard deviation per channel, in the same order.
        bgr_to_rgb: Reverse OpenCV's channel order.
        divisor: Height and width are padded to multiples of it.
        pad_value: Padding value after normalisation.
        size: Height and width of a graph with fixed size; pictures are resized to fit into it.
    """

    scale: tuple[int, int]
    keep_ratio: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bgr_to_rgb: bool = False
    divisor: int = 1
    pad_value: float = 0
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, pipeline: Sequence[dict[str, Any]], normalising: dict[str, Any]) -> Preprocessing:
        """Build from a test pipeline and a ``data_preprocessor``.

        Raises:
            ConfigError: If they contain unsupported steps; the message names the step.
        """
        resize = _resize_step(pipeline)
        if normalising.get('rgb_to_bgr'):
            raise ConfigError('data_preprocessor.rgb_to_bgr cannot be exported: use bgr_to_rgb.')
        mean, std = (normalising.get(name) for name in ('mean', 'std'))
        return cls(
            scale=tuple(resize['scale']),
            keep_ratio=bool(resize.get('keep_ratio', False)),
            mean=None if mean is None else tuple(map(float, mean)),
            std=None if std is None else tuple(map(float, std)),
            bgr_to_rgb=bool(normalising.get('bgr_to_rgb', False)),
            divisor=int(normalising.get('pad_size_divisor', 1)),
            pad_value=float(normalising.get('pad_value', 0)),
        )

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Preprocessing:
        """Restore from the output of :meth:`to_json`."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return asdict(self)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture after resizing."""
        if not self.keep_ratio:
            return (self.scale[1], self.scale[0]) if self.size is None else self.size
        if self.size is None:
            factor = min(max(self.scale) / max(height, width), min(self.scale) / min(height, width))
        else:
            factor = min(self.size[0] / height, self.size[1] / width)
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def __call__(self, pictures: Sequence[Picture]) -> PreparedBatch:
        """Prepare a batch, padded to its largest picture.

        Args:
            pictures: Each ``(H, W, 3)`` uint8, BGR.
        """
        images, shapes, factors = [], [], []
        for picture in pictures:
            height, width = picture.shape[:2]
            rows, columns = self.resized(height, width)
            image = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_LINEAR)
            images.append(self._normalise(image))
            shapes.append((rows, columns))
            factors.append((columns / width, rows / height))
        size = self.size or [_multiple(max(side), self.divisor) for side in zip(*shapes)]
        batch = np.full((len(images), 3, *size), self.pad_value, np.float32)
        for target, image in zip(batch, images):
            target[:, : image.shape[1], : image.shape[2]] = image
        return PreparedBatch(batch, np.array(shapes, np.float32), np.array(factors, np.float32))

    def plain(self, picture: Picture) -> PreparedBatch:
        """Prepare one picture that already has the network's size."""
        shape = np.array([picture.shape[:2]], np.float32)
        return PreparedBatch(self._normalise(picture)[None], shape, np.ones((1, 2), np.float32))

    def _normalise(self, image: Picture) -> NDArray[np.float32]:
        channels = image[..., ::-1] if self.bgr_to_rgb else image
        values = np.ascontiguousarray(channels.transpose(2, 0, 1)).astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = (
                np.array(each, np.float32)[:, None, None] for each in (self.mean, self.std)
            )
            values = (values - mean) / std
        return values


def _multiple(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor


def _resize_step(pipeline: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The only step of a test pipeline that changes pictures."""
    found = []
    for step in pipeline:
        kind = str(step.get('type')).split('.')[-1]
        defaults = DEFAULTS.get(kind)
        known = defaults is not None and all(
            step.get(name, value) == value for name, value in defaults.items()
        )
        if not known or (kind in READ and set(step) - READ[kind] - set(defaults or ())):
            raise ConfigError(
                f'The test pipeline has {dict(step)}, which export does not support: use only '
                'loading, Resize with a scale, and packing.'
            )
        if kind == 'Resize':
            found.append(step)
    if len(found) != 1 or not isinstance(found[0].get('scale'), (tuple, list)):
        raise ConfigError(
            'The test pipeline for export needs exactly one Resize with scale=(width, height).'
        )
    return found[0]
