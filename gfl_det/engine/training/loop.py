"""mmengine's loop over epochs, able to start within an epoch."""

from __future__ import annotations

from typing import Any

from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from gfl_det.engine.training import random_state
from gfl_det.engine.training.order import ResumableBatches, make_resumable
from gfl_det.registry import LOOPS

VALIDATED = 'epoch_validated'  # in mmengine's message hub, which checkpoints hold


@LOOPS.register_module()
class EpochTrainLoop(EpochBasedTrainLoop):
    """``EpochBasedTrainLoop`` that a stopped training leaves at any batch and takes up there again.

    With :class:`gfl_det.engine.hooks.CheckpointHook` a resumed training gives the same weights as
    one that was never stopped. Augmentations follow from seed, epoch and picture (:mod:`.order`);
    validation draws no random numbers of the training's, and is made up for if the training was
    stopped in it.

    Args:
        *args: mmengine's.
        **kwargs: mmengine's.

    Attributes:
        random_aside: the training's random state while a validation draws from the generators.
    """

    dataloader: DataLoader

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.owes_validation = False
        self.random_aside: random_state.State | None = None
        self._batches: ResumableBatches | None = None
        if self.dataloader.batch_sampler is not None:
            self._batches = ResumableBatches(
                self.dataloader.batch_sampler, lambda: self.runner.seed
            )
            self.dataloader = make_resumable(self.dataloader, self._batches)

    @property
    def can_resume_within(self) -> bool:
        """Whether the data come in batches that can be left out."""
        return self._batches is not None

    def resume_within(self, batches_done: int) -> None:
        """Begin the next epoch after so many of its batches."""
        if self._batches is not None:
            self._batches.done = batches_done
        # A checkpoint that was written within an epoch follows the validation of the one before.
        self.owes_validation = not batches_done

    def run(self) -> nn.Module:
        """Train."""
        self.runner.call_hook('before_train')
        done = self.runner.message_hub.get_info(VALIDATED)
        if self.owes_validation and self._epoch > 0 and done != self._epoch:
            self._validate()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for the rest of an epoch, all of it unless resumed within."""
        first = 0
        if self._batches is not None:
            self._batches.epoch = self._epoch
            first = self._batches.done
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(self.dataloader, first):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _validate(self) -> None:
        self._decide_current_val_interval()
        is_last = self._epoch == self._max_epochs
        if (
            self.runner.val_loop is not None
            and self._epoch >= self.val_begin
            and (is_last or self._epoch % self.val_interval == 0)
        ):
            self.random_aside = random_state.capture()
            try:
                self.runner.val_loop.run()
            finally:
                random_state.restore(self.random_aside)
                self.random_aside = None
