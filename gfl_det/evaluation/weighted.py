"""Detection metrics under image weights, without repeated matching.

Matching is done per image, so an image drawn twice is an image of weight 2: sums over detections
become products with a sparse matrix, and average precision a pass over the true positives, which
are few. :mod:`.bootstrap` draws the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.functional import DECE_BINS, LAECE_BINS, RECALLS
from gfl_det.evaluation.matching import IGNORED, TRUE, Matches


class DetectionStatistics:
    """Every metric of :func:`.functional.evaluate_detections` under image weights.

    Args:
        matched: Matches for LaECE, LaACE and LRP, each with the suffix of its metric names: empty
            or ``_reject``.
        coco: Matches at :data:`.functional.COCO_TAUS`.
        detections: Matched detections.
        gts: Ground truth of the same images.
        precision_alone: Compute only AP, AP50, AP75 and AP per class.
    """

    def __init__(
        self,
        matched: Sequence[tuple[Matches, str]],
        coco: Sequence[Matches],
        detections: Detections,
        gts: GroundTruth,
        precision_alone: bool = False,
    ) -> None:
        self.num_images = len(gts.image_ids)
        num_classes = len(gts.category_ids)
        real = ~gts.crowd
        # Number of gt boxes per class and image, (K, I).
        self.gts = scipy.sparse.csr_matrix(
            (np.ones(real.sum()), (gts.label[real], gts.image[real])),
            (num_classes, self.num_images),
        )
        self.parts: list[Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]] = []
        for matches, end in matched:
            self.parts.append(_CalibrationPart(matches, detections.image, self.num_images, end))
            self.parts.append(_LRPPart(matches, detections.image, self.num_images, end))
        half = coco[0]
        if not precision_alone:
            self.parts.append(_DECEPart(half, detections.image, self.num_images))
            self.parts.append(_OptimalLRPPart(half, detections.image))
        self.parts.append(_PrecisionPart(coco, detections.image, num_classes))

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the metrics.

        Args:
            weights: Image weights of R resamples, ``(R, I)``.

        Returns:
            Values ``(R,)`` by metric, and values per class ``(R, K)`` under the name with the
            suffix ``_per_class``; NaN if no class has a value.
        """
        counts = (self.gts @ weights.T).T  # (R, K)
        values: dict[str, np.ndarray] = {}
        for part in self.parts:
            values.update(part(weights, counts))
        return values


