"""Maps with channels last in memory, the layout that convolutions are fastest in."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from gfl_det.ops.convolutions import use_winograd
from gfl_det.registry import HOOKS


class CastInput:
    """Forward pre-hook that gives a module its maps with channels last, and in a dtype.

    Args:
        dtype: Of the maps from then on; None keeps theirs.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Cast the four-dimensional tensors among the arguments."""
        return tuple(
            each.to(dtype=self.dtype or each.dtype, memory_format=torch.channels_last)
            if isinstance(each, Tensor) and each.dim() == 4
            else each
            for each in arguments
        )


def lay_channels_last(model: BaseModel) -> None:
    """Lay out a detector's weights and, from then on, the input of its backbone, in place.

    Args:
        model: With a backbone. On a processor its large 3x3 convolutions are done in fewer products
            as well (:mod:`..ops.convolutions`).
    """
    model.to(memory_format=torch.channels_last)
    model.backbone.register_forward_pre_hook(CastInput())
    if next(model.parameters()).device.type == 'cpu':
        use_winograd(model, frozen=False)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Runs a detector with channels last in memory: ``gfl-det train --channels-last``."""

    def before_run(self, runner: Runner) -> None:
        """Lay out the model before its first step."""
        lay_channels_last(runner.model.module if is_model_wrapper(runner.model) else runner.model)
