"""Curves of a report: precision-recall, F1 by threshold, edge errors by deviation.

The COCO summary is computed with the first.
"""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

import numpy as np
import scipy
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gfl_det.compat.environment import has_faster_coco_eval
from gfl_det.evaluation.coco_metric import FastCOCOeval
from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.matching import FALSE, TRUE, Matches
from gfl_det.ops.boxes import xywh_to_xyxy

SIZES = ('all', 'small', 'medium', 'large')
COCO_SIDES = (32, 96)  # px, square roots of the areas between these sizes
MAX_DETS = (1, 10, 100)
GRID = np.linspace(0, 1, 101)  # recalls, and score thresholds
SPREAD_BINS = 12
MAX_POINTS = 1200  # points drawn, evenly selected by deviation


class CocoSummary(NamedTuple):
    """COCO metrics in [0, 1]; NaN without gt boxes."""

    ap: np.ndarray  # (4, 3) per size: IoU .5 to .95, .5 and .75
    recall: np.ndarray  # (4,) AR at 100 detections, per size
    ap_by_class: np.ndarray  # (K, 3)
    ap_by_class_size: np.ndarray  # (K, 3) IoU .5 to .95, small, medium and large
    precision: np.ndarray  # (K + 1, 3, 101) at recalls GRID; row 0 is the mean over classes


class F1Cuts(NamedTuple):
    """Best F1 at IoU .5 per class and, in row 0, for all detections together."""

    f1: np.ndarray  # (K + 1,) NaN without gt boxes
    threshold: np.ndarray  # (K + 1,) minimum score; NaN without true positives
    precision: np.ndarray  # (K + 1,)
    recall: np.ndarray  # (K + 1,)
    curve: np.ndarray  # (K + 1, 101) F1 at the thresholds GRID


