"""Measuring a head against mmdet's: the same weights and inputs, in turns, in one process.

Timings on a shared machine wander, so every figure is a ratio of medians of runs that alternate.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from .assigners.batch import make_grid, match_batch
from .heads.training import Truths

STRIDES = (8, 16, 32, 64, 128)
NUM_CLASSES = 80


class Row(NamedTuple):
    """One line of the table: mmdet's figure and ours, in ``unit``."""

    name: str
    theirs: float
    ours: float
    unit: str
    target: float | None = None  # the least ratio asked for

    @property
    def ratio(self) -> float:
        """How many times less ours is."""
        return self.theirs / max(self.ours, 1e-9)


class Batch(NamedTuple):
    """Inputs of ``loss_by_feat`` and ``predict_by_feat``."""

    cls_scores: list[Tensor]
    bbox_preds: list[Tensor]
    truths: list[InstanceData]
    metas: list[dict]


def build_heads(device: str) -> tuple[Any, Any]:
    """Our head and mmdet's as in GFL R50, with the same weights."""
    heads = []
    for prefix in ('gfl_det.', ''):
        config = ConfigDict(
            type=f'{prefix}GFLHead',
            num_classes=NUM_CLASSES,
            in_channels=256,
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[1.0],
                octave_base_scale=8,
                scales_per_octave=1,
                strides=list(STRIDES),
            ),
            loss_cls=dict(type=f'{prefix}QualityFocalLoss', use_sigmoid=True),
            loss_dfl=dict(type=f'{prefix}DistributionFocalLoss', loss_weight=0.25),
            loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
            train_cfg=dict(
                assigner=dict(type=f'{prefix}ATSSAssigner', topk=9),
                allowed_border=-1,
                pos_weight=-1,
            ),
            test_cfg=dict(
                nms_pre=1000,
                min_bbox_size=0,
                score_thr=0.05,
                nms=dict(type='nms', iou_threshold=0.6),
                max_per_img=100,
            ),
        )
        heads.append(MODELS.build(config).to(device))
    heads[0].load_state_dict(heads[1].state_dict())
    return heads[0], heads[1]


def make_batch(
    size: tuple[int, int],
    batch: int,
    num_truths: int,
    bias: float,
    spread: float = 1.0,
    device: str = 'cpu',
) -> Batch:
    """Random logits and truths of log-uniform sides; the same for the same arguments.

    Args:
        size: height and width, px.
        batch: images.
        num_truths: of each image.
        bias: mean of the class logits; -8 gives sparse scores, -5 dense, -3 very dense ones.
        spread: standard deviation of the class logits.
        device: of all tensors.

    Returns:
        The batch.
    """
    generator = torch.Generator().manual_seed(num_truths)
    height, width = size
    sizes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]

    def random_maps(channels: int, mean: float, std: float) -> list[Tensor]:
        return [
            (torch.randn(batch, channels, *each, generator=generator) * std + mean).to(device)
            for each in sizes
        ]

    truths = []
    limit = torch.tensor([width, height, width, height])
    for _ in range(batch):
        centre = torch.rand(num_truths, 2, generator=generator) * limit[:2]
        sides = torch.exp(torch.rand(num_truths, 2, generator=generator) * 3.5 + 2.5)
        boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
        boxes = torch.minimum(boxes.clamp(min=0), limit).to(device)
        labels = torch.randint(0, NUM_CLASSES, (num_truths,), generator=generator).to(device)
        truths.append(InstanceData(bboxes=boxes, labels=labels))
    meta = dict(img_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    return Batch(
        random_maps(NUM_CLASSES, bias, spread), random_maps(68, 0.0, 1.0), truths, [meta] * batch
    )


def in_turns(
    theirs: Callable[[], object], ours: Callable[[], object], repeats: int, device: str = 'cpu'
) -> tuple[float, float]:
    """Median milliseconds of two functions that run in turns, after a warm-up of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 2):
        for function, record in zip((theirs, ours), times):
            start = _now(device)
            function()
            if repeat >= 2:
                record.append((_now(device) - start) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


def _now(device: str) -> float:
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    return time.perf_counter()


def total_loss(losses: dict[str, Any]) -> Tensor:
    """Sum of a head's losses, whether scalars or lists of one a level."""
    flat = [each if isinstance(each, Tensor) else sum(each) for each in losses.values()]
    return torch.stack(flat).sum()


def kept_for_backward(function: Callable[[], object]) -> float:
    """MiB of distinct memory that autograd keeps while a function's graph is alive."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = function()
    del graph
    return sum(storages.values()) / 2**20


def peak_memory(function: Callable[[], object]) -> float:
    """MiB that a function's tensors take on the CPU at most, beyond what was there before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    steps = sorted(
        (event.time_range.end, event.self_cpu_memory_usage) for event in profile.events() or []
    )
    current = peak = 0
    for _, change in steps:
        current += change
        peak = max(peak, current)
    return peak / 2**20


