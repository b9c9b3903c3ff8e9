"""Convolutions on a processor whose weights lie as the library's kernels read them.

oneDNN reads the weights of a convolution in blocks and rearranges plain ones at every call, which
takes a fifteenth of the time of R50's convolutions at 480x640 in bfloat16. Frozen weights need that
once. The results are the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def can_pack() -> bool:
    """Whether this PyTorch has the operators, which inductor's frozen graphs call as well."""
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name)
        for name in ('_reorder_convolution_weight', '_convolution_pointwise')
    )


class PackedConv2d(nn.Conv2d):
    """A frozen convolution that packs its weights for the first input; parameters of nn.Conv2d."""

    packed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)`` to ``(B, K, H, W)``."""
        if input.dtype != self.weight.dtype or input.requires_grad or torch.jit.is_tracing():
            return super().forward(input)
        geometry = self.padding, self.stride, self.dilation, self.groups
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, *geometry, list(input.shape)
            )
        return torch.ops.mkldnn._convolution_pointwise(
            input, self.packed, self.bias, *geometry, 'none', [], ''
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the packed weights, which cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != 'packed'}


def use_packed(model: nn.Module) -> None:
    """Turn a frozen model's plain convolutions into :class:`PackedConv2d`, in place.

    Args:
        model: on a processor, in the dtype it will compute in.
    """
    if not can_pack():
        return
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.padding_mode == 'zeros'
        if plain and not isinstance(module.padding, str):
            module.__class__ = PackedConv2d
