"""Evaluation of exported files against torch: parity, AP by the config's metric, and time."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.engine.preflight.data import check_data
from gfl_det.engine.runner import Split, annotations_path
from gfl_det.errors import ConfigError
from gfl_det.inference.export.graph import Picture, PreparedBatch
from gfl_det.inference.export.onnx_file import ExportSource
from gfl_det.inference.export.runtime import ExportedDetector
from gfl_det.inference.optimize import optimize_for_inference
from gfl_det.utils.choices import BOX_LIMIT, EDGE_LIMIT, ENTROPY_LIMIT, SCORE_LIMIT
from gfl_det.utils.config import Node, datasets_of, metrics_of
from gfl_det.utils.console import Progress
from gfl_det.utils.timing import Runs

EDGES_PX = ('edge_std', 'edge_low', 'edge_high')
EAGER, OPTIMISED = 'torch, eager', 'torch, optimize_for_inference'


class Difference(NamedTuple):
    """Largest differences between two lists of detections."""

    score: float  # of the detections, and of all classes where both have these
    box: float  # px
    edge: float  # px, of edge_std, edge_low and edge_high
    entropy: float  # nats, of edge_entropy
    unmatched: int  # detections without a counterpart in the other list
    detections: int

    @property
    def is_small(self) -> bool:
        """Whether scores, boxes, edges and counts agree; NaN never agrees."""
        limits = (SCORE_LIMIT, BOX_LIMIT, EDGE_LIMIT, ENTROPY_LIMIT)
        return all(map(operator.le, self, limits)) and not self.unmatched


def torch_detector(
    source: ExportSource, size: tuple[int, int] | None
) -> Callable[[Picture], InstanceData]:
    """Build a function that detects with torch, using the test pipeline and mmdet's functions.

    Args:
        source: The exported detector.
        size: Input size of the graph if fixed: pictures are then prepared for it.
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
    """Detections of a torch detector from prepared inputs."""
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
    """Largest differences over several pictures."""
    found = [difference(reference(each), detector.detect([each])[0]) for each in pictures]
    if not found:
        return Difference(0.0, 0.0, 0.0, 0.0, 0, 0)
    score, box, edge, entropy = np.max([each[:4] for each in found], axis=0).tolist()  # NaN stays
    unmatched = sum(each.unmatched for each in found)
    return Difference(score, box, edge, entropy, unmatched, sum(each.detections for each in found))


