"""Confidence intervals of detection metrics: a bootstrap over images, from matches made once.

A resample draws as many images as there are, with replacement, so an image counts 0, 1, 2, ...
times. Matching stays within an image, so a resample is a weight per image: sums over detections
become products with a sparse matrix, and average precision a pass over the true positives, which
are few. A thousand resamples of 5,000 images take seconds.

Three kinds of interval, each for a reason:

- AP and oLRP take a best value over cuts, so few images bias them (AP upwards). A bootstrap cannot
  see that bias, because copies of an image come together. Random halves of the images can: the bias
  of such envelopes shrinks as n^(-2/3) (Groeneboom and Jongbloed, "Nonparametric Estimation under
  Shape Constraints", 2014), so the step from n to n/2 gives it. The resamples are moved to the
  estimate without its bias.
- Calibration errors average absolute gaps, which a resample biases once more: basic intervals.
- All others: bias-corrected and accelerated (BCa; Efron, "Better Bootstrap Confidence Intervals",
  JASA 1987), with a jackknife over groups of images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import ndtr, ndtri

from gfl_det.evaluation.detections import Detections, Truths
from gfl_det.evaluation.functional import DECE_BINS, LAECE_BINS, RECALLS
from gfl_det.evaluation.matching import IGNORED, TRUE, Matches

LEVEL = 0.95
GROUPS = 100  # of the jackknife
HALVINGS = 50
CHUNK = 50  # resamples at once: 50 x 5,000 images and 50 x 2,000 bins are a few MiB
CALIBRATION_ERRORS = ('LaECE', 'LaACE', 'D-ECE')
# The least LRP is best at a cut; its parts at that cut are not.
ENVELOPES = re.compile(r'AP|oLRP(_class_\d+)?$')


class Interval(NamedTuple):
    """A confidence interval; NaN where the metric is not defined."""

    low: float
    high: float


def image_weights(num_images: int, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each image is in each resample, chunk by chunk.

    Args:
        num_images: I.
        resamples: in all.
        seed: of the draws; equal seeds pair the resamples of two detectors.

    Yields:
        ``(R, I)`` float64 with rows that sum to I.
    """
    generator = np.random.default_rng(seed)
    for begin in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - begin)
        drawn = generator.integers(0, num_images, (count, num_images))
        drawn += np.arange(count)[:, None] * num_images
        flat = np.bincount(drawn.ravel(), minlength=count * num_images)
        yield flat.reshape(count, num_images).astype(float)


def jackknife_weights(num_images: int, groups: int = GROUPS) -> np.ndarray:
    """Weights ``(G, I)`` that leave out one group of images each; G is at most I."""
    groups = min(groups, num_images)
    group = np.arange(num_images) * groups // max(1, num_images)
    return (group != np.arange(groups)[:, None]).astype(float)


