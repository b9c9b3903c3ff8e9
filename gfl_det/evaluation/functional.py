"""Metrics of matched detections: LRP, reliability, calibration errors, AP.

Sources: Oksuz et al., "Localization Recall Precision (LRP): A New Performance Metric for Object
Detection", ECCV 2018 (LRP, oLRP); Oksuz et al., "Towards Building Self-Aware Object
Detectors via Reliable Uncertainty Quantification and Calibration", CVPR 2023 (LaECE); Kuzucu et
al., "On Calibration of Object Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024 (LaECE_0,
LaACE); Kueppers et al., "Multivariate Confidence Calibration for Object Detection", CVPRW 2020
(D-ECE); Roelofs et al., "Mitigating Bias in Calibration Error Estimation", AISTATS 2022, arXiv
2012.08668 (sweep).

A class without gt boxes is left out, with its detections, and so is one without a detection that
counts: neither is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from gfl_det.evaluation.matching import FALSE, IGNORED, TRUE, Matches

Target = Literal['iou', 'precision']
TARGETS = ('iou', 'precision')
LAECE_BINS = 25
DECE_BINS = 10
MAX_SWEEP_BINS = 200
COCO_TAUS = np.linspace(0.5, 0.95, 10)  # those of COCO's AP
HALF = 0  # index of 0.5 among them: the IoU of D-ECE, oLRP and AP50
RECALLS = np.linspace(0, 1, 101)


class LRP(NamedTuple):
    """LRP error of each class and its components, all in [0, 1]: 0 is perfect, 1 finds nothing.

    NaN for classes without gt boxes; ``loc`` and ``fp`` also where nothing is found.
    """

    total: np.ndarray  # (K,)
    loc: np.ndarray  # (K,) mean of 1 - IoU over the true positives
    fp: np.ndarray  # (K,) 1 - precision
    fn: np.ndarray  # (K,) 1 - recall

    def means(self) -> LRP:
        """Each over the classes that have a value; NaN if none has."""
        return LRP(*(np.array(nan_mean(values)) for values in self))


class OptimalLRP(NamedTuple):
    """LRP of each class when its detections are cut where it is least."""

    lrp: LRP
    thresholds: np.ndarray  # (K,) scores of the last kept; NaN, which keeps all: nothing is found


def nan_mean(values: np.ndarray) -> float:
    """Mean over what is not NaN; NaN of nothing.

    Example:
        >>> nan_mean(np.array([1.0, np.nan, 3.0]))
        2.0
    """
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float('nan')


def lrp(matches: Matches) -> LRP:
    """LRP of all detections.

    Args:
        matches: at tau below 1.

    Returns:
        For each class ``(sum (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN)`` and the parts.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([TRUE, FALSE]), iou=np.array([0.8, 0]))
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0.5, **found, **right, **number)
        >>> float(lrp(matches).total[0].round(4))  # ((1 - .8) / (1 - .5) + 1) / 2
        0.7
    """
    sums = np.zeros((3, len(matches.gt_counts)))
    for part in matches.pieces():
        right, wrong = part.state == TRUE, part.state == FALSE
        for total, weights in zip(sums, (right, wrong, np.where(right, 1 - part.iou, 0))):
            total += np.bincount(part.label, weights, len(total))
    return _from_sums(sums[0], sums[1], sums[2], matches.gt_counts, matches.tau)


def optimal_lrp(matches: Matches) -> OptimalLRP:
    """The least LRP over all cuts of each class, the highest score at a tie.

    Args:
        matches: at tau below 1.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([TRUE, FALSE]), iou=np.array([0.8, 0]))
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0.5, **found, **right, **number)
        >>> optimal_lrp(matches).thresholds
        array([0.9])
    """
    number = len(matches.gt_counts)
    counts, thresholds = np.zeros((3, number)), np.full(number, np.nan)
    for label in np.flatnonzero(matches.gt_counts):
        of_class = matches.of_class(int(label))
        places = np.flatnonzero(of_class.state == TRUE)
        if not len(places):
            counts[1, label] = (of_class.state == FALSE).sum()
            continue
        distance = np.cumsum(1 - of_class.iou[places])
        right, wrong = _right_and_wrong(of_class.state)
        if places[0]:  # cuts at others are no better, except before the first true positive
            first = int(of_class.state[0] == FALSE)
            places, distance = np.append(0, places), np.append(0, distance)
            right, wrong = np.append(0, right), np.append(first, wrong)
        total = _total(right, wrong, distance, matches.gt_counts[label], matches.tau)
        best = total.argmin()
        counts[:, label] = right[best], wrong[best], distance[best]
        thresholds[label] = of_class.scores[places[best]]
    return OptimalLRP(
        _from_sums(counts[0], counts[1], counts[2], matches.gt_counts, matches.tau), thresholds
    )


def _right_and_wrong(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TRUE and FALSE detections up to each TRUE one, of the states of a class."""
    counted = np.flatnonzero(state[state != IGNORED] == TRUE)
    right = np.arange(1, len(counted) + 1)
    return right, counted + 1 - right


