"""Assignment, losses and post-processing of a head, on random logits."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Callable, NamedTuple

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.models.assigners.batch import BatchAssignment, assign_batch, make_grid
from gfl_det.utils.timing import MEBI, Row, Runs, kept_for_backward, num_bytes, peak_memory
from projects.benchmark.models import STRIDES, build_heads

Heads = tuple[Any, Any]  # ours, mmdet's

# Mean and deviation of class logits: how many scores exceed the threshold of .05.
SCORES = {'sparse': (-8.0, 1.5), 'dense': (-5.0, 1.0), 'very dense': (-3.0, 1.0)}
# The ratios asked for at 800x1344, batch 2, 80 classes, by the number of gt boxes.
ASSIGNMENT_TARGETS = {7: 4.0, 100: 30.0, 300: 80.0}
LOSS_TARGETS = {7: 5.0, 100: 9.0, 300: 20.0}
PREDICTION_TARGETS = {'sparse': 4.0, 'dense': 6.0, 'very dense': 6.0}


class Case(NamedTuple):
    """What a head works on."""

    size: tuple[int, int] = (800, 1344)  # height and width of the images, px
    batch: int = 2
    gts: int = 7  # of each image
    classes: int = 80

    def __str__(self) -> str:
        height, width = self.size
        return f'{self.batch} x {height}x{width}, {self.gts} gt boxes, {self.classes} classes'

    def without_classes(self) -> str:
        """The same as text where classes do not matter."""
        return str(self).rpartition(',')[0]


class Batch(NamedTuple):
    """Inputs of ``loss_by_feat`` and ``predict_by_feat``."""

    cls_scores: list[Tensor]
    bbox_preds: list[Tensor]
    gts: list[InstanceData]
    metas: list[dict]


def make_gts(case: Case, device: str = 'cpu') -> list[InstanceData]:
    """Boxes of log-uniform sides and labels for each image; the same for the same case."""
    generator = torch.Generator().manual_seed(case.gts)
    height, width = case.size
    limit = torch.tensor([width, height, width, height])
    gts = []
    for _ in range(case.batch):
        centre = torch.rand(case.gts, 2, generator=generator) * limit[:2]
        sides = torch.exp(torch.rand(case.gts, 2, generator=generator) * 3.5 + 2.5)
        boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
        boxes = torch.minimum(boxes.clamp(min=0), limit).to(device)
        labels = torch.randint(0, case.classes, (case.gts,), generator=generator).to(device)
        gts.append(InstanceData(bboxes=boxes, labels=labels))
    return gts


def make_batch(case: Case, bias: float, spread: float = 1.0, device: str = 'cpu') -> Batch:
    """Random logits and gt boxes; the same for the same arguments.

    Args:
        case: sizes and numbers.
        bias: mean of the class logits.
        spread: their standard deviation.
        device: of all tensors.

    Returns:
        The batch.
    """
    generator = torch.Generator().manual_seed(case.gts)
    height, width = case.size
    sizes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]

    def random_maps(channels: int, mean: float, std: float) -> list[Tensor]:
        return [
            torch.randn(case.batch, channels, *each, generator=generator)
            .mul_(std)
            .add_(mean)
            .to(device)
            for each in sizes
        ]

    meta = dict(img_shape=case.size, pad_shape=case.size, scale_factor=(1.0, 1.0))
    return Batch(
        random_maps(case.classes, bias, spread),
        random_maps(68, 0.0, 1.0),
        make_gts(case, device),
        [meta] * case.batch,
    )


def total_loss(losses: dict[str, Any]) -> Tensor:
    """Sum of a head's losses, whether scalars or lists of one per level."""
    flat = [each if isinstance(each, Tensor) else sum(each) for each in losses.values()]
    return torch.stack(flat).sum()


