"""All calibration metrics of a set of detections, each under its usual name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gfl_det.errors import ConfigError
from gfl_det.evaluation.average_precision import COCO_TAUS, average_precision
from gfl_det.evaluation.detections import Detections, Truths
from gfl_det.evaluation.functional import CalibrationError, dece, laace, laece, skipped
from gfl_det.evaluation.lrp import LRP, lrp, optimal_lrp
from gfl_det.evaluation.matching import Matches, ZeroOverlap, match

DECE_TAU = OLRP_TAU = 0.5
# The name of each part of LRP behind the metric's.
PARTS = dict(zip(LRP._fields, ('', '_loc', '_FP', '_FN')))


def evaluate_detections(
    detections: Detections,
    truths: Truths,
    taus: Sequence[float] = (0.0, 0.5),
    zero_overlap: ZeroOverlap = 'oracle',
) -> dict[str, float]:
    """Judge detections as they are; cut them first to judge an operating point.

    Args:
        detections: with calibrated scores or raw ones.
        truths: of the same images.
        taus: thresholds below 1 of the IoU for LaECE, LaACE and LRP.
        zero_overlap: see :func:`.matching.match`; at tau 0 the other way is given too.

    Returns:
        Fractions, NaN where no class has a value: ``LaECE_{tau}``, ``LaACE_{tau}`` and
        ``LRP_{tau}`` with its parts ``_loc``, ``_FP``, ``_FN``; at tau 0 the same with
        ``_reject`` (or ``_oracle``) at the end; ``D-ECE``; ``oLRP`` with its parts; ``AP``,
        ``AP50``, ``AP75``; and how many classes count, have no truths, or no detection that
        counts: ``classes``, ``classes_without_truths``, ``classes_without_detections``.

    Raises:
        ConfigError: a threshold is out of range.
    """
    _check_taus(taus)
    metrics: dict[str, float] = {}
    found = match(detections, truths, [*taus, *COCO_TAUS], zero_overlap)
    for tau, matches in zip(taus, found):
        metrics.update(_at_tau(matches, f'{tau:g}'))
        if tau == 0:
            other: ZeroOverlap = 'reject' if zero_overlap == 'oracle' else 'oracle'
            (matches,) = match(detections, truths, [tau], other)
            at_zero = _at_tau(matches, '0')
            metrics.update({f'{name}_{other}': value for name, value in at_zero.items()})
    coco = found[len(taus) :]
    half = coco[0]
    metrics['D-ECE'] = dece(half).mean
    metrics.update(_parts(optimal_lrp(half).lrp, 'oLRP'))
    precision = average_precision(coco)
    metrics.update(AP=precision.mean, AP50=precision.per_tau[0], AP75=precision.per_tau[5])
    left_out = skipped(half)
    metrics['classes'] = laece(half).classes_used
    metrics['classes_without_truths'] = len(left_out.without_truths)
    metrics['classes_without_detections'] = len(left_out.without_detections)
    return {name: float(value) for name, value in metrics.items()}


def errors_by_class(
    detections: Detections, truths: Truths, tau: float, zero_overlap: ZeroOverlap = 'oracle'
) -> tuple[CalibrationError, CalibrationError, LRP]:
    """LaECE, LaACE and LRP with their values for each class.

    Args:
        detections: with calibrated scores or raw ones.
        truths: of the same images.
        tau: threshold below 1 of the IoU.
        zero_overlap: see :func:`.matching.match`.
    """
    _check_taus([tau])
    (matches,) = match(detections, truths, [tau], zero_overlap)
    return laece(matches), laace(matches), lrp(matches)


def keep_above(
    detections: Detections, thresholds: np.ndarray | Sequence[float] | float
) -> np.ndarray:
    """Mask ``(N,)`` of the detections with at least the score that their class is cut at.

    Args:
        detections: N.
        thresholds: ``(K,)``, or one for all classes; NaN keeps all.
    """
    by_class = np.asarray(thresholds, float)
    least = by_class[detections.label] if by_class.ndim else by_class
    return ~(detections.scores < least)


def _check_taus(taus: Sequence[float]) -> None:
    for tau in taus:
        if not 0 <= tau < 1:
            raise ConfigError(f'LRP is defined for an IoU threshold in [0, 1), not {tau!r}')


def _at_tau(matches: Matches, name: str) -> dict[str, float]:
    errors = {f'LaECE_{name}': laece(matches).mean, f'LaACE_{name}': laace(matches).mean}
    return {**errors, **_parts(lrp(matches), f'LRP_{name}')}


def _parts(values: LRP, name: str) -> dict[str, float]:
    means = values.means()
    return {f'{name}{end}': float(getattr(means, part)) for part, end in PARTS.items()}
