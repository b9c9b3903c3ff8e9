"""3x3 convolution by Winograd's minimal filtering, F(4x4, 3x3), as plain matrix products.

A tile of 4x4 outputs takes 144 products a pair of channels; evaluated as polynomials at six points
along each axis it takes 36 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
CVPR 2016). Points, filters and tiles are turned into one another by small matrices, and the sums
over channels become 36 large products of matrices. The points 0, +-2/3 and +-3/2, whose powers
stay near 1, have half the rounding error of the usual 0, +-1 and +-2: about 1e-6 of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import TypeGuard  # of Python 3.10

TILE, FILTER = 4, 3
SIZE = TILE + FILTER - 1  # inputs of a tile along an axis
POINTS = (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))
# Below so many channels or tiles moving the data costs more than the products that are saved.
MIN_CHANNELS = 256
MIN_TILES = 64


def _product(factors: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the product of (x - factor)."""
    coefficients = [Fraction(1)]
    for root in factors:
        raised = [Fraction(0), *coefficients]
        lowered = [*(root * each for each in coefficients), Fraction(0)]
        coefficients = [high - low for high, low in zip(raised, lowered)]
    return coefficients


@cache
def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """The matrices of one axis, float64: of outputs (4, 6), filters (6, 3) and inputs (6, 6).

    ``outputs @ ((filters @ g) * (inputs @ d))`` is the valid correlation of six numbers d with
    three numbers g. (Toom and Cook's construction: values at the points and at infinity, and the
    transpose of interpolation.)
    """
    outputs, filters, inputs = [], [], []
    for point in POINTS:
        others = [other for other in POINTS if other != point]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        outputs.append([point**power for power in range(TILE)])
        filters.append([point**power / scale for power in range(FILTER)])
        inputs.append([*_product(others), Fraction(0)])
    outputs.append([Fraction(0)] * (TILE - 1) + [Fraction(1)])
    filters.append([Fraction(0)] * (FILTER - 1) + [Fraction(1)])
    inputs.append(_product(POINTS))
    as_tensors = (
        torch.tensor([[float(each) for each in row] for row in matrix], dtype=torch.float64)
        for matrix in (outputs, filters, inputs)
    )
    first, second, third = as_tensors
    return first.T, second, third


@cache
def _on_tiles(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrices of both axes together: of outputs (16, 36) and inputs (36, 36)."""
    outputs, _, inputs = transforms()
    outputs, inputs = (torch.kron(each, each).to(device, dtype) for each in (outputs, inputs))
    return outputs, inputs


def transform_filters(weight: Tensor) -> Tensor:
    """Filters ``(K, C, 3, 3)`` at the 36 pairs of points: ``(36, C, K)``."""
    matrix = torch.kron(transforms()[1], transforms()[1])
    values = weight.double().flatten(2) @ matrix.T
    return values.permute(2, 1, 0).to(weight.dtype).contiguous()


def convolve(maps: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
    """3x3 convolution of stride 1 and padding 1.

    Args:
        maps: ``(B, C, H, W)``; fastest with channels last in memory.
        filters: ``(36, C, K)`` of :func:`transform_filters`.
        bias: ``(K,)``.

    Returns:
        ``(B, K, H, W)``, channels last in memory.
    """
    outputs, inputs = _on_tiles(maps.dtype, maps.device)
    images, channels, height, width = maps.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    ends = TILE * rows + 1 - height, TILE * columns + 1 - width
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, ends[1], 1, ends[0]))
    image, row, column, channel = padded.stride()
    tiles = padded.as_strided(
        (SIZE, SIZE, images, rows, columns, channels),
        (row, column, image, TILE * row, TILE * column, channel),
    )
    values = (inputs @ tiles.reshape(SIZE**2, -1)).view(SIZE**2, -1, channels)
    sums = torch.bmm(values, filters)
    results = (outputs @ sums.flatten(1)).view(TILE, TILE, images, rows, columns, -1)
    results = results.permute(2, 3, 0, 4, 1, 5).reshape(images, TILE * rows, TILE * columns, -1)
    if bias is not None:
        results += bias
    return results[:, :height, :width].permute(0, 3, 1, 2)


class WinogradConv2d(nn.Module):
    """A 3x3 convolution for inference that takes the faster way for each size of its input.

    Args:
        conv: what it replaces; see :func:`is_eligible`.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.direct = conv
        self.filters: Tensor
        self.register_buffer('filters', transform_filters(conv.weight.detach()), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)`` to ``(B, K, H, W)``."""
        images, _, height, width = maps.shape
        if images * -(-height // TILE) * -(-width // TILE) < MIN_TILES:
            return self.direct(maps)
        return convolve(maps, self.filters, self.direct.bias)


def is_eligible(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution that :class:`WinogradConv2d` computes, and faster."""
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (FILTER, FILTER)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == 'zeros'
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )
