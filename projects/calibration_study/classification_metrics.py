"""Calibration of classifiers: ECE and its kin, negative log likelihood, Brier score.

Sources: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (ECE, MCE); Nixon et al.,
"Measuring Calibration in Deep Learning", CVPRW 2019 (adaptive and class-wise errors); Brier, 1950.
The confidence of a sample is its largest probability. Bins hold (low, high], the first its low edge
too, so that every sample is in one.
"""

from __future__ import annotations

import numpy as np

from gfl_det.errors import DataError
from gfl_det.evaluation.functional import Reliability, reliability

ECE_BINS = 15


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities ``(N, K)`` of logits ``(N, K)``, in float64."""
    values = np.asarray(logits, float)
    values = np.exp(values - values.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def confidence_table(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = ECE_BINS, adaptive: bool = False
) -> Reliability:
    """Mean confidence and accuracy, in equal bins or in bins with equal numbers of samples.

    Args:
        probabilities: ``(N, K)``, rows sum to 1.
        labels: ``(N,)`` int.
        num_bins: of the confidence.
        adaptive: put the edges where each bin gets as many samples as the others.

    Returns:
        One row.

    Raises:
        DataError: no samples, or probabilities and labels that do not fit.
    """
    probabilities, labels = _checked(probabilities, labels)
    confidence = probabilities.max(1)
    correct = (probabilities.argmax(1) == labels).astype(float)
    edges = np.linspace(0, 1, num_bins + 1)
    if adaptive:
        number = len(labels)
        places = np.linspace(0, number, num_bins + 1)
        edges = np.interp(places, np.arange(number), np.sort(confidence))
    return reliability(confidence, correct, edges)


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = ECE_BINS, adaptive: bool = False
) -> float:
    """ECE, or with ``adaptive`` AdaECE: the mean over samples of their bin's gap.

    Args:
        probabilities: ``(N, K)``.
        labels: ``(N,)`` int.
        num_bins: of the confidence.
        adaptive: equal numbers of samples in place of equal bins.
    """
    return float(confidence_table(probabilities, labels, num_bins, adaptive).errors()[0])


def classwise_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = ECE_BINS
) -> float:
    """Mean over all K classes of the ECE of a class's probability.

    Args:
        probabilities: ``(N, K)``.
        labels: ``(N,)`` int.
        num_bins: of each probability.
    """
    probabilities, labels = _checked(probabilities, labels)
    number, classes = probabilities.shape
    table = reliability(
        probabilities.ravel(),
        (labels[:, None] == np.arange(classes)).astype(float).ravel(),
        np.linspace(0, 1, num_bins + 1),
        np.tile(np.arange(classes), number),
        classes,
    )
    return float(table.errors().mean())


def maximum_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = ECE_BINS
) -> float:
    """MCE: the largest gap of a bin (arguments as above)."""
    return float(confidence_table(probabilities, labels, num_bins).gaps().max())


def average_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = ECE_BINS
) -> float:
    """ACE: the mean gap of the bins that hold a sample (arguments as above)."""
    table = confidence_table(probabilities, labels, num_bins)
    return float(table.gaps()[table.number > 0].mean())


def root_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = ECE_BINS
) -> float:
    """The root of the mean over samples of their bin's squared gap (arguments as above)."""
    table = confidence_table(probabilities, labels, num_bins)
    return float(np.sqrt((table.weights() * table.gaps() ** 2).sum()))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of ``-log`` of the probability of the true class; infinite if one is 0."""
    probabilities, labels = _checked(probabilities, labels)
    with np.errstate(divide='ignore'):
        return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over samples of the squared distance to the one-hot label, summed over classes."""
    probabilities, labels = _checked(probabilities, labels)
    gt = labels[:, None] == np.arange(probabilities.shape[1])
    return float(((gt - probabilities) ** 2).sum(1).mean())


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise DataError(
            f'probabilities are (N, K) and labels (N,) with N at least 1, not '
            f'{probabilities.shape} and {labels.shape}'
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DataError('a probability is NaN or outside [0, 1]: apply softmax to the logits')
    if not ((labels >= 0) & (labels < probabilities.shape[1])).all():
        raise DataError(f'a label is outside 0..{probabilities.shape[1] - 1}: correct the labels')
    return probabilities, labels.astype(np.int64)
