"""Deformable convolution (Dai et al. 2017, Zhu et al. 2019) without a compiler.

In a deformable convolution each kernel tap samples the image at its own position: ``columns = mask
* sample(image, place + offset)``, followed by the matrix product of any convolution. Sampling is
bilinear, so a value is a weighted sum of four pixels, and a chunk of values is one call of
``embedding_bag`` with four weighted rows per bag. Chunks bound the memory: the columns, nine times
the size of the image for a 3 x 3 kernel, are never complete, and the backward pass recomputes them
per chunk.

mmcv's classes and autograd functions are unchanged. They call the operators below, which take the
arguments of mmcv's compiled operators and, like them, write their results into given tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair

CHUNK_BYTES = 2**24  # of columns per chunk: little memory, but large matrix products


class KernelLayout(NamedTuple):
    """Kernel geometry; each pair is height and width."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1  # of the convolution
    deform_groups: int = 1  # of channels that share sampling positions


def deform_conv2d(
    image: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, layout: KernelLayout
) -> Tensor:
    """Deformable convolution, modulated if a mask is given; differentiable by autograd.

    Args:
        image: ``(N, C, H, W)``.
        offset: ``(N, G * K * 2, H', W')`` px, y before x, for G deform groups and K kernel taps in
            row-major order.
        mask: ``(N, G * K, H', W')``, factor of each sample; None: 1.
        weight: ``(O, C / groups, kernel_h, kernel_w)``.
        layout: Kernel geometry.

    Returns:
        ``(N, O, H', W')``. Pixels outside the image count as 0.

    Example:
        Without offsets it is a plain convolution.

        >>> image, weight = torch.randn(1, 4, 5, 5), torch.randn(2, 4, 3, 3)
        >>> offset = torch.zeros(1, 18, 3, 3)
        >>> found = deform_conv2d(image, offset, None, weight, KernelLayout())
        >>> torch.allclose(found, F.conv2d(image, weight), atol=1e-5)
        True
    """
    batch, channels, height, width = image.shape
    out_height, out_width = offset.shape[2:]
    table = image.permute(0, 2, 3, 1).reshape(-1, channels // layout.deform_groups)
    places = _places(offset, weight.shape[2:], layout)
    index, share = _corners(places, height, width)
    # Rows of the table: images, pixels, deform groups.
    image_number = torch.arange(batch, device=image.device).reshape(-1, 1, 1, 1, 1)
    group = torch.arange(layout.deform_groups, device=image.device).reshape(-1, 1)
    index = (index + image_number * (height * width)) * layout.deform_groups + group
    if mask is not None:
        taps = mask.unflatten(1, (layout.deform_groups, -1)).flatten(3).permute(0, 3, 2, 1)
        share = share * taps[..., None]
    columns = _sample(table, index, share)  # (N, P, K, C)
    product = _product(columns, weight, layout.groups)  # (N, P, O)
    return product.permute(0, 2, 1).reshape(batch, -1, out_height, out_width)


def _places(offset: Tensor, kernel: torch.Size | tuple[int, ...], layout: KernelLayout) -> Tensor:
    """Sampling positions (N, P, K, G, 2) px, y before x, for P output positions."""
    out_height, out_width = offset.shape[2:]
    axes = []
    for axis, size in enumerate((out_height, out_width)):
        steps = torch.arange(size, device=offset.device) * layout.stride[axis]
        taps = torch.arange(kernel[axis], device=offset.device) * layout.dilation[axis]
        axes.append((steps[:, None] + taps - layout.padding[axis]).to(offset.dtype))
    rows = axes[0][:, None, :, None].expand(-1, out_width, -1, kernel[1])
    columns = axes[1][None, :, None, :].expand(out_height, -1, kernel[0], -1)
    regular = torch.stack((rows, columns), -1).reshape(out_height * out_width, -1, 1, 2)
    moved = offset.unflatten(1, (layout.deform_groups, -1, 2)).flatten(4)  # (N, G, K, 2, P)
    return regular + moved.permute(0, 4, 2, 1, 3)


def _corners(places: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Indices and weights of the four pixels around each position, both (N, P, K, G, 4)."""
    low = places.detach().floor()
    beyond = places - low
    # Far outside, or NaN: any index works, as its weight is 0.
    size = torch.tensor((height, width), dtype=low.dtype, device=low.device)
    start = torch.minimum(low.nan_to_num(-2).clamp(min=-2), size)
    pixel = start[..., None].long() + torch.tensor((0, 1), device=low.device)  # (..., yx, low/high)
    share = torch.stack((1 - beyond, beyond), -1)
    inside = (pixel >= 0) & (pixel < size.long()[:, None])
    share = torch.where(inside, share, share.new_zeros(()))
    rows = pixel[..., 0, :].clamp(0, height - 1)
    columns = pixel[..., 1, :].clamp(0, width - 1)
    index = rows[..., :, None] * width + columns[..., None, :]
    shares = share[..., 0, :, None] * share[..., 1, None, :]
    return index.flatten(-2), shares.flatten(-2)


def _sample(table: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """Weighted sums of four rows each: (N, P, K, C) from (N, P, K, G, 4)."""
    if torch.compiler.is_compiling():  # ONNX has no embedding_bag, but it can gather
        sums = (table[index] * share[..., None]).sum(-2)
    else:
        sums = F.embedding_bag(
            index.reshape(-1, 4), table, per_sample_weights=share.reshape(-1, 4), mode='sum'
        )
    return sums.reshape(*index.shape[:3], -1)


def _product(columns: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The convolution as a matrix product: (N, P, O) from (N, P, K, C)."""
    batch, places, taps, _ = columns.shape
    kernel = weight.flatten(2).permute(0, 2, 1)  # (O, K, C / groups)
    if groups == 1:
        return columns.flatten(2) @ kernel.flatten(1).T
    by_group = columns.reshape(batch * places, taps, groups, -1).permute(2, 0, 1, 3).flatten(2)
    kernels = kernel.flatten(1).unflatten(0, (groups, -1)).transpose(1, 2)
    return (by_group @ kernels).permute(1, 0, 2).reshape(batch, places, -1)


class _Operands(NamedTuple):
    """Differentiable operands; ``mask`` may be None."""

    image: Tensor
    offset: Tensor
    mask: Tensor | None
    weight: Tensor

    def prepared(self) -> _Operands:
        """Convert to a precision sufficient for positions, with pixels as rows in memory."""
        dtype = torch.promote_types(self.image.dtype, torch.float32)
        image, offset, weight = (
            each.detach().to(dtype) for each in (self.image, self.offset, self.weight)
        )
        mask = None if self.mask is None else self.mask.detach().to(dtype)
        return _Operands(image.contiguous(memory_format=torch.channels_last), offset, mask, weight)


def _chunks(
    given: _Operands, layout: KernelLayout
) -> Iterator[tuple[int, slice, _Operands, KernelLayout]]:
    """Split the output into rows of single images: image, rows, operands and layout.

    The output from a later row on equals that of an image with less padding above.
    """
    height, width = given.offset.shape[2:]
    taps = given.weight.shape[2] * given.weight.shape[3]
    row_bytes = width * taps * given.image.shape[1] * given.image.element_size()
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    for number in range(len(given.image)):
        for first in range(0, height, step):
            rows = slice(first, min(first + step, height))
            mask = None if given.mask is None else given.mask[number, None, :, rows]
            part = _Operands(
                given.image[number, None], given.offset[number, None, :, rows], mask, given.weight
            )
            above = layout.padding[0] - first * layout.stride[0]
            yield number, rows, part, layout._replace(padding=(above, layout.padding[1]))


@torch.no_grad()
def _forward(given: _Operands, layout: KernelLayout, output: Tensor) -> None:
    for number, rows, part, place in _chunks(given.prepared(), layout):
        output[number, :, rows] = deform_conv2d(*part, place)[0].to(output.dtype)


def _backward(given: _Operands, layout: KernelLayout, grad_output: Tensor) -> _Operands:
    """Compute the gradients of all operands."""
    prepared = given.prepared()
    total = _Operands(
        torch.zeros_like(prepared.image),
        torch.zeros_like(prepared.offset),
        None if prepared.mask is None else torch.zeros_like(prepared.mask),
        torch.zeros_like(prepared.weight),
    )
    for number, rows, part, place in _chunks(prepared, layout):
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in part if each is not None]
            image, offset, *mask, weight = leaves
            output = deform_conv2d(image, offset, mask[0] if mask else None, weight, place)
        upstream = grad_output[number, None, :, rows].to(output.dtype)
        of_image, of_offset, *of_mask, of_weight = torch.autograd.grad(output, leaves, upstream)
        total.image[number] += of_image[0]
        total.offset[number, :, rows] = of_offset[0]
        total.weight.add_(of_weight)
        if total.mask is not None:
            total.mask[number, :, rows] = of_mask[0][0]
    return total


@cache
def _torchvision() -> Any:
    """Operators of torchvision; None if it is missing or does not fit this torch."""
    try:
        import torchvision  # noqa: F401  (registers its operators)
    except Exception:  # its extension can raise anything on another torch
        return None
    operators = torch.ops.torchvision
    return operators if hasattr(operators, 'deform_conv2d') else None


def _vision_arguments(given: _Operands, layout: KernelLayout) -> tuple[Any, ...]:
    image, offset, mask, weight = given
    flat = (*layout.stride, *layout.padding, *layout.dilation)
    groups = (layout.groups, layout.deform_groups, mask is not None)
    bias = image.new_zeros(len(weight))
    mask = image.new_zeros(len(image), 1) if mask is None else mask
    return image, weight, offset, mask, bias, *flat, *groups


def forward(given: _Operands, layout: KernelLayout, output: Tensor) -> None:
    """Write the output, off the CPU with torchvision if available."""
    operators = None if output.device.type == 'cpu' else _torchvision()
    if operators is None:
        _forward(given, layout, output)
    else:
        output.copy_(operators.deform_conv2d(*_vision_arguments(given, layout)))


def backward(given: _Operands, layout: KernelLayout, grad_output: Tensor) -> _Operands:
    """Compute the gradients of all operands, with torchvision as in :func:`forward`."""
    operators = None if grad_output.device.type == 'cpu' else _torchvision()
    if operators is None:
        return _backward(given, layout, grad_output)
    image, weight, offset, mask, _ = operators._deform_conv2d_backward(
        grad_output.contiguous(), *_vision_arguments(given, layout)
    )
    return _Operands(image, offset, None if given.mask is None else mask, weight)


def _of_v1(sizes: dict[str, Any]) -> KernelLayout:
    stride, padding, dilation = (
        (sizes[f'{name}H'], sizes[f'{name}W']) for name in ('d', 'pad', 'dilation')
    )
    return KernelLayout(stride, padding, dilation, sizes['group'], sizes['deformable_group'])


def _of_v2(sizes: dict[str, Any]) -> KernelLayout:
    stride, padding, dilation = (
        (sizes[f'{name}_h'], sizes[f'{name}_w']) for name in ('stride', 'pad', 'dilation')
    )
    return KernelLayout(stride, padding, dilation, sizes['group'], sizes['deformable_group'])


def _as_read(values: Tensor, output: Tensor) -> Tensor:
    """Reshape offsets or masks as mmcv's operator reads them, ignoring their height and width.

    DyHead passes offsets and masks of a finer level. mmcv's operator then reads the first values in
    memory as a map of the output's size, and published weights were trained with this.

    Raises:
        ValueError: If there are fewer values than the operator reads.
    """
    size = output.shape[2:]
    if values.shape[2:] == size:
        return values
    needed = values.shape[1] * size[0] * size[1]
    if values[0].numel() < needed:
        raise ValueError(
            f'offsets and masks of {tuple(values.shape[2:])} are too few for an output of '
            f'{tuple(size)}'
        )
    return values.view(len(values), -1)[:, :needed].unflatten(1, (-1, *size))


def deform_conv_forward(
    image: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *_: Tensor, **sizes: Any
) -> None:
    """Write ``output`` like mmcv's operator of this name."""
    forward(_Operands(image, offset, None, weight), _of_v1(sizes), output)


def deform_conv_backward_input(
    image: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_image: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    *_: Tensor,
    **sizes: Any,
) -> None:
    """Write the gradients of image and offset like mmcv's operator of this name."""
    found = backward(_Operands(image, offset, None, weight), _of_v1(sizes), grad_output)
    grad_image.copy_(found.image)
    grad_offset.copy_(found.offset)


def deform_conv_backward_parameters(
    image: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    *_: Tensor,
    scale: float = 1.0,
    **sizes: Any,
) -> None:
    """Write the gradient of the weight like mmcv's operator of this name."""
    # The product needs only the weight's shape.
    given = _Operands(image, offset, None, torch.zeros_like(grad_weight))
    grad_weight.copy_(backward(given, _of_v1(sizes), grad_output).weight * scale)


def modulated_deform_conv_forward(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    *_: Tensor,
    with_bias: bool,
    **sizes: Any,
) -> None:
    """Write ``output`` like mmcv's operator of this name."""
    offset, mask = (_as_read(each, output) for each in (offset, mask))
    forward(_Operands(image, offset, mask, weight), _of_v2(sizes), output)
    if with_bias:
        output += bias.reshape(-1, 1, 1)


def modulated_deform_conv_backward(*tensors: Tensor, with_bias: bool, **sizes: Any) -> None:
    """Write all gradients like mmcv's operator of this name.

    Args:
        *tensors: Image, weight, bias, a buffer, offset, mask, a buffer; the gradients of image,
            weight, bias, offset and mask, which are written; the gradient of the output.
        with_bias: Whether the convolution has a bias.
        **sizes: Arguments of the kernel geometry.
    """
    image, weight, _, _, offset, mask, _, *grads, grad_output = tensors
    offset, mask = (_as_read(each, grad_output) for each in (offset, mask))
    found = backward(_Operands(image, offset, mask, weight), _of_v2(sizes), grad_output)
    grads[0].copy_(found.image)
    grads[1].copy_(found.weight)
    if with_bias:
        grads[2].copy_(grad_output.sum((0, 2, 3)))
    _as_read(grads[3], grad_output).copy_(found.offset)
    assert found.mask is not None
    _as_read(grads[4], grad_output).copy_(found.mask)


def _traceable_v1(
    image: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    deform_groups: int = 1,
    *_: Any,
) -> Tensor:
    pairs = (_pair(stride), _pair(padding), _pair(dilation))
    return deform_conv2d(image, offset, None, weight, KernelLayout(*pairs, groups, deform_groups))


def _traceable_v2(
    image: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any
) -> Tensor:
    layout = KernelLayout(*map(_pair, sizes[:3]), *sizes[3:])
    output = deform_conv2d(image, offset, mask, weight, layout)
    return output if bias is None else output + bias.reshape(-1, 1, 1)


@contextmanager
def traceable() -> Iterator[None]:
    """Make mmcv's layers call plain tensor functions, which exporters can trace.

    mmcv's autograd functions write into tensors of fixed sizes, and its compiled operators are
    opaque. Each module that imported the functions has its own names for them.
    """
    from mmcv.ops import deform_conv, modulated_deform_conv

    ours = {
        'deform_conv2d': (deform_conv.deform_conv2d, _traceable_v1),
        'modulated_deform_conv2d': (modulated_deform_conv.modulated_deform_conv2d, _traceable_v2),
    }
    changed = [
        (module, name, before)
        for module in list(sys.modules.values())
        for name, (before, _) in ours.items()
        if vars(module).get(name) == before
    ]
    for module, name, _ in changed:
        setattr(module, name, ours[name][1])
    try:
        yield
    finally:
        for module, name, before in changed:
            setattr(module, name, before)
