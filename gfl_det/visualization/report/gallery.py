"""Pictures of a report: selected, drawn, and limited in total size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from gfl_det.datasets.images import read_image
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import Truths
from gfl_det.ops.boxes import xywh_to_xyxy
from gfl_det.utils.console import Progress
from gfl_det.visualization import Boxes, draw_boxes
from gfl_det.visualization.picture import MAX_ENLARGEMENT
from gfl_det.visualization.report.analysis import Analysis
from gfl_det.visualization.report.data import ReportData
from gfl_det.visualization.report.errors import MISSED, NO_ERROR, Errors, choose_images

SIDE_PX = 640  # longer side of a picture
QUALITY = 80


def draw(image: np.ndarray, boxes: Boxes, classes: Sequence[str]) -> bytes:
    """Draw boxes, with soft edges where boxes have distributions.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: Boxes in px of the image.
        classes: Class names in label order.

    Returns:
        A JPEG with a longer side of at most `SIDE_PX`.
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


MAX_BYTES = 10_000_000  # all pictures together, as base64
MAX_DRAWN = 60  # detections per image, best first


def draw_gallery(
    data: ReportData, analysis: Analysis, limit: int, show_progress: bool = False
) -> list[dict[str, Any]]:
    """Draw the selected images, ground truth and detections separately.

    Unreadable images are reported on standard error and skipped.

    Args:
        data: Data with the folder of the images; without it there are no pictures.
        analysis: Analysis of the same data.
        limit: Maximum number of images; fewer if `MAX_BYTES` is reached.
        show_progress: Show progress on standard error.

    Returns:
        Entries of the page, worst image first.
    """
    if data.folder is None:
        return []
    chosen = choose_images(analysis.judged, limit)
    entries: list[dict[str, Any]] = []
    size = 0
    with Progress(len(chosen), 'pictures', show_progress) as progress:
        for image in chosen:
            try:
                entry = _entry(data, analysis, image)
            except DataError as error:
                progress.say(f'warning: {error}')
                progress.advance()
                continue
            size += len(entry['truth']) + len(entry['found'])
            if size > MAX_BYTES:
                progress.say(
                    f'pictures: {len(entries)} of {len(chosen)}, limited by their total size'
                )
                break
            entries.append(entry)
            progress.advance()
    return sorted(entries, key=lambda each: (analysis.judged.quality[each['image']], each['image']))


def _entry(data: ReportData, analysis: Analysis, image: int) -> dict[str, Any]:
    assert data.folder is not None  # checked by the caller
    pixels = np.ascontiguousarray(read_image(data.folder / data.names[image])[..., ::-1])
    names = data.truths.class_names
    rows = analysis.kept[data.detections.image[analysis.kept] == image]
    rows = rows[np.argsort(-data.detections.scores[rows], kind='stable')][:MAX_DRAWN]
    found = data.detections.take(rows)
    boxes = Boxes(xywh_to_xyxy(found.boxes), found.label, found.scores, data.bins(rows))
    mine = data.truths.image == image
    given = Boxes(xywh_to_xyxy(data.truths.boxes[mine]), data.truths.label[mine])
    pictures = (draw(pixels, each, names) for each in (given, boxes))
    gt, drawn = (base64.b64encode(picture).decode() for picture in pictures)
    return dict(
        image=image,
        size=[pixels.shape[1], pixels.shape[0]],
        truth=gt,
        found=drawn,
        errors=_boxes_of_errors(data, analysis, image),
    )


def _boxes_of_errors(data: ReportData, analysis: Analysis, image: int) -> list[list[Any]]:
    """Kind, class, box (xywh px) and score of each error of an image; missed gt boxes: no score."""
    errors: Errors = analysis.errors
    rows = analysis.kept[errors.found.row]
    wrong = np.flatnonzero((errors.kind != NO_ERROR) & (data.detections.image[rows] == image))
    entries = [
        [int(errors.kind[i]), int(errors.found.label[i]), data.detections.boxes[rows[i]], score]
        for i, score in zip(wrong, errors.found.scores[wrong].tolist())
    ]
    gts: Truths = data.truths
    missed = np.flatnonzero(errors.missed & (gts.image == image))
    return entries + [[MISSED, int(gts.label[i]), gts.boxes[i], None] for i in missed]