def assignment_rows(
    heads: tuple[Any, Any], size: tuple[int, int], batch: int, repeats: int, device: str
) -> list[Row]:
    """Assignment of a batch at 7, 100 and 300 truths an image, and of one image at 2,000."""
    ours, theirs = heads
    targets = {7: 4.0, 100: 30.0, 300: 80.0}
    rows = []
    for count, target in targets.items():
        inputs = make_batch(size, batch, count, bias=-4.0, device=device)
        run_ours, run_theirs = _assignment_of(ours, theirs, inputs)
        times = in_turns(run_theirs, run_ours, repeats, device)
        rows.append(Row(f'assignment, {count} truths', *times, 'ms', target))
    inputs = make_batch(size, 1, 2000, bias=-4.0, device=device)
    run_ours, run_theirs = _assignment_of(ours, theirs, inputs)
    times = in_turns(run_theirs, run_ours, max(1, repeats // 5), device)
    rows.append(Row('assignment, 2000 truths (<50 ms)', *times, 'ms'))
    if device == 'cpu':
        memory = peak_memory(run_theirs), peak_memory(run_ours)
        rows.append(Row('assignment, 2000 truths (<50 MiB)', *memory, 'MiB'))
    return rows


def _assignment_of(ours: Any, theirs: Any, inputs: Batch) -> tuple[Callable, Callable]:
    device = inputs.cls_scores[0].device
    truths = Truths.collect(inputs.truths, device)
    none_ignored = [None] * len(inputs.metas)
    sizes = [tuple(level.shape[-2:]) for level in inputs.cls_scores]
    levels = theirs.prior_generator.grid_priors(sizes, device=device)
    priors, counts = torch.cat(levels), [len(level) for level in levels]

    def run_ours() -> object:
        grid = make_grid(ours.priors, inputs.cls_scores, inputs.metas, -1)
        return match_batch(
            ours.assigner, grid, truths.boxes, truths.image, inputs.truths, none_ignored
        )

    def run_theirs() -> object:
        return [
            theirs.assigner.assign(InstanceData(priors=priors), counts, each)
            for each in inputs.truths
        ]

    return run_ours, run_theirs


def loss_rows(
    heads: tuple[Any, Any], size: tuple[int, int], batch: int, repeats: int, device: str
) -> list[Row]:
    """Losses, forward and backward, at 7, 100 and 300 truths an image, and the memory kept."""
    rows = []
    for count, target in {7: 5.0, 100: 9.0, 300: 20.0}.items():
        inputs = make_batch(size, batch, count, bias=-4.0, device=device)
        leaves = [level.requires_grad_() for level in (*inputs.cls_scores, *inputs.bbox_preds)]

        def forward(head: Any, inputs: Batch = inputs) -> Tensor:
            return total_loss(head.loss_by_feat(*inputs))

        def step(head: Any, leaves: Sequence[Tensor] = leaves) -> object:
            return torch.autograd.grad(forward(head), leaves)

        times = in_turns(lambda: step(heads[1]), lambda: step(heads[0]), repeats, device)
        rows.append(Row(f'loss, {count} truths', *times, 'ms', target))
        kept = (
            kept_for_backward(lambda: forward(heads[1])),
            kept_for_backward(lambda: forward(heads[0])),
        )
        rows.append(Row(f'loss, {count} truths, kept', *kept, 'MiB', 2.0))
    return rows


def prediction_rows(
    heads: tuple[Any, Any], size: tuple[int, int], batch: int, repeats: int, device: str
) -> list[Row]:
    """Post-processing of a batch at sparse, dense and very dense scores."""
    rows = []
    kinds = {'sparse': (-8.0, 1.5, 4.0), 'dense': (-5.0, 1.0, 6.0), 'very dense': (-3.0, 1.0, 6.0)}
    for kind, (bias, spread, target) in kinds.items():
        inputs = make_batch(size, batch, 7, bias, spread, device)

        def predict(head: Any, inputs: Batch = inputs) -> object:
            return head.predict_by_feat(
                inputs.cls_scores, inputs.bbox_preds, batch_img_metas=inputs.metas, rescale=True
            )

        times = in_turns(lambda: predict(heads[1]), lambda: predict(heads[0]), repeats, device)
        rows.append(Row(f'post-processing, {kind} scores', *times, 'ms', target))
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f'{"":36} {"mmdet":>10} {"gfl_det":>10} {"ratio":>7} {"target":>7}']
    for row in rows:
        target = '' if row.target is None else f'{row.target:.0f}'
        lines.append(
            f'{row.name:36} {row.theirs:7.1f} {row.unit:<3}{row.ours:7.1f} {row.unit:<3}'
            f'{row.ratio:7.1f} {target:>7}'
        )
    return '\n'.join(lines)
