"""Noise floors of calibration errors: the error of a perfectly calibrated detector.

Calibration errors average absolute gaps between scores and targets, which are positive for any
finite number of detections. The floor is the error of a detector with the same scores whose
expected target is the score: targets are redrawn around each score, with residuals from the data,
and the error is computed again. A value inside its floor is no evidence of miscalibration.

Two estimates complement the published errors. The debiased estimate is 0 on average under
calibration and may be negative (in the spirit of Kumar, Liang and Ma, "Verified Uncertainty
Calibration", NeurIPS 2019, arXiv 1909.10155, who debias the squared error). The mean gap by score
gets a Gaussian process prior; the expected absolute gap under its posterior is the error, and its
value on pure noise is subtracted, weighted by the posterior probability of calibration, so that the
correction vanishes as the data contradict calibration. There the prior is multiplied by the squared
gap, which leaves it no density at calibration itself: Johnson and Rossell, "On the Use of Non-Local
Prior Densities in Bayesian Hypothesis Tests", JRSS B 2010. With many detections the gaps as they
are, times their expected sign, replace those of the posterior, whose curve is smooth.
The other estimate is the sweep of Roelofs et al., "Mitigating Bias in Calibration Error
Estimation", AISTATS 2022 (arXiv 2012.08668).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import erf, expit

from gfl_det.evaluation.functional import DECE_BINS, LAECE_BINS, laace, laece, nan_mean, targets_of
from gfl_det.evaluation.matching import Matches

DRAWS = 200
NEIGHBOURS = 20  # detections of similar score from which a residual is drawn
EXACT = 32  # detections per bin; sums over more are drawn from a normal distribution
QUANTILE = 0.95
NORMAL_QUANTILE = 1.6448536  # of the standard normal distribution at QUANTILE
VARIANCE_NEIGHBOURS = 40  # detections of similar score that give the variance of residuals
# Prior of the mean gap by score. Chosen on one generator of detections (uniform scores) and
# confirmed on others; docs/results/calibration.md reports both.
PRIOR_GAP = 0.12  # root mean square
PRIOR_LENGTH = 0.7  # distance over which gaps are similar, in standard deviations of the scores
PRIOR_ODDS = 20  # of miscalibration
SMOOTHED = 0.01  # standard error of the mean gap below which gaps are used as they are
# The variances come from the same detections as the gaps, so that the correction of 50 IoUs is too
# large by up to a tenth; .05 leaves .004 where it is exact.
CORRECTED = 0.95
MAX_SWEEP_BINS = 200
CHUNK = 2**18  # residuals per draw
TINY = 1e-12  # least variance, against division by zero


class Floor(NamedTuple):
    """Calibration error with its noise floor: floats, or ``(K,)`` for K classes.

    NaN without detections.
    """

    value: np.ndarray  # error as published
    number: np.ndarray  # number of detections
    mean: np.ndarray  # mean error of a perfectly calibrated detector with these scores
    upper: np.ndarray  # .95 quantile of the same
    debiased: np.ndarray  # 0 on average under calibration; may be negative
    sweep: np.ndarray  # see `sweep_error`; NaN for LaACE, which has no bins

    @property
    def inside(self) -> np.ndarray:
        """Whether at least one in twenty perfectly calibrated detectors has such an error."""
        return np.asarray(self.value <= self.upper)


class ErrorFloor(NamedTuple):
    """Floors of the metric and of each class; D-ECE is not per class and has a single entry."""

    pooled: Floor
    per_class: Floor


class _Windows(NamedTuple):
    """Neighbours in score of each of N detections, sorted by class and score."""

    scores: np.ndarray  # (N,)
    gaps: np.ndarray  # (N,) target - score
    first: np.ndarray  # (N,) int64, index of the first neighbour
    size: np.ndarray  # (N,) int64, number of neighbours, fewer in a small class
    mean: np.ndarray  # (N,) mean gap of the neighbours
    scale: np.ndarray  # (N,) correction for the mean, which is estimated from the same neighbours

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        targets: np.ndarray,
        label: np.ndarray,
        num_classes: int,
        neighbours: int = NEIGHBOURS,
    ) -> _Windows:
        gaps = targets - scores
        number = np.bincount(label, minlength=num_classes)
        begin = (np.cumsum(number) - number)[label]
        size = np.minimum(neighbours, number[label])
        first = np.clip(np.arange(len(label)) - size // 2, begin, begin + number[label] - size)
        total = np.concatenate([[0.0], np.cumsum(gaps)])
        mean = (total[first + size] - total[first]) / size
        return cls(scores, gaps, first, size, mean, np.sqrt(size / np.maximum(size - 1, 1)))

    def draw(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Residuals ``(D, R)`` of R rows from random numbers in [0, 1).

        A class with a single detection has the widest residuals: target 0 or 1.
        """
        place = self.first[rows] + (uniform * self.size[rows]).astype(np.int64)
        drawn = (self.gaps[place] - self.mean[rows]) * self.scale[rows]
        scores = self.scores[rows]
        return np.where(self.size[rows] > 1, drawn, (uniform < scores) - scores)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean absolute and mean squared residual of each detection, both ``(N,)``."""
        absolute, squared = np.zeros(len(self.gaps)), np.zeros(len(self.gaps))
        for step in range(int(self.size.max(initial=0))):
            place = self.first + np.minimum(step, self.size - 1)
            residual = (self.gaps[place] - self.mean) * self.scale * (step < self.size)
            absolute += np.abs(residual)
            squared += residual**2
        widest = self.scores * (1 - self.scores)  # variance of targets in [0, 1] with this mean
        alone = self.size == 1
        return (
            np.where(alone, 2 * widest, absolute / self.size),
            np.where(alone, widest, squared / self.size),
        )

    def variance(self) -> np.ndarray:
        """Mean squared residual of each detection, ``(N,)``: that of `moments`, in one pass."""
        total = np.concatenate([[0.0], np.cumsum(self.gaps**2)])
        squared = (total[self.first + self.size] - total[self.first]) / self.size - self.mean**2
        widest = self.scores * (1 - self.scores)
        return np.where(self.size == 1, widest, np.maximum(0, squared) * self.scale**2)


class _Bins(NamedTuple):
    """Sums in J bins of K classes."""

    number: np.ndarray  # (K, J)
    score: np.ndarray  # (K, J) mean score, 0 in an empty bin
    variance: np.ndarray  # (K, J) variance of the sum of gaps under calibration
    gap: np.ndarray  # (K, J) sum of target - score
    drawn: np.ndarray  # (D, K, J) the same sum for perfectly calibrated detectors


def binned_floor(
    scores: np.ndarray,
    targets: np.ndarray,
    num_bins: int,
    label: np.ndarray | None = None,
    num_classes: int = 1,
    binary: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
) -> ErrorFloor:
    """Floor of an error over equal-width score bins, per class and for the mean over classes.

    Args:
        scores: ``(N,)`` in [0, 1].
        targets: ``(N,)``, the values that scores should equal on average.
        num_bins: Number of bins, J.
        label: ``(N,)`` int64, class of each detection; None: one class.
        num_classes: Number of classes, K; the mean is over those with detections.
        binary: Targets are 0 or 1 and are drawn with the score as their probability; otherwise
            residuals are drawn from detections of similar scores.
        seed: Seed of the draws.
        draws: Number of draws of the perfectly calibrated detector.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> scores = rng.uniform(0.3, 0.86, 100)
        >>> right = rng.random(100) < scores  # calibrated, and yet
        >>> floor = binned_floor(scores, right.astype(float), 25, binary=True).pooled
        >>> bool(floor.value > 0.1), bool(floor.inside), bool(floor.debiased < floor.value)
        (True, True, True)
    """
    label = np.zeros(len(scores), np.int64) if label is None else label
    order = np.lexsort((scores, label))
    scores, targets, label = scores[order], np.asarray(targets, float)[order], label[order]
    bins = _fill(
        scores, targets, label, (num_classes, num_bins), binary, draws, np.random.default_rng(seed)
    )
    number = bins.number.sum(1)
    with np.errstate(invalid='ignore', divide='ignore'):
        value = np.where(number > 0, np.abs(bins.gap).sum(1) / number, np.nan)
        drawn = np.where(number > 0, np.abs(bins.drawn).sum(2) / number, np.nan)
    begin = np.searchsorted(label, np.arange(num_classes + 1))
    sweep = [
        sweep_error(scores[first:last], targets[first:last])
        for first, last in zip(begin, begin[1:])
    ]
    per_class = Floor(
        value,
        number,
        drawn.mean(0),
        np.quantile(drawn, QUANTILE, axis=0),
        _debiased(bins),
        np.array(sweep),
    )
    used = drawn[:, number > 0]
    mean = used.mean(1) if used.size else np.array([np.nan])
    return ErrorFloor(_pooled(per_class, mean.mean(), np.quantile(mean, QUANTILE)), per_class)


def laece_floor(matches: Matches, num_bins: int = LAECE_BINS, seed: int = 0) -> ErrorFloor:
    """Floor of LaECE.

    Args:
        matches: As in :func:`.functional.laece`.
        num_bins: Number of equal-width score bins.
        seed: Seed of the draws.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([1, 0]), iou=np.array([0.8, 0.0]))
        >>> number = dict(truth=np.array([0, -1]), truths=np.array([1]))
        >>> matches = Matches(tau=0.0, **found, **right, **number)
        >>> floor = laece_floor(matches).pooled
        >>> round(float(floor.value), 3), int(floor.number), bool(floor.inside)  # few say nothing
        (0.35, 2, True)
    """
    judged = matches.judged()
    floor = binned_floor(
        matches.scores[judged],
        matches.iou[judged],
        num_bins,
        matches.label[judged],
        len(matches.truths),
        seed=seed,
    )
    error = laece(matches, num_bins)  # the published error, equal up to rounding
    return _published(floor, error.mean, error.per_class)


def laace_floor(matches: Matches) -> ErrorFloor:
    """Floor of LaACE: the mean deviation of targets from a correct score.

    The debiased value is the excess due to miscalibration.

    Args:
        matches: As in :func:`.functional.laace`.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([1, 0]), iou=np.array([0.8, 0.0]))
        >>> number = dict(truth=np.array([0, -1]), truths=np.array([1]))
        >>> matches = Matches(tau=0.0, **found, **right, **number)
        >>> floor = laace_floor(matches).pooled
        >>> round(float(floor.value), 3), round(float(floor.value - floor.mean - floor.debiased), 9)
        (0.35, 0.0)
    """
    order = np.flatnonzero(matches.judged())
    order = order[np.lexsort((matches.scores[order], matches.label[order]))]
    label, number_of = matches.label[order], len(matches.truths)
    windows = _Windows.of(matches.scores[order], matches.iou[order], label, number_of)
    absolute, squared = windows.moments()
    number = np.bincount(label, minlength=number_of)
    with np.errstate(invalid='ignore', divide='ignore'):
        mean = np.bincount(label, absolute, number_of) / number
        spread = np.maximum(0, squared - absolute**2)
        variance = np.bincount(label, spread, number_of) / number**2
    value = laace(matches).per_class
    upper = mean + NORMAL_QUANTILE * np.sqrt(variance)
    per_class = Floor(value, number, mean, upper, value - mean, np.full(number_of, np.nan))
    classes = max(1, int((number > 0).sum()))
    deviation = np.sqrt(variance[number > 0].sum()) / classes
    pooled = nan_mean(mean)
    upper_pooled = pooled + NORMAL_QUANTILE * deviation
    return ErrorFloor(_pooled(per_class, pooled, upper_pooled), per_class)


def dece_floor(matches: Matches, num_bins: int = DECE_BINS, seed: int = 0) -> ErrorFloor:
    """Floor of D-ECE.

    Args:
        matches: As in :func:`.functional.dece`.
        num_bins: Number of equal-width score bins.
        seed: Seed of the draws.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([1, 0]), iou=np.array([0.8, 0.0]))
        >>> number = dict(truth=np.array([0, -1]), truths=np.array([1]))
        >>> matches = Matches(tau=0.5, **found, **right, **number)
        >>> bool(dece_floor(matches).pooled.inside)  # two detections say nothing
        True
    """
    judged = matches.judged()
    right = targets_of(matches, 'precision')[judged]
    return binned_floor(matches.scores[judged], right, num_bins, binary=True, seed=seed)


def sweep_error(scores: np.ndarray, targets: np.ndarray) -> float:
    """Calibration error with as many equal-count bins as keep the mean targets non-decreasing.

    ECE-sweep of Roelofs et al. with an exponent of 1 and up to 200 bins; equal scores share a bin.

    Args:
        scores: ``(N,)`` in [0, 1].
        targets: ``(N,)``.

    Returns:
        The error; NaN without a detection.

    Example:
        >>> scores = np.array([0.2, 0.4, 0.6, 0.8])
        >>> round(sweep_error(scores, np.array([0.1, 0.5, 0.5, 0.9])), 3)  # every one a bin
        0.1
        >>> round(sweep_error(scores, np.array([0.9, 0.5, 0.5, 0.1])), 3)  # one bin for all
        0.0
    """
    number = len(scores)
    if not number:
        return float('nan')
    order = np.argsort(scores, kind='stable')
    sorted_scores = scores[order]
    target_sums = np.concatenate([[0.0], np.cumsum(targets[order])])
    gap_sums = target_sums - np.concatenate([[0.0], np.cumsum(sorted_scores)])
    error = abs(gap_sums[-1])
    for bins in range(2, min(number, MAX_SWEEP_BINS) + 1):
        last = sorted_scores[np.arange(1, bins + 1) * number // bins - 1]
        ends = np.append(0, np.unique(np.searchsorted(sorted_scores, last, side='right')))
        if (np.diff(np.diff(target_sums[ends]) / np.diff(ends)) < 0).any():
            break
        error = np.abs(np.diff(gap_sums[ends])).sum()
    return float(error / number)


def _fill(
    scores: np.ndarray,
    targets: np.ndarray,
    label: np.ndarray,
    shape: tuple[int, int],
    binary: bool,
    draws: int,
    rng: np.random.Generator,
) -> _Bins:
    """Bin sums of detections sorted by class and score, and draws of the sums under calibration."""
    cells = shape[0] * shape[1]
    edges = np.linspace(0, 1, shape[1] + 1)
    cell = label * shape[1] + (np.searchsorted(edges, scores) - 1).clip(0, shape[1] - 1)
    windows = _Windows.of(scores, targets, label, shape[0])
    if binary:
        spread = scores * (1 - scores)
    else:
        wide = _Windows.of(scores, targets, label, shape[0], VARIANCE_NEIGHBOURS)
        spread = wide.variance()
    number = np.bincount(cell, minlength=cells)
    variance = np.bincount(cell, spread, cells)
    few = np.flatnonzero(number[cell] <= EXACT)
    drawn = rng.normal(size=(draws, cells)) * np.sqrt(variance) * (number > EXACT)
    step = max(1, CHUNK // max(1, len(few)))
    for begin in range(0, draws, step):
        part = drawn[begin : begin + step]
        uniform = rng.random((len(part), len(few)))
        flips = (uniform < scores[few]) - scores[few]
        residuals = flips if binary else windows.draw(few, uniform)
        place = cell[few] + np.arange(len(part))[:, None] * cells
        sums = np.bincount(place.ravel(), residuals.ravel(), part.size)
        part += sums.reshape(part.shape)
    return _Bins(
        number.reshape(shape),
        (np.bincount(cell, scores, cells) / np.maximum(number, 1)).reshape(shape),
        variance.reshape(shape),
        np.bincount(cell, windows.gaps, cells).reshape(shape),
        drawn.reshape(draws, *shape),
    )


def _debiased(bins: _Bins) -> np.ndarray:
    """Debiased errors ``(K,)``; see the module docstring."""
    draws, classes, size = bins.drawn.shape
    step = max(1, CHUNK // (draws * size))
    found = np.full(classes, np.nan)
    for begin in range(0, classes, step):
        part = slice(begin, begin + step)
        sums = (each[part] for each in bins[:-1])
        error, calibrated = _posterior(_Bins(*sums, bins.drawn[:, part]))
        excess = error[:, 1:].mean(1) / np.maximum(calibrated[:, 1:].mean(1), TINY)
        found[part] = error[:, 0] - CORRECTED * calibrated[:, 0] * excess
    return np.where(bins.number.sum(1) > 0, found, np.nan)


def _posterior(bins: _Bins) -> tuple[np.ndarray, np.ndarray]:
    """Expected errors and probabilities of calibration, both ``(K, 1 + D)``: of data and draws."""
    number = np.maximum(bins.number.sum(1), 1)
    share = bins.number / number[:, None]
    centred = bins.score - (share * bins.score).sum(1, keepdims=True)
    spread = np.sqrt((share * centred**2).sum(1, keepdims=True))
    place = np.where(share > 0, centred / np.maximum(spread, TINY), 0) / PRIOR_LENGTH
    prior = PRIOR_GAP**2 * np.exp(-((place[:, :, None] - place[:, None]) ** 2) / 2)
    deviation = np.sqrt(np.maximum(bins.variance, TINY))
    # In units of their standard errors the gaps of bins have unit noise.
    precision = bins.number / deviation
    values, vectors = np.linalg.eigh(precision[:, :, None] * prior * precision[:, None])
    values = np.maximum(values, 0)
    kept = values / (1 + values)
    gaps = np.concatenate([bins.gap[:, None], np.moveaxis(bins.drawn, 0, 1)], 1)  # (K, 1 + D, J)
    rotated = (gaps / deviation[:, None]) @ vectors
    evidence = (rotated**2 @ kept[..., None])[..., 0] / 2 - np.log1p(values).sum(1)[:, None] / 2
    error = np.where(share > 0, deviation / np.maximum(bins.number, 1), 0)
    fitted = (rotated * kept[:, None]) @ np.moveaxis(vectors, 1, 2) * error[:, None]
    doubt = (np.sqrt((vectors**2 @ kept[..., None])[..., 0]) * error)[:, None]
    ratio = fitted / np.maximum(doubt, TINY)
    sign = erf(ratio / np.sqrt(2))  # expected under the posterior
    folded = fitted * sign + doubt * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2)
    smooth, raw = (share[:, None] * folded).sum(-1), (gaps * sign).sum(-1) / number[:, None]
    noise = (bins.variance.sum(1) / number**2)[:, None]
    weight = SMOOTHED**2 / (SMOOTHED**2 + noise)
    squared = (share[:, None] * (fitted**2 + doubt**2)).sum(-1) / PRIOR_GAP**2
    odds = evidence + np.log(np.maximum(squared, TINY)) + np.log(PRIOR_ODDS)
    return weight * raw + (1 - weight) * smooth, expit(-odds)


def _pooled(per_class: Floor, mean: float, upper: float) -> Floor:
    """Mean over the classes that have a value."""
    return Floor(
        np.array(nan_mean(per_class.value)),
        per_class.number.sum(),
        np.array(mean),
        np.array(upper),
        np.array(nan_mean(per_class.debiased)),
        np.array(nan_mean(per_class.sweep)),
    )


def _published(floor: ErrorFloor, mean: float, per_class: np.ndarray) -> ErrorFloor:
    return ErrorFloor(
        floor.pooled._replace(value=np.array(mean)), floor.per_class._replace(value=per_class)
    )
