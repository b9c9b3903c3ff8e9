"""Losses of heads compiled by torch into one graph, beside the same losses as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.models.assigners.batch import PriorLevels
from tests.helpers.heads import STRIDES

LEVELS = 2  # tracing takes longer with each; the product's arguments are counted where it is two


def traced(graph: Any, inputs: Any) -> Any:
    """torch's backend ``aot_eager``: both graphs are traced, and run as they are.

    Which values are kept for the backward graph is decided by use alone: the cut that keeps the
    fewest bytes takes a quarter of the time, and changes no number.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.backends.debugging import boxed_nop
    from torch._functorch.partitioners import default_partition

    compile_graphs = aot_autograd(
        fw_compiler=boxed_nop,
        partition_fn=default_partition,
        keep_inference_input_mutations=True,
    )
    return compile_graphs(graph, inputs)


def shorten(head: Any, levels: int = LEVELS) -> Any:
    """Let a head expect the first levels alone."""
    settings = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1)
    head.prior_generator = TASK_UTILS.build(dict(settings, strides=list(STRIDES[:levels])))
    head.priors = PriorLevels.of(head.prior_generator)
    return head


def compiled_pair(
    head: Any, maps: Sequence[Sequence[Tensor]], gts: list, metas: list
) -> tuple[Callable[[], Tensor], Callable[[], Tensor], list[Tensor]]:
    """The sum of a head's losses on its first levels, compiled and not, and the maps as leaves.

    ``fullgraph`` refuses whatever Python would decide by a value.
    """
    shorten(head)
    cls, edges = ([level.requires_grad_() for level in kind[:LEVELS]] for kind in maps)

    def loss(cls: Any, edges: Any, boxes: Any, labels: Any) -> Tensor:
        instances = [InstanceData(bboxes=b, labels=n) for b, n in zip(boxes, labels)]
        return sum(head.loss_by_feat(cls, edges, instances, metas).values())

    arguments = cls, edges, [each.bboxes for each in gts], [each.labels for each in gts]
    compiled = torch.compile(loss, fullgraph=True, backend=traced)
    return lambda: compiled(*arguments), lambda: loss(*arguments), [*cls, *edges]


def assert_compiles(head: Any, maps: Sequence[Sequence[Tensor]], gts: list, metas: list) -> None:
    """Losses and gradients of the compiled graph are those of the head."""
    compiled, plain, leaves = compiled_pair(head, maps, gts, metas)
    found, expected = compiled(), plain()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)
    )
