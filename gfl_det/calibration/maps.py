"""Maps from scores to calibrated scores, and how they are fitted.

Sources: Guo et al., ICML 2017 (temperature); Platt, 1999; Zadrozny and Elkan, KDD 2002 (isotonic);
Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024
(all of them against the IoU). Each is monotone, works in float64 and gives values in [0, 1]. Heads
and exported graphs run them as one module of tensor operations (:class:`ScoreMaps`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Literal, Union

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from gfl_det.calibration.logistic import (
    fit_line,
    fit_line_by_quality,
    fit_slope,
    fit_slope_by_quality,
    search_line,
)
from gfl_det.errors import ConfigError

Method = Literal['identity', 'temperature', 'platt', 'linear', 'isotonic']
EPS = float(np.finfo(float).eps)  # scores of 0 and 1 get the logits of EPS and 1 - EPS


@dataclass(frozen=True)
class Identity:
    """Identity map."""

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(scores, float)


@dataclass(frozen=True)
class Constant:
    """Constant map, for targets that are all 0 or all 1: cross entropy has no finite optimum."""

    value: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.full(np.shape(scores), self.value)


@dataclass(frozen=True)
class Temperature:
    """Temperature scaling: ``sigmoid(logit(score) / temperature)``."""

    temperature: float  # in [1e-3, 1e3]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return scipy.special.expit(logit(scores) / self.temperature)


@dataclass(frozen=True)
class Platt:
    """Platt scaling: ``sigmoid(slope * logit(score) + offset)``."""

    slope: float  # in [0, 1e3]
    offset: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return scipy.special.expit(self.slope * logit(scores) + self.offset)


@dataclass(frozen=True)
class Linear:
    """Linear map: ``slope * score + offset``, clipped to [0, 1]."""

    slope: float  # at least 0
    offset: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.clip(self.slope * np.asarray(scores, float) + self.offset, 0, 1)


@dataclass(frozen=True)
class Isotonic:
    """Piecewise linear map between knots; constant beyond the first and the last."""

    scores: tuple[float, ...]  # ascending
    values: tuple[float, ...]  # ascending, in [0, 1]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.interp(np.asarray(scores, float), self.scores, self.values)


ScoreMap = Union[Identity, Constant, Temperature, Platt, Linear, Isotonic]
KINDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (Identity, Constant, Temperature, Platt, Linear, Isotonic)
}


def logit(scores: np.ndarray) -> np.ndarray:
    """Logit ``log(p / (1 - p))``, finite at 0 and 1.

    Example:
        >>> logit(np.array([0.5]))
        array([0.])
    """
    inside = np.clip(np.asarray(scores, float), EPS, 1 - EPS)
    return np.log(inside) - np.log1p(-inside)


def fit_temperature(
    scores: np.ndarray, targets: np.ndarray, quality_focal: bool = False
) -> Temperature | Constant:
    """Fit a temperature to targets ``(N,)`` of scores ``(N,)`` by mean cross entropy.

    With ``quality_focal``, Quality Focal Loss is minimised instead.

    Example:
        >>> scores = np.repeat([0.1, 0.9], 100)
        >>> targets = np.repeat([0.25, 0.75], 100)
        >>> round(fit_temperature(scores, targets).temperature, 3)
        2.0
    """
    if targets.min() == targets.max() and targets[0] in (0, 1):
        return Constant(float(targets[0]))
    fit = fit_slope_by_quality if quality_focal else fit_slope
    return Temperature(float(1 / fit(logit(scores), targets)))


def fit_platt(
    scores: np.ndarray, targets: np.ndarray, quality_focal: bool = False, grid: bool = False
) -> Platt | Constant:
    """Fit a Platt map to targets ``(N,)`` of scores ``(N,)`` by mean cross entropy.

    With ``quality_focal``, Quality Focal Loss is minimised; with ``grid``, a grid is searched.

    Example:
        >>> scores = np.repeat([0.1, 0.9], 100)
        >>> fitted = fit_platt(scores, np.repeat([0.25, 0.75], 100))
        >>> fitted(np.array([0.1, 0.9])).round(3)
        array([0.25, 0.75])
    """
    if targets.min() == targets.max() and targets[0] in (0, 1):
        return Constant(float(targets[0]))
    if grid:
        return Platt(*search_line(logit(scores), targets, quality_focal))
    fit = fit_line_by_quality if quality_focal else fit_line
    return Platt(*fit(logit(scores), targets))


def fit_linear(scores: np.ndarray, targets: np.ndarray) -> Linear:
    """Least-squares fit of a rising line, before clipping, to targets ``(N,)`` of scores ``(N,)``.

    Example:
        >>> fitted = fit_linear(np.array([0.2, 0.8]), np.array([0.3, 0.6]))
        >>> fitted(np.array([0.5])).round(3)
        array([0.45])
    """
    offset = scores - scores.mean()
    slope = 0.0
    if scores.min() < scores.max():
        slope = max(0.0, np.mean(offset * targets) / np.mean(offset**2))
    return Linear(float(slope), float(targets.mean() - slope * scores.mean()))


def fit_isotonic(scores: np.ndarray, targets: np.ndarray) -> Isotonic:
    """Least-squares fit of an increasing function to targets ``(N,)`` of scores ``(N,)``.

    Example:
        >>> fitted = fit_isotonic(np.array([0.2, 0.4, 0.5]), np.array([0.1, 0.6, 0.4]))
        >>> fitted(np.array([0.0, 0.2, 0.3, 0.9])).round(3).tolist()
        [0.1, 0.1, 0.3, 0.5]
    """
    from sklearn.isotonic import IsotonicRegression  # slow to import, and needed by no detector

    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip').fit(scores, targets)
    return Isotonic(tuple(model.X_thresholds_.tolist()), tuple(model.y_thresholds_.tolist()))


FITS: dict[str, Callable[..., ScoreMap]] = {
    'identity': lambda scores, targets: Identity(),
    'temperature': fit_temperature,
    'platt': fit_platt,
    'linear': fit_linear,
    'isotonic': fit_isotonic,
}


def fit_of(
    method: str, quality_focal: bool = False, grid: bool = False
) -> Callable[[np.ndarray, np.ndarray], ScoreMap]:
    """Fit function of a method with its options.

    Raises:
        ConfigError: If the method does not support an option.

    Example:
        >>> fitted = fit_of('linear')(np.array([0.2, 0.8]), np.array([0.3, 0.6]))
        >>> round(fitted.slope, 6), round(fitted.offset, 6)
        (0.5, 0.2)
    """
    if grid and method != 'platt':
        raise ConfigError(
            f'only platt supports a grid, not {method}: leave out grid=True or --grid'
        )
    if quality_focal and method not in ('platt', 'temperature'):
        raise ConfigError(
            f'only platt and temperature support Quality Focal Loss, not {method}: leave out '
            'quality_focal=True or --quality-focal'
        )
    options = {'quality_focal': quality_focal, 'grid': grid}
    return partial(FITS[method], **{name: True for name, chosen in options.items() if chosen})


def map_to_json(score_map: ScoreMap) -> dict[str, Any]:
    """Convert a map to its kind and parameters.

    Example:
        >>> map_to_json(Temperature(2.0))
        {'kind': 'temperature', 'temperature': 2.0}
    """
    return {'kind': type(score_map).__name__.lower(), **asdict(score_map)}


def map_from_json(entry: dict[str, Any]) -> ScoreMap:
    """Restore a map from the output of :func:`map_to_json`.

    Raises:
        KeyError: If the kind is unknown or a parameter is missing.
        ValueError: If a parameter is not a number or out of range, or knots are inconsistent.

    Example:
        >>> map_from_json({'kind': 'temperature', 'temperature': 2.0})
        Temperature(temperature=2.0)
    """
    kind = KINDS[entry['kind']]
    values = {field.name: entry[field.name] for field in fields(kind)}
    if kind is Isotonic:
        knots = np.array([values['scores'], values['values']], float)
        if knots.ndim != 2 or not knots.size or not (np.diff(knots) >= 0).all():
            raise ValueError('the knots of an isotonic map do not ascend')
        if not ((knots >= 0) & (knots <= 1)).all():
            raise ValueError('the knots of an isotonic map lie outside [0, 1]')
        return Isotonic(*(tuple(row) for row in knots.tolist()))
    numbers = {name: float(value) for name, value in values.items()}
    if not np.isfinite(list(numbers.values())).all():
        raise ValueError('a parameter is not finite')
    falls = numbers.get('slope', 0.0) < 0 or numbers.get('temperature', 1.0) <= 0
    if falls or not 0 <= numbers.get('value', 0.0) <= 1:
        raise ValueError('a parameter is out of range')
    return kind(**numbers)


class ScoreMaps(nn.Module):
    """Calibrates scores ``(...)`` in [0, 1] by labels ``(...)``, without synchronising a GPU.

    Args:
        maps: One map per class.
    """

    knots: Tensor  # (C * size,) ascending within a class; padded with infinity
    values: Tensor  # (C * size,) at the knots
    slopes: Tensor  # (C * size,) from each knot to the next; 0 after the last
    lines: Tensor  # (2, C) slopes and offsets of the curved maps
    curved: Tensor  # (C,) bool

    def __init__(self, maps: Sequence[ScoreMap]) -> None:
        super().__init__()
        rows = [knots_of(each) for each in maps]
        longest = max(len(knots) for knots, _ in rows)
        self.size = 1 << (longest - 1).bit_length()  # a power of two, for the bisection
        knots, values, slopes = np.zeros((3, len(rows), self.size))
        knots[:] = np.inf
        for row, (x, y) in enumerate(rows):
            knots[row, : len(x)], values[row, : len(x)] = x, y
            rise, run = np.diff(y), np.diff(x)
            np.divide(rise, run, out=slopes[row, : len(run)], where=run > 0)
        for name, table in (('knots', knots), ('values', values), ('slopes', slopes)):
            self.register_buffer(name, torch.from_numpy(table.ravel()))
        lines = torch.tensor([logit_line_of(each) for each in maps], dtype=torch.float64)
        self.register_buffer('lines', lines.T.contiguous())
        flags = [is_curved(each) for each in maps]
        self.register_buffer('curved', torch.tensor(flags))
        self.has_curves, self.has_lines = any(flags), not all(flags)

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Calibrated scores in the dtype of the scores."""
        exact = scores.double()
        if not self.has_curves:
            return self._between_knots(exact, labels).to(scores.dtype)
        inside = exact.clamp(EPS, 1 - EPS)
        logits = inside.log() - (1 - inside).log()
        mapped = (self.lines[0][labels] * logits + self.lines[1][labels]).sigmoid()
        if self.has_lines:
            mapped = torch.where(self.curved[labels], mapped, self._between_knots(exact, labels))
        return mapped.to(scores.dtype)

    def _between_knots(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Piecewise linear maps: bisection finds the knot before a score in log2(size) steps."""
        left = labels * self.size  # last knot not above the score, or the first
        step = self.size // 2
        while step > 0:
            ahead = left + step
            left = torch.where(self.knots[ahead] <= scores, ahead, left)
            step //= 2
        beyond = (scores - self.knots[left]).clamp(min=0)
        return self.values[left] + self.slopes[left] * beyond


def is_curved(score_map: ScoreMap) -> bool:
    """Whether a map is linear in logits instead of scores.

    Example:
        >>> is_curved(Temperature(2.0)), is_curved(Linear(1.0, 0.0))
        (True, False)
    """
    return isinstance(score_map, (Temperature, Platt))


def knots_of(score_map: ScoreMap) -> tuple[Sequence[float], Sequence[float]]:
    """Knots and values of a map that is linear in scores; the identity's for others.

    Example:
        >>> knots_of(Linear(2.0, 0.0))
        ([0.0, 0.5, 1.0], [0.0, 1.0, 1.0])
    """
    if isinstance(score_map, Isotonic):
        return score_map.scores, score_map.values
    if isinstance(score_map, Constant):
        return [0.0], [score_map.value]
    if isinstance(score_map, Linear):
        places = [0.0, 1.0]
        if score_map.slope > 0:  # a knot where the line is clipped
            meets = ((cut - score_map.offset) / score_map.slope for cut in (0.0, 1.0))
            places += [place for place in meets if 0 < place < 1]
        places.sort()
        return places, score_map(np.array(places)).tolist()
    return [0.0, 1.0], [0.0, 1.0]


def logit_line_of(score_map: ScoreMap) -> tuple[float, float]:
    """Slope and offset of a map that is linear in logits; the identity's for others.

    Example:
        >>> logit_line_of(Temperature(2.0))
        (0.5, 0.0)
    """
    if isinstance(score_map, Temperature):
        return 1 / score_map.temperature, 0.0
    if isinstance(score_map, Platt):
        return score_map.slope, score_map.offset
    return 1.0, 0.0
