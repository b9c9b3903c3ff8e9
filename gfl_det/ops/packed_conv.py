"""Convolutions on a processor whose weights lie as the library's kernels read them.

oneDNN reads the weights of a convolution in blocks and rearranges plain ones at every call, which
takes a fifteenth of the time of R50's convolutions at 480x640 in bfloat16. Frozen weights need that
once. The results are the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators for a dtype; inductor's frozen graphs call them too.

    On a processor without instructions for bfloat16 they refuse it, where a plain convolution
    takes a slower way.

    Example:
        >>> can_pack(torch.float32)
        True
    """
    operators = torch.ops.mkldnn
    names = ('_reorder_convolution_weight', '_convolution_pointwise', '_is_mkldnn_bf16_supported')
    if not torch.backends.mkldnn.is_available() or not all(hasattr(operators, n) for n in names):
        return False
    return dtype != torch.bfloat16 or operators._is_mkldnn_bf16_supported()


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

    Example:
        >>> conv = nn.Conv2d(4, 8, 3).requires_grad_(False)
        >>> use_packed(conv)
        >>> type(conv).__name__, conv(torch.randn(1, 4, 9, 9)).shape
        ('PackedConv2d', torch.Size([1, 8, 7, 7]))
    """
    for module in model.modules():
        if type(module) is not nn.Conv2d or isinstance(module.padding, str):
            continue
        if module.padding_mode == 'zeros' and can_pack(module.weight.dtype):
            module.__class__ = PackedConv2d