def _total(
    right: np.ndarray, wrong: np.ndarray, distance: np.ndarray, gt_counts: np.ndarray, tau: float
) -> np.ndarray:
    missed = gt_counts - right
    return (distance / (1 - tau) + wrong + missed) / (right + wrong + missed)


def _from_sums(
    right: np.ndarray, wrong: np.ndarray, distance: np.ndarray, gt_counts: np.ndarray, tau: float
) -> LRP:
    with np.errstate(invalid='ignore', divide='ignore'):  # classes without gt boxes are NaN
        total = _total(right, wrong, distance, gt_counts, tau)
        parts = LRP(total, distance / right, wrong / (right + wrong), 1 - right / gt_counts)
    found, known = right > 0, gt_counts > 0
    parts = parts._replace(
        loc=np.where(found, parts.loc, np.nan), fp=np.where(found, parts.fp, np.nan)
    )
    return LRP(*(np.where(known, values, np.nan) for values in parts))


class Reliability(NamedTuple):
    """One row for each group, one column for each of J bins; means of empty bins are NaN."""

    edges: np.ndarray  # (J + 1,) a bin holds (low, high], the first one its low edge too,
    # or with ``half_open`` [low, high)
    number: np.ndarray  # (G, J) int64, entries
    score: np.ndarray  # (G, J) mean score
    target: np.ndarray  # (G, J) mean target

    def gaps(self) -> np.ndarray:
        """Distance of the means ``(G, J)``, 0 for empty bins."""
        return np.where(self.number > 0, np.abs(self.target - self.score), 0)

    def weights(self) -> np.ndarray:
        """Parts of a group's entries ``(G, J)``, which sum to 1, or to 0 in an empty group."""
        return self.number / np.maximum(self.number.sum(1, keepdims=True), 1)

    def errors(self) -> np.ndarray:
        """Expected calibration error of each group ``(G,)``, NaN for an empty one."""
        value = (self.weights() * self.gaps()).sum(1)
        return np.where(self.number.sum(1) > 0, value, np.nan)


def reliability(
    scores: np.ndarray,
    targets: np.ndarray,
    edges: np.ndarray,
    groups: np.ndarray | None = None,
    num_groups: int = 1,
    half_open: bool = False,
) -> Reliability:
    """Sort scores into bins and average.

    Args:
        scores: ``(N,)`` within the edges.
        targets: ``(N,)`` what each score should be.
        edges: ``(J + 1,)`` ascending.
        groups: ``(N,)`` int64 in 0..num_groups-1; None: all in the first.
        num_groups: rows of the table.
        half_open: bins hold [low, high) in place of (low, high], and a score at the last edge is in
            none of them.

    Example:
        >>> scores, ious = np.array([0.2, 0.8, 0.9]), np.array([0.2, 0.5, 0.6])
        >>> table = reliability(scores, ious, np.array([0.0, 0.5, 1.0]))
        >>> table.number.tolist(), table.errors().round(3).tolist()
        ([[1, 2]], [0.2])
    """
    return _averages(edges, _bin_sums(scores, targets, edges, groups, num_groups, half_open))


def _bin_sums(
    scores: np.ndarray,
    targets: np.ndarray,
    edges: np.ndarray,
    groups: np.ndarray | None,
    num_groups: int,
    half_open: bool,
) -> np.ndarray:
    """Number, sum of scores and sum of targets in each bin, ``(3, G, J)``."""
    bins = len(edges) - 1
    if half_open:
        inside = scores < edges[-1]
        scores, targets = scores[inside], targets[inside]
        groups = None if groups is None else groups[inside]
        place = np.searchsorted(edges, scores, side='right') - 1
    else:
        place = (np.searchsorted(edges, scores) - 1).clip(0, bins - 1)
    if groups is not None:
        place = place + groups * bins
    sums = [np.bincount(place, weights, num_groups * bins) for weights in (None, scores, targets)]
    return np.reshape(sums, (3, num_groups, bins))


