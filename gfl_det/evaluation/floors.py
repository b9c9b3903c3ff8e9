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
Prior Densities in Bayesian Hypothesis Tests", JRSS B 2010. With many detections the posterior is
too smooth and gives way to the mean of two estimates, one too large and one too small unless scores
are calibrated: the published error, corrected likewise; and the gaps times their expected sign,
less the covariance of the two (Stein, "Estimation of the Mean of a Multivariate Normal
Distribution", Annals of Statistics 1981).
The other estimate is :func:`.functional.sweep_error`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from gfl_det.evaluation.functional import (
    DECE_BINS,
    LAECE_BINS,
    laace,
    laece,
    nan_mean,
    sweep_error,
)
from gfl_det.evaluation.matching import TRUE, Matches

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
CELLS = 25  # minimum for the debiased error; D-ECE's bins are wide enough to hide a change of sign
# The variances come from the same detections as the gaps, so that the correction of 50 IoUs is too
# large by up to a tenth; .05 leaves .004 where it is exact.
CORRECTED = 0.95
CHUNK = 2**18  # residuals per draw
ROWS = 2**18  # detections at a time
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
    sweep: np.ndarray  # see :func:`.functional.sweep_error`; NaN for LaACE, which has no bins

    @property
    def inside(self) -> np.ndarray:
        """Whether at least one in twenty perfectly calibrated detectors has such an error."""
        return np.asarray(self.value <= self.upper)


class ErrorFloor(NamedTuple):
    """Floors of the metric and of each class; D-ECE is not per class and has a single entry."""

    pooled: Floor
    per_class: Floor


class _Sorted(NamedTuple):
    """All N detections of some classes, sorted by class and score."""

    scores: np.ndarray  # (N,) float64
    targets: np.ndarray  # (N,) float64
    label: np.ndarray  # (N,) integers

    @classmethod
    def of(cls, scores: np.ndarray, targets: np.ndarray, label: np.ndarray | None) -> _Sorted:
        """Sort detections; without labels they are of one class."""
        if label is None:
            order, label = np.argsort(scores, kind='stable'), np.broadcast_to(0, len(scores))
        else:
            order = np.lexsort((scores, label))
            label = label[order]
        ordered = scores[order].astype(float, copy=False)
        return cls(ordered, targets[order].astype(float, copy=False), label)

    def classes(self) -> Iterator[tuple[int, _Sorted]]:
        """Yield the label and the detections of each class that has some."""
        last = np.flatnonzero(self.label[1:] != self.label[:-1]) + 1
        ends = [*last.tolist(), len(self.label)] if len(self.label) else []
        for begin, end in zip([0, *ends], ends):
            yield int(self.label[begin]), _Sorted(*(values[begin:end] for values in self))


def _sorted_groups(matches: Matches) -> Iterator[_Sorted]:
    """Judged detections with their IoUs, some classes at a time."""
    for part in matches.groups():
        judged = part.judged()
        yield _Sorted.of(part.scores[judged], part.iou[judged], part.label[judged])


class _Windows(NamedTuple):
    """Neighbours in score of R consecutive detections, among the N of their classes."""

    label: np.ndarray  # (R,)
    scores: np.ndarray  # (R,)
    own: np.ndarray  # (R,) target - score
    gaps: np.ndarray  # (N,) the same of all
    first: np.ndarray  # (R,) int64, index of the first neighbour
    size: np.ndarray  # (R,) int64, at most the number asked for, fewer in a small class
    mean: np.ndarray  # (R,) mean gap of the neighbours
    scale: np.ndarray  # (R,) correction for the mean, which is estimated from the same neighbours

    @classmethod
    def along(cls, found: _Sorted, counts: np.ndarray, neighbours: int) -> Iterator[_Windows]:
        """Yield `ROWS` detections at a time; ``counts`` ``(K,)`` are those of the classes."""
        gaps, total = found.targets - found.scores, np.zeros(len(found.scores) + 1)
        np.cumsum(gaps, out=total[1:])
        starts = np.cumsum(counts) - counts
        for begin in range(0, len(gaps), ROWS):
            part = slice(begin, begin + ROWS)
            label, own = found.label[part], gaps[part]
            number, start = counts[label], starts[label]
            size = np.minimum(neighbours, number)
            first = np.arange(begin, begin + len(own)) - size // 2
            first = np.clip(first, start, start + number - size)
            mean = (total[first + size] - total[first]) / size
            scale = np.sqrt(size / np.maximum(size - 1, 1))
            yield cls(label, found.scores[part], own, gaps, first, size, mean, scale)

    def residuals(self, rows: np.ndarray | slice, step: int) -> np.ndarray:
        """Residuals of one neighbour of some detections; of the last one if they have fewer."""
        place = self.first[rows] + np.minimum(step, self.size[rows] - 1)
        return (self.gaps[place] - self.mean[rows]) * self.scale[rows]

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean absolute and mean squared residual of each detection, both ``(R,)``.

        A class with a single detection has the widest residuals: target 0 or 1.
        """
        absolute, squared = np.zeros(len(self.own)), np.zeros(len(self.own))
        for step in range(self.size.max(initial=0)):
            residual = self.residuals(slice(None), step) * (step < self.size)
            absolute += np.abs(residual)
            squared += residual**2
        widest = self.scores * (1 - self.scores)  # variance of targets in [0, 1] with this mean
        alone = self.size == 1
        return (
            np.where(alone, 2 * widest, absolute / self.size),
            np.where(alone, widest, squared / self.size),
        )


class _Few(NamedTuple):
    """Detections of sparse bins, whose residuals are drawn one by one."""

    cell: np.ndarray  # (F,) int64, class and bin
    scores: np.ndarray  # (F,)
    size: np.ndarray  # (F,) int64, number of known residuals; 1: targets are 0 or 1
    residuals: np.ndarray  # (F, NEIGHBOURS)

    @classmethod
    def of(cls, windows: _Windows, cell: np.ndarray, rows: np.ndarray) -> _Few:
        known = [windows.residuals(rows, step) for step in range(NEIGHBOURS)]
        return cls(cell[rows], windows.scores[rows], windows.size[rows], np.stack(known, 1))

    def draw(self, uniform: np.ndarray) -> np.ndarray:
        """Residuals ``(D, F)`` from random numbers in [0, 1)."""
        place = (uniform * self.size).astype(np.int64)
        drawn = self.residuals[np.arange(len(self.size)), place]
        return np.where(self.size > 1, drawn, (uniform < self.scores) - self.scores)


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
    found = _Sorted.of(np.asarray(scores), np.asarray(targets), label)
    return _binned([found], (num_classes, num_bins), binary, seed, draws)


def _binned(
    groups: Iterable[_Sorted], shape: tuple[int, int], binary: bool, seed: int, draws: int = DRAWS
) -> ErrorFloor:
    """The floor of :func:`binned_floor`, from detections of some classes at a time."""
    parts = -(-CELLS // shape[1])  # cells per bin
    sums, few = np.zeros((4, *shape, parts)), []
    sweep = np.full(shape[0], np.nan)
    for group in groups:
        for label, own in group.classes():
            sweep[label] = sweep_error(own.scores, own.targets)
        few += _add(group, sums, binary)
    cells = _draw(sums.reshape(4, shape[0], -1), few, draws, np.random.default_rng(seed))
    number = cells.number.sum(1)

    def published(gaps: np.ndarray) -> np.ndarray:
        in_bins = gaps.reshape(*gaps.shape[:-1], -1, parts).sum(-1)
        with np.errstate(invalid='ignore', divide='ignore'):
            return np.where(number > 0, np.abs(in_bins).sum(-1) / number, np.nan)

    value, drawn = published(cells.gap), published(cells.drawn)
    debiased, upper = _debiased(cells, value, drawn), np.quantile(drawn, QUANTILE, axis=0)
    per_class = Floor(value, number, drawn.mean(0), upper, debiased, sweep)
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
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0.0, **found, **right, **number)
        >>> floor = laece_floor(matches).pooled
        >>> round(float(floor.value), 3), int(floor.number), bool(floor.inside)  # few say nothing
        (0.35, 2, True)
    """
    floor = _binned(_sorted_groups(matches), (len(matches.gt_counts), num_bins), False, seed)
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
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0.0, **found, **right, **number)
        >>> floor = laace_floor(matches).pooled
        >>> round(float(floor.value), 3), round(float(floor.value - floor.mean - floor.debiased), 9)
        (0.35, 0.0)
    """
    classes = len(matches.gt_counts)
    number, sums = np.zeros(classes, int), np.zeros((2, classes))
    for group in _sorted_groups(matches):
        counts = np.bincount(group.label, minlength=classes)
        number += counts
        for part in _Windows.along(group, counts, NEIGHBOURS):
            absolute, squared = part.moments()
            sums[0] += np.bincount(part.label, absolute, classes)
            spread = np.maximum(0, squared - absolute**2)
            sums[1] += np.bincount(part.label, spread, classes)
    with np.errstate(invalid='ignore', divide='ignore'):
        mean, variance = sums[0] / number, sums[1] / number**2
    value = laace(matches).per_class
    upper = mean + NORMAL_QUANTILE * np.sqrt(variance)
    per_class = Floor(value, number, mean, upper, value - mean, np.full(classes, np.nan))
    used = number > 0
    deviation = np.sqrt(variance[used].sum()) / max(1, used.sum())
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
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0.5, **found, **right, **number)
        >>> bool(dece_floor(matches).pooled.inside)  # two detections say nothing
        True
    """
    judged = matches.judged()
    found = _Sorted.of(matches.scores[judged], matches.state[judged] == TRUE, None)
    return _binned([found], (1, num_bins), True, seed)


