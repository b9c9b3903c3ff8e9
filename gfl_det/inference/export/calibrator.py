"""A fitted calibrator as tensor operations: what a graph computes after suppression.

The maps are those of :mod:`..calibration.maps`, in float64 as there: identity, constant, line and
isotonic map are straight lines between knots, temperature and Platt's are lines through the
logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gfl_det.calibration.maps import (
    EPS,
    Constant,
    Identity,
    Isotonic,
    Linear,
    Platt,
    ScoreMap,
    Temperature,
)


class Calibration(nn.Module):
    """Maps scores ``(...)`` by their labels ``(...)``; see the module's docstring.

    Args:
        maps: one for each class.
    """

    curved: Tensor

    def __init__(self, maps: Sequence[ScoreMap]) -> None:
        super().__init__()
        self.lines = Polyline([Identity() if is_curved(each) else each for each in maps])
        self.curves = LogitLine([each if is_curved(each) else Identity() for each in maps])
        flags = [is_curved(each) for each in maps]
        self.register_buffer('curved', torch.tensor(flags))
        self.has_curves, self.has_lines = any(flags), not all(flags)

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Calibrated scores in the dtype of the scores."""
        exact = scores.double()
        if not self.has_curves:
            return self.lines(exact, labels).to(scores.dtype)
        curved = self.curves(exact, labels)
        if self.has_lines:
            curved = torch.where(self.curved[labels], curved, self.lines(exact, labels))
        return curved.to(scores.dtype)


class Polyline(nn.Module):
    """Straight lines between knots, constant beyond the first and the last.

    The interval is found by bisection, in a fixed number of look-ups.
    """

    knots: Tensor  # (C * size,) ascending within a class; filled up with infinity
    values: Tensor  # (C * size,)

    def __init__(self, maps: Sequence[ScoreMap]) -> None:
        super().__init__()
        lines = [knots_of(each) for each in maps]
        longest = max(len(knots) for knots, _ in lines)
        self.size = 1 << longest.bit_length()  # a power of two above the number of knots
        knots = np.full((len(lines), self.size), np.inf)
        values = np.zeros((len(lines), self.size))
        for row, (x, y) in enumerate(lines):
            knots[row, : len(x)] = x
            values[row] = np.concatenate([y, np.full(self.size - len(y), y[-1])])
        self.register_buffer('knots', torch.from_numpy(knots.ravel()))
        self.register_buffer('values', torch.from_numpy(values.ravel()))

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Values ``(...)`` float64 at scores ``(...)`` float64."""
        first = labels * self.size
        left = first  # the last knot not above the score, or the first knot
        step = self.size // 2
        while step > 0:
            ahead = left + step
            left = torch.where(self.knots[ahead] <= scores, ahead, left)
            step //= 2
        right = torch.minimum(left + 1, first + self.size - 1)
        low, high = self.knots[left], self.knots[right]
        inside = (scores > low) & (high < float('inf'))
        # A division by 1 where the outcome is not used keeps infinities out.
        share = torch.where(inside, scores - low, 0.0) / torch.where(inside, high - low, 1.0)
        return self.values[left] + share * (self.values[right] - self.values[left])


class LogitLine(nn.Module):
    """``sigmoid(slope * logit(score) + offset)``."""

    slopes: Tensor  # (C,)
    offsets: Tensor  # (C,)

    def __init__(self, maps: Sequence[ScoreMap]) -> None:
        super().__init__()
        lines = torch.tensor([logit_line_of(each) for each in maps], dtype=torch.float64)
        self.register_buffer('slopes', lines[:, 0].contiguous())
        self.register_buffer('offsets', lines[:, 1].contiguous())

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Values ``(...)`` float64 at scores ``(...)`` float64."""
        inside = scores.clamp(EPS, 1 - EPS)
        logits = inside.log() - (1 - inside).log()
        return (self.slopes[labels] * logits + self.offsets[labels]).sigmoid()


def is_curved(score_map: ScoreMap) -> bool:
    """Whether a map is a line through logits and not through scores."""
    return isinstance(score_map, (Temperature, Platt))


def knots_of(score_map: ScoreMap) -> tuple[list[float], list[float]]:
    """Knots and values of a map that is not curved."""
    if isinstance(score_map, Isotonic):
        return list(score_map.scores), list(score_map.values)
    if isinstance(score_map, Constant):
        return [0.0], [score_map.value]
    if isinstance(score_map, Linear):
        places = [0.0, 1.0]
        if score_map.slope > 0:  # a knot where the line meets a cut
            meets = ((cut - score_map.offset) / score_map.slope for cut in (0.0, 1.0))
            places += [place for place in meets if 0 < place < 1]
        places.sort()
        return places, score_map(np.array(places)).tolist()
    return [0.0, 1.0], [0.0, 1.0]


def logit_line_of(score_map: ScoreMap) -> tuple[float, float]:
    """Slope and offset of a curved map, or of the identity."""
    if isinstance(score_map, Temperature):
        return 1 / score_map.temperature, 0.0
    if isinstance(score_map, Platt):
        return score_map.slope, score_map.offset
    return 1.0, 0.0
