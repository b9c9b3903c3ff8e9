"""All detection metrics in one call, with noise floors and optional confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gfl_det.errors import ConfigError
from gfl_det.evaluation.bootstrap import resample
from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.floors import ErrorFloor, dece_floor, laace_floor, laece_floor
from gfl_det.evaluation.functional import (
    COCO_TAUS,
    HALF,
    LRP,
    average_precision,
    laece,
    lrp,
    optimal_lrp,
    skipped,
)
from gfl_det.evaluation.matching import Matches, ZeroOverlap, match
from gfl_det.evaluation.weighted import DetectionStatistics

# Suffixes of the parts of LRP.
PARTS = dict(total='', loc='_loc', fp='_FP', fn='_FN')
# Suffixes of the values reported with a calibration error.
FLOOR_PARTS = {
    '': 'value',
    '_count': 'number',
    '_floor': 'mean',
    '_floor_95': 'upper',
    '_debiased': 'debiased',
    '_sweep': 'sweep',
}
INSIDE = '* inside its floor: a perfectly calibrated detector with these scores shows as much'


def evaluate_detections(
    detections: Detections,
    truths: GroundTruth,
    taus: Sequence[float] = (0.0, 0.5),
    zero_overlap: ZeroOverlap = 'oracle',
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluate all given detections; for an operating point, apply its score thresholds first.

    Args:
        detections: Detections with calibrated or raw scores.
        truths: Ground truth of the same images.
        taus: IoU thresholds below 1 for LaECE, LaACE and LRP.
        zero_overlap: See :func:`.matching.match`; at tau 0 the other option is reported too.
        resamples: Resamples of the images for confidence intervals, about 1,000; 0 for none.
        seed: Seed of the resamples and of the floors' draws.

    Returns:
        Fractions, NaN if no class has a value: ``LaECE_{tau}``, ``LaACE_{tau}`` and
        ``LRP_{tau}`` with its parts ``_loc``, ``_FP``, ``_FN``; at tau 0 also with the suffix
        ``_reject`` (or ``_oracle``); ``D-ECE``; ``oLRP`` with its parts; ``AP``, ``AP50``,
        ``AP75``; and the numbers of classes that count, have no gt box, or have no detection
        that counts: ``classes``, ``classes_without_truths``, ``classes_without_detections``.

        For each calibration error ``NAME`` (:mod:`.floors`) also ``NAME_count``, the number of
        detections; ``NAME_floor`` and ``NAME_floor_95``, the mean and the .95 quantile for a
        perfectly calibrated detector with these scores; and the estimates ``NAME_debiased`` and
        (except for LaACE) ``NAME_sweep``. With ``resamples``, the ends of each metric's .95
        interval, ``NAME_low`` and ``NAME_high`` (:mod:`.bootstrap`).

    Raises:
        ConfigError: If a threshold or the number of resamples is out of range.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> metrics = evaluate_detections(Detections(image, label, square, np.array([0.9])), gts)
        >>> round(metrics['AP'], 4), round(metrics['LaECE_0'], 4), round(metrics['D-ECE'], 4)
        (1.0, 0.1, 0.1)
    """
    check_taus(taus)
    if resamples < 0:
        raise ConfigError(f'resamples is a number of at least 0, not {resamples!r}')
    matched, coco = _match_all(detections, truths, taus, zero_overlap)
    metrics = metrics_of(matched, coco, seed)
    if resamples:
        statistics = DetectionStatistics(matched, coco, detections, truths)
        for name, interval in resample(statistics, resamples, seed).items():
            if name in metrics:
                metrics.update({f'{name}_low': interval.low, f'{name}_high': interval.high})
    return {name: float(value) for name, value in metrics.items()}


