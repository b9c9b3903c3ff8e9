"""Payloads of the demo page: uploaded images, and detections as plain values.

Image sizes are checked before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gfl_det.errors import DataError
from gfl_det.ops.intervals import SIDES
from gfl_det.utils.pixels import header_of, pillow_opens
from gfl_det.visualization.charts import edge_entropy, edge_spread
from gfl_det.visualization.edges import Boxes
from gfl_det.visualization.labels import class_colours

FORMATS = ['JPEG', 'PNG', 'WEBP', 'BMP']
MAX_BOXES = 100
DIGITS = 4  # for probabilities; pixel coordinates get 2


class UploadLimits(NamedTuple):
    """Size limits of uploads."""

    max_bytes: int = 10 * 2**20
    max_pixels: int = 20_000_000


def decode_upload(content: bytes, limits: UploadLimits) -> np.ndarray:
    """Decode an image and apply its EXIF orientation.

    Args:
        content: Content of the file.
        limits: Size limits.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        DataError: If the file is too large, has too many pixels according to its header (a small
            file could unpack to gigabytes), is damaged, or has an unknown format.
    """
    if len(content) > limits.max_bytes:
        raise DataError(too_large(limits))
    header = header_of(content, FORMATS)
    if header is None:
        raise DataError(f'This file is not an image: send {", ".join(FORMATS)}.')
    if header.pixels > limits.max_pixels:
        raise DataError(
            f'This image has {header.pixels / 1e6:,.3g} megapixels: send one of at most '
            f'{limits.max_pixels / 1e6:,.3g}.'
        )
    try:
        with pillow_opens(header.pixels):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            return np.array(ImageOps.exif_transpose(image).convert('RGB'))
    except Exception as error:  # a damaged file may raise anything
        raise DataError('This image is damaged or cut off: send it again.') from error


def too_large(limits: UploadLimits) -> str:
    """Message for an upload with too many bytes."""
    return f'This file is too large: send one of at most {limits.max_bytes / 2**20:.3g} MiB.'


def accepted(limits: UploadLimits) -> str:
    """Description of accepted uploads, for the page."""
    return (
        f'{", ".join(FORMATS)}; at most {limits.max_bytes / 2**20:.3g} MiB and '
        f'{limits.max_pixels / 1e6:.3g} megapixels'
    )


def describe(boxes: Boxes, size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
    """Convert detections to plain values.

    Args:
        boxes: Boxes of an image by descending score.
        size: Height and width of the image, px.
        classes: Class names in label order.

    Returns:
        ``height``, ``width`` and ``boxes``, each with ``box`` (xyxy px), ``name``, ``colour``
        (``#rrggbb``), ``score`` and, for GFL heads, ``edges``: ``side``, ``start`` and ``step`` (px
        of the bins along the axis), ``probabilities``, ``std`` (px), ``entropy`` (nats), and
        ``interval`` (px) if results have intervals.
    """
    colours = class_colours(len(classes))
    described: list[dict[str, Any]] = []
    for index, label in enumerate(boxes.labels[:MAX_BOXES]):
        entry: dict[str, Any] = dict(
            box=np.round(boxes.boxes[index], 2).tolist(),
            name=classes[label],
            colour='#{:02x}{:02x}{:02x}'.format(*colours[label]),
        )
        if boxes.scores is not None:
            entry['score'] = round(float(boxes.scores[index]), DIGITS)
        entry['edges'] = _edges(boxes, index)
        described.append(entry)
    return dict(height=size[0], width=size[1], boxes=described)


def _edges(boxes: Boxes, index: int) -> list[dict[str, Any]]:
    if boxes.edges is None:
        return []
    one = boxes.edges.take([index])
    intervals = None if boxes.intervals is None else np.round(boxes.intervals[index], 2).tolist()
    spread, entropy = edge_spread(one)[0], edge_entropy(one)[0]
    return [
        dict(
            side=side,
            start=round(float(positions[0]), 3),
            step=round(float(positions[1] - positions[0]), 3),
            probabilities=np.round(probabilities, DIGITS).tolist(),
            std=round(float(spread[number]), 2),
            entropy=round(float(entropy[number]), 3),
            **({} if intervals is None else dict(interval=intervals[number])),
        )
        for number, (side, positions, probabilities) in enumerate(
            zip(SIDES, one.positions[0], one.probabilities[0])
        )
    ]
