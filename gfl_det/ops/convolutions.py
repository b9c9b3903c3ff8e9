"""Faster convolutions on CPUs: Winograd for large 3x3 ones, packed weights for the others.

Winograd's minimal filtering F(4x4, 3x3) as plain matrix products: a tile of 4x4 outputs takes 144
multiplications per channel pair directly, and 36 as polynomials at six points along each axis
(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016). Small matrices
transform filters and tiles, and the sums over channels become 36 large matrix products. The points
0, +-2/3 and +-3/2, whose powers stay near 1, halve the rounding error of the usual 0, +-1 and +-2,
to about 1e-6 of the output.

oneDNN reads weights in blocks and reorders plain ones at every call: a fifteenth of the time of
R50's convolutions at 480x640 in bfloat16. Frozen weights are packed once, with bitwise identical
results.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TILE, FILTER = 4, 3
SIZE = TILE + FILTER - 1  # input size of a tile along an axis
POINTS = (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))
# With fewer channels or tiles, moving the data costs more than the saved multiplications.
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
    """Float64 transforms of one axis, for outputs (4, 6), filters (6, 3) and inputs (6, 6).

    ``outputs @ ((filters @ g) * (inputs @ d))`` is the valid correlation of six values d with three
    values g (Toom-Cook: evaluation at the points and at infinity, then transposed interpolation).

    Example:
        >>> outputs, filters, inputs = transforms()
        >>> data, kernel = torch.arange(6.0).double(), torch.tensor([0.0, 1.0, 0.0]).double()
        >>> outputs @ ((filters @ kernel) * (inputs @ data))  # the four inner numbers
        tensor([1.0000, 2.0000, 3.0000, 4.0000], dtype=torch.float64)
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


class Matrices(NamedTuple):
    """The transforms of both axes together."""

    outputs: Tensor  # (16, 36)
    filters: Tensor  # (36, 9)
    inputs: Tensor  # (36, 36)


@cache
def matrices(dtype: torch.dtype, device: torch.device) -> Matrices:
    """The Kronecker squares of :func:`transforms`.

    Example:
        >>> [tuple(each.shape) for each in matrices(torch.float32, torch.device('cpu'))]
        [(16, 36), (36, 9), (36, 36)]
    """
    return Matrices(*(torch.kron(each, each).to(device, dtype) for each in transforms()))


def transform_filters(weight: Tensor) -> Tensor:
    """Transform filters ``(K, C, 3, 3)`` to values ``(36, C, K)`` at the 36 pairs of points.

    Example:
        >>> transform_filters(torch.randn(8, 4, 3, 3)).shape
        torch.Size([36, 4, 8])
    """
    outs, channels = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(FILTER**2, -1)
    return (matrices(weight.dtype, weight.device).filters @ taps).view(-1, channels, outs)


