"""Initial weights of large networks from one block of random numbers.

New numbers for each weight take as long as a training step. With these a network is as random to
its layers, which see a repeated block in another shape.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

BLOCK = torch.rand(2**18 - 1, generator=torch.Generator().manual_seed(0)) * 2 - 1  # in (-1, 1)


def take_from_one_block(patch: pytest.MonkeyPatch) -> None:
    """Let torch and mmengine initialise weights from the block, while the patch lasts."""

    def kaiming(tensor: Tensor, *_: object, **__: object) -> Tensor:
        return _fill(tensor, tensor[0].numel() ** -0.5)

    def normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, **_: object) -> Tensor:
        return _fill(tensor, 3**0.5 * std, mean)

    patch.setattr(torch.nn.init, 'kaiming_uniform_', kaiming)
    patch.setattr(torch.nn.init, 'kaiming_normal_', kaiming)
    patch.setattr(torch.nn.init, 'normal_', normal)


@torch.no_grad()
def _fill(tensor: Tensor, bound: float, mean: float = 0.0) -> Tensor:
    for part in tensor.view(-1).split(len(BLOCK)):
        torch.add(mean, BLOCK[: len(part)], alpha=bound, out=part)
    return tensor
