"""Paired comparison of two detectors: differences of metrics with intervals and p values.

Both detectors are evaluated on the same images, and each resample draws the same images for both,
so the difficulty of an image cancels. If a side has several trainings (seeds), a resample also
draws among them (hierarchical bootstrap): one training fewer than there are, which makes the
variance of the mean unbiased (McCarthy and Snowden, "The Bootstrap and Finite Population Sampling",
1985). With few images or trainings the tails are wider than a normal distribution's, so deviations
are stretched to Student's t with Satterthwaite's degrees of freedom.

The interval and p come from one distribution, the deviations of the resamples from their mean: p is
below .05 exactly if the .95 interval excludes 0. Only images with gt boxes (for a class, of that
class) count as observations: resamples of very few would agree by chance, so that p is at least
2 ** (1 - n) for n images, that of n signs that all agree, and there is neither p nor interval from
fewer than :data:`FEWEST_IMAGES`. For several tests see :func:`holm`. The mean of
the resamples is not used to correct for bias: absolute gaps grow most in resamples of data with
small gaps, so a correction would double chance differences. The error of a calibrated detector
still contains its noise floor (:mod:`.floors`), which makes its advantage look smaller than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from gfl_det.errors import ConfigError
from gfl_det.evaluation.bootstrap import LEVEL, image_weights
from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.evaluate import statistics_of
from gfl_det.evaluation.matching import ZeroOverlap

# Metrics of a verdict, most important first. Lower is better unless listed in MORE_IS_BETTER.
JUDGED = ('AP', 'AP50', 'AP75', 'oLRP', 'LaECE_0', 'LaACE_0', 'D-ECE')
MORE_IS_BETTER = ('AP', 'AP50', 'AP75')
NORMAL = 1.959964  # of a .95 interval
FEWEST_IMAGES = 6  # of five, even signs that all agree have p 2 ** (1 - 5) = .06


class PairedDifference(NamedTuple):
    """Paired difference, first side minus second."""

    value: float
    low: float  # of the .95 interval
    high: float
    p: float  # two-sided


class ComparedSide(NamedTuple):
    """One metric for the M trainings of a side."""

    value: np.ndarray  # (M,)
    resampled: np.ndarray  # (R, M), the same resampled images for all trainings

    def mean(self, drawn: np.ndarray) -> np.ndarray:
        """Means ``(R,)`` over the drawn trainings ``(R, D)``."""
        return np.take_along_axis(self.resampled, drawn, axis=1).mean(1)

    def spread(self) -> tuple[float, int]:
        """Variance of the mean over trainings and its degrees of freedom; (0, 1) for one."""
        number = len(self.value)
        if number == 1:
            return 0.0, 1
        return float(self.value.var(ddof=1)) / number, number - 1


def compare_detections(
    a: Detections | Sequence[Detections],
    b: Detections | Sequence[Detections],
    truths: GroundTruth,
    resamples: int = 1000,
    seed: int = 0,
    taus: Sequence[float] = (0.0, 0.5),
    zero_overlap: ZeroOverlap = 'oracle',
) -> dict[str, float]:
    """Compare two detectors on the same images.

    Args:
        a: Detections of the first detector, or of each of its trainings.
        b: Detections of the second, likewise.
        truths: Ground truth of the same images.
        resamples: Resamples of the images, and of the trainings if a side has several.
        seed: Seed of the resamples.
        taus: As in :func:`.evaluate.evaluate_detections`.
        zero_overlap: As in :func:`.evaluate.evaluate_detections`.

    Returns:
        For each metric, and for AP, LaECE and LaACE of each class (``AP_class_3``):
        ``NAME_a`` and ``NAME_b``, the means over trainings; ``NAME_difference``, a minus b, with
        the ends of its .95 interval, ``NAME_low`` and ``NAME_high``, and ``NAME_p``. NaN if a side
        has no value; the latter three also if fewer than :data:`FEWEST_IMAGES` images have gt boxes
        (for a class, of that class).

    Raises:
        ConfigError: If a side is empty, or ``resamples`` is below 1.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]]).repeat(20, 0)
        >>> image, label = np.arange(20), np.zeros(20, int)
        >>> names = list('abcdefghijklmnopqrst')
        >>> gts = GroundTruth(names, names, [1], ['cat'], image, label, square, np.zeros(20, bool))
        >>> good = Detections(image, label, square, np.full(20, 0.9))
        >>> found = compare_detections(good, good.take(image < 10), gts, resamples=200)
        >>> found['AP_difference'] > 0, found['AP_p'] < 0.05
        (True, True)
    """
    sides = [[each] if isinstance(each, Detections) else list(each) for each in (a, b)]
    if not all(sides):
        raise ConfigError('a comparison needs detections of both sides: give one set each at least')
    if resamples < 1:
        raise ConfigError(f'resamples is a number of at least 1, not {resamples!r}')
    runs = [statistics_of(found, truths, taus, zero_overlap) for side in sides for found in side]
    images = len(truths.image_ids)
    values = _columns([[each(np.ones((1, images))) for each in runs]])
    resampled = _columns(
        [[each(weights) for each in runs] for weights in image_weights(images, resamples, seed)]
    )
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(side), (resamples, max(1, len(side) - 1))) for side in sides]
    first = len(sides[0])
    observed = _observed_images(truths)
    found: dict[str, float] = {}
    for name, value in values.items():
        pair = [
            ComparedSide(value[0, part], resampled[name][:, part])
            for part in (slice(first), slice(first, None))
        ]
        label = name.partition('_class_')[2]
        number = int(observed[int(label) if label else -1])
        difference = paired_difference(pair[0], pair[1], drawn, number)
        found.update({f'{name}_{end}': side.value.mean() for end, side in zip('ab', pair)})
        ends = ('difference', 'low', 'high', 'p')
        found.update({f'{name}_{end}': each for end, each in zip(ends, difference)})
    return {name: float(value) for name, value in found.items()}


def paired_difference(
    a: ComparedSide, b: ComparedSide, drawn: Sequence[np.ndarray], num_images: int
) -> PairedDifference:
    """Difference of the means of two sides, with its interval and p.

    Args:
        a: First side.
        b: Second side.
        drawn: Drawn trainings of each side, ``(R, D)``.
        num_images: Number of images that are observations of the metric: those with gt boxes.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> image = rng.normal(0, 0.02, (400, 1))  # what resampled images do to both
        >>> a = ComparedSide(np.array([0.5]), 0.5 + image + rng.normal(0, 0.001, (400, 1)))
        >>> b = ComparedSide(np.array([0.49]), 0.49 + image + rng.normal(0, 0.001, (400, 1)))
        >>> one = np.zeros((400, 1), int)  # training of each side
        >>> found = paired_difference(a, b, [one, one], num_images=100)
        >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
        (0.01, 0.007, 0.013)
    """
    value = float(a.value.mean() - b.value.mean())
    deviations = a.mean(drawn[0]) - b.mean(drawn[1]) - value
    deviations = deviations[~np.isnan(deviations)]
    if np.isnan(value) or not len(deviations) or num_images < FEWEST_IMAGES:
        return PairedDifference(value, np.nan, np.nan, np.nan)
    of_images = float(np.nanvar(a.resampled.mean(1) - b.resampled.mean(1)))
    deviations = (deviations - deviations.mean()) * _stretch(a, b, of_images, num_images)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(deviations, [tail, 1 - tail])
    # The value itself counts as one of the resamples, so that p is never 0.
    beyond = min((deviations >= value).sum(), (deviations <= value).sum())
    p = max(2 * (beyond + 1) / (len(deviations) + 1), 2.0 ** (1 - num_images))
    return PairedDifference(value, value - float(high), value - float(low), min(1.0, p))


def _observed_images(gts: GroundTruth) -> np.ndarray:
    """Images with gt boxes of each class, and of any: ``(K + 1,)``."""
    real = ~gts.crowd
    pairs = np.unique(np.stack([gts.label, gts.image], 1)[real], axis=0)
    number = np.bincount(pairs[:, 0], minlength=len(gts.category_ids))
    return np.append(number, len(np.unique(gts.image[real])))


def _stretch(a: ComparedSide, b: ComparedSide, of_images: float, num_images: int) -> float:
    parts = [(of_images, max(1, num_images - 1)), a.spread(), b.spread()]
    total = sum(variance for variance, _ in parts)
    if total <= 0:
        return 1.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom)) / NORMAL


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p values of a family of tests to control the family-wise error rate.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.

    Args:
        p: p values by name; NaN entries are not counted as tests and stay NaN.

    Example:
        >>> holm({'x': 0.01, 'y': 0.04, 'z': 0.03})
        {'x': 0.03, 'y': 0.06, 'z': 0.06}
    """
    names = sorted((name for name in p if not np.isnan(p[name])), key=lambda name: p[name])
    adjusted = dict(p)
    largest = 0.0
    for place, name in enumerate(names):
        largest = max(largest, min(1.0, p[name] * (len(names) - place)))
        adjusted[name] = largest
    return adjusted