def _add(group: _Sorted, sums: np.ndarray, binary: bool) -> list[_Few]:
    """Add to the number, scores, variance and gaps of the bins; return what sparse bins hold.

    Args:
        group: Detections of whole classes.
        sums: ``(4, K, J, P)`` of P cells per bin, changed in place.
        binary: Targets are 0 or 1; a neighbour's residual is not needed.
    """
    classes, *bins = sums.shape[1:]
    number = np.zeros(sums[0].size, int)
    for begin in range(0, len(group.scores), ROWS):
        part = slice(begin, begin + ROWS)
        cell = _cells(group.label[part], group.scores[part], bins)
        number += np.bincount(cell, minlength=number.size)
    counts, few = number.reshape(classes, -1).sum(1), []
    near = _Windows.along(group, counts, 1 if binary else NEIGHBOURS)
    wide = _Windows.along(group, counts, 1 if binary else VARIANCE_NEIGHBOURS)
    for windows, wider in zip(near, wide):
        cell = _cells(windows.label, windows.scores, bins)
        weights = (None, windows.scores, wider.moments()[1], windows.own)
        for total, each in zip(sums.reshape(4, -1), weights):
            total += np.bincount(cell, each, number.size)
        few.append(_Few.of(windows, cell, np.flatnonzero(number[cell] <= EXACT)))
    return few


