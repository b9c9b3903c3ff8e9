"""Interval coverage: edges matched to gt boxes, to fit and assess interval calibrators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from gfl_det.calibration import splits
from gfl_det.calibration.intervals import MatchedEdges
from gfl_det.calibration.joint import JointFactors, expected_range
from gfl_det.calibration.splits import split_images, take_images
from gfl_det.datasets.tidying import find_file
from gfl_det.errors import DataError
from gfl_det.evaluation.bootstrap import image_weights
from gfl_det.evaluation.detections import Detections, GroundTruth, gts_of_table, read_annotations
from gfl_det.evaluation.label_evidence import UncertainDetections
from gfl_det.evaluation.matching import TRUE, match
from gfl_det.ops.boxes import xywh_to_xyxy, xyxy_to_xywh
from gfl_det.ops.intervals import FactorTable

# Settings of a head that keep what NMS would suppress; lower scores than this say little.
UNSUPPRESSED = dict(nms=dict(type='nms', iou_threshold=0.999), max_per_img=500, score_thr=0.1)

if TYPE_CHECKING:  # avoids a cycle at run time
    from gfl_det.inference import GFLInferencer, Results


class Split(NamedTuple):
    """Images with gt boxes."""

    gts: GroundTruth
    files: list[Path]  # image files in the order of gts.image_ids


class Matched(NamedTuple):
    """Detections in a split and their matched edges."""

    edges: MatchedEdges
    detections: Detections  # matched or not


def read_split(
    annotations: str, images: str, half: Literal['first', 'second'] | None = None, seed: int = 0
) -> Split:
    """Read COCO annotations of all images or of a random half.

    Args:
        annotations: Path of the COCO file.
        images: Folder of the image files.
        half: Which half of the images, see :func:`.splits.split_images`; None: all.
        seed: Seed of the split into halves.

    Raises:
        DataError: If the file is not a COCO file, or a half would be empty.
    """
    table = read_annotations(annotations)
    gts = gts_of_table(table)
    names = {
        image_id: find_file(images, name) or name
        for image_id, name in zip(table.image_ids, table.file_names)
    }
    if half is not None:
        chosen = split_images(gts, seed)[half == 'second']
        none = np.zeros(0, np.int64)
        nothing = Detections(none, none, np.zeros((0, 4)), np.zeros(0))
        gts = take_images(splits.Judged(gts, nothing), chosen).gts
    return Split(gts, [Path(images) / names[image_id] for image_id in gts.image_ids])


def judge(
    detector: GFLInferencer, split: Split, iou_threshold: float, batch_size: int = 1
) -> Matched:
    """Detect in a split and match detections with gt boxes as COCO evaluation does.

    Args:
        detector: Detector that keeps distributions.
        split: Images with gt boxes.
        iou_threshold: Minimum IoU of a match.
        batch_size: Images per forward pass.

    Raises:
        DataError: If an image cannot be read, a class is unknown, the head predicts no
            distributions, or nothing matches.
    """
    gts = split.gts.of_classes(detector.classes)
    results = _detect(detector, split, batch_size)
    if not all('edge_logits' in each.instances for each in results):
        raise DataError(
            'The head of this detector predicts no edge distributions: intervals need a '
            'gfl_det.GFLHead or GFLv2Head.'
        )
    detections = _collect(results)
    (found,) = match(detections, gts, [iou_threshold])
    right = found.state == TRUE
    if not right.any():
        raise DataError(
            f'No detection matches a gt box at IoU {iou_threshold:g}: give the annotations '
            'of these images, and a checkpoint that was trained.'
        )
    rows, partners = found.row[right], found.gt[right]
    order = np.argsort(rows)  # a detection matches at most once
    return Matched(_edges(results, rows[order], gts.boxes[partners[order]]), detections)


def detect(detector: GFLInferencer, split: Split, batch_size: int = 1) -> Detections:
    """Detect in a split; labels follow the classes of its ground truth.

    Args:
        detector: Detector of some of the split's classes.
        split: Images with gt boxes.
        batch_size: Images per forward pass.

    Raises:
        DataError: If an image cannot be read, or the ground truth lacks a class of the detector.
    """
    names = split.gts.class_names
    split.gts.of_classes(detector.classes)  # refuses unknown classes
    found = _collect(_detect(detector, split, batch_size))
    places = {name: place for place, name in enumerate(names)}
    known = np.array([places.get(name, -1) for name in detector.classes], np.int64)
    label = known[found.label]
    return found._replace(label=label).take(label >= 0)


def detect_unsuppressed(
    detector: GFLInferencer, split: Split, batch_size: int = 1, show_progress: bool = True
) -> UncertainDetections:
    """Detect in a split without NMS: duplicates that agree are evidence for their edges.

    Args:
        detector: Detector with a GFL head, of some of the split's classes.
        split: Images with gt boxes.
        batch_size: Images per forward pass.
        show_progress: Show progress on standard error.

    Raises:
        DataError: If an image cannot be read, the ground truth lacks a class of the detector, or
            the head gives no uncertainty.
    """
    names = split.gts.class_names
    split.gts.of_classes(detector.classes)  # refuses unknown classes
    head = getattr(detector.model, 'bbox_head', detector.model)
    settings = head.test_cfg
    before = {key: settings[key] for key in UNSUPPRESSED if key in settings}
    settings.update(UNSUPPRESSED)
    try:
        results = detector(
            [str(path) for path in split.files], batch_size=batch_size, progress=show_progress
        )
    finally:
        settings.update(before)
    if results.failures:
        raise DataError(str(results.failures[0].error))
    if not all('edge_std' in each.instances for each in results if len(each)):
        raise DataError(
            'The head of this detector gives no uncertainty of edges: take a GFL head of gfl_det.'
        )
    found = _collect(results)
    known = np.array([names.index(name) if name in names else -1 for name in detector.classes])
    label = known[found.label]
    std = [each.instances.edge_std.numpy().astype(float) for each in results if len(each)]
    stds = np.concatenate([*std, np.zeros((0, 4))])
    return UncertainDetections(found.image, label, found.boxes, found.scores, stds).take(label >= 0)


def check_files(split: Split, annotations: str, images: str) -> None:
    """Refuse a split with missing image files.

    Args:
        split: Split from :func:`read_split`.
        annotations: Annotation file, for the message.
        images: Folder of the images.

    Raises:
        DataError: If image files are missing.
    """
    missing = [each.name for each in split.files if not each.is_file()]
    if missing:
        raise DataError(
            f'{len(missing)} of {len(split.files)} images of {annotations} are not in {images}, '
            f'such as {missing[0]}: give their folder with --images.'
        )


def _detect(detector: GFLInferencer, split: Split, batch_size: int) -> Results:
    results = detector([str(path) for path in split.files], batch_size=batch_size)
    if results.failures:
        raise DataError(str(results.failures[0].error))
    return results


def _collect(results: Results) -> Detections:
    counts = [len(each) for each in results]
    boxes = _joined(results, 'bboxes').astype(float).reshape(-1, 4)
    return Detections(
        np.repeat(np.arange(len(counts)), counts),
        _joined(results, 'labels').astype(np.int64),
        xyxy_to_xywh(boxes),
        _joined(results, 'scores').astype(float),
    )


def _joined(results: Results, name: str) -> np.ndarray:
    return torch.cat([each.instances[name] for each in results]).numpy()


def _edges(results: Results, rows: np.ndarray, gts: np.ndarray) -> MatchedEdges:
    chosen = torch.from_numpy(rows)

    def take(name: str) -> Any:
        return torch.cat([each.instances[name] for each in results])[chosen]

    limits = [
        torch.tensor([[width, height] * 2], dtype=torch.float32).expand(len(each), 4)
        for each in results
        for height, width in [each.size]
    ]
    return MatchedEdges(
        take('edge_logits'),
        take('bin_widths'),
        take('prior_centres'),
        torch.cat(limits)[chosen],
        torch.from_numpy(xywh_to_xyxy(gts)).float(),
        take('labels'),
        torch.arange(len(results)).repeat_interleave(torch.tensor([len(each) for each in results]))[
            chosen
        ],
    )


class Coverage(NamedTuple):
    """Shares of gt edges inside their intervals, and mean widths, for L levels."""

    levels: tuple[float, ...]
    share: np.ndarray  # (L,) in [0, 1]
    share_of_sides: np.ndarray  # (L, 4)
    share_of_boxes: np.ndarray  # (L,) boxes with all four edges inside
    width: np.ndarray  # (L,) px


class BoxCoverage(NamedTuple):
    """Boxes of a group with all four gt edges inside."""

    group: str
    fitted: int  # number of boxes
    judged: int
    share: float  # inside
    low: float  # .95 interval of the share over images
    high: float
    expected: tuple[float, float]  # range of the share in .95 of splits
    width: float  # px, per edge


def box_coverage(
    edges: MatchedEdges,
    joint: JointFactors,
    level: float,
    fitted: int,
    resamples: int = 1000,
    seed: int = 0,
) -> list[BoxCoverage]:
    """Share of boxes inside their joint intervals: overall, then by group.

    Args:
        edges: Matched edges, with ``images``, of images that were not used for fitting.
        joint: Fitted factors.
        level: Level in (0, 1).
        fitted: Number of boxes that the factors were fitted on; a group too small to be fitted on
            its own was fitted on all of them.
        resamples: Bootstrap resamples of the images for the interval of each share.
        seed: Seed of the resamples.
    """
    boxes, labels = edges.boxes(), edges.labels
    factors = FactorTable(joint.table_at(level)).of(labels, boxes)
    intervals = edges.intervals(level, factors)
    inside = intervals.contain(edges.gts).all(1).numpy()
    widths = intervals.widths().mean(1).numpy()
    group = joint.group_of(labels.numpy(), boxes)
    assert edges.images is not None  # set by detectors
    image = np.unique(edges.images.numpy(), return_inverse=True)[1]
    weights = np.concatenate(list(image_weights(int(image.max(initial=0)) + 1, resamples, seed)))
    rows = []
    names = [('all', fitted, np.arange(len(edges)))]
    if len(joint.names) > 1:
        names += [
            (name, joint.counts[place], np.flatnonzero(group == place))
            for place, name in enumerate(joint.names)
        ]
    for name, count, chosen in names:
        if not len(chosen):
            continue
        drawn = weights[:, image[chosen]]
        with np.errstate(invalid='ignore', divide='ignore'):
            shares = (drawn * inside[chosen]).sum(1) / drawn.sum(1)
        low, high = np.nanquantile(shares, [0.025, 0.975])
        expected = expected_range(count, len(chosen), level)
        share, width = float(inside[chosen].mean()), float(widths[chosen].mean())
        rows.append(
            BoxCoverage(name, count, len(chosen), share, float(low), float(high), expected, width)
        )
    return rows


def coverage(
    edges: MatchedEdges, levels: Sequence[float], factors: Sequence[Sequence[float]] | None = None
) -> Coverage:
    """Share of gt edges inside the intervals, per level.

    Args:
        edges: Matched edges of images that were not used for fitting.
        levels: Levels in (0, 1).
        factors: Four factors per level; None keeps the distributions' own intervals.
    """
    stretch = [[1.0] * 4] * len(levels) if factors is None else factors
    inside, widths = [], []
    for level, factor in zip(levels, stretch):
        intervals = edges.intervals(level, factor)
        inside.append(intervals.contain(edges.gts).numpy())
        widths.append(float(intervals.widths().mean()))
    all_inside = np.array(inside)
    return Coverage(
        tuple(levels),
        all_inside.mean((1, 2)),
        all_inside.mean(1),
        all_inside.all(2).mean(1),
        np.array(widths),
    )
