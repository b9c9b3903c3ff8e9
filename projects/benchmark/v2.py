"""The cost of GFLv2's quality network: its head against GFL's, from the features on."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor

from gfl_det.utils.timing import Runs
from projects.benchmark.models import head_config
from projects.benchmark.parts import Case, make_batch, total_loss


def build_both(device: str) -> list[Any]:
    """The heads of GFL and of GFLv2, with the same weights where both have them."""
    heads = [
        MODELS.build(head_config(ours=True, type=f'gfl_det.{name}')).to(device)
        for name in ('GFLHead', 'GFLv2Head')
    ]
    heads[1].load_state_dict(heads[0].state_dict(), strict=False)
    return heads


def format_cost(case: Case, runs: Runs) -> str:
    """Milliseconds of a training step and of a prediction of both heads, as text."""
    inputs = make_batch(case, bias=-8.0, device=runs.device)
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(case.batch, 256, *level.shape[2:], generator=generator).to(runs.device)
        for level in inputs.cls_scores
    ]
    trained = [level.clone().requires_grad_() for level in features]

    def train(head: Any) -> tuple[Tensor, ...]:
        loss = total_loss(head.loss_by_feat(*head(trained), inputs.gts, inputs.metas))
        return torch.autograd.grad(loss, [*trained, *head.parameters()])

    @torch.no_grad()
    def predict(head: Any) -> object:
        return head.predict_by_feat(*head(features), batch_img_metas=inputs.metas)

    v1, v2 = build_both(runs.device)
    lines = [f'{"":16} {"GFL":>11} {"GFLv2":>11} {"more":>7}']
    for name, step in (('training step', train), ('prediction', predict)):
        first, second = runs.in_turns(partial(step, v1), partial(step, v2))
        lines.append(f'{name:16} {first:8.1f} ms {second:8.1f} ms {second / first - 1:7.1%}')
    return '\n'.join(lines)
