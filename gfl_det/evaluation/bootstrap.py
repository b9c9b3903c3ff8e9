"""Confidence intervals of detection metrics: a bootstrap over images that matches only once.

A resample draws as many images as there are, with replacement, so an image counts 0, 1, 2, ...
times; :mod:`.weighted` computes the metrics under these weights.

The kind of interval depends on the metric:

- AP and oLRP take a best value over score thresholds, so few images bias them (AP upwards). A
  bootstrap cannot reveal that bias, because copies of an image share its score. Random halves of
  the images can: the bias of such envelopes shrinks as n^(-2/3) (Groeneboom and Jongbloed,
  "Nonparametric Estimation under Shape Constraints", 2014), so the step from n to n/2 measures it.
  The resamples are shifted to the bias-free estimate.
- Calibration errors average absolute gaps, whose bias a resample adds again: basic intervals.
- The parts of oLRP are taken at the best threshold, which jumps between resamples: symmetric
  intervals, as wide on both sides as the wider side of the percentile interval.
- All others: bias-corrected and accelerated (BCa; Efron, "Better Bootstrap Confidence Intervals",
  JASA 1987), with a jackknife over groups of images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy

from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.functional import COCO_TAUS
from gfl_det.evaluation.matching import MAX_DETS, match
from gfl_det.evaluation.weighted import DetectionStatistics

LEVEL = 0.95
GROUPS = 100  # of the jackknife
HALVINGS = 50
CHUNK = 50  # resamples per chunk: 50 x 5,000 images and 50 x 2,000 bins are a few MiB
CALIBRATION_ERRORS = ('LaECE', 'LaACE', 'D-ECE')
# oLRP is a minimum over score thresholds; its parts at that threshold are not.
ENVELOPES = re.compile(r'AP|oLRP(_class_\d+)?$')
AT_BEST_CUT = re.compile(r'oLRP_(loc|FP|FN)$')


class Interval(NamedTuple):
    """Confidence interval; NaN if the metric is undefined."""

    low: float
    high: float


def image_weights(num_images: int, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Image counts of each resample, in chunks.

    Args:
        num_images: Number of images, I.
        resamples: Total number of resamples.
        seed: Seed of the draws; equal seeds pair the resamples of two detectors.

    Yields:
        ``(R, I)`` float64 with rows that sum to I.

    Example:
        >>> (weights,) = image_weights(num_images=4, resamples=3)
        >>> weights.shape, weights.sum(1)
        ((3, 4), array([4., 4., 4.]))
    """
    generator = np.random.default_rng(seed)
    for begin in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - begin)
        drawn = generator.integers(0, num_images, (count, num_images))
        drawn += np.arange(count)[:, None] * num_images
        flat = np.bincount(drawn.ravel(), minlength=count * num_images)
        yield flat.reshape(count, num_images).astype(float)


def jackknife_weights(num_images: int, groups: int = GROUPS) -> np.ndarray:
    """Weights ``(G, I)`` that each leave out one group of images; G is at most I.

    Example:
        >>> jackknife_weights(num_images=3)
        array([[0., 1., 1.],
               [1., 0., 1.],
               [1., 1., 0.]])
    """
    groups = min(groups, num_images)
    group = np.arange(num_images) * groups // max(1, num_images)
    return (group != np.arange(groups)[:, None]).astype(float)


