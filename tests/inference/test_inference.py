"""Faster inference: Winograd's convolution, folded norms, and the same detections."""

from __future__ import annotations

import copy
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from torch import nn

import gfl_det
from gfl_det.compat import environment
from gfl_det.errors import SetupError
from gfl_det.inference import optimize_for_inference
from gfl_det.inference.optimize import fold_batch_norms
from gfl_det.ops import convolutions
from gfl_det.ops.convolutions import PackedConv2d, can_pack, use_packed
from tests.helpers.heads import make_meta


def test_transforms_give_the_correlation_of_an_axis() -> None:
    outputs, filters, inputs = convolutions.transforms()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(100, 6, generator=generator, dtype=torch.float64)
    taps = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    found = ((taps @ filters.T) * (data @ inputs.T)) @ outputs.T
    expected = torch.stack([(data[:, i : i + 3] * taps).sum(1) for i in range(4)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 11), st.integers(1, 11)
)
def test_winograd_is_the_convolution_and_its_gradients(images, ins, outs, height, width) -> None:
    generator = torch.Generator().manual_seed(height * 100 + width)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    maps, weight = random(images, ins, height, width), random(outs, ins, 3, 3)
    expected = F.conv2d(maps.requires_grad_(), weight.requires_grad_(), padding=1)
    upstream = random(*expected.shape)
    gradients = torch.autograd.grad(expected, (maps, weight), upstream)
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = maps.detach().contiguous(memory_format=layout).requires_grad_()
        for filters in (None, convolutions.transform_filters(weight.detach())):
            found = convolutions.convolve(laid, weight, filters)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(
                torch.autograd.grad(found, (laid, weight), upstream),
                gradients,
                rtol=1e-10,
                atol=1e-10,
            )


def test_winograd_keeps_six_digits(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 256, 24, 24, generator=generator).relu()
    weight = torch.randn(256, 256, 3, 3, generator=generator) * 0.02
    exact = F.conv2d(maps.double(), weight.double(), padding=1)

    def error() -> float:
        found = convolutions.convolve(maps, weight)
        return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    ours = error()
    # Processors sum in different orders: below 1e-6 on an AMD EPYC, 1.25e-6 on an Intel Xeon.
    assert ours < 2e-6
    monkeypatch.setattr(convolutions, 'POINTS', tuple(map(Fraction, (0, 1, -1, 2, -2))))
    monkeypatch.setattr(convolutions, 'transforms', convolutions.transforms.__wrapped__)
    monkeypatch.setattr(convolutions, 'matrices', convolutions.matrices.__wrapped__)
    assert error() > 1.5 * ours  # of the points that are used most


def conv(ins=256, outs=256, size=3, **options):
    return nn.Conv2d(ins, outs, size, **{'padding': 1, **options})


@pytest.mark.parametrize(
    'other',
    [
        conv(outs=80),
        conv(ins=64),
        conv(outs=255),
        conv(size=5, padding=2),
        conv(size=5),
        conv(stride=2),
        conv(padding=0),
        conv(dilation=2, padding=2),
        conv(groups=2),
        conv(padding_mode='reflect'),
        nn.Linear(256, 256),
    ],
)
def test_winograd_leaves_alone_what_it_does_not_compute(other) -> None:
    kind = type(other)
    convolutions.use_winograd(nn.Sequential(other), frozen=False)
    assert type(other) is kind


@pytest.mark.parametrize('frozen', [False, True])
def test_a_convolution_by_winograd_stays_itself(frozen: bool) -> None:
    layer, plain = conv(), conv()
    plain.load_state_dict(layer.state_dict())
    convolutions.use_winograd(layer, frozen)
    assert type(layer) is convolutions.WinogradConv2d
    assert list(layer.state_dict()) == list(plain.state_dict())
    small, large = torch.randn(1, 256, 5, 5), torch.randn(2, 256, 32, 18)
    assert torch.equal(layer(small), plain(small))
    torch.testing.assert_close(layer(large), plain(large), rtol=1e-4, atol=1e-4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(layer(large), plain(large))


def with_statistics(module: nn.Module) -> nn.Module:
    """Norms as after some training."""
    generator = torch.Generator().manual_seed(0)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            for values in (each.running_mean, each.running_var, each.weight.data, each.bias.data):
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return module.eval()


@pytest.mark.parametrize(
    ('order', 'folds'), [(('conv', 'norm', 'act'), True), (('norm', 'conv', 'act'), False)]
)
def test_norms_are_folded_where_they_follow(order: tuple, folds: bool) -> None:
    module = with_statistics(ConvModule(4, 4, 3, padding=1, norm_cfg=dict(type='BN'), order=order))
    maps = torch.randn(2, 4, 9, 9)
    expected = module(maps)
    fold_batch_norms(module)
    assert isinstance(module.norm, nn.Identity) == folds
    torch.testing.assert_close(module(maps), expected, rtol=1e-4, atol=1e-5)


def test_a_shared_convolution_keeps_its_norms() -> None:
    """RTMDet shares convolutions between levels and gives each level its own norm."""
    levels = nn.ModuleList(ConvModule(4, 4, 3, norm_cfg=dict(type='BN')) for _ in range(2))
    levels[1].conv = levels[0].conv
    with_statistics(levels)
    maps = torch.randn(1, 4, 9, 9)
    expected = [level(maps) for level in levels]
    fold_batch_norms(levels)
    for level, output in zip(levels, expected):
        torch.testing.assert_close(level(maps), output)


@pytest.mark.parametrize(
    'dtype',
    [
        pytest.param(
            dtype, marks=pytest.mark.skipif(not can_pack(dtype), reason=f'{dtype} cannot be packed')
        )
        for dtype in (torch.float32, torch.bfloat16)
    ],
)
@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(size=1, padding=0, bias=False),
        dict(size=7, padding=3, stride=2),
        dict(groups=16, dilation=2, padding=2),
    ],
)
def test_a_packed_convolution_gives_the_same_bits_at_every_size(dtype, options) -> None:
    plain = (
        conv(16, 32, **options).requires_grad_(False).to(dtype, memory_format=torch.channels_last)
    )
    packed = copy.deepcopy(plain)
    use_packed(packed)
    assert type(packed) is PackedConv2d
    for images, height, width in ((1, 40, 56), (2, 9, 8), (0, 9, 8)):
        maps = torch.randn(images, 16, height, width).to(dtype, memory_format=torch.channels_last)
        assert torch.equal(packed(maps), plain(maps))
        assert torch.equal(copy.deepcopy(packed)(maps), plain(maps))
    assert packed.packed is not None
    assert list(packed.state_dict()) == list(plain.state_dict())
    maps = torch.randn(1, 16, 9, 9, dtype=dtype, requires_grad=True)
    packed(maps).sum().backward()
    assert maps.grad is not None


