"""Deformable convolution without compiled mmcv: values, gradients, memory, mmcv's layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import (
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    deform_conv,
    modulated_deform_conv,
)

from gfl_det.compat import deform
from gfl_det.compat.deform import KernelLayout, traceable
from gfl_det.compat.ops import stand_in_is_used
from tests.helpers import oracles_deform

LAYOUTS = [
    KernelLayout(padding=(1, 1)),
    KernelLayout((2, 1), (2, 1), (1, 2), groups=2),
    KernelLayout(padding=(1, 0), deform_groups=2),
    KernelLayout((1, 2), (0, 3), (2, 1), groups=4, deform_groups=4),
]


def operands(layout: KernelLayout, kernel=(3, 2), batch=2, channels=4, size=(6, 5), filters=8):
    """Random ones; offsets reach beyond the borders, and some places lie exactly on pixels."""
    lengths = [
        (size[axis] + 2 * layout.padding[axis] - layout.dilation[axis] * (kernel[axis] - 1) - 1)
        // layout.stride[axis]
        + 1
        for axis in (0, 1)
    ]
    taps = layout.deform_groups * math.prod(kernel)
    image = torch.randn(batch, channels, *size, dtype=torch.float64)
    offset = 3 * torch.randn(batch, 2 * taps, *lengths, dtype=torch.float64)
    offset[:, :, 0] = offset[:, :, 0].round()
    mask = torch.rand(batch, taps, *lengths, dtype=torch.float64)
    weight = torch.randn(filters, channels // layout.groups, *kernel, dtype=torch.float64)
    return [each.requires_grad_() for each in (image, offset, mask, weight)]


def mmcvs(given, layout: KernelLayout, modulated: bool, bias=None):
    """mmcv's autograd functions on whatever operators are there."""
    image, offset, mask, weight = given
    sizes = (layout.stride, layout.padding, layout.dilation, layout.groups, layout.deform_groups)
    if modulated:
        function = modulated_deform_conv.modulated_deform_conv2d
        return function(image, offset, mask, weight, bias, *sizes)
    return deform_conv.deform_conv2d(image, offset, weight, *sizes)


@pytest.fixture(params=[2**24, 1], ids=['whole', 'a row at a time'])
def chunk(request, monkeypatch) -> None:
    monkeypatch.setattr(deform, 'CHUNK_BYTES', request.param)


@pytest.mark.usefixtures('chunk')
@pytest.mark.parametrize('modulated', [False, True], ids=['v1', 'v2'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_values_are_those_of_a_loop(layout, modulated) -> None:
    given = operands(layout)
    arrays = [each.detach().numpy() for each in given]
    arrays[2] = arrays[2] if modulated else None
    expected = oracles_deform.deform_conv2d(*arrays, *layout)
    found = mmcvs(given, layout, modulated)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10, atol=1e-10)
    with traceable():
        traced = mmcvs(given, layout, modulated)
    np.testing.assert_allclose(traced.detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures('chunk')
@pytest.mark.parametrize('modulated', [False, True], ids=['v1', 'v2'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_gradients_are_those_of_differences(layout, modulated) -> None:
    given = operands(layout, size=(5, 4), batch=1)
    with torch.no_grad():  # differences are taken on one side of a pixel's place
        given[1] += 0.01 * (given[1] == given[1].round())
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True) if modulated else None
    inputs = [each for each in (*given, bias) if each is not None]
    if not modulated:
        del inputs[2]

    def run(image, offset, *others):
        mask, weight, bias = others if modulated else (None, *others, None)
        return mmcvs((image, offset, mask, weight), layout, modulated, bias)

    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-5, fast_mode=True)


def test_without_offsets_it_is_a_convolution() -> None:
    layout = KernelLayout((2, 2), (1, 1), (1, 1), groups=2)
    image, offset, mask, weight = operands(layout)
    expected = F.conv2d(image, weight, None, *layout[:4])
    zero, one = torch.zeros_like(offset), torch.ones_like(mask)
    torch.testing.assert_close(mmcvs((image, zero, None, weight), layout, False), expected)
    torch.testing.assert_close(mmcvs((image, zero, one, weight), layout, True), expected)


def test_an_offset_of_whole_pixels_moves_the_image() -> None:
    image = torch.arange(20.0).reshape(1, 1, 4, 5)
    offset = torch.zeros(1, 2, 4, 5)
    offset[:, 0], offset[:, 1] = 1, -2  # one row down, two columns to the left
    found = mmcvs((image, offset, None, torch.ones(1, 1, 1, 1)), KernelLayout(), False)
    expected = torch.zeros_like(image)
    expected[..., :3, 2:] = image[..., 1:, :3]
    assert torch.equal(found, expected)


@pytest.mark.parametrize('wild', [1e30, -1e30, math.inf, -math.inf])
def test_places_far_outside_give_nothing(wild) -> None:
    layout = KernelLayout(padding=(1, 1))
    image, offset, mask, weight = (each.detach() for each in operands(layout))
    given = (image, torch.full_like(offset, wild), mask, weight)
    if math.isfinite(wild):
        assert not mmcvs(given, layout, True).any()
    else:  # as in compiled mmcv, which reads no pixel there
        assert mmcvs(given, layout, True).shape[1] == 8


def test_layers_of_mmcv_run_and_learn() -> None:
    image = torch.randn(2, 4, 7, 6, requires_grad=True)
    for layer in (
        DeformConv2dPack(4, 6, 3, padding=1),
        ModulatedDeformConv2dPack(4, 6, 3, padding=1, deform_groups=2),
    ):
        output = layer(image)
        assert output.shape == (2, 6, 7, 6)
        output.square().sum().backward()
        assert all(each.grad is not None for each in layer.parameters())


def test_offsets_of_a_finer_level_are_read_as_mmcv_reads_them() -> None:
    """DyHead's: the first values in memory, whatever the height and width."""
    layout = KernelLayout(padding=(1, 1))
    image, offset, mask, weight = operands(layout, (3, 3), size=(4, 5))
    finer = [
        torch.cat([each.flatten(1), torch.randn(2, 3 * each[0].numel())], 1)
        .unflatten(1, (each.shape[1], 8, 10))
        .detach()
        .requires_grad_()
        for each in (offset, mask)
    ]
    found = mmcvs((image, *finer, weight), layout, True)
    expected = mmcvs((image, offset, mask, weight), layout, True)
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found.square().sum(), finer)
    theirs = torch.autograd.grad(expected.square().sum(), (offset, mask))
    for grad, other in zip(grads, theirs):
        flat = grad.flatten(1)
        torch.testing.assert_close(flat[:, : other[0].numel()], other.flatten(1))
        assert not flat[:, other[0].numel() :].any()
    with pytest.raises(ValueError, match=r'offsets and masks of \(4, 4\) are too few'):
        mmcvs((image, offset[..., :4], mask[..., :4], weight), layout, True)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_samples_in_float32(dtype) -> None:
    """A place such as 300.3 has no half of a pixel left in bfloat16."""
    layout = KernelLayout(padding=(1, 1))
    given = [each.detach().to(dtype) for each in operands(layout, size=(3, 400), batch=1)]
    exact = mmcvs([each.float() for each in given], layout, True)
    found = mmcvs(given, layout, True)
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))