def assignment_functions(
    heads: Heads, case: Case, device: str
) -> tuple[Callable[[], object], Callable[[], BatchAssignment]]:
    """The assignment of a batch by mmdet and by us."""
    ours, theirs = heads
    inputs = make_batch(case._replace(classes=1), -4.0, device=device)
    none_ignored = [None] * case.batch
    sizes = [tuple(level.shape[-2:]) for level in inputs.cls_scores]
    levels = theirs.prior_generator.grid_priors(sizes, device=device)
    priors, counts = torch.cat(levels), [len(level) for level in levels]

    def run_ours() -> BatchAssignment:
        grid = make_grid(ours.priors, inputs.cls_scores, inputs.metas, -1)
        return assign_batch(ours.assigner, grid, inputs.gts, none_ignored)

    def run_theirs() -> object:
        return [
            theirs.assigner.assign(InstanceData(priors=priors), counts, each) for each in inputs.gts
        ]

    return run_theirs, run_ours


def assignment_rows(case: Case, runs: Runs, target: float | None = None) -> list[Row]:
    """Time of the assignment and the memory of its tensors; the result must be written at least."""
    theirs, ours = assignment_functions(build_heads(runs.device, 1), case, runs.device)
    positives = ours().positives._asdict()
    del positives['by_level']  # the same again
    written = num_bytes(*positives.values())
    name = f'assignment, {case.without_classes()}'
    slow, fast = runs.in_turns(theirs, ours)
    memory, least = (peak_memory(function, runs.device) for function in (theirs, ours))
    return [
        Row(name, slow, fast, target=target, floor=written / runs.bandwidth()),
        Row(f'{name}: memory', memory, least, unit='MiB', floor=written / MEBI),
    ]


def loss_rows(case: Case, runs: Runs, target: float | None = None) -> list[Row]:
    """Time of the losses, forward and backward, and the memory kept in between.

    No loss can do with less than reading all class logits and writing the gradients of all maps.
    """
    ours, theirs = build_heads(runs.device, case.classes)
    inputs = make_batch(case, -4.0, device=runs.device)
    leaves = [level.requires_grad_() for level in (*inputs.cls_scores, *inputs.bbox_preds)]

    def forward(head: Any) -> Tensor:
        return total_loss(head.loss_by_feat(*inputs))

    def step(head: Any) -> object:
        return torch.autograd.grad(forward(head), leaves)

    slow, fast = runs.in_turns(partial(step, theirs), partial(step, ours))
    kept, less = (kept_for_backward(partial(forward, head)) for head in (theirs, ours))
    moved = num_bytes(*inputs.cls_scores, *leaves)
    gradient = num_bytes(*inputs.cls_scores) / MEBI
    return [
        Row(f'loss, {case}', slow, fast, target=target, floor=moved / runs.bandwidth()),
        Row(f'loss, {case}: kept', kept, less, unit='MiB', target=2.0, floor=gradient),
    ]


def prediction_rows(case: Case, runs: Runs, scores: str, target: float | None = None) -> list[Row]:
    """Time of post-processing at one density of :data:`SCORES`; all class logits must be read."""
    ours, theirs = build_heads(runs.device, case.classes)
    inputs = make_batch(case, *SCORES[scores], device=runs.device)

    def predict(head: Any) -> object:
        return head.predict_by_feat(
            inputs.cls_scores, inputs.bbox_preds, batch_img_metas=inputs.metas, rescale=True
        )

    slow, fast = runs.in_turns(partial(predict, theirs), partial(predict, ours))
    floor = num_bytes(*inputs.cls_scores) / runs.bandwidth()
    name = f'post-processing, {scores} scores, {case._replace(gts=0)}'
    return [Row(name.replace(' 0 gt boxes,', ''), slow, fast, target=target, floor=floor)]


def contract_rows(case: Case, runs: Runs) -> list[Row]:
    """What the project promises of the head: rows with targets, at the case's size and batch."""
    rows = []
    for gts, target in ASSIGNMENT_TARGETS.items():
        rows += assignment_rows(case._replace(gts=gts), runs, target)[:1]
    rows += assignment_rows(case._replace(gts=2000, batch=1), runs)
    for gts, target in LOSS_TARGETS.items():
        rows += loss_rows(case._replace(gts=gts), runs, target)
    for scores, target in PREDICTION_TARGETS.items():
        rows += prediction_rows(case, runs, scores, target)
    return rows
