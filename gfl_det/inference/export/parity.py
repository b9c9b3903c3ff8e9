"""Parity of an exported file with torch on the same pictures."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.dataset import Compose
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.inference.export.preprocessing import Picture, PreparedBatch
from gfl_det.inference.export.runtime import ExportedDetector
from gfl_det.inference.export.source import ExportSource
from gfl_det.utils.choices import BOX_LIMIT, EDGE_LIMIT, ENTROPY_LIMIT, SCORE_LIMIT

EDGES_PX = ('edge_std', 'edge_low', 'edge_high')


class Difference(NamedTuple):
    """The largest differences between two lists of detections."""

    score: float
    box: float  # px
    edge: float  # px, of edge_std, edge_low and edge_high
    entropy: float  # nats, of edge_entropy
    unmatched: int  # detections of one without a counterpart in the other
    detections: int

    @property
    def is_small(self) -> bool:
        """Whether scores, boxes, edges and numbers agree; what is NaN does not."""
        limits = (SCORE_LIMIT, BOX_LIMIT, EDGE_LIMIT, ENTROPY_LIMIT)
        return all(map(operator.le, self, limits)) and not self.unmatched


def torch_detector(
    source: ExportSource, size: tuple[int, int] | None
) -> Callable[[Picture], InstanceData]:
    """Detect in a picture with torch, by the config's test pipeline as mmdet's own functions do.

    Args:
        source: what is exported.
        size: of the graph, if it is fixed: pictures are prepared for it then.
    """
    fixed = replace(source.preprocessing, size=size)
    steps = Compose([dict(each) for each in source.pipeline if 'Load' not in each['type']])

    @torch.inference_mode()
    def detect(picture: Picture) -> InstanceData:
        if size:
            return predict(source.model, fixed([picture]))[0]
        shape = picture.shape[:2]
        data = steps(
            dict(img=picture, img_path='', img_id=0, img_shape=shape, ori_shape=shape)
            | dict(height=shape[0], width=shape[1])
        )
        batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        return source.model.test_step(batch)[0].pred_instances

    return detect


@torch.inference_mode()
def predict(model: BaseDetector, prepared: PreparedBatch) -> list[InstanceData]:
    """Detections of a detector in torch from inputs that are prepared."""
    samples = []
    for shape, factor in zip(prepared.img_shape, prepared.scale_factor):
        size = tuple(map(int, shape))
        meta = dict(img_shape=size, ori_shape=size, scale_factor=tuple(map(float, factor)))
        samples.append(DetDataSample(metainfo=dict(meta, pad_shape=size, batch_input_shape=size)))
    found = model.predict(torch.from_numpy(prepared.images), samples)
    return [each.pred_instances for each in found]


def compare(
    reference: Callable[[Picture], InstanceData],
    detector: ExportedDetector,
    pictures: Iterable[Picture],
) -> Difference:
    """The largest differences over pictures."""
    found = [difference(reference(each), detector.detect([each])[0]) for each in pictures]
    if not found:
        return Difference(0.0, 0.0, 0.0, 0.0, 0, 0)
    score, box, edge, entropy = np.max([each[:4] for each in found], axis=0).tolist()  # NaN stays
    unmatched = sum(each.unmatched for each in found)
    return Difference(score, box, edge, entropy, unmatched, sum(each.detections for each in found))


def difference(expected: InstanceData, found: InstanceData) -> Difference:
    """Match each detection with the nearest of the other list and of the same class.

    Near means in score and box, each in units of its limit: equal scores may come in any order.

    Args:
        expected: ``bboxes``, ``scores``, ``labels`` and edge fields.
        found: likewise.
    """
    many = len(expected), len(found)
    if not min(many):
        return Difference(0.0, 0.0, 0.0, 0.0, sum(many), many[0])
    scores = (expected.scores[:, None] - found.scores).abs()
    boxes = (expected.bboxes[:, None] - found.bboxes).abs().amax(2)
    other = expected.labels[:, None] != found.labels
    distance = torch.maximum(scores / SCORE_LIMIT, boxes / BOX_LIMIT)
    distance = distance.masked_fill(other, float('inf'))
    nearest = distance.argmin(1)
    rows = torch.arange(many[0])
    # A counterpart may be off by more than the limits, but not by ten times as much.
    matched = (distance[rows, nearest] <= 10) & (distance.argmin(0)[nearest] == rows)
    pairs = rows[matched], nearest[matched]
    unmatched = sum(many) - 2 * int(matched.sum())
    return Difference(
        _largest(scores[pairs]),
        _largest(boxes[pairs]),
        float(np.max([_edges(expected, found, name, pairs) for name in EDGES_PX])),
        _edges(expected, found, 'edge_entropy', pairs),
        unmatched,
        many[0],
    )


def noise_pictures(shapes: Iterable[tuple[int, int]]) -> list[Picture]:
    """Pictures of blurred noise of these heights and widths, the same at each call."""
    generator = np.random.default_rng(0)
    pictures = []
    for height, width in shapes:
        coarse = generator.normal(128, 60, (height // 8 + 1, width // 8 + 1, 3))
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        pictures.append(smooth.clip(0, 255).astype(np.uint8))
    return pictures


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _edges(
    expected: InstanceData, found: InstanceData, name: str, pairs: tuple[Tensor, Tensor]
) -> float:
    if name not in expected or name not in found:
        return 0.0
    return _largest((expected[name][pairs[0]] - found[name][pairs[1]]).abs())
