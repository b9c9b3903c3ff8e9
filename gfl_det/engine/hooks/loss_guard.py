"""Guard that skips or stops at non-finite losses and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from gfl_det.engine.amp import autocast_dtype
from gfl_det.engine.training import random_state
from gfl_det.engine.training.replay import DumpedStep, write_dump
from gfl_det.errors import CheckpointError, ConfigError, NonFiniteLossError
from gfl_det.registry import HOOKS
from gfl_det.utils.console import few

Policy = Literal['stop', 'skip']
FOLDER = 'non_finite'


@HOOKS.register_module()
class LossGuardHook(Hook):
    """Stops a training, or skips its step, if a loss or gradient is NaN or infinite.

    It checks between the backward pass and the optimizer step, with torch hooks: one on the model's
    forward pass keeps the batch, one before the optimizer step decides. A bad step changes neither
    weights nor optimizer state and, with ``'skip'``, no running statistics. What is needed to
    repeat the step is written to a file for ``gfl-det replay``.

    Cost on a GPU: the host waits for one number per step, the norm of all gradients. With gradient
    clipping mmengine waits for the same number, which is then read from its log; it also waits for
    each loss after each step. Checking losses adds no synchronisation: each is multiplied by
    ``1 + 0 * total``, which is exactly 1 or NaN, so that a non-finite loss makes all gradients NaN.
    As gradients are averaged, all processes see that and react alike without communication.

    Mixed precision with a loss scaler: overflowing gradients are left to the scaler, which skips
    the step and lowers its scale. The guard reacts if a loss (computed unscaled in float32) is not
    finite, or if ``max_scaler_skips`` consecutive steps were skipped, for then no scale helps. With
    gradient accumulation all gradients accumulated so far are dropped.

    Args:
        policy: ``'stop'`` raises an error, ``'skip'`` continues without the step.
        max_skips: Maximum consecutive bad steps to skip; one more stops the training.
        max_dumps: Maximum files to write; further events are only logged.
        max_scaler_skips: See above. A scale of 65536, the usual first one, is 1/65536 after 32
            skips.

    Raises:
        ConfigError: If the policy is unknown.
    """

    priority = 'ABOVE_NORMAL'  # before EMA and schedules count the step

    def __init__(
        self,
        policy: Policy = 'stop',
        max_skips: int = 10,
        max_dumps: int = 3,
        max_scaler_skips: int = 32,
    ) -> None:
        if policy not in get_args(Policy):
            raise ConfigError(f"LossGuardHook: policy={policy!r} must be 'stop' or 'skip'.")
        self.policy = policy
        self.max_skips, self.max_dumps = max_skips, max_dumps
        self.max_scaler_skips = max_scaler_skips
        self.dumps: list[Path] = []
        self._in_a_row = self._since_update = 0
        self._updated = False
        self._step: DumpedStep | None = None
        self._unclipped: Tensor | None = None
        self._buffers: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Register hooks on model and optimizer."""
        self._runner = runner
        model = _inner(runner)
        wrapper = runner.optim_wrapper
        wrappers = list(wrapper.values()) if hasattr(wrapper, 'values') else [wrapper]
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
            *(each.optimizer.register_step_pre_hook(self._before_update) for each in wrappers),
        ]
        for each in wrappers:
            if each.clip_grad_kwargs and each.grad_name == 'grad_value':
                # Clipping by value makes an infinite gradient finite: check before.
                each.clip_func = self._looking_first(each.clip_func)
        if self.policy == 'skip':
            self._buffers = list(model.buffers())
            self._copies = [each.clone() for each in self._buffers]

    def after_train(self, runner: Runner) -> None:
        """Remove the hooks from model and optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._step = [], None

    def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """Save the model's running statistics, which a skipped step must not change."""
        self._updated = False
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Check a step that a loss scaler skipped."""
        if self._step is None:
            return
        self._since_update = 0 if self._updated else self._since_update + 1
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if scaler is None or self._updated:
            return
        # mmengine has logged the loss by now, and synchronised for it.
        total = runner.message_hub.get_scalar('train/loss').current()
        every = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if not math.isfinite(total):
            self._bad_step('a loss is not finite', float('nan'))
        elif self._since_update > every * self.max_scaler_skips:
            self._since_update = 0
            self._bad_step(
                f'gradients overflow at any scale ({scaler.get_scale():g})', float('nan')
            )

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get('mode') == 'loss':
            self._state = random_state.capture()

    def _after_forward(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any], losses: Any
    ) -> Any:
        if kwargs.get('mode') != 'loss' or not isinstance(losses, dict):
            return losses
        self._step = DumpedStep(
            inputs=kwargs['inputs'] if 'inputs' in kwargs else args[0],
            samples=kwargs.get('data_samples', args[1] if len(args) > 1 else None),
            losses={key: _detached(value) for key, value in losses.items()},
            random=self._state,
            autocast=autocast_dtype(),
        )
        total = sum(_mean(value) for key, value in losses.items() if 'loss' in key)
        unless_nan = 1 + 0 * total.detach() if isinstance(total, Tensor) else 1
        return {
            key: _times(value, unless_nan) if 'loss' in key else value
            for key, value in losses.items()
        }

    def _before_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._updated = True
        norm = self._gradient_norm(optimizer)
        if math.isfinite(norm):
            self._in_a_row = 0
            return
        for group in optimizer.param_groups:
            for parameter in group['params']:
                parameter.grad = None  # optimizers skip such parameters
        self._bad_step('a loss or a gradient is not finite', norm)

    def _gradient_norm(self, optimizer: Any) -> float:
        norm, self._unclipped = self._unclipped, None
        if norm is not None:
            return float(norm)
        if getattr(self._runner.optim_wrapper, 'clip_grad_kwargs', None):
            return float(self._runner.message_hub.get_scalar('train/grad_norm').current())
        return float(_norm([each for group in optimizer.param_groups for each in group['params']]))

    def _looking_first(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        def look_and_clip(parameters: list[Tensor], **kwargs: Any) -> Any:
            self._unclipped = _norm(parameters)
            return clip(parameters, **kwargs)

        return look_and_clip

    def _bad_step(self, reason: str, norm: float) -> None:
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        step, self._step = self._step, None
        self._in_a_row += 1
        terms = _terms(step)
        message = f'iteration {self._runner.iter + 1}: {reason} ({terms}; gradient norm {norm:g})'
        if step is not None:
            message += f', image ids {few(step.image_ids())}; {self._keep(step, reason, norm)}'
        if self.policy == 'stop' or self._in_a_row > self.max_skips:
            row = f' for the {self._in_a_row}th time in a row' if self._in_a_row > 1 else ''
            raise NonFiniteLossError(
                f'Training stopped at {message}{row}: check labels and images there, or lower '
                'the learning rate.'
            )
        self._runner.logger.warning(f'Skipped {message}.')

    def _keep(self, step: DumpedStep, reason: str, norm: float) -> str:
        """Write the step to a file and report where; a failed write does not change the policy."""
        if len(self.dumps) == self.max_dumps:
            return f'no file was written: {FOLDER} already has {self.max_dumps}'
        try:
            self.dumps.append(self._dump(step, reason, norm))
        except CheckpointError as error:
            return str(error).rstrip('.')
        return f'repeat it with gfl-det replay {self.dumps[-1]}'

    def _dump(self, step: DumpedStep, reason: str, norm: float) -> Path:
        runner = self._runner
        name = f'iter_{runner.iter + 1}_rank_{get_rank()}.pt'
        record = dict(
            reason=reason,
            iteration=runner.iter + 1,
            epoch=runner.epoch + 1,
            rank=get_rank(),
            world_size=get_world_size(),
            gradient_norm=norm,
            config=Path(runner.cfg.filename).name if runner.cfg.filename else None,
            learning_rate={key: value[0] for key, value in runner.optim_wrapper.get_lr().items()},
        )
        path = Path(runner.work_dir) / FOLDER / name
        write_dump(path, step, record, _inner(runner))
        return path


def _inner(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _norm(parameters: list[Tensor]) -> Tensor:
    gradients = [each.grad for each in parameters if each.grad is not None]
    # One pass over all gradients, as in torch's own clipping.
    norms = torch._foreach_norm(gradients) if gradients else [torch.zeros(())]
    return torch.linalg.vector_norm(torch.stack(norms))


def _mean(value: Any) -> Any:
    return value.mean() if isinstance(value, Tensor) else sum(each.mean() for each in value)


def _times(value: Any, factor: Any) -> Any:
    return value * factor if isinstance(value, Tensor) else [each * factor for each in value]


def _detached(value: Any) -> Tensor:
    mean = _mean(value)
    return mean.detach() if isinstance(mean, Tensor) else torch.tensor(float(mean))


def _terms(step: DumpedStep | None) -> str:
    if step is None:
        return 'no losses recorded'
    return ', '.join(f'{key} {float(value):g}' for key, value in step.losses.items())