def verdict(
    found: Mapping[str, float], a: str = 'A', b: str = 'B', judged: Sequence[str] = JUDGED
) -> str:
    """One sentence on a comparison, at level .05 after Holm's correction over the given metrics.

    Args:
        found: Result of :func:`compare_detections`.
        a: Name of the first side.
        b: Name of the second side.
        judged: Metrics to include.

    Example:
        >>> ends = dict(difference=0.02, low=0.011, high=0.029, p=0.002)
        >>> verdict({f'AP_{end}': value for end, value in ends.items()}, judged=['AP'])
        'A is better in AP (by 0.020, .95 interval 0.011 to 0.029, p 0.002).'
    """
    known = [name for name in judged if not np.isnan(found.get(f'{name}_p', np.nan))]
    if not known:
        return f'{a} and {b} cannot be compared: too few images have gt boxes.'
    adjusted = holm({name: found[f'{name}_p'] for name in known})
    better: dict[str, list[str]] = {a: [], b: []}
    for name in known:
        if adjusted[name] >= 1 - LEVEL:
            continue
        value, low, high = (found[f'{name}_{end}'] for end in ('difference', 'low', 'high'))
        side = a if (value > 0) == (name in MORE_IS_BETTER) else b
        ends = sorted([abs(low), abs(high)])
        text = f'{name} (by {abs(value):.3f}, .95 interval {ends[0]:.3f} to {ends[1]:.3f}'
        better[side].append(f'{text}, p {adjusted[name]:.3f})')
    parts = [f'{side} is better in {", ".join(names)}' for side, names in better.items() if names]
    if not parts:
        return f'No difference between {a} and {b} can be told from noise.'
    rest = len(known) - sum(map(len, better.values()))
    tail = f'; in {rest} other metrics no difference can be told from noise' if rest else ''
    return f'{"; ".join(parts)}{tail}.'


def _columns(chunks: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Values ``(R, M)`` of M runs by name, from chunks of resamples; one name per class."""
    columns: dict[str, list[np.ndarray]] = {}
    for runs in chunks:
        for name in runs[0]:
            stacked = np.stack([run[name] for run in runs], axis=1)  # (r, M) or (r, M, K)
            if stacked.ndim == 2:
                columns.setdefault(name, []).append(stacked)
                continue
            base = name.removesuffix('_per_class')
            for k in range(stacked.shape[2]):
                columns.setdefault(f'{base}_class_{k}', []).append(stacked[..., k])
    return {name: np.concatenate(parts) for name, parts in columns.items()}