def _averages(edges: np.ndarray, sums: np.ndarray) -> Reliability:
    with np.errstate(invalid='ignore'):  # empty bins are NaN
        return Reliability(edges, sums[0].astype(int), sums[1] / sums[0], sums[2] / sums[0])


def _judged_table(
    matches: Matches,
    edges: np.ndarray,
    target: Target = 'iou',
    by_class: bool = True,
    half_open: bool = False,
) -> Reliability:
    """Reliability of the judged detections, of each class or of all together."""
    groups = len(matches.gt_counts) if by_class else 1
    sums = np.zeros((3, groups, len(edges) - 1))
    for part in matches.pieces():
        judged = part.judged()
        targets, label = targets_of(part, target)[judged], part.label[judged]
        own = label if by_class else None
        sums += _bin_sums(part.scores[judged], targets, edges, own, groups, half_open)
    return _averages(edges, sums)


class CalibrationError(NamedTuple):
    """An error in [0, 1]; ``mean`` is NaN where no class has one."""

    mean: float
    per_class: np.ndarray  # (K,) NaN for classes that are left out
    table: Reliability  # one row for each class, or a single one for all

    @property
    def classes_used(self) -> int:
        """How many classes the mean is taken over."""
        return int((~np.isnan(self.per_class)).sum())


class Skipped(NamedTuple):
    """Indices of the classes that metrics of calibration leave out."""

    without_truths: list[int]
    without_detections: list[int]  # that count


def skipped(matches: Matches) -> Skipped:
    """Classes that are left out, by reason.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([TRUE, FALSE]), iou=np.array([0.8, 0]))
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0.5, **found, **right, **number)
        >>> skipped(matches)
        Skipped(without_truths=[], without_detections=[])
    """
    found = _judged_counts(matches)
    none = matches.gt_counts == 0
    return Skipped(np.flatnonzero(none).tolist(), np.flatnonzero(~none & (found == 0)).tolist())


def _judged_counts(matches: Matches) -> np.ndarray:
    """Judged detections of each class, ``(K,)``."""
    classes = len(matches.gt_counts)
    parts = matches.pieces()
    return np.sum([np.bincount(each.label[each.judged()], minlength=classes) for each in parts], 0)


def targets_of(matches: Matches, target: Target) -> np.ndarray:
    """What each score should be ``(N,)``: the IoU of a true positive, or 1; 0 of the others.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([TRUE, FALSE]), iou=np.array([0.8, 0]))
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0.5, **found, **right, **number)
        >>> targets_of(matches, 'precision')
        array([1., 0.])
    """
    return matches.iou if target == 'iou' else (matches.state == TRUE).astype(float)


def laece(
    matches: Matches,
    num_bins: int = LAECE_BINS,
    drop_perfect: bool = False,
    as_saod: bool = False,
) -> CalibrationError:
    """Localisation-aware expected calibration error: scores against IoUs, class by class.

    Args:
        matches: at tau 0 for LaECE_0, at tau .1 for the LaECE of the SAOD paper.
        num_bins: equal bins of the score.
        drop_perfect: leave out classes without any error, as published figures do.
        as_saod: as in the first definition (Oksuz et al., 2023): bins hold [low, high), so that a
            score of 1 is in none, and a class with gt boxes but without detections counts as 0.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([TRUE, FALSE]), iou=np.array([0.8, 0]))
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0, **found, **right, **number)
        >>> round(laece(matches).mean, 4)  # (|.9 - .8| + |.6 - 0|) / 2
        0.35
    """
    table = _judged_table(matches, np.linspace(0, 1, num_bins + 1), half_open=as_saod)
    per_class = table.errors()
    if as_saod:
        found = _judged_counts(matches)
        # What is in no bin still counts among the detections.
        per_class = per_class * table.number.sum(1) / np.maximum(found, 1)
        per_class = np.where(matches.gt_counts > 0, np.nan_to_num(per_class), np.nan)
    return _averaged(per_class, table, drop_perfect)


def laace(
    matches: Matches, count_ignored: bool = False, drop_perfect: bool = False
) -> CalibrationError:
    """Localisation-aware adaptive calibration error: the mean of ``|score - IoU|``, by class.

    Args:
        matches: at tau 0 for LaACE_0.
        count_ignored: count detections of a crowd as wrong ones, as published figures do.
        drop_perfect: leave out classes without any error, as published figures do.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([TRUE, FALSE]), iou=np.array([0.8, 0]))
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0, **found, **right, **number)
        >>> round(laace(matches).mean, 4)
        0.35
    """
    classes, edges = len(matches.gt_counts), np.array([0.0, 1.0])
    sums, distances = np.zeros((3, classes, 1)), np.zeros(classes)
    for part in matches.pieces():
        counted = part.gt_counts[part.label] > 0 if count_ignored else part.judged()
        scores, ious, label = part.scores[counted], part.iou[counted], part.label[counted]
        sums += _bin_sums(scores, ious, edges, label, classes, False)
        distances += np.bincount(label, np.abs(scores - ious), classes)
    with np.errstate(invalid='ignore'):
        per_class = distances / sums[0, :, 0]
    return _averaged(per_class, _averages(edges, sums), drop_perfect)