def _cells(label: np.ndarray, scores: np.ndarray, bins: Sequence[int]) -> np.ndarray:
    """Index of the class and cell of each detection, for the numbers of bins and cells per bin."""
    ends = np.linspace(0, 1, bins[0] + 1)
    inside = np.arange(bins[1]) / bins[1]
    begins = (ends[:-1, None] + np.diff(ends)[:, None] * inside).ravel()
    return label * len(begins) + (np.searchsorted(begins, scores) - 1).clip(0)


def _draw(sums: np.ndarray, few: list[_Few], draws: int, rng: np.random.Generator) -> _Bins:
    """Bin sums, and draws of the sums under calibration."""
    number, score, variance, gap = sums
    cells, sparse = number.size, number.ravel() <= EXACT
    drawn = rng.normal(size=(draws, cells)) * np.sqrt(variance.ravel()) * ~sparse
    if few:
        alone = _Few(*(np.concatenate(each) for each in zip(*few)))
        step = max(1, CHUNK // max(1, len(alone.cell)))
        for begin in range(0, draws, step):
            part = drawn[begin : begin + step]
            residuals = alone.draw(rng.random((len(part), len(alone.cell))))
            place = alone.cell + np.arange(len(part))[:, None] * cells
            part += np.bincount(place.ravel(), residuals.ravel(), part.size).reshape(part.shape)
    return _Bins(
        number.astype(int),
        score / np.maximum(number, 1),
        variance,
        gap,
        drawn.reshape(draws, *number.shape),
    )


def _debiased(cells: _Bins, value: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Debiased errors ``(K,)``; see the module docstring.

    Args:
        cells: Sums in cells, parts of bins.
        value: ``(K,)`` published errors.
        drawn: ``(D, K)`` the same of perfectly calibrated detectors.
    """
    draws, classes, size = cells.drawn.shape
    step = max(1, CHUNK // (draws * size))
    found = np.full(classes, np.nan)
    for begin in range(0, classes, step):
        part = slice(begin, begin + step)
        number, score, variance, gap, gaps = cells
        some = _Bins(number[part], score[part], variance[part], gap[part], gaps[:, part])
        smooth, low, calibrated = _posterior(some)
        share = CORRECTED * calibrated[:, 0] / np.maximum(calibrated[:, 1:].mean(1), TINY)
        high = value[part] - share * drawn[:, part].mean(0)
        noise = some.variance.sum(1) / np.maximum(some.number.sum(1), 1) ** 2
        weight = SMOOTHED**4 / (SMOOTHED**4 + noise**2)
        corrected = smooth[:, 0] - share * smooth[:, 1:].mean(1)
        found[part] = weight * (high + low) / 2 + (1 - weight) * corrected
    return np.where(cells.number.sum(1) > 0, found, np.nan)


def _posterior(bins: _Bins) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expected errors, Stein's estimates ``(K,)`` and probabilities of calibration.

    The first and the last are ``(K, 1 + D)``: of data and draws.
    """
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
    sign = scipy.special.erf(ratio / np.sqrt(2))  # expected under the posterior
    # Both the expected absolute value of a normal variable beyond its mean times the expected sign
    # and the covariance of a noisy gap and its sign.
    beyond = doubt * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2)
    smooth = (share[:, None] * (fitted * sign + beyond)).sum(-1)
    low = (bins.gap * sign[:, 0] / number[:, None] - share * beyond[:, 0]).sum(-1)
    squared = (share[:, None] * (fitted**2 + doubt**2)).sum(-1) / PRIOR_GAP**2
    odds = evidence + np.log(np.maximum(squared, TINY)) + np.log(PRIOR_ODDS)
    return smooth, low, scipy.special.expit(-odds)


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
