"""The mean of edge distributions as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gfl_det.ops import distribution


class Integral(nn.Module):
    """Mean of edge distributions (GFL paper, eq. 5); its buffer is part of mmdet's state dicts.

    Args:
        reg_max: the last bin, in strides.
    """

    project: Tensor

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.reg_max = reg_max
        self.register_buffer('project', torch.linspace(0, reg_max, reg_max + 1))

    def forward(self, logits: Tensor) -> Tensor:
        """Distances ``(N, 4)`` in strides of logits ``(N, 4 * (reg_max + 1))``."""
        return distribution.mean(logits.reshape(-1, 4, self.reg_max + 1))