def metrics_of(
    matched: Iterable[tuple[Matches, str]], coco: Sequence[Matches], seed: int = 0
) -> dict[str, float]:
    """The metrics of :func:`evaluate_detections` from matches.

    Args:
        matched: Matches at the thresholds, each with the suffix of its metric names.
        coco: Matches at COCO's thresholds.
        seed: Seed of the floors' draws.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.9]))
        >>> round(metrics_of([], match(found, gts, COCO_TAUS))['AP'], 4)
        1.0
    """
    metrics: dict[str, float] = {}
    for matches, end in matched:
        metrics.update(_at_tau(matches, f'{matches.tau:g}', seed, end))
    half = coco[HALF]
    metrics.update(_named('D-ECE', dece_floor(half, seed=seed)))
    metrics.update(_parts(optimal_lrp(half).lrp, 'oLRP'))
    precision = average_precision(coco)
    metrics.update(AP=precision.mean, AP50=precision.per_tau[HALF], AP75=precision.per_tau[5])
    left_out = skipped(half)
    metrics['classes'] = laece(half).classes_used
    metrics['classes_without_truths'] = len(left_out.without_truths)
    metrics['classes_without_detections'] = len(left_out.without_detections)
    return {name: float(value) for name, value in metrics.items()}


def statistics_of(
    detections: Detections,
    truths: GroundTruth,
    taus: Sequence[float] = (0.0, 0.5),
    zero_overlap: ZeroOverlap = 'oracle',
) -> DetectionStatistics:
    """The metrics of :func:`evaluate_detections` as functions of image weights, for resamples.

    Args:
        detections: As in :func:`evaluate_detections`.
        truths: Likewise.
        taus: Likewise.
        zero_overlap: Likewise.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.9]))
        >>> statistics_of(found, gts)(np.ones((1, 1)))['AP']  # each image once
        array([1.])
    """
    check_taus(taus)
    matched, coco = _match_all(detections, truths, taus, zero_overlap)
    return DetectionStatistics(matched, coco, detections, truths)


def _match_all(
    detections: Detections, gts: GroundTruth, taus: Sequence[float], zero_overlap: ZeroOverlap
) -> tuple[list[tuple[Matches, str]], list[Matches]]:
    """Matches at the given thresholds, with the suffixes of metric names, and at COCO's."""
    found = match(detections, gts, [*taus, *COCO_TAUS], zero_overlap)
    matched: list[tuple[Matches, str]] = []
    for tau, matches in zip(taus, found):
        matched.append((matches, ''))
        if tau == 0:
            other: ZeroOverlap = 'reject' if zero_overlap == 'oracle' else 'oracle'
            matched += [(each, f'_{other}') for each in match(detections, gts, [tau], other)]
    return matched, found[len(taus) :]


def inside_floor(metrics: Mapping[str, float], name: str) -> bool:
    """Whether an error lies within the noise of a perfectly calibrated detector with these scores.

    False for metrics without a floor, such as AP.

    Example:
        >>> inside_floor({'D-ECE': 0.08, 'D-ECE_floor_95': 0.11}, 'D-ECE')
        True
    """
    return metrics[name] <= metrics.get(f'{name}_floor_95', float('-inf'))


def format_metrics(metrics: Mapping[str, float], names: Sequence[str] | None = None) -> str:
    """Table of metrics with their counts, floors and intervals.

    Args:
        metrics: Result of :func:`evaluate_detections`.
        names: Rows, in order; None: all metrics, without counts, floors and interval ends.

    Example:
        >>> known = {'D-ECE': 0.08, 'D-ECE_count': 150, 'D-ECE_floor': 0.07}
        >>> print(format_metrics(known | {'D-ECE_floor_95': 0.11, 'D-ECE_debiased': 0.004}))
        metric       value  count  floor  .95 of it  debiased  .95 interval
        D-ECE      0.0800*    150 0.0700     0.1100    0.0040
        * inside its floor: a perfectly calibrated detector with these scores shows as much
    """
    if names is None:
        ends = (*FLOOR_PARTS, '_low', '_high')
        names = [name for name in metrics if not any(_is_end(metrics, name, end) for end in ends)]
    width = max(10, *map(len, names))
    lines = [f'{"metric":{width}} {"value":>7}  count  floor  .95 of it  debiased  .95 interval']
    marked = False
    for name in names:
        mark = '*' if inside_floor(metrics, name) else ' '
        marked = marked or mark == '*'
        digits = 0 if name.startswith('classes') else 4  # counts of classes
        line = f'{name:{width}} {metrics[name]:7.{digits}f}{mark}'
        if f'{name}_floor' in metrics:
            count, floor, upper, debiased = (
                metrics[f'{name}{end}'] for end in ('_count', '_floor', '_floor_95', '_debiased')
            )
            line += f' {count:6.0f} {floor:6.4f} {upper:10.4f} {debiased:9.4f}'
        elif f'{name}_low' in metrics:
            line += ' ' * 35
        if f'{name}_low' in metrics:
            line += f'  {metrics[f"{name}_low"]:.4f} to {metrics[f"{name}_high"]:.4f}'
        lines.append(line.rstrip())
    return '\n'.join(lines + [INSIDE] * marked)