def test_bfloat16_is_left_alone_where_the_processor_lacks_it(monkeypatch) -> None:
    without = SimpleNamespace(
        _reorder_convolution_weight=None,
        _convolution_pointwise=None,
        _is_mkldnn_bf16_supported=lambda: False,
    )
    monkeypatch.setattr(torch.ops, 'mkldnn', without)
    layer = conv().to(torch.bfloat16)
    use_packed(layer)
    assert type(layer) is nn.Conv2d


@pytest.mark.parametrize('other', [conv(padding='same'), conv(padding_mode='reflect')])
def test_packing_leaves_alone_what_it_does_not_compute(other) -> None:
    use_packed(other)
    assert type(other) is nn.Conv2d


@pytest.fixture(scope='module')
def model():
    """The demo's detector, with as many channels in neck and head as the large ones."""
    register_all_modules()
    torch.manual_seed(0)
    config = gfl_det.get_config('gfl_r18_fpn_digits').model
    config.neck.out_channels = config.bbox_head.in_channels = config.bbox_head.feat_channels = 256
    config.test_cfg.with_uncertainty = True
    detector = MODELS.build(config)
    detector.init_weights()
    with torch.no_grad():  # an untrained head finds nothing above the threshold
        detector.bbox_head.gfl_cls.bias.add_(3.5)
        detector.bbox_head.gfl_cls.weight.mul_(20)
    return with_statistics(detector)


def predict(detector, images: list[torch.Tensor]):
    samples = [DetDataSample(metainfo=make_meta(tuple(each.shape[1:]))) for each in images]
    with torch.inference_mode():
        return [
            each.pred_instances
            for each in detector.test_step(dict(inputs=images, data_samples=samples))
        ]


IMAGES = [
    torch.randint(0, 255, (3, 96, 128), generator=torch.Generator().manual_seed(n)).byte()
    for n in range(2)
]


def test_an_optimized_detector_finds_the_same(model) -> None:
    before = copy.deepcopy(model.state_dict())
    fast = optimize_for_inference(model)
    kinds = [type(each).__name__ for each in fast.modules()]
    assert 'WinogradConv2d' in kinds
    assert 'BatchNorm2d' not in kinds
    for found, expected in zip(predict(fast, IMAGES), predict(model, IMAGES)):
        assert len(found) == len(expected) > 10
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=0, atol=0.02)
        torch.testing.assert_close(found.edge_std, expected.edge_std, rtol=1e-3, atol=0.02)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(each.requires_grad for each in model.parameters())


def test_bfloat16_gives_float32_results(model, monkeypatch) -> None:
    monkeypatch.setattr(environment, 'computes_bfloat16', lambda: True)
    fast = optimize_for_inference(model, torch.bfloat16)
    for found, expected in zip(predict(fast, IMAGES), predict(model, IMAGES)):
        assert found.scores.dtype == found.bboxes.dtype == torch.float32
        assert abs(float(found.scores[0] - expected.scores[0])) < 0.05


def test_bfloat16_is_refused_where_the_processor_lacks_it(model, monkeypatch) -> None:
    monkeypatch.setattr(environment, 'computes_bfloat16', lambda: False)
    with pytest.raises(SetupError, match=r'bfloat16.*optimize for float32'):
        optimize_for_inference(model, torch.bfloat16)


def test_what_a_device_cannot_do_is_refused(model) -> None:
    with pytest.raises(SetupError, match='no fast float16'):
        optimize_for_inference(model, torch.float16)
    with pytest.raises(SetupError, match=r'not torch\.int8'):
        optimize_for_inference(model, torch.int8)


def test_compiling_needs_a_compiler(model, monkeypatch) -> None:
    monkeypatch.setattr('shutil.which', lambda name: None)
    with pytest.raises(SetupError, match=r'install g\+\+'):
        optimize_for_inference(model, compile=True)