def difference(expected: InstanceData, found: InstanceData) -> Difference:
    """Match each detection with the nearest of the same class in the other list.

    Distance counts score and box, each in units of its limit: equal scores may come in any order.

    Args:
        expected: Detections with ``bboxes``, ``scores``, ``labels`` and edge fields.
        found: Detections with the same fields.
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
    # A counterpart may exceed the limits, but by less than a factor of ten.
    matched = (distance[rows, nearest] <= 10) & (distance.argmin(0)[nearest] == rows)
    pairs = rows[matched], nearest[matched]
    unmatched = sum(many) - 2 * int(matched.sum())
    return Difference(
        float(np.max([_largest(scores[pairs]), _field(expected, found, 'class_scores', pairs)])),
        _largest(boxes[pairs]),
        float(np.max([_field(expected, found, name, pairs) for name in EDGES_PX])),
        _field(expected, found, 'edge_entropy', pairs),
        unmatched,
        many[0],
    )


def noise_pictures(shapes: Iterable[tuple[int, int]]) -> list[Picture]:
    """Blurred noise pictures of the given heights and widths, identical at each call."""
    generator = np.random.default_rng(0)
    pictures = []
    for height, width in shapes:
        coarse = generator.normal(128, 60, (height // 8 + 1, width // 8 + 1, 3))
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        pictures.append(smooth.clip(0, 255).astype(np.uint8))
    return pictures


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _field(
    expected: InstanceData, found: InstanceData, name: str, pairs: tuple[Tensor, Tensor]
) -> float:
    if name not in expected or name not in found:
        return 0.0
    return _largest((expected[name][pairs[0]] - found[name][pairs[1]]).abs())


def picture_paths(cfg: Config, split: str) -> list[tuple[int, str]]:
    """Ids and paths of the pictures of split ``train``, ``val`` or ``test``, without duplicates.

    Wrapped datasets (repeated or concatenated) are read one after another; a picture in several of
    them is listed once, at its first position.

    Raises:
        ConfigError: If the config has no such split.
        DataError: If the annotations cannot be read.
    """
    nodes = datasets_of(cfg, split)
    if not nodes:
        raise ConfigError(f'The config has no {split}_dataloader to take pictures from: add one.')
    pictures = []
    for node in nodes:
        dataset = DATASETS.build({**copy.deepcopy(node), 'pipeline': []})
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        pictures += [(info['img_id'], info['img_path']) for info in infos]
    return list(dict.fromkeys(pictures))


def coco_metrics(cfg: Config, split: Split) -> list[Node]:
    """Metrics of a split that need detections only, with their annotation file.

    Raises:
        ConfigError: If the split has no such metric.
    """
    found = [each for each in metrics_of(cfg, split) if str(each['type']).endswith('CocoMetric')]
    if not found:
        raise ConfigError(
            f'The config has no CocoMetric in {split}_evaluator to compute AP: add one, or '
            'leave out --ap.'
        )
    return [
        dict(each, ann_file=each.get('ann_file') or annotations_path(cfg, split)) for each in found
    ]


def check_judged(cfg: Config, split: Split) -> None:
    """Check that :func:`average_precision` can be computed on a split.

    Raises:
        GFLDetError: If the split lacks pictures, files or a COCO metric.
    """
    check_data(cfg, (split,))
    if not picture_paths(cfg, split):
        raise ConfigError(f'The {split} split has no pictures: give --ap another split.')
    coco_metrics(cfg, split)


def average_precision(
    detect: Callable[[str], InstanceData], classes: Sequence[str], cfg: Config, split: Split
) -> dict[str, float]:
    """Compute the COCO metrics of a split, such as ``coco/bbox_mAP``.

    Args:
        detect: Function from picture path to ``bboxes``, ``scores`` and ``labels``.
        classes: Class names in label order.
        cfg: Config with its data in place.
        split: ``val`` or ``test``.

    Raises:
        GFLDetError: See :func:`picture_paths` and :func:`coco_metrics`.
    """
    pictures = picture_paths(cfg, split)
    with _quiet():
        metrics = [METRICS.build(copy.deepcopy(each)) for each in coco_metrics(cfg, split)]
    for metric in metrics:
        metric.dataset_meta = dict(classes=tuple(classes))
    with Progress(len(pictures), 'images') as bar:
        for img_id, path in pictures:
            found = detect(path)
            instances = {name: found[name] for name in ('bboxes', 'scores', 'labels')}
            sample = dict(img_id=img_id, ori_shape=(0, 0), pred_instances=instances)
            for metric in metrics:
                metric.process({}, [sample])
            bar.advance()
    with _quiet():
        found_by = [metric.evaluate(len(pictures)) for metric in metrics]
    return {name: value for values in found_by for name, value in values.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress pycocotools' table and mmengine's log, which repeat the numbers."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)


def counterpart(cfg: Config, model: BaseDetector) -> tuple[str, BaseDetector]:
    """Name and model of the torch detector that serves as baseline for timing.

    mmdet's with the same weights; for a head that mmdet lacks, ours in eager mode.
    """
    theirs = copy.deepcopy(cfg.model)
    head = theirs.bbox_head
    for part in (head, head.loss_cls, head.loss_dfl, theirs.train_cfg.assigner):
        part.type = part.type.removeprefix('gfl_det.')
    if head.type != 'GFLHead':
        return f'gfl_det, {EAGER}', model
    theirs.backbone.init_cfg = None
    head._scope_ = 'mmdet'
    built = MODELS.build(theirs).eval()
    built.load_state_dict(model.state_dict(), strict=True)
    return f'mmdet, {EAGER}', built


def time_in_turns(
    source: ExportSource,
    cfg: Config,
    detectors: Mapping[str, ExportedDetector],
    size: tuple[int, int],
) -> dict[str, float]:
    """Median milliseconds from a preprocessed picture to detections.

    Args:
        source: The exported detector.
        cfg: Its config.
        detectors: Exported files by row name.
        size: Height and width of the network input, px, multiples of its divisor.

    Returns:
        Times by name; the first is the baseline.
    """
    picture = noise_pictures([size])[0]
    (description, *_) = (each.description for each in detectors.values())
    prepared = description.preprocessing.plain(picture)
    name, eager = counterpart(cfg, source.model)
    functions: dict[str, Any] = {
        name: lambda: predict(eager, prepared),
        f'gfl_det, {OPTIMISED}': _prediction(optimize_for_inference(source.model), prepared),
    }
    for key, detector in detectors.items():
        functions[key] = _exported(detector, prepared)
    medians = Runs(repeats=15, seconds=90).in_turns(*functions.values())
    return dict(zip(functions, medians))


def _prediction(model: BaseDetector, prepared: PreparedBatch) -> Any:
    return lambda: predict(model, prepared)


def _exported(detector: ExportedDetector, prepared: PreparedBatch) -> Any:
    return lambda: detector.finish(detector.run(prepared))
