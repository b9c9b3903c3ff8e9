"""Focal losses whose gamma changes from one epoch to the next."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner

from gfl_det.errors import ConfigError
from gfl_det.models.losses import FocalLoss
from gfl_det.registry import HOOKS


@HOOKS.register_module()
class GammaScheduleHook(Hook):
    """Sets gamma of every ``gfl_det.FocalLoss`` in a model by the epoch.

    Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", NeurIPS 2020, call it FLSc:
    FLSc-531 is ``gammas=(5, 3, 1), milestones=(100, 250)`` of 350 epochs. A resumed training goes
    on with the gamma of its epoch.

    Args:
        gammas: At least 0, one more than milestones.
        milestones: Epochs, ascending from 1, at which the next gamma begins; counted from 0.

    Raises:
        ConfigError: If a value is out of range.
    """

    def __init__(self, gammas: Sequence[float], milestones: Sequence[int]) -> None:
        self.gammas, self.milestones = tuple(gammas), tuple(milestones)
        if not self.gammas or not all(gamma >= 0 for gamma in self.gammas):
            raise ConfigError(f'gammas of GammaScheduleHook are at least 0, not {self.gammas}')
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
        """Set the gamma of the epoch that begins.

        Raises:
            ConfigError: If the model has no focal loss of ours.
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