def _is_end(metrics: Mapping[str, float], name: str, end: str) -> bool:
    return bool(end) and name.endswith(end) and name.removesuffix(end) in metrics


class ClassErrors(NamedTuple):
    """Calibration errors with their floors, and LRP, at one IoU threshold."""

    laece: ErrorFloor
    laace: ErrorFloor
    lrp: LRP


def errors_by_class(
    detections: Detections, truths: GroundTruth, tau: float, zero_overlap: ZeroOverlap = 'oracle'
) -> ClassErrors:
    """LaECE, LaACE and LRP with their values per class.

    Args:
        detections: Detections with calibrated or raw scores.
        truths: Ground truth of the same images.
        tau: IoU threshold below 1.
        zero_overlap: See :func:`.matching.match`.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.9]))
        >>> errors = errors_by_class(found, gts, tau=0.5)
        >>> errors.laece.per_class.value.round(2), errors.laece.per_class.number, errors.lrp.total
        (array([0.1]), array([1]), array([0.]))
    """
    check_taus([tau])
    (matches,) = match(detections, truths, [tau], zero_overlap)
    return ClassErrors(laece_floor(matches), laace_floor(matches), lrp(matches))


def keep_above(
    detections: Detections, thresholds: np.ndarray | Sequence[float] | float
) -> np.ndarray:
    """Mask ``(N,)`` of the detections whose score is at least the threshold of their class.

    Args:
        detections: N detections.
        thresholds: Score thresholds per class, ``(K,)``, or one for all; NaN keeps all.

    Example:
        >>> found = Detections(*np.zeros((2, 2), int), np.zeros((2, 4)), np.array([0.6, 0.4]))
        >>> keep_above(found, 0.5)
        array([ True, False])
    """
    by_class = np.asarray(thresholds, float)
    least = by_class[detections.label] if by_class.ndim else by_class
    return ~(detections.scores < least)


def check_taus(taus: Sequence[float]) -> None:
    """Refuse IoU thresholds for which LRP is undefined.

    Raises:
        ConfigError: If a threshold is not in [0, 1).

    Example:
        >>> check_taus([0, 0.5])
    """
    for tau in taus:
        if not 0 <= tau < 1:
            raise ConfigError(f'LRP is defined for an IoU threshold in [0, 1), not {tau!r}')


def _at_tau(matches: Matches, tau: str, seed: int, end: str = '') -> dict[str, float]:
    return {
        **_named(f'LaECE_{tau}{end}', laece_floor(matches, seed=seed)),
        **_named(f'LaACE_{tau}{end}', laace_floor(matches)),
        **{f'{name}{end}': value for name, value in _parts(lrp(matches), f'LRP_{tau}').items()},
    }


def _named(name: str, floor: ErrorFloor) -> dict[str, float]:
    values = floor.pooled._asdict()
    parts = {f'{name}{end}': float(values[part]) for end, part in FLOOR_PARTS.items()}
    if name.startswith('LaACE'):  # has no bins
        del parts[f'{name}_sweep']
    return parts


def _parts(values: LRP, name: str) -> dict[str, float]:
    means = values.means()
    return {f'{name}{end}': float(getattr(means, part)) for part, end in PARTS.items()}
