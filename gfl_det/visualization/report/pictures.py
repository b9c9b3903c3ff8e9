"""An image's truths and detections as two small JPEGs."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from gfl_det.visualization import Boxes, draw_boxes
from gfl_det.visualization.picture import MAX_ENLARGEMENT

SIDE_PX = 640  # longer side of a picture
QUALITY = 80


def draw(image: np.ndarray, boxes: Boxes, classes: Sequence[str]) -> bytes:
    """Draw boxes, those with distributions with soft edges.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: px of the image.
        classes: names by label.

    Returns:
        A JPEG whose longer side has `SIDE_PX`, or less of a tiny image.
    """
    height, width = image.shape[:2]
    factor = SIDE_PX / max(height, width)
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        boxes, factor = boxes.scaled(factor), 1.0
    picture = draw_boxes(image, boxes, classes, scale=min(factor, MAX_ENLARGEMENT))
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=QUALITY, optimize=True)
    return file.getvalue()
