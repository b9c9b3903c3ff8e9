"""Statistics of a data set for a report: images, boxes per class, sizes and shapes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from gfl_det.evaluation.detections import Truths
from gfl_det.visualization.report.curves import COCO_SIDES

SIDES = 2.0 ** np.arange(1, 12.5, 0.5)  # px, borders of the bins of sqrt(width * height)
RATIOS = 2.0 ** np.arange(-3, 3.25, 0.5)  # borders of the bins of width / height
MOST = 30  # boxes per image; images with more share the last bin
LISTED = 10  # sizes of images


def data_statistics(truths: Truths, area: np.ndarray, image_wh: np.ndarray) -> dict[str, Any]:
    """Count what is annotated; crowds are counted apart.

    Args:
        truths: Ground truth with I images, K classes and M boxes.
        area: ``(M,)`` px, as annotated.
        image_wh: ``(I, 2)`` px; NaN where unknown.

    Returns:
        ``classes``: per class the images with it, the crowds, the median side in px and the shares
        of small, medium and large boxes; ``per_image``: images by number of boxes; ``sides`` and
        ``ratios``: borders of bins, and counts of all classes and of each; ``sizes``: width,
        height and number of the most frequent image sizes; ``all_sizes``: how many there are.
    """
    classes = len(truths.class_names)
    kept = ~truths.crowd
    label, image = truths.label[kept], truths.image[kept]
    wide, tall = truths.boxes[kept, 2:].T
    side = np.sqrt(wide * tall)
    pairs = np.unique(image * classes + label) % max(classes, 1)
    images_with = np.bincount(pairs, minlength=classes)
    crowds = np.bincount(truths.label[truths.crowd], minlength=classes)
    of_size = np.zeros((classes, len(COCO_SIDES) + 1), np.int64)
    np.add.at(of_size, (label, np.searchsorted(np.square(COCO_SIDES), area[kept])), 1)
    with np.errstate(invalid='ignore', divide='ignore'):  # classes without boxes, flat boxes
        shares = of_size / of_size.sum(1, keepdims=True)
        ratio = wide / tall
    median = [
        float(np.median(side[label == each])) if images_with[each] else None
        for each in range(classes)
    ]
    number = np.bincount(image, minlength=len(truths.image_ids)).clip(max=MOST)
    sizes = Counter(map(tuple, image_wh[np.isfinite(image_wh).all(1)].astype(int).tolist()))
    return dict(
        classes=list(zip(images_with, crowds, median, *shares.T)),
        per_image=np.bincount(number),
        sides=_histogram(side, SIDES, label, classes),
        ratios=_histogram(ratio, RATIOS, label, classes),
        sizes=[[*size, count] for size, count in sizes.most_common(LISTED)],
        all_sizes=len(sizes),
    )


def _histogram(
    values: np.ndarray, borders: np.ndarray, label: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """Counts ``(1 + K, B)`` of all classes and of each; the outer bins take what lies beyond."""
    bins = len(borders) - 1
    place = (np.searchsorted(borders, values, side='right') - 1).clip(0, bins - 1)
    counts = np.zeros((classes, bins), np.int64)
    np.add.at(counts, (label, place), 1)
    return dict(borders=borders, counts=np.vstack([counts.sum(0), counts]))