class _Cells(NamedTuple):
    """Sums over the detections of each image by cell, such as the score bins of each class."""

    number: scipy.sparse.csr_matrix  # (cells, I)
    score: scipy.sparse.csr_matrix
    target: scipy.sparse.csr_matrix

    @classmethod
    def of(
        cls,
        cell: np.ndarray,
        image: np.ndarray,
        scores: np.ndarray,
        targets: np.ndarray,
        shape: tuple,
    ) -> _Cells:
        return cls(
            *(
                scipy.sparse.csr_matrix((values, (cell, image)), shape)
                for values in (np.ones(len(cell)), scores, targets)
            )
        )

    def gaps(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts and ``|sum of scores - sum of targets|``, each ``(cells, R)``."""
        number = self.number @ weights.T
        return number, np.abs(self.score @ weights.T - self.target @ weights.T)


class _CalibrationPart:
    """LaECE and LaACE at one IoU threshold."""

    def __init__(self, matches: Matches, image: np.ndarray, num_images: int, end: str) -> None:
        self.name, self.num_classes = f'{matches.tau:g}{end}', len(matches.gt_counts)
        judged = matches.judged()
        label, scores, iou = matches.label[judged], matches.scores[judged], matches.iou[judged]
        place = image[matches.row[judged]]
        edges = np.linspace(0, 1, LAECE_BINS + 1)
        bins = (np.searchsorted(edges, scores) - 1).clip(0, LAECE_BINS - 1)
        cells = (self.num_classes * LAECE_BINS, num_images)
        self.cells = _Cells.of(label * LAECE_BINS + bins, place, scores, iou, cells)
        self.distance = scipy.sparse.csr_matrix(
            (np.abs(scores - iou), (label, place)), (self.num_classes, num_images)
        )

    def __call__(self, weights: np.ndarray, gt_counts: np.ndarray) -> dict[str, np.ndarray]:
        number, gap = self.cells.gaps(weights)
        shape = (self.num_classes, LAECE_BINS, len(weights))
        number, gap = number.reshape(shape).sum(1).T, gap.reshape(shape).sum(1).T  # (R, K)
        distance = (self.distance @ weights.T).T
        counted = (gt_counts > 0) & (number > 0)
        return {
            **_by_class(f'LaECE_{self.name}', gap, number, counted),
            **_by_class(f'LaACE_{self.name}', distance, number, counted),
        }


class _DECEPart:
    """D-ECE."""

    def __init__(self, matches: Matches, image: np.ndarray, num_images: int) -> None:
        judged = matches.judged()
        scores = matches.scores[judged]
        edges = np.linspace(0, 1, DECE_BINS + 1)
        bins = (np.searchsorted(edges, scores) - 1).clip(0, DECE_BINS - 1)
        right = (matches.state[judged] == TRUE).astype(float)
        place = image[matches.row[judged]]
        self.cells = _Cells.of(bins, place, scores, right, (DECE_BINS, num_images))

    def __call__(self, weights: np.ndarray, gt_counts: np.ndarray) -> dict[str, np.ndarray]:
        number, gap = self.cells.gaps(weights)
        with np.errstate(invalid='ignore'):
            return {'D-ECE': gap.sum(0) / number.sum(0)}


class _LRPPart:
    """LRP of all detections at one IoU threshold, with its parts."""

    def __init__(self, matches: Matches, image: np.ndarray, num_images: int, end: str) -> None:
        self.name, self.end, self.tau = f'LRP_{matches.tau:g}', end, matches.tau
        shape = (len(matches.gt_counts), num_images)
        place = image[matches.row]
        distance = np.where(matches.state == TRUE, 1 - matches.iou, 0)
        columns = (matches.state == TRUE, (matches.state != TRUE) & (matches.state != IGNORED))
        self.sums = [
            scipy.sparse.csr_matrix((values.astype(float), (matches.label, place)), shape)
            for values in (*columns, distance)
        ]

    def __call__(self, weights: np.ndarray, gt_counts: np.ndarray) -> dict[str, np.ndarray]:
        right, wrong, distance = ((each @ weights.T).T for each in self.sums)
        values = _lrp(self.name, right, wrong, distance, gt_counts, self.tau)
        return {f'{name}{self.end}': value for name, value in values.items()}


class _TruePositives(NamedTuple):
    """The true positives at one IoU threshold, by class and descending score.

    Every maximum of precision and every minimum of LRP is at one of them.
    """

    image: np.ndarray  # (P,) int64
    iou: np.ndarray  # (P,)
    place: np.ndarray  # (P,) int64, index among all detections in the order of the matches
    before: np.ndarray  # (P,) int64, number of detections of earlier classes
    start: np.ndarray  # (K,) int64, first true positive of each class; P after the last
    ignored_image: np.ndarray  # (Q,) int64, images of the ignored detections
    ignored_place: np.ndarray  # (P,) int64, number of ignored detections up to each
    ignored_before: np.ndarray  # (P,) int64, number of ignored detections of earlier classes

    @classmethod
    def of(cls, matches: Matches, image: np.ndarray) -> _TruePositives:
        place, ignored = (np.flatnonzero(matches.state == state) for state in (TRUE, IGNORED))
        label = matches.label
        before = np.searchsorted(label, label[place])
        return cls(
            image[matches.row[place]],
            matches.iou[place],
            place,
            before,
            np.searchsorted(label[place], np.arange(len(matches.gt_counts))),
            image[matches.row[ignored]],
            np.searchsorted(ignored, place),
            np.searchsorted(ignored, before),
        )

    def sums(self, weights: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted true positives and detections of the class up to each, both ``(P,)``.

        Args:
            weights: Image weights, ``(I,)``.
            total: Cumulative weights of all detections, starting at 0, ``(N + 1,)``.
        """
        found = total[self.place + 1] - total[self.before]
        if len(self.ignored_image):
            ignored = _sums_from_zero(weights[self.ignored_image])
            found -= ignored[self.ignored_place] - ignored[self.ignored_before]
        return self.cumulated(weights[self.image]), found

    def cumulated(self, values: np.ndarray) -> np.ndarray:
        """Cumulative sums ``(P,)`` within each class up to each true positive."""
        total = _sums_from_zero(values)
        first = np.repeat(total[self.start], np.diff(self.start, append=len(values)))
        return total[1:] - first


def _sums_from_zero(values: np.ndarray) -> np.ndarray:
    total = np.empty(len(values) + 1)
    total[0] = 0
    np.cumsum(values, out=total[1:])
    return total


class _OptimalLRPPart:
    """Minimum of LRP over the score thresholds of each class, at IoU .5."""

    def __init__(self, matches: Matches, image: np.ndarray) -> None:
        self.tau, self.positives = matches.tau, _TruePositives.of(matches, image)
        self.image = image[matches.row]

    def __call__(self, weights: np.ndarray, gt_counts: np.ndarray) -> dict[str, np.ndarray]:
        rows = [self._one(*pair) for pair in zip(weights, gt_counts)]
        right, wrong, distance = (np.stack(each) for each in zip(*rows))
        return _lrp('oLRP', right, wrong, distance, gt_counts, self.tau)

    def _one(self, weights: np.ndarray, gt_counts: np.ndarray) -> tuple[np.ndarray, ...]:
        positives = self.positives
        right, found = positives.sums(weights, _sums_from_zero(weights[self.image]))
        distance = positives.cumulated(weights[positives.image] * (1 - positives.iou))
        count = np.diff(positives.start, append=len(right))
        of_class = np.repeat(gt_counts, count)
        with np.errstate(invalid='ignore', divide='ignore'):
            total = (distance / (1 - self.tau) + found - right + of_class - right) / (
                found - right + of_class
            )
        sums = np.zeros((3, len(gt_counts)))
        for k in np.flatnonzero(count):
            part = slice(positives.start[k], positives.start[k] + count[k])
            if right[part][-1] > 0:
                first = positives.start[k]
                best = first + np.nanargmin(np.where(right[part] > 0, total[part], np.inf))
                if total[best] >= 1 and found[first] > right[first]:
                    continue  # no better than the false positive ranked first
                sums[:, k] = right[best], found[best] - right[best], distance[best]
        return tuple(sums)


class _PrecisionPart:
    """COCO's AP over its ten IoU thresholds, AP50 and AP75, and AP per class."""

    def __init__(self, coco: Sequence[Matches], image: np.ndarray, num_classes: int) -> None:
        self.by_tau = [_TruePositives.of(matches, image) for matches in coco]
        self.image = image[coco[0].row]  # the order is the same at all thresholds
        self.num_classes = num_classes

    def __call__(self, weights: np.ndarray, gt_counts: np.ndarray) -> dict[str, np.ndarray]:
        precision = np.stack([self._one(*pair) for pair in zip(weights, gt_counts)], axis=1)
        return {
            'AP': _nan_mean(precision.mean(0)),
            'AP50': _nan_mean(precision[0]),
            'AP75': _nan_mean(precision[5]),
            'AP_per_class': precision.mean(0),
        }

    def _one(self, weights: np.ndarray, gt_counts: np.ndarray) -> np.ndarray:
        """AP ``(T, K)`` of one resample; NaN for classes without gt boxes."""
        total = _sums_from_zero(weights[self.image])
        return np.stack(
            [self._at_threshold(positives, weights, gt_counts, total) for positives in self.by_tau]
        )

    def _at_threshold(
        self,
        positives: _TruePositives,
        weights: np.ndarray,
        gt_counts: np.ndarray,
        total: np.ndarray,
    ) -> np.ndarray:
        right, found = positives.sums(weights, total)
        count = np.diff(positives.start, append=len(right))
        with np.errstate(invalid='ignore', divide='ignore'):
            precision = np.where(right > 0, right / found, 0)
            recall = np.where(right > 0, right / np.repeat(gt_counts, count), 0)
        # Maximum precision at this recall or a higher one, per class. Each class is offset above
        # the following ones, so that a single reverse cumulative maximum covers all classes.
        lift = np.repeat(2.0 * np.arange(self.num_classes, 0, -1), count)
        precision += lift
        best = np.maximum.accumulate(precision[::-1])[::-1] - lift
        reached = _recalls_reached(recall)
        fresh = np.diff(reached, prepend=0)
        starts = positives.start[count > 0]
        fresh[starts] = reached[starts]
        value = np.zeros(self.num_classes)
        if len(starts):
            value[count > 0] = np.add.reduceat(best * fresh, starts) / len(RECALLS)
        return np.where(gt_counts > 0, value, np.nan)


def _recalls_reached(recall: np.ndarray) -> np.ndarray:
    """Number of COCO's 101 recall points that are at most each recall."""
    place = (recall * (len(RECALLS) - 1)).astype(np.int64)  # exact, or off by one from rounding
    higher = np.append(RECALLS, np.inf)
    place += higher[place + 1] <= recall
    place -= higher[place] > recall
    return place + 1


def _by_class(
    name: str, sums: np.ndarray, number: np.ndarray, counted: np.ndarray
) -> dict[str, np.ndarray]:
    with np.errstate(invalid='ignore', divide='ignore'):
        values = np.where(counted, sums / number, np.nan)
    return {name: _nan_mean(values), f'{name}_per_class': values}


def _lrp(
    name: str,
    right: np.ndarray,
    wrong: np.ndarray,
    distance: np.ndarray,
    gt_counts: np.ndarray,
    tau: float,
) -> dict[str, np.ndarray]:
    """LRP and its parts from sums ``(R, K)``, as in :func:`.functional.lrp`."""
    known, found = gt_counts > 0, (gt_counts > 0) & (right > 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        total = (distance / (1 - tau) + wrong + gt_counts - right) / (wrong + gt_counts)
        parts = {
            name: np.where(known, total, np.nan),
            f'{name}_loc': np.where(found, distance / right, np.nan),
            f'{name}_FP': np.where(found, wrong / (right + wrong), np.nan),
            f'{name}_FN': np.where(known, 1 - right / gt_counts, np.nan),
        }
    return {key: _nan_mean(values) for key, values in parts.items()}


def _nan_mean(values: np.ndarray) -> np.ndarray:
    """Means ``(R,)`` of ``(R, K)`` over the classes that have a value."""
    known = ~np.isnan(values)
    number = known.sum(1)
    total = np.where(known, values, 0).sum(1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