class Tiling(NamedTuple):
    """Division of maps ``(B, C, H, W)`` into tiles of 4x4 outputs."""

    images: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.height // TILE)

    @property
    def columns(self) -> int:
        """Columns of tiles."""
        return -(-self.width // TILE)

    def pad(self, maps: Tensor, margin: int) -> Tensor:
        """Channels-last maps ``(B, 4 rows + 2 margin, 4 columns + 2 margin, C)``."""
        bottom = TILE * self.rows - self.height + margin
        right = TILE * self.columns - self.width + margin
        return F.pad(maps.permute(0, 2, 3, 1), (0, 0, margin, right, margin, bottom))

    def gather(self, maps: Tensor) -> Tensor:
        """The 6x6 inputs of each tile, ``(36, tiles * C)``."""
        padded = self.pad(maps, 1)
        image, row, column, channel = padded.stride()
        shape = (SIZE, SIZE, self.images, self.rows, self.columns, padded.shape[3])
        steps = (row, column, image, TILE * row, TILE * column, channel)
        return padded.as_strided(shape, steps).reshape(SIZE**2, -1)

    def gather_transposed(self, gradient: Tensor, channels: int) -> Tensor:
        """The gradient of :meth:`gather`: ``(B, C, H, W)``, summed over overlapping tiles."""
        parts = gradient.view(SIZE, SIZE, self.images, self.rows, self.columns, channels)
        height, width = TILE * self.rows + 2, TILE * self.columns + 2
        maps = gradient.new_zeros(self.images, height, width, channels)
        for i in range(SIZE):
            for j in range(SIZE):
                end = height - SIZE + i + 1, width - SIZE + j + 1
                maps[:, i : end[0] : TILE, j : end[1] : TILE] += parts[i, j]
        return maps[:, 1 : 1 + self.height, 1 : 1 + self.width].permute(0, 3, 1, 2)

    def spread(self, values: Tensor) -> Tensor:
        """Results ``(16, tiles * K)`` as maps ``(B, K, H, W)``, channels last in memory."""
        tiles = values.view(TILE, TILE, self.images, self.rows, self.columns, -1)
        maps = tiles.permute(2, 3, 0, 4, 1, 5)
        maps = maps.reshape(self.images, TILE * self.rows, TILE * self.columns, -1)
        return maps[:, : self.height, : self.width].permute(0, 3, 1, 2)

    def spread_transposed(self, gradient: Tensor) -> Tensor:
        """The gradient of :meth:`spread`: ``(16, tiles * K)``."""
        maps = self.pad(gradient, 0)
        tiles = maps.view(self.images, self.rows, TILE, self.columns, TILE, -1)
        return tiles.permute(2, 4, 0, 1, 3, 5).reshape(TILE**2, -1)


class _Convolve(torch.autograd.Function):
    # Untyped: torch annotates neither method.
    @staticmethod
    def forward(ctx, maps, weight, filters):  # type: ignore[no-untyped-def]
        images, channels, height, width = maps.shape
        ctx.tiling = Tiling(images, height, width)
        ctx.matrices = matrices(maps.dtype, maps.device)
        if filters is None:
            filters = transform_filters(weight)
        values = (ctx.matrices.inputs @ ctx.tiling.gather(maps)).view(SIZE**2, -1, channels)
        ctx.save_for_backward(values, filters)
        return ctx.tiling.spread(ctx.matrices.outputs @ torch.bmm(values, filters).flatten(1))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        values, filters = ctx.saved_tensors
        channels, outs = filters.shape[1:]
        sums = ctx.matrices.outputs.T @ ctx.tiling.spread_transposed(gradient)
        sums = sums.view(SIZE**2, -1, outs)
        maps_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            tiles = torch.bmm(sums, filters.transpose(1, 2)).flatten(1)
            maps_gradient = ctx.tiling.gather_transposed(ctx.matrices.inputs.T @ tiles, channels)
        if ctx.needs_input_grad[1]:
            products = torch.bmm(values.transpose(1, 2), sums)  # (36, C, K)
            taps = ctx.matrices.filters.T @ products.flatten(1)
            weight_gradient = taps.view(FILTER, FILTER, channels, outs).permute(3, 2, 0, 1)
        return maps_gradient, weight_gradient, None


def convolve(maps: Tensor, weight: Tensor, filters: Tensor | None = None) -> Tensor:
    """3x3 convolution of stride 1 and padding 1, differentiable once.

    Args:
        maps: ``(B, C, H, W)``; fastest with channels last in memory.
        weight: ``(K, C, 3, 3)``.
        filters: ``(36, C, K)``, the weight transformed by :func:`transform_filters`, or None.

    Returns:
        ``(B, K, H, W)``, channels last in memory.

    Example:
        >>> maps, weight = torch.randn(1, 4, 8, 8).double(), torch.randn(2, 4, 3, 3).double()
        >>> plain = nn.functional.conv2d(maps, weight, padding=1)
        >>> torch.allclose(convolve(maps, weight), plain)
        True
    """
    return _Convolve.apply(maps, weight, filters)


def _is_autocast() -> bool:
    try:
        return torch.is_autocast_enabled('cpu')
    except TypeError:  # before torch 2.4
        return torch.is_autocast_cpu_enabled()


class WinogradConv2d(nn.Conv2d):
    """A 3x3 ``nn.Conv2d`` that uses the faster algorithm for each input."""

    filters: Tensor | None = None  # of frozen weights

    def freeze(self) -> None:
        """Transform the weights once, for inference."""
        self.filters = transform_filters(self.weight.detach().double()).to(self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)`` to ``(B, K, H, W)``."""
        images, _, height, width = input.shape
        tiling = Tiling(images, height, width)
        is_large = images * tiling.rows * tiling.columns >= MIN_TILES
        if not is_large or input.dtype != self.weight.dtype or _is_autocast():
            return super().forward(input)
        maps = convolve(input, self.weight, self.filters)
        return maps if self.bias is None else maps + self.bias[:, None, None]


def use_winograd(model: nn.Module, frozen: bool) -> None:
    """Turn a model's large 3x3 convolutions into :class:`WinogradConv2d`, in place.

    Modules and parameters stay the same objects, so optimizers and checkpoints are unaffected.

    Args:
        model: Model on the CPU; GPU libraries choose the algorithm themselves.
        frozen: Whether the weights will no longer change.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.Conv2d(256, 8, 1))
        >>> use_winograd(model, frozen=True)
        >>> [type(each).__name__ for each in model]
        ['WinogradConv2d', 'Conv2d']
    """
    for module in model.modules():
        if is_eligible(module):
            module.__class__ = WinogradConv2d
            if frozen and isinstance(module, WinogradConv2d):  # converted above
                module.freeze()


def is_eligible(conv: nn.Module) -> bool:
    """Whether :class:`WinogradConv2d` supports a module and computes it faster.

    Example:
        >>> is_eligible(nn.Conv2d(256, 256, 3, padding=1)), is_eligible(nn.Conv2d(256, 256, 1))
        (True, False)
    """
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (FILTER, FILTER)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == 'zeros'
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has packed convolutions for a dtype, as inductor's frozen graphs use.

    On CPUs without bfloat16 instructions they reject bfloat16, where plain convolutions are slow.

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
    """A frozen ``nn.Conv2d`` that packs its weights for the first input."""

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
        """The state without the packed weights, which cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != 'packed'}


def use_packed(model: nn.Module) -> None:
    """Turn a frozen model's plain convolutions into :class:`PackedConv2d`, in place.

    Args:
        model: Model on the CPU, in its final dtype.

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