def dece(matches: Matches, num_bins: int = DECE_BINS) -> CalibrationError:
    """Detection expected calibration error: scores against precision, all classes together.

    Args:
        matches: at tau 0.5.
        num_bins: equal bins of the score.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([TRUE, FALSE]), iou=np.array([0.8, 0]))
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0.5, **found, **right, **number)
        >>> round(dece(matches).mean, 4)  # (|.9 - 1| + |.6 - 0|) / 2
        0.35
    """
    edges = np.linspace(0, 1, num_bins + 1)
    table = _judged_table(matches, edges, 'precision', by_class=False)
    return CalibrationError(float(table.errors()[0]), table.errors(), table)


def _averaged(per_class: np.ndarray, table: Reliability, drop_perfect: bool) -> CalibrationError:
    if drop_perfect:
        per_class = np.where(per_class == 0, np.nan, per_class)
    return CalibrationError(nan_mean(per_class), per_class, table)


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
    order = np.argsort(scores, kind='stable')
    sorted_scores, targets = scores[order], targets[order]
    number = len(sorted_scores)
    if not number:
        return float('nan')
    target_sums, gap_sums = np.zeros(number + 1), np.zeros(number + 1)
    np.cumsum(targets, out=target_sums[1:])
    np.cumsum(sorted_scores, out=gap_sums[1:])
    np.subtract(target_sums, gap_sums, out=gap_sums)
    error = abs(gap_sums[-1])
    for bins in range(2, min(number, MAX_SWEEP_BINS) + 1):
        last = sorted_scores[np.arange(1, bins + 1) * number // bins - 1]
        ends = np.append(0, np.unique(np.searchsorted(sorted_scores, last, side='right')))
        if (np.diff(np.diff(target_sums[ends]) / np.diff(ends)) < 0).any():
            break
        error = np.abs(np.diff(gap_sums[ends])).sum()
    return float(error / number)


class AveragePrecision(NamedTuple):
    """AP in [0, 1]; NaN where no class has a gt box."""

    mean: float  # over thresholds and classes
    per_tau: np.ndarray  # (T,) mean over classes
    per_class: np.ndarray  # (K,) mean over thresholds, NaN for a class without gt boxes


def average_precision(matches: Sequence[Matches]) -> AveragePrecision:
    """Average precision over 101 recalls, as pycocotools computes it, to the last digit.

    Args:
        matches: Matches of one set of detections at T thresholds: for COCO's AP at `COCO_TAUS`.

    Example:
        >>> found = dict(row=np.arange(2), label=np.zeros(2, int), scores=np.array([0.9, 0.6]))
        >>> right = dict(state=np.array([TRUE, FALSE]), iou=np.array([0.8, 0]))
        >>> number = dict(gt=np.array([0, -1]), gt_counts=np.array([1]))
        >>> matches = Matches(tau=0.5, **found, **right, **number)
        >>> round(average_precision([matches]).mean, 4)
        1.0
    """
    labels = np.flatnonzero(matches[0].gt_counts)
    precision = np.empty((len(matches), len(RECALLS), len(labels)))
    for t, each in enumerate(matches):
        for k, label in enumerate(labels):
            state = each.of_class(int(label)).state
            precision[t, :, k] = _precision(state, each.gt_counts[label])
    per_class = np.full(len(matches[0].gt_counts), np.nan)
    if not len(labels):
        return AveragePrecision(float('nan'), np.full(len(matches), np.nan), per_class)
    per_class[labels] = precision.mean((0, 1))
    return AveragePrecision(float(precision.mean()), precision.mean((1, 2)), per_class)


def _precision(state: np.ndarray, gt_counts: int) -> np.ndarray:
    """Precision ``(101,)`` at the recalls, of the states of a class by descending score."""
    right, wrong = _right_and_wrong(state)  # precision is highest at true positives
    # pycocotools adds the spacing at 1 against a division by 0; it shows in the last digit.
    precision = right / (right + wrong + np.spacing(1))
    best_beyond = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(right / gt_counts, RECALLS)
    return np.append(best_beyond, 0)[place]
