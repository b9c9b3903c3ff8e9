"""Detections as the page wants them: plain numbers for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gfl_det.ops.intervals import SIDES
from gfl_det.visualization.charts import edge_entropy, edge_spread
from gfl_det.visualization.edges import Boxes
from gfl_det.visualization.labels import class_colours

MAX_BOXES = 100
DIGITS = 4  # of probabilities; a pixel needs 2


def describe(boxes: Boxes, size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
    """Describe detections.

    Args:
        boxes: of an image, by descending score.
        size: height and width of the image, px.
        classes: names, by label.

    Returns:
        ``height``, ``width`` and ``boxes``, each with ``box`` (xyxy px), ``name``, ``colour``
        (``#rrggbb``), ``score`` and, of a GFL head, ``edges``: ``side``, ``start`` and ``step`` (px
        of the bins along the axis), ``probabilities``, ``std`` (px), ``entropy`` (nats), and
        ``interval`` (px) where results have intervals.
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