def halving_weights(num_images: int, seed: int = 0, splits: int = HALVINGS) -> np.ndarray:
    """Weights ``(2 * splits, I)`` of random halves, each split's two halves one after the other."""
    generator = np.random.default_rng(seed)
    chosen = np.zeros((splits, num_images))
    for row in chosen:
        row[generator.permutation(num_images)[: num_images // 2]] = 1
    return np.stack([chosen, 1 - chosen], axis=1).reshape(2 * splits, num_images)


def shifted_interval(
    estimate: float, resampled: np.ndarray, halved: np.ndarray, level: float = LEVEL
) -> Interval:
    """Percentiles of the resamples, moved to the estimate without the bias that halves show.

    Args:
        estimate: the statistic of the data.
        resampled: ``(R,)`` of the resamples; NaN entries are left out.
        halved: ``(H,)`` of random halves of the images.
        level: in (0, 1).

    Returns:
        The interval within [0, 1]; NaN without a finite estimate or resample.
    """
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(estimate) or not len(resampled):
        return Interval(np.nan, np.nan)
    halved = halved[~np.isnan(halved)]
    bias = (halved.mean() - estimate) / (2 ** (2 / 3) - 1) if len(halved) else 0.0
    ends = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    low, high = np.clip(ends - resampled.mean() + estimate - bias, 0, 1)
    return Interval(float(low), float(high))


def basic_interval(estimate: float, resampled: np.ndarray, level: float = LEVEL) -> Interval:
    """Basic (reverse percentile) interval: the resamples' spread, mirrored at the estimate.

    For calibration errors: absolute gaps of few detections are biased upwards, those of a resample
    once more by as much, which the mirror takes off twice; no share of the resamples lies below the
    estimate, so that BCa has nothing to work with.

    Args:
        estimate: the statistic of the data, at least 0.
        resampled: ``(R,)`` of the resamples; NaN entries are left out.
        level: in (0, 1).

    Returns:
        The interval, cut at 0; NaN without a finite estimate or resample.
    """
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(estimate) or not len(resampled):
        return Interval(np.nan, np.nan)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(*(max(0.0, float(2 * estimate - end)) for end in (high, low)))


def bca_interval(
    estimate: float, resampled: np.ndarray, jackknifed: np.ndarray, level: float = LEVEL
) -> Interval:
    """Bias-corrected and accelerated interval of one statistic.

    Args:
        estimate: the statistic of the data.
        resampled: ``(R,)`` of the resamples; NaN entries are left out.
        jackknifed: ``(G,)`` with one group left out each.
        level: in (0, 1).

    Returns:
        The interval, NaN without a finite estimate or resample.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> data = rng.normal(size=400)
        >>> means = rng.choice(data, (2000, 400)).mean(1)
        >>> left_out = (data.sum() - data) / 399
        >>> low, high = bca_interval(data.mean(), means, left_out)
        >>> bool(low < 0 < high)
        True
    """
    resampled = np.sort(resampled[~np.isnan(resampled)])
    if np.isnan(estimate) or not len(resampled):
        return Interval(np.nan, np.nan)
    # Ties count half, so that a statistic that does not vary has no bias.
    below = (resampled < estimate).mean() + (resampled == estimate).mean() / 2
    edge = 0.5 / len(resampled)
    bias = ndtri(np.clip(below, edge, 1 - edge))
    offset = np.nanmean(jackknifed) - jackknifed[~np.isnan(jackknifed)]
    spread = (offset**2).sum() ** 1.5
    acceleration = (offset**3).sum() / (6 * spread) if spread > 0 else 0.0
    tails = ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    shifted = bias + (bias + tails) / (1 - acceleration * (bias + tails))
    low, high = np.quantile(resampled, ndtr(shifted))
    return Interval(float(low), float(high))


class _Cells(NamedTuple):
    """Sums over the detections of each image, in cells such as bins of classes."""

    number: csr_matrix  # (cells, I)
    score: csr_matrix
    target: csr_matrix

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
                csr_matrix((values, (cell, image)), shape)
                for values in (np.ones(len(cell)), scores, targets)
            )
        )

    def gaps(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and ``|sum of scores - sum of targets|``, each ``(cells, R)``."""
        number = self.number @ weights.T
        return number, np.abs(self.score @ weights.T - self.target @ weights.T)


class DetectionStatistics:
    """Every metric of :func:`.functional.evaluate_detections` under weights of the images.

    Args:
        matched: the matches that LaECE, LaACE and LRP are taken from, each with what stands
            behind the names: nothing, or ``_reject``.
        coco: the matches at :data:`.functional.COCO_TAUS`.
        detections: that were matched.
        truths: of the same images.
    """

    def __init__(
        self,
        matched: Sequence[tuple[Matches, str]],
        coco: Sequence[Matches],
        detections: Detections,
        truths: Truths,
    ) -> None:
        self.num_images = len(truths.image_ids)
        num_classes = len(truths.category_ids)
        real = ~truths.crowd
        # Boxes of each class in each image, (K, I).
        self.truths = csr_matrix(
            (np.ones(real.sum()), (truths.label[real], truths.image[real])),
            (num_classes, self.num_images),
        )
        self.parts: list[Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]] = []
        for matches, end in matched:
            self.parts.append(_CalibrationPart(matches, detections.image, self.num_images, end))
            self.parts.append(_LRPPart(matches, detections.image, self.num_images, end))
        half = coco[0]
        self.parts.append(_DECEPart(half, detections.image, self.num_images))
        self.parts.append(_OptimalLRPPart(half, detections.image))
        self.parts.append(_PrecisionPart(coco, detections.image, num_classes))

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics under weights.

        Args:
            weights: ``(R, I)``.

        Returns:
            Each ``(R,)`` or, per class, ``(R, K)`` under the name with ``_per_class`` behind it;
            NaN where no class has a value.
        """
        counts = (self.truths @ weights.T).T  # (R, K)
        values: dict[str, np.ndarray] = {}
        for part in self.parts:
            values.update(part(weights, counts))
        return values


class _CalibrationPart:
    """LaECE and LaACE at one threshold."""

    def __init__(self, matches: Matches, image: np.ndarray, num_images: int, end: str) -> None:
        self.name, self.num_classes = f'{matches.tau:g}{end}', len(matches.truths)
        judged = matches.judged()
        label, scores, iou = matches.label[judged], matches.scores[judged], matches.iou[judged]
        place = image[matches.row[judged]]
        edges = np.linspace(0, 1, LAECE_BINS + 1)
        bins = (np.searchsorted(edges, scores) - 1).clip(0, LAECE_BINS - 1)
        cells = (self.num_classes * LAECE_BINS, num_images)
        self.cells = _Cells.of(label * LAECE_BINS + bins, place, scores, iou, cells)
        self.distance = csr_matrix(
            (np.abs(scores - iou), (label, place)), (self.num_classes, num_images)
        )

    def __call__(self, weights: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
        number, gap = self.cells.gaps(weights)
        shape = (self.num_classes, LAECE_BINS, len(weights))
        number, gap = number.reshape(shape).sum(1).T, gap.reshape(shape).sum(1).T  # (R, K)
        distance = (self.distance @ weights.T).T
        counted = (truths > 0) & (number > 0)
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

    def __call__(self, weights: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
        number, gap = self.cells.gaps(weights)
        with np.errstate(invalid='ignore'):
            return {'D-ECE': gap.sum(0) / number.sum(0)}


class _LRPPart:
    """LRP of all detections at one threshold, with its parts."""

    def __init__(self, matches: Matches, image: np.ndarray, num_images: int, end: str) -> None:
        self.name, self.end, self.tau = f'LRP_{matches.tau:g}', end, matches.tau
        shape = (len(matches.truths), num_images)
        place = image[matches.row]
        distance = np.where(matches.state == TRUE, 1 - matches.iou, 0)
        columns = (matches.state == TRUE, (matches.state != TRUE) & (matches.state != IGNORED))
        self.sums = [
            csr_matrix((values.astype(float), (matches.label, place)), shape)
            for values in (*columns, distance)
        ]

    def __call__(self, weights: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
        right, wrong, distance = ((each @ weights.T).T for each in self.sums)
        values = _lrp(self.name, right, wrong, distance, truths, self.tau)
        return {f'{name}{self.end}': value for name, value in values.items()}


class _TruePositives(NamedTuple):
    """The true positives of one threshold, by class and descending score.

    Every maximum of precision and every least LRP is at one of them.
    """

    image: np.ndarray  # (P,) int64
    iou: np.ndarray  # (P,)
    place: np.ndarray  # (P,) int64, among the detections of all classes, sorted as matches are
    before: np.ndarray  # (P,) int64, detections of earlier classes
    start: np.ndarray  # (K,) int64, first true positive of each class; P behind the last
    ignored_image: np.ndarray  # (Q,) int64, images of the ignored detections
    ignored_place: np.ndarray  # (P,) int64, ignored ones up to each
    ignored_before: np.ndarray  # (P,) int64, ignored ones of earlier classes

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
            np.searchsorted(label[place], np.arange(len(matches.truths))),
            image[matches.row[ignored]],
            np.searchsorted(ignored, place),
            np.searchsorted(ignored, before),
        )

    def sums(self, weights: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted true positives ``(P,)`` and detections ``(P,)`` of the class up to each.

        Args:
            weights: ``(I,)`` of the images.
            total: ``(N + 1,)`` sums of the weights of all detections, from 0.
        """
        found = total[self.place + 1] - total[self.before]
        if len(self.ignored_image):
            ignored = _sums_from_zero(weights[self.ignored_image])
            found -= ignored[self.ignored_place] - ignored[self.ignored_before]
        return self.cumulated(weights[self.image]), found

    def cumulated(self, values: np.ndarray) -> np.ndarray:
        """Sums ``(P,)`` within the class up to each true positive."""
        total = _sums_from_zero(values)
        first = np.repeat(total[self.start], np.diff(self.start, append=len(values)))
        return total[1:] - first


def _sums_from_zero(values: np.ndarray) -> np.ndarray:
    total = np.empty(len(values) + 1)
    total[0] = 0
    np.cumsum(values, out=total[1:])
    return total


class _OptimalLRPPart:
    """The least LRP over the cuts of each class, at IoU .5."""

    def __init__(self, matches: Matches, image: np.ndarray) -> None:
        self.tau, self.positives = matches.tau, _TruePositives.of(matches, image)
        self.image = image[matches.row]

    def __call__(self, weights: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
        rows = [self._one(*pair) for pair in zip(weights, truths)]
        right, wrong, distance = (np.stack(each) for each in zip(*rows))
        return _lrp('oLRP', right, wrong, distance, truths, self.tau)

    def _one(self, weights: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, ...]:
        positives = self.positives
        right, found = positives.sums(weights, _sums_from_zero(weights[self.image]))
        distance = positives.cumulated(weights[positives.image] * (1 - positives.iou))
        count = np.diff(positives.start, append=len(right))
        of_class = np.repeat(truths, count)
        with np.errstate(invalid='ignore', divide='ignore'):
            total = (distance / (1 - self.tau) + found - right + of_class - right) / (
                found - right + of_class
            )
        sums = np.zeros((3, len(truths)))
        for k in np.flatnonzero(count):
            part = slice(positives.start[k], positives.start[k] + count[k])
            if right[part][-1] > 0:
                first = positives.start[k]
                best = first + np.nanargmin(np.where(right[part] > 0, total[part], np.inf))
                if total[best] >= 1 and found[first] > right[first]:
                    continue  # no better than the wrong detection that comes first
                sums[:, k] = right[best], found[best] - right[best], distance[best]
        return tuple(sums)


class _PrecisionPart:
    """COCO's AP over its ten thresholds, AP50 and AP75, and AP per class."""

    def __init__(self, coco: Sequence[Matches], image: np.ndarray, num_classes: int) -> None:
        self.by_tau = [_TruePositives.of(matches, image) for matches in coco]
        self.image = image[coco[0].row]  # matches at all thresholds are sorted alike
        self.num_classes = num_classes

    def __call__(self, weights: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
        precision = np.stack([self._one(*pair) for pair in zip(weights, truths)], axis=1)
        return {
            'AP': _nan_mean(precision.mean(0)),
            'AP50': _nan_mean(precision[0]),
            'AP75': _nan_mean(precision[5]),
            'AP_per_class': precision.mean(0),
        }

    def _one(self, weights: np.ndarray, truths: np.ndarray) -> np.ndarray:
        """AP ``(T, K)`` of one resample; NaN for classes without gt boxes."""
        total = _sums_from_zero(weights[self.image])
        return np.stack(
            [self._at_threshold(positives, weights, truths, total) for positives in self.by_tau]
        )

    def _at_threshold(
        self, positives: _TruePositives, weights: np.ndarray, truths: np.ndarray, total: np.ndarray
    ) -> np.ndarray:
        right, found = positives.sums(weights, total)
        count = np.diff(positives.start, append=len(right))
        with np.errstate(invalid='ignore', divide='ignore'):
            precision = np.where(right > 0, right / found, 0)
            recall = np.where(right > 0, right / np.repeat(truths, count), 0)
        # The best precision at this recall or beyond, class by class: a class is lifted above
        # those behind it, so that one pass from the back serves all.
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
        return np.where(truths > 0, value, np.nan)


def _recalls_reached(recall: np.ndarray) -> np.ndarray:
    """How many of COCO's 101 recalls are at most each recall."""
    place = (recall * (len(RECALLS) - 1)).astype(np.int64)  # right, or one off by rounding
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
    truths: np.ndarray,
    tau: float,
) -> dict[str, np.ndarray]:
    """LRP and its parts from sums ``(R, K)``, as in :func:`.functional.lrp`."""
    known, found = truths > 0, (truths > 0) & (right > 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        total = (distance / (1 - tau) + wrong + truths - right) / (wrong + truths)
        parts = {
            name: np.where(known, total, np.nan),
            f'{name}_loc': np.where(found, distance / right, np.nan),
            f'{name}_FP': np.where(found, wrong / (right + wrong), np.nan),
            f'{name}_FN': np.where(known, 1 - right / truths, np.nan),
        }
    return {key: _nan_mean(values) for key, values in parts.items()}


def _nan_mean(values: np.ndarray) -> np.ndarray:
    """Means over the classes ``(R,)`` of ``(R, K)``, of those that have a value."""
    known = ~np.isnan(values)
    number = known.sum(1)
    total = np.where(known, values, 0).sum(1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def resample(
    statistics: DetectionStatistics, resamples: int, seed: int = 0, level: float = LEVEL
) -> dict[str, Interval]:
    """Confidence intervals of every metric.

    Args:
        statistics: of one detector.
        resamples: how many, about 1,000.
        seed: of the draws.
        level: of the intervals.

    Returns:
        An interval per name; of values per class one with ``_class_k`` behind the name.
    """
    images = statistics.num_images
    one = statistics(np.ones((1, images)))
    drawn = _stack(statistics(weights) for weights in image_weights(images, resamples, seed))
    left_out = statistics(jackknife_weights(images))
    halved = statistics(halving_weights(images, seed))
    intervals = {}
    for name, value in one.items():
        columns = [name] if value.ndim == 1 else _class_names(name, value.shape[1])
        parts = (_columns(each[name]) for each in (one, drawn, left_out, halved))
        for column, (estimate,), resampled, without, halves in zip(columns, *parts):
            if name.startswith(CALIBRATION_ERRORS):
                intervals[column] = basic_interval(estimate, resampled, level)
            elif ENVELOPES.match(column):
                intervals[column] = shifted_interval(estimate, resampled, halves, level)
            else:
                intervals[column] = bca_interval(estimate, resampled, without, level)
    return intervals


def _columns(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).T


def _class_names(name: str, number: int) -> list[str]:
    return [f'{name.removesuffix("_per_class")}_class_{k}' for k in range(number)]


def _stack(parts: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    found = list(parts)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