def halving_weights(num_images: int, seed: int = 0, splits: int = HALVINGS) -> np.ndarray:
    """Weights ``(2 * splits, I)`` of random halves; the two halves of a split are adjacent.

    Example:
        >>> halving_weights(num_images=4, splits=1).sum(0)  # each image is in one half
        array([1., 1., 1., 1.])
    """
    generator = np.random.default_rng(seed)
    chosen = np.zeros((splits, num_images))
    for row in chosen:
        row[generator.permutation(num_images)[: num_images // 2]] = 1
    return np.stack([chosen, 1 - chosen], axis=1).reshape(2 * splits, num_images)


def shifted_interval(
    estimate: float, resampled: np.ndarray, halved: np.ndarray, level: float = LEVEL
) -> Interval:
    """Percentiles of the resamples, shifted by the bias that random halves of the images reveal.

    Args:
        estimate: Statistic of the data.
        resampled: Statistic of each resample, ``(R,)``; NaN entries are ignored.
        halved: Statistic of random halves of the images, ``(H,)``.
        level: Confidence level in (0, 1).

    Returns:
        The interval within [0, 1]; NaN without a finite estimate or resample.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> resampled, halved = rng.normal(0.32, 0.02, 999), rng.normal(0.33, 0.02, 32)
        >>> shifted_interval(0.3, resampled, halved).low < 0.27
        True
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
    """Basic (reverse percentile) interval: percentiles of the resamples mirrored at the estimate.

    For calibration errors: absolute gaps of few detections are biased upwards, and a resample adds
    the same bias again; mirroring subtracts it twice. BCa does not apply, because none of the
    resamples lie below the estimate.

    Args:
        estimate: Statistic of the data, at least 0.
        resampled: Statistic of each resample, ``(R,)``; NaN entries are ignored.
        level: Confidence level in (0, 1).

    Returns:
        The interval, clipped at 0; NaN without a finite estimate or resample.

    Example:
        >>> basic_interval(0.2, np.linspace(0.2, 0.4, 101), level=0.9)
        Interval(low=0.01..., high=0.19)
    """
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(estimate) or not len(resampled):
        return Interval(np.nan, np.nan)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(*(max(0.0, float(2 * estimate - end)) for end in (high, low)))


def wide_interval(estimate: float, resampled: np.ndarray, level: float = LEVEL) -> Interval:
    """Symmetric interval, as wide on both sides as the wider side of the percentile interval.

    It contains both the percentile and the basic interval.

    Args:
        estimate: Statistic of the data, in [0, 1].
        resampled: Statistic of each resample, ``(R,)``; NaN entries are ignored.
        level: Confidence level in (0, 1).

    Returns:
        The interval within [0, 1]; NaN without a finite estimate or resample.

    Example:
        >>> low, high = wide_interval(0.5, np.linspace(0.4, 0.7, 301), level=0.9)
        >>> round(low, 3), round(high, 3)
        (0.315, 0.685)
    """
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(estimate) or not len(resampled):
        return Interval(np.nan, np.nan)
    ends = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    half = float(np.abs(ends - estimate).max())
    return Interval(max(0.0, estimate - half), min(1.0, estimate + half))


def bca_interval(
    estimate: float, resampled: np.ndarray, jackknifed: np.ndarray, level: float = LEVEL
) -> Interval:
    """Bias-corrected and accelerated interval of one statistic.

    Args:
        estimate: Statistic of the data.
        resampled: Statistic of each resample, ``(R,)``; NaN entries are ignored.
        jackknifed: Statistic with one group left out each, ``(G,)``.
        level: Confidence level in (0, 1).

    Returns:
        The interval; NaN without a finite estimate or resample.

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
    # Ties count half, so a constant statistic has no bias.
    below = (resampled < estimate).mean() + (resampled == estimate).mean() / 2
    edge = 0.5 / len(resampled)
    bias = scipy.special.ndtri(np.clip(below, edge, 1 - edge))
    offset = np.nanmean(jackknifed) - jackknifed[~np.isnan(jackknifed)]
    spread = (offset**2).sum() ** 1.5
    acceleration = (offset**3).sum() / (6 * spread) if spread > 0 else 0.0
    tails = scipy.special.ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    shifted = bias + (bias + tails) / (1 - acceleration * (bias + tails))
    low, high = np.quantile(resampled, scipy.special.ndtr(shifted))
    return Interval(float(low), float(high))


def resample(
    statistics: DetectionStatistics, resamples: int, seed: int = 0, level: float = LEVEL
) -> dict[str, Interval]:
    """Confidence intervals of every metric.

    Args:
        statistics: Statistics of one detector.
        resamples: Number of resamples, about 1,000.
        seed: Seed of the draws.
        level: Confidence level of the intervals.

    Returns:
        Intervals by metric; those of class k have the suffix ``_class_k``.

    Example:
        >>> from gfl_det.evaluation.detections import Detections, GroundTruth
        >>> from gfl_det.evaluation.matching import match
        >>> image, boxes = np.array([0, 1]), np.array([[0.0, 0, 4, 4]] * 2)
        >>> crowd = np.zeros(2, bool)
        >>> gts = GroundTruth([7, 8], ['', ''], [1], ['cat'], image, image * 0, boxes, crowd)
        >>> found = Detections(image, image * 0, boxes, np.array([0.9, 0.8]))
        >>> coco = match(found, gts, COCO_TAUS)
        >>> resample(DetectionStatistics([], coco, found, gts), resamples=9)['AP']
        Interval(low=1.0, high=1.0)
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
            elif AT_BEST_CUT.match(column):
                intervals[column] = wide_interval(estimate, resampled, level)
            elif ENVELOPES.match(column):
                intervals[column] = shifted_interval(estimate, resampled, halves, level)
            else:
                intervals[column] = bca_interval(estimate, resampled, without, level)
    return intervals


def precision_intervals(
    detections: Detections,
    gts: GroundTruth,
    resamples: int,
    seed: int = 0,
    max_dets: int = MAX_DETS,
) -> dict[str, Interval]:
    """Confidence intervals of ``AP``, ``AP50``, ``AP75``, and of each class (``AP_class_k``).

    Args:
        detections: Detections of one detector.
        gts: Ground truth of the same images.
        resamples: Number of resamples of the images.
        seed: Seed of the draws.
        max_dets: Highest-scoring detections to count per image and class.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.9]))
        >>> precision_intervals(found, gts, resamples=20)['AP50']  # one image has no spread
        Interval(low=1.0, high=1.0)
    """
    coco = match(detections, gts, COCO_TAUS.tolist(), max_dets=max_dets)
    statistics = DetectionStatistics([], coco, detections, gts, precision_alone=True)
    return resample(statistics, resamples, seed)


def _columns(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).T


def _class_names(name: str, number: int) -> list[str]:
    return [f'{name.removesuffix("_per_class")}_class_{k}' for k in range(number)]


def _stack(parts: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    found = list(parts)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
