"""How a training computes: mixed precision, sharding and memory layout.

mmengine's ``AmpOptimWrapper`` does not support CPUs; its sharding fails on scalar parameters.
Convolutions are fastest in the channels-last layout.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMFullyShardedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from gfl_det.compat.environment import computes_bfloat16, processor_kind
from gfl_det.ops.convolutions import use_winograd
from gfl_det.registry import HOOKS, MODEL_WRAPPERS, OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """mmengine's ``OptimWrapper`` with the forward pass in bfloat16 under CPU autocast.

    bfloat16 has the exponent range of float32, so small gradients do not underflow and no loss
    scaling is needed. On a CPU without bfloat16 instructions, where float32 is faster, a warning is
    issued.

    Args:
        loss_scale: None for no scaling. ``'dynamic'``, an initial scale, or arguments of torch's
            ``GradScaler`` scale losses as mmengine's ``AmpOptimWrapper`` does on GPUs, so that a
            CPU run takes the code path of float16. Needs torch 2.3.
        **kwargs: Arguments of mmengine's ``OptimWrapper``.
    """

    def __init__(
        self, loss_scale: str | float | dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not computes_bfloat16():
            warnings.warn(
                f'This CPU ({processor_kind()}) has no bfloat16 instructions: training '
                "in float32 (optim_wrapper.type='OptimWrapper') is several times faster.",
                stacklevel=2,
            )
        self.loss_scaler = None
        if loss_scale is not None:
            given = dict(loss_scale) if isinstance(loss_scale, dict) else {}
            if isinstance(loss_scale, (int, float)):
                given['init_scale'] = float(loss_scale)
            self.loss_scaler = torch.amp.GradScaler('cpu', **given)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        scaled = loss if self.loss_scaler is None else self.loss_scaler.scale(loss)
        super().backward(scaled, **kwargs)

    def step(self, **kwargs: Any) -> None:
        if self.loss_scaler is None:
            super().step(**kwargs)
            return
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.loss_scaler is not None:
            state['loss_scaler'] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        scaler = state.pop('loss_scaler', None)
        if self.loss_scaler is not None and scaler is not None:
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state)


def autocast_dtype() -> str | None:
    """Return the name of the autocast dtype, or None without autocast."""
    if not hasattr(torch, 'get_autocast_dtype'):  # torch before 2.4
        if torch.is_autocast_enabled():
            return str(torch.get_autocast_gpu_dtype()).removeprefix('torch.')
        on_cpu = torch.is_autocast_cpu_enabled()
        return str(torch.get_autocast_cpu_dtype()).removeprefix('torch.') if on_cpu else None
    for device in ('cuda', 'cpu'):
        if torch.is_autocast_enabled(device):
            return str(torch.get_autocast_dtype(device)).removeprefix('torch.')
    return None


@MODEL_WRAPPERS.register_module()
class ShardedDataParallel(MMFullyShardedDataParallel):
    """``MMFullyShardedDataParallel`` that keeps scalar parameters unsharded in each process.

    FSDP cannot shard scalars and refuses the model. They are excluded here, and their gradients are
    averaged over the processes as soon as they are computed, like all others.

    Args:
        module: Module to wrap.
        device_id: Target device; None keeps the model where it is, as needed on a CPU.
        **kwargs: Arguments of mmengine's class.
    """

    def __init__(self, module: nn.Module, device_id: Any = None, **kwargs: Any) -> None:
        scalars = [each for each in module.parameters() if each.dim() == 0]
        for each in scalars:
            each.register_hook(_average)
        super().__init__(module, device_id=device_id, ignored_states=scalars, **kwargs)


def _average(gradient: Any) -> Any:
    gradient = gradient / dist.get_world_size()
    dist.all_reduce(gradient)
    return gradient


# --- Channels-last layout -------------------------------------------------------------------------


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