def coco_table(gts: GroundTruth, area: np.ndarray, detections: Detections) -> CocoSummary:
    """Compute COCO metrics, with faster_coco_eval if it is installed.

    Args:
        gts: Ground truth with K classes and M boxes.
        area: ``(M,)`` px, annotated areas, by which COCO defines sizes.
        detections: Detections in the same images.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints each step
        known = _coco(gts, area)
        evaluator = _evaluator(known, _loaded(known, detections))
        evaluator.params.maxDets = list(MAX_DETS)
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval['precision'][..., -1].copy()  # (T, 101, K, 4)
    recall = evaluator.eval['recall'][..., -1].copy()  # (T, K, 4)
    precision[precision < 0] = np.nan
    recall[recall < 0] = np.nan
    ap = mean(precision, 1)  # (T, K, 4)
    three = np.stack([mean(ap, 0), ap[0], ap[5]])  # (3, K, 4)
    curves = np.stack([precision[0, :, :, 0], precision[5, :, :, 0], mean(precision, 0)[..., 0]])
    curves = np.concatenate([mean(curves, 2)[..., None], curves], axis=2)  # (3, 101, K + 1)
    return CocoSummary(
        mean(three, 1).T,
        mean(mean(recall, 0), 0),
        three[:, :, 0].T,
        three[0, :, 1:],
        curves.transpose(2, 0, 1),
    )


def best_cuts(found: Matches) -> F1Cuts:
    """Find the thresholds with the largest F1.

    Args:
        found: Matches at the chosen IoU.
    """
    classes = len(found.gt_counts)
    rows = [_best_cut(found.scores, found.state, found.gt_counts.sum())]
    for label in range(classes):
        mine = found.of_class(label)
        rows.append(_best_cut(mine.scores, mine.state, found.gt_counts[label]))
    return F1Cuts(*(np.array(column) for column in zip(*rows)))


def _best_cut(
    scores: np.ndarray, state: np.ndarray, gts: int
) -> tuple[float, float, float, float, np.ndarray]:
    """F1, threshold, precision, recall and the curve of one class."""
    if gts == 0:
        nan = float('nan')
        return nan, nan, nan, nan, np.full(len(GRID), nan)
    order = np.argsort(-scores, kind='stable')
    scores, state = scores[order], state[order]
    right, wrong = np.cumsum(state == TRUE), np.cumsum(state == FALSE)
    f1 = 2 * right / (right + wrong + gts)
    kept = np.searchsorted(-scores, -GRID, side='right')
    curve = np.concatenate([[0.0], f1])[kept]
    # Detections of equal score are kept or dropped together, so only the last one is a cut.
    f1 = np.where(np.append(np.diff(scores) != 0, True)[: len(f1)], f1, 0)
    if not f1.any():
        return 0.0, float('nan'), float('nan'), 0.0, curve
    best = int(f1.argmax())
    precision = right[best] / (right[best] + wrong[best])
    return float(f1[best]), float(scores[best]), float(precision), right[best] / gts, curve


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that are not NaN; NaN without any."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0).sum(axis)
    number = there.sum(axis)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _coco(gts: GroundTruth, area: np.ndarray) -> COCO:
    annotations = [
        dict(id=index, image_id=image, category_id=label, bbox=box, area=size, iscrowd=int(crowd))
        for index, (image, label, box, size, crowd) in enumerate(
            zip(
                gts.image.tolist(),
                gts.label.tolist(),
                gts.boxes.tolist(),
                area.tolist(),
                gts.crowd.tolist(),
            ),
            1,  # pycocotools treats the id 0 as no match
        )
    ]
    known = COCO()
    known.dataset = dict(
        images=[dict(id=index) for index in range(len(gts.image_ids))],
        categories=[dict(id=index, name=name) for index, name in enumerate(gts.class_names)],
        annotations=annotations,
    )
    known.createIndex()
    return known


def _loaded(known: COCO, detections: Detections) -> COCO:
    if not len(detections.scores):
        empty = COCO()
        empty.dataset = {**known.dataset, 'annotations': []}
        empty.createIndex()
        return empty
    table = np.column_stack(
        [detections.image, detections.boxes, detections.scores, detections.label]
    )
    return known.loadRes(table)


def _evaluator(known: COCO, found: COCO) -> COCOeval:
    kind = FastCOCOeval if has_faster_coco_eval() and found.dataset['annotations'] else COCOeval
    return kind(known, found, 'bbox')


class EdgeErrors(NamedTuple):
    """Edge errors of M matched detections; left, top, right, bottom, px."""

    std: np.ndarray  # (M, 4)
    error: np.ndarray  # (M, 4) predicted minus gt coordinate
    inside: np.ndarray | None  # (M, 4) bool, the gt edge lies in its interval


class Spread(NamedTuple):
    """Edges sorted by deviation, in bins of equal counts."""

    number: np.ndarray  # (J,)
    std: np.ndarray  # (J,) root mean square of the deviations, px
    error: np.ndarray  # (J,) root mean square of the errors, px
    low: np.ndarray  # (J,) 10 % quantile of the absolute errors, px
    high: np.ndarray  # (J,) 90 % quantile, px


def edge_errors(
    found: Matches,
    boxes: np.ndarray,
    gts: GroundTruth,
    std: np.ndarray,
    intervals: tuple[np.ndarray, np.ndarray] | None = None,
) -> EdgeErrors:
    """Compare the edges of matched detections with their gt boxes.

    Args:
        found: Matches of N detections.
        boxes: ``(N, 4)`` boxes of the detections, xywh px.
        gts: Ground truth of the same images.
        std: ``(N, 4)`` px.
        intervals: Lower and upper ends, each ``(N, 4)`` px.
    """
    right = found.state == TRUE
    rows, partners = found.row[right], found.gt[right]
    true = xywh_to_xyxy(gts.boxes[partners])
    inside = None
    if intervals is not None:
        low, high = (ends[rows] for ends in intervals)
        inside = (low <= true) & (true <= high)
    return EdgeErrors(std[rows], xywh_to_xyxy(boxes[rows]) - true, inside)


def spread(std: np.ndarray, error: np.ndarray, bins: int = SPREAD_BINS) -> Spread:
    """Average over bins with equal numbers of edges; few edges give fewer bins.

    Args:
        std: ``(E,)`` px.
        error: ``(E,)`` px.
        bins: Maximum number of bins.
    """
    order = np.argsort(std, kind='stable')
    parts = np.array_split(order, min(bins, len(order))) if len(order) else []
    rows = [
        (
            len(part),
            np.sqrt((std[part] ** 2).mean()),
            np.sqrt((error[part] ** 2).mean()),
            *np.quantile(np.abs(error[part]), [0.1, 0.9]),
        )
        for part in parts
    ]
    return Spread(*np.array(rows).reshape(len(rows), 5).T)


def rank_correlation(std: np.ndarray, error: np.ndarray) -> float:
    """Spearman correlation of deviations and absolute errors; NaN if constant or empty."""
    if len(std) < 2 or np.ptp(std) == 0 or np.ptp(np.abs(error)) == 0:
        return float('nan')
    return float(scipy.stats.spearmanr(std, np.abs(error)).statistic)


def sample_points(std: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Points to draw ``(P, 2)``: deviation and absolute error, evenly from the sorted edges."""
    order = np.argsort(std, kind='stable')
    count = min(MAX_POINTS, len(order))
    chosen = order[np.linspace(0, len(order) - 1, count).astype(int)] if count else order
    return np.column_stack([std[chosen], np.abs(error[chosen])])
