"""A whole training step and a whole inference, image in, boxes out, of GFL R50."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Callable, NamedTuple

import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from gfl_det.compat.environment import computes_bfloat16
from gfl_det.engine.amp import CPUAmpOptimWrapper, lay_channels_last
from gfl_det.inference import optimize_for_inference
from gfl_det.utils.timing import Row, Runs
from projects.benchmark.models import build_detectors
from projects.benchmark.parts import Case, make_gts


def make_data(case: Case, with_gts: bool) -> dict[str, Any]:
    """A batch of random images as a data loader gives it."""
    generator = torch.Generator().manual_seed(0)
    height, width = case.size
    images = [
        torch.randint(0, 256, (3, height, width), generator=generator).byte()
        for _ in range(case.batch)
    ]
    meta = dict(
        img_shape=case.size,
        ori_shape=case.size,
        pad_shape=case.size,
        batch_input_shape=case.size,
        scale_factor=(1.0, 1.0),
    )
    samples = []
    for gts in make_gts(case):
        sample = DetDataSample(metainfo=dict(meta))
        if with_gts:
            sample.gt_instances = gts
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


class Call(NamedTuple):
    """What a convolution was given."""

    conv: nn.Conv2d
    maps: Tensor


def convolution_calls(model: BaseModel, function: Callable[[], object]) -> list[Call]:
    """The convolutions that a function makes a model do."""
    calls: list[Call] = []

    def note(conv: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        calls.append(Call(conv, arguments[0].detach()))  # type: ignore[arg-type]  # a Conv2d

    hooks = [
        module.register_forward_pre_hook(note)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    function()
    for hook in hooks:
        hook.remove()
    return calls


def inference_rows(case: Case, runs: Runs, targets: dict[str, float] | None = None) -> list[Row]:
    """Time from images to boxes: ours as it is, optimized, and in half precision.

    The floor is the time of the same model's convolutions alone. The row of bfloat16 is empty
    where the device does not compute in it.
    """
    targets = targets or {}
    ours, theirs = build_detectors(runs.device, case.classes)
    variants = {'as it is': ours, 'optimized, float32': optimize_for_inference(ours)}
    in_half = 'optimized, bfloat16'
    if has_half(runs.device):
        variants[in_half] = optimize_for_inference(ours, torch.bfloat16)
    data = make_data(case, with_gts=False)

    def predict(model: BaseModel) -> object:
        with torch.inference_mode():
            return model.test_step(copy.deepcopy(data))

    def convolve(calls: list[Call]) -> None:
        with torch.inference_mode():
            for call in calls:
                call.conv(call.maps)

    alone = {
        name: convolution_calls(model, partial(predict, model)) for name, model in variants.items()
    }
    models = (theirs, *variants.values())
    times = runs.in_turns(
        *(partial(predict, model) for model in models),
        *(partial(convolve, calls) for calls in alone.values()),
    )
    title, count = f'inference, {case.batch} x {case.size[0]}x{case.size[1]}', len(variants)
    rows = [
        Row(
            f'{title}, {name}',
            times[0],
            times[1 + index],
            target=targets.get(name),
            floor=times[1 + count + index],
        )
        for index, name in enumerate(variants)
    ]
    if in_half not in variants:
        rows.append(Row(f'{title}, {in_half}', times[0], None, target=targets.get(in_half)))
    return rows


def training_rows(case: Case, runs: Runs, targets: dict[str, float] | None = None) -> list[Row]:
    """Time of a training step, images to updated weights: plain, ``--channels-last``, ``--amp``.

    The floor is three times the forward convolutions of the same variant: its gradients by input
    and by weight take as many products. Rows of ``--amp`` are empty where the device has no half
    precision.
    """
    targets = targets or {}
    ours, theirs = (model.train() for model in build_detectors(runs.device, case.classes))
    amp = AmpOptimWrapper if runs.device.startswith('cuda') else CPUAmpOptimWrapper
    variants: dict[str, tuple[BaseModel, type[OptimWrapper]]] = {
        'as it is': (ours, OptimWrapper),
        '--channels-last': (_channels_last(ours), OptimWrapper),
        '--amp': (copy.deepcopy(ours), amp),
        '--amp --channels-last': (_channels_last(ours), amp),
    }
    left_out = [] if has_half(runs.device) else [name for name in variants if '--amp' in name]
    for name in left_out:
        del variants[name]
    data = make_data(case, with_gts=True)
    steps = [_step(theirs, OptimWrapper, data)]
    steps += [_step(model, wrapper, data) for model, wrapper in variants.values()]
    alone = []
    for (model, wrapper), step in zip(variants.values(), steps[1:]):
        alone.append(_convolutions(convolution_calls(model, step), wrapper, runs.device))
    times = runs.in_turns(*steps, *alone)
    rows = [
        Row(
            f'training step, {case}, {name}',
            times[0],
            times[1 + index],
            target=targets.get(name),
            floor=3 * times[1 + len(variants) + index],
        )
        for index, name in enumerate(variants)
    ]
    empty = [
        Row(f'training step, {case}, {name}', times[0], None, target=targets.get(name))
        for name in left_out
    ]
    return rows + empty


def has_half(device: str) -> bool:
    """Whether a device computes in the half precision that its rows are about."""
    return not device.startswith('cpu') or computes_bfloat16()


def _channels_last(model: BaseModel) -> BaseModel:
    model = copy.deepcopy(model)
    lay_channels_last(model)
    return model


def _step(model: BaseModel, wrapper: type[OptimWrapper], data: dict) -> Callable[[], object]:
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)
    optim_wrapper = wrapper(optimizer=optimizer)
    return lambda: model.train_step(copy.deepcopy(data), optim_wrapper)


def _convolutions(
    calls: list[Call], wrapper: type[OptimWrapper], device: str
) -> Callable[[], object]:
    kind = torch.float16 if device.startswith('cuda') else torch.bfloat16

    def convolve() -> None:
        enabled = wrapper is not OptimWrapper
        with torch.no_grad(), torch.autocast(device.split(':')[0], dtype=kind, enabled=enabled):
            for call in calls:
                call.conv(call.maps)

    return convolve
