"""Detection graph for export: one module from pictures to boxes.

It includes the preprocessing of the config's test pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from numpy.typing import NDArray
from torch import Tensor, nn

from gfl_det.calibration.maps import ScoreMaps
from gfl_det.errors import ConfigError
from gfl_det.inference.export.candidates import (
    ABSENT,
    ExportFrames,
    Pool,
    all_cells,
    apart,
    best_pairs,
    decode,
    kept_by_nms,
    take,
)
from gfl_det.inference.results import EDGE_FIELDS
from gfl_det.ops import distribution
from gfl_det.ops.intervals import EdgeQuantiles, FactorTable, edge_intervals, edge_quantiles

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


INPUTS = ('images', 'img_shape', 'scale_factor')


class Intervals(NamedTuple):
    """Level and stretch of the intervals from ``edge_low`` to ``edge_high``."""

    level: float  # share of an edge's distribution inside, in (0, 1)
    # Stretch about the median: one, one per side, or by class and size of the box.
    factor: float | tuple[float, ...] | FactorTable


@dataclass(frozen=True)
class Outputs:
    """Outputs of a graph.

    Args:
        nms: Run NMS inside the graph and return the ``max_per_img`` best detections; otherwise
            boxes and scores of all cells.
        uncertainty: Add ``edge_std``, ``edge_low`` and ``edge_high`` (px) and ``edge_entropy``
            (nats) of each edge, ltrb: see :mod:`..inference.results`.
        distribution: Add ``edge_logits``, ``bin_widths`` and ``prior_centres``.
        class_scores: Give every class's score of each detection. With ``nms`` these are the outputs
            ``class_scores`` and, if calibrated, ``raw_class_scores``; otherwise ``scores``.
    """

    nms: bool = False
    uncertainty: bool = False
    distribution: bool = False
    class_scores: bool = False

    def names(self, calibrated: bool) -> list[str]:
        """Tensor names in order."""
        if self.nms:
            names = ['boxes', 'scores', 'labels', 'counts', *['raw_scores'] * calibrated]
            if self.class_scores:
                names += ['class_scores', *['raw_class_scores'] * calibrated]
        else:
            names = ['boxes', 'scores', 'levels', *['calibrated_scores'] * calibrated]
        names += [*EDGE_FIELDS] * self.uncertainty
        return names + ['edge_logits', 'bin_widths', 'prior_centres'] * self.distribution


class DetectionGraph(nn.Module):
    """Backbone, neck, head and decoding of a detector with a GFL head, as one module.

    Args:
        detector: One-stage detector in eval mode.
        outputs: Requested outputs.
        intervals: Intervals returned with ``outputs.uncertainty``.
        calibration: Calibration of the scores, or None.

    Raises:
        ConfigError: If NMS inside the graph is requested and not greedy.
    """

    def __init__(
        self,
        detector: BaseModel,
        outputs: Outputs,
        intervals: Intervals,
        calibration: ScoreMaps | None = None,
    ) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.neck = detector.neck if detector.with_neck else nn.Identity()
        self.bbox_head = detector.bbox_head
        self.calibration = calibration
        self.outputs, self.intervals = outputs, intervals
        if outputs.uncertainty and not outputs.nms:
            check_classless(intervals)
        self.settings = detector.bbox_head.test_cfg
        if outputs.nms:
            check_suppression(self.settings)

    def forward(self, images: Tensor, img_shape: Tensor, scale_factor: Tensor) -> list[Tensor]:
        """Compute the tensors listed in ``outputs.names``.

        With ``nms``, K detections per image by descending score: ``boxes (B, K, 4)`` xyxy px,
        ``scores (B, K)``, ``labels (B, K)`` int64, ``counts (B,)`` int64, and on request
        ``class_scores (B, K, C)``; beyond an image's count
        boxes and scores are 0, labels -1 and other values undefined. Otherwise P cells:
        ``boxes (B, P, 4)``, ``scores (B, P, C)``, ``levels (P,)`` int64. A calibrator adds
        ``raw_scores (B, K)``, or ``calibrated_scores (B, P, C)`` beside the raw ones, which NMS
        uses.
        """
        cls, edges = self.bbox_head(self.neck(self.backbone(images)))
        frames = ExportFrames.of(img_shape, scale_factor, self.bbox_head.bbox_coder.clip_border)
        if self.outputs.nms:
            return self._detections(cls, edges, frames)
        return self._cells(cls, edges, frames)

    def _cells(self, cls: list[Tensor], edges: list[Tensor], frames: ExportFrames) -> list[Tensor]:
        scores, pool = all_cells(cls, edges, self.bbox_head.priors)
        levels = [torch.zeros_like(level[0, 0], dtype=torch.long) for level in cls]
        levels = [(blank + index).flatten() for index, blank in enumerate(levels)]
        found = [decode(pool, frames), scores, torch.cat(levels)]
        if self.calibration is not None:
            found.append(self._of_classes(scores)[0])
        return found + self._extras(pool, frames)

    def _detections(
        self, cls: list[Tensor], edges: list[Tensor], frames: ExportFrames
    ) -> list[Tensor]:
        settings = self.settings
        threshold = float(settings.score_thr)
        every = self.outputs.class_scores
        pool = best_pairs(cls, edges, self.bbox_head.priors, threshold, settings.nms_pre, every)
        boxes = decode(pool, frames)
        smallest = settings.get('min_bbox_size', -1)
        if smallest >= 0:
            large = (boxes[..., 2:] - boxes[..., :2] > smallest).all(2)
            pool = pool._replace(scores=pool.scores.where(large, torch.tensor(ABSENT)))
        moved = boxes
        if not settings.nms.get('class_agnostic', False):
            moved = apart(boxes, pool.scores, pool.labels)
        limit = min(settings.max_per_img, pool.scores.shape[1])
        iou_threshold = float(settings.nms.iou_threshold)
        kept = kept_by_nms(moved, pool.scores, iou_threshold, max(threshold, ABSENT), limit)
        scores = torch.where(kept, pool.scores, torch.full_like(pool.scores, ABSENT))
        scores, index = scores.topk(limit, dim=1)
        raw: list[Tensor] = []
        if self.calibration is not None:
            calibrated = self.calibration(scores, pool.labels.gather(1, index))
            present = scores > ABSENT
            raw = [scores * present]
            scores, order = torch.where(present, calibrated, scores).topk(limit, dim=1)
            index, raw = index.gather(1, order), [raw[0].gather(1, order)]
        pool, boxes, present = pool.take(index), take(boxes, index), scores > ABSENT
        found = [
            boxes * present.unsqueeze(-1),
            scores * present,
            torch.where(present, pool.labels, -1),
            present.sum(1),
            *raw,
        ]
        if pool.class_scores is not None:
            found += self._of_classes(pool.class_scores)
        return found + self._extras(pool, frames)

    def _of_classes(self, scores: Tensor) -> list[Tensor]:
        """All classes' scores ``(B, K, C)``; with a calibrator also the raw ones."""
        if self.calibration is None:
            return [scores]
        labels = torch.arange(scores.shape[2], device=scores.device).expand_as(scores)
        return [self.calibration(scores, labels), scores]

    def _extras(self, pool: Pool, frames: ExportFrames) -> list[Tensor]:
        extras: list[Tensor] = []
        widths = pool.strides * frames.scale
        centres = pool.centres * frames.scale[..., :2]
        if self.outputs.uncertainty:
            logits, sizes, points = (each.flatten(0, 1) for each in (pool.logits, widths, centres))
            quantiles = edge_quantiles(logits, sizes, points, self.intervals.level)
            whole = EdgeQuantiles(*(each.reshape(widths.shape) for each in quantiles))
            limit = None if frames.limit is None else frames.limit * frames.scale
            extras += [
                distribution.std(pool.logits) * widths,
                *edge_intervals(whole, self._stretch(pool, frames), limit),
                distribution.entropy(pool.logits),
            ]
        if self.outputs.distribution:
            extras += [pool.logits, widths, centres]
        return extras

    def _stretch(self, pool: Pool, frames: ExportFrames) -> float | tuple[float, ...] | Tensor:
        factor = self.intervals.factor
        if not isinstance(factor, FactorTable):
            return factor
        return factor.of(pool.labels, decode(pool, frames))


def check_classless(intervals: Intervals) -> None:
    """Refuse class-dependent intervals in a graph without NMS, whose boxes have no class.

    Raises:
        ConfigError: If the intervals depend on the class.
    """
    table = intervals.factor
    if isinstance(table, FactorTable) and (table.factors != table.factors[:1]).any():
        raise ConfigError(
            'Intervals for whole boxes depend on the class, which boxes of a graph without NMS '
            'lack: give --nms, or remove test_cfg.interval_joint.'
        )


def check_suppression(settings: ConfigDict) -> None:
    """Refuse settings that ONNX's NonMaxSuppression does not support.

    Raises:
        ConfigError: If NMS is not greedy, or a number of boxes is unlimited.
    """
    kind = settings.get('nms') and settings.nms.get('type', 'nms')
    if kind != 'nms':
        raise ConfigError(
            f'ONNX supports greedy NMS only, but test_cfg.nms asks for {kind!r}: leave out --nms, '
            'and the runtime will apply it.'
        )
    for name in ('nms_pre', 'max_per_img'):
        if settings.get(name, -1) <= 0:
            raise ConfigError(
                f'A graph with NMS has a constant number of boxes: set test_cfg.{name} to a '
                'positive number, or leave out --nms.'
            )
