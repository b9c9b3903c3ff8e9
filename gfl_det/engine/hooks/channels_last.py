"""Channels-last memory layout, in which convolutions are fastest."""

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
    """Forward pre-hook that converts a module's inputs to channels last, and optionally a dtype.

    Args:
        dtype: Dtype of the inputs; None keeps theirs.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Convert the four-dimensional tensors among the arguments."""
        return tuple(
            each.to(dtype=self.dtype or each.dtype, memory_format=torch.channels_last)
            if isinstance(each, Tensor) and each.dim() == 4
            else each
            for each in arguments
        )


def lay_channels_last(model: BaseModel) -> None:
    """Convert a detector's weights, and from then on its backbone's inputs, in place.

    Args:
        model: Detector with a backbone. On a CPU its large 3x3 convolutions also use fewer products
            (:mod:`..ops.convolutions`).
    """
    model.to(memory_format=torch.channels_last)
    model.backbone.register_forward_pre_hook(CastInput())
    if next(model.parameters()).device.type == 'cpu':
        use_winograd(model, frozen=False)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Runs a detector in channels-last layout: ``gfl-det train --channels-last``."""

    def before_run(self, runner: Runner) -> None:
        """Convert the model before its first step."""
        lay_channels_last(runner.model.module if is_model_wrapper(runner.model) else runner.model)
