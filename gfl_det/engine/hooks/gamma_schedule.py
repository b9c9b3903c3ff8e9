"""Schedule for the gamma of focal losses over epochs."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner

from gfl_det.errors import ConfigError
from gfl_det.models.losses import FocalLoss
from gfl_det.registry import HOOKS


@HOOKS.register_module()
class GammaScheduleHook(Hook):
    """Sets gamma of every ``gfl_det.FocalLoss`` in a model per epoch.

    Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", NeurIPS 2020, call it FLSc:
    FLSc-531 is ``gammas=(5, 3, 1), milestones=(100, 250)`` for 350 epochs. A resumed training
    continues with the gamma of its epoch.

    Args:
        gammas: Values of at least 0, one more than milestones.
        milestones: Epochs, counted from 0, at which the next gamma begins; ascending from 1.

    Raises:
        ConfigError: If a value is out of range.
    """

    def __init__(self, gammas: Sequence[float], milestones: Sequence[int]) -> None:
        self.gammas, self.milestones = tuple(gammas), tuple(milestones)
        if not self.gammas or not all(gamma >= 0 for gamma in self.gammas):
            raise ConfigError(f'gammas of GammaScheduleHook must be at least 0, not {self.gammas}')
        steps = (0, *self.milestones)
        ascending = all(first < second for first, second in zip(steps, steps[1:]))
        if len(self.milestones) != len(self.gammas) - 1 or not ascending:
            raise ConfigError(
                'GammaScheduleHook needs ascending milestones from 1, one fewer than gammas '
                f'{self.gammas}, not {self.milestones}'
            )

    def gamma_at(self, epoch: int) -> float:
        """Gamma of an epoch, counted from 0."""
        return self.gammas[sum(epoch >= milestone for milestone in self.milestones)]

    def before_train_epoch(self, runner: Runner) -> None:
        """Set gamma for the starting epoch.

        Raises:
            ConfigError: If the model has no ``gfl_det.FocalLoss``.
        """
        losses = [each for each in runner.model.modules() if isinstance(each, FocalLoss)]
        if not losses:
            raise ConfigError(
                'GammaScheduleHook found no gfl_det.FocalLoss in the model: set one as loss_cls'
            )
        gamma = self.gamma_at(runner.epoch)
        for loss in losses:
            loss.set_gamma(gamma)
        runner.logger.info(f'gamma of the focal loss: {gamma:g}')
