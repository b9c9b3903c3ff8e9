"""Score maps as one module of tensor operations: what a head and an exported graph both run.

The maps are those of :mod:`gfl_det.calibration.maps`, in float64 as there. Identity, constant, line
and isotonic map are straight lines between knots; temperature and Platt's map are lines through the
logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gfl_det.calibration.maps import EPS, Constant, Isotonic, Linear, Platt, ScoreMap, Temperature


class ScoreMaps(nn.Module):
    """Maps scores ``(...)`` in [0, 1] by their labels ``(...)``, without a look at the host.

    Args:
        maps: one per class.
    """

    knots: Tensor  # (C * size,) ascending within a class; filled up with infinity
    values: Tensor  # (C * size,) at the knots
    slopes: Tensor  # (C * size,) from each knot to the next; 0 behind the last
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
        """The straight lines: the knot before a score is found by log2(size) look-ups."""
        left = labels * self.size  # the last knot not above the score, or the first knot
        step = self.size // 2
        while step > 0:
            ahead = left + step
            left = torch.where(self.knots[ahead] <= scores, ahead, left)
            step //= 2
        beyond = (scores - self.knots[left]).clamp(min=0)
        return self.values[left] + self.slopes[left] * beyond


def is_curved(score_map: ScoreMap) -> bool:
    """Whether a map is a line through logits and not through scores."""
    return isinstance(score_map, (Temperature, Platt))


def knots_of(score_map: ScoreMap) -> tuple[Sequence[float], Sequence[float]]:
    """Knots and values of a map that is not curved; of a curved one those of the identity."""
    if isinstance(score_map, Isotonic):
        return score_map.scores, score_map.values
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
    """Slope and offset of a curved map; of another one those of the identity."""
    if isinstance(score_map, Temperature):
        return 1 / score_map.temperature, 0.0
    if isinstance(score_map, Platt):
        return score_map.slope, score_map.offset
    return 1.0, 0.0
