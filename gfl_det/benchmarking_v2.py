"""What GFLv2's quality network costs: its head against GFL's, in turns, from features on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from mmdet.registry import MODELS

from .benchmarking import in_turns, make_batch, total_loss
from .config import get_config


class Cost:
    """Both heads of GFL R50 on the same features and truths.

    Args:
        size: height and width of the images, px.
        batch: images.
        device: of all tensors.
    """

    def __init__(self, size: tuple[int, int], batch: int, device: str) -> None:
        inputs = make_batch(size, batch, 7, bias=-8.0, device=device)
        self.truths, self.metas, self.device = inputs.truths, inputs.metas, device
        generator = torch.Generator().manual_seed(0)
        self.features = [
            torch.randn(batch, 256, *level.shape[2:], generator=generator).to(device)
            for level in inputs.cls_scores
        ]
        model = get_config('gfl_r50_fpn_1x_coco').model
        self.heads = []
        for kind in ('gfl_det.GFLHead', 'gfl_det.GFLv2Head'):
            config = copy.deepcopy(model.bbox_head)
            config.update(type=kind, train_cfg=model.train_cfg, test_cfg=model.test_cfg)
            self.heads.append(MODELS.build(config).to(device))
        self.heads[1].load_state_dict(self.heads[0].state_dict(), strict=False)

    def training(self, repeats: int) -> tuple[float, float]:
        """Median ms of forward, losses and backward: of GFL and of GFLv2."""
        features = [level.clone().requires_grad_() for level in self.features]

        def step(head: Any) -> None:
            head.zero_grad()
            losses = head.loss_by_feat(*head(features), self.truths, self.metas)
            total_loss(losses).backward()

        return self._in_turns(step, repeats)

    @torch.no_grad()
    def prediction(self, repeats: int) -> tuple[float, float]:
        """Median ms of forward and post-processing: of GFL and of GFLv2."""

        def step(head: Any) -> list:
            return head.predict_by_feat(*head(self.features), batch_img_metas=self.metas)

        return self._in_turns(step, repeats)

    def _in_turns(self, step: Callable[[Any], object], repeats: int) -> tuple[float, float]:
        v1, v2 = self.heads
        return in_turns(lambda: step(v1), lambda: step(v2), repeats, self.device)


def format_cost(size: tuple[int, int], batch: int, repeats: int, device: str) -> str:
    """Both comparisons as text."""
    cost = Cost(size, batch, device)
    lines = [f'{"":28} {"GFL":>11} {"GFLv2":>11} {"more":>7}']
    for name, measure in (('training step', cost.training), ('prediction', cost.prediction)):
        v1, v2 = measure(repeats)
        lines.append(f'{name:28} {v1:8.1f} ms {v2:8.1f} ms {v2 / v1 - 1:7.1%}')
    return '\n'.join(lines)