@pytest.mark.skipif(not stand_in_is_used(), reason='this mmcv has compiled operators')
def test_memory_is_bounded_by_a_chunk(monkeypatch) -> None:
    """The columns of the whole image never exist: no tensor is larger than a chunk's."""
    largest = []
    real = deform._sample
    monkeypatch.setattr(deform, 'CHUNK_BYTES', 2**16)
    monkeypatch.setattr(
        deform, '_sample', lambda *given: largest.append(real(*given)) or largest[-1]
    )
    layout = KernelLayout(padding=(1, 1))
    given = [
        each.float().detach().requires_grad_() for each in operands(layout, (3, 3), 1, 16, (64, 64))
    ]
    mmcvs(given, layout, True).sum().backward()
    assert len(largest) > 40
    assert max(each.numel() for each in largest) * 4 <= 2**16


def test_torchvision_is_asked_with_its_arguments(monkeypatch) -> None:
    """On a GPU; here a stand-in for its operators records what they would be given."""
    asked = {}

    class Operators:
        def deform_conv2d(self, *given):
            asked['forward'] = given
            return torch.zeros(2, 8, 6, 5, dtype=torch.float64)

        def _deform_conv2d_backward(self, *given):
            asked['backward'] = given
            image, weight, offset, mask, bias = given[1:6]
            return image + 1, weight + 2, offset + 3, mask + 4, bias

    layout = KernelLayout((1, 2), (3, 4), (5, 6), 2, 1)
    image, offset, mask, weight = (each.detach() for each in operands(KernelLayout(padding=(1, 1))))
    monkeypatch.setattr(deform, '_torchvision', Operators)
    given = deform._Operands(image, offset, mask, weight)
    output = torch.empty(2, 8, 6, 5, dtype=torch.float64, device='meta')
    deform.forward(given, layout, output)
    assert asked['forward'][5:] == (1, 2, 3, 4, 5, 6, 2, 1, True)
    found = deform.backward(given, layout, output)
    for value, expected in zip(found, (image + 1, offset + 3, mask + 4, weight + 2)):
        assert torch.equal(value, expected)
    bare = deform._Operands(image, offset, None, weight)
    assert deform.backward(bare, layout, output).mask is None
    assert asked['backward'][-1] is False


@pytest.mark.skipif(stand_in_is_used(), reason='this mmcv has no compiled operators')
@pytest.mark.parametrize('modulated', [False, True], ids=['v1', 'v2'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_values_and_gradients_are_those_of_compiled_mmcv(layout, modulated) -> None:
    given = [
        each.detach().float().requires_grad_()
        for each in operands(layout, (3, 3), channels=8, size=(17, 21))
    ]
    if not modulated:
        given[2] = None
    theirs = mmcvs(given, layout, modulated)
    upstream = torch.randn_like(theirs)
    leaves = [each for each in given if each is not None]
    expected = torch.autograd.grad(theirs, leaves, upstream)
    ours = torch.empty_like(theirs)
    operands_ = deform._Operands(*given)
    deform.forward(operands_, layout, ours)
    found = [each for each in deform.backward(operands_, layout, upstream) if each is not None]
    for value, other in zip((ours, *found), (theirs.detach(), *expected)):
        scale = other.abs().max()
        torch.testing.assert_close(value / scale, other / scale, rtol=0, atol=1e-5)
