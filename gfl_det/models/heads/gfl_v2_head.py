"""Generalized Focal Loss V2 head (Li et al., CVPR 2021).

A small network predicts the quality of a box from the shape of its edges' distributions, and the
score is class times quality. The product is returned as a logit, so everything after
:meth:`GFLv2Head.forward_single` is shared with :class:`.gfl_head.GFLHead`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfl_det.errors import ConfigError
from gfl_det.models.heads.gfl_head import GFLHead
from gfl_det.ops.distribution import full_precision
from gfl_det.registry import MODELS


def edge_statistics(edges: Tensor, num_bins: int, count: int, with_mean: bool) -> Tensor:
    """Largest probabilities of each edge's distribution, and their mean.

    Only these probabilities are averaged: the mean of all bins is the same for every distribution.

    Args:
        edges: Logits ``(B, 4 * num_bins, H, W)``.
        num_bins: Number of bins per edge.
        count: Number of probabilities per edge, k in the paper, at most ``num_bins``.
        with_mean: Append the mean.

    Returns:
        ``(B, 4 * (count + with_mean), H, W)`` in [0, 1]; per edge, the probabilities in descending
        order, then their mean.
    """
    probabilities = full_precision(edges).unflatten(1, (4, num_bins)).softmax(2)
    largest = probabilities.topk(count, dim=2).values
    if with_mean:
        largest = torch.cat([largest, largest.mean(2, keepdim=True)], dim=2)
    return largest.flatten(1, 2)


def joint_logits(logits: Tensor, quality: Tensor) -> Tensor:
    """Logit of the product of two probabilities, from their logits.

    GFLv2's score is class times quality, J = C * I in the paper. The odds of ``p = sigmoid(a) *
    sigmoid(b)`` are ``1 / (e^-a + e^-b + e^-(a+b))``, so ``logit(p) = b - softplus(softplus(b) -
    a)``: no intermediate probability is rounded to 0 or 1, and a loss on logits stays exact where a
    loss on the product would take the logarithm of 0.

    Args:
        logits: a, ``(B, C, H, W)``.
        quality: b, broadcasts with the logits.

    Returns:
        Logits of the broadcast shape, float32 at least.
    """
    quality = full_precision(quality)
    return quality - F.softplus(F.softplus(quality) - full_precision(logits))


@MODELS.register_module()
class GFLv2Head(GFLHead):
    """GFL head whose scores are guided by the edges' distributions.

    The state dict has the keys of the authors' release: those of ``GFLHead``, ``reg_conf.0`` and
    ``reg_conf.2``. The unused extra class channel of the release is dropped on loading.

    Args:
        *args: Arguments of :class:`GFLHead`.
        reg_topk: Largest probabilities per edge that enter the quality network, k in the paper.
        reg_channels: Hidden channels of the quality network.
        add_mean: Also use the mean of these probabilities.
        **kwargs: Keyword arguments of :class:`GFLHead`.

    Raises:
        ConfigError: If ``reg_topk`` is not in 1..num_bins, or as in ``GFLHead``.
    """

    def __init__(
        self,
        *args: Any,
        reg_topk: int = 4,
        reg_channels: int = 64,
        add_mean: bool = True,
        **kwargs: Any,
    ) -> None:
        self.reg_topk = reg_topk
        self.reg_channels = reg_channels
        self.add_mean = add_mean
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        if not 1 <= self.reg_topk <= self.reg_max + 1:
            raise ConfigError(
                f'reg_topk is {self.reg_topk}, but an edge has {self.reg_max + 1} bins to take the '
                f'largest of: choose 1 to {self.reg_max + 1}'
            )
        super()._init_layers()
        self.reg_conf = nn.Sequential(
            nn.Conv2d(4 * (self.reg_topk + self.add_mean), self.reg_channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.reg_channels, 1, 1),
        )

    def forward_single(self, x: Tensor, scale: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits of class times quality and of edges for one level, both float32."""
        class_logits, edges = super().forward_single(x, scale)
        with torch.autocast(x.device.type, enabled=False):
            return joint_logits(class_logits, self.quality_logits(edges)), edges

    def quality_logits(self, edges: Tensor) -> Tensor:
        """Logits ``(B, 1, H, W)`` of box quality.

        Args:
            edges: Edge logits ``(B, 4 * (reg_max + 1), H, W)``; they receive gradients.
        """
        statistics = edge_statistics(edges, self.reg_max + 1, self.reg_topk, self.add_mean)
        return self.reg_conf(statistics.to(next(self.reg_conf.parameters()).dtype))

    # Untyped: torch calls this hook with seven arguments.
    def _load_from_state_dict(self, state_dict, prefix, *args):  # type: ignore[no-untyped-def]
        # Loaders pass a copy of the dict, so the caller's dict keeps the channel.
        for name in ('weight', 'bias'):
            value = state_dict.get(f'{prefix}gfl_cls.{name}')
            if value is not None and len(value) == self.num_classes + 1:
                state_dict[f'{prefix}gfl_cls.{name}'] = value[:-1]
        super()._load_from_state_dict(state_dict, prefix, *args)
