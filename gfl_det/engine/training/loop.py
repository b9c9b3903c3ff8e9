"""An epoch loop that can start at any batch, with the pictures and augmentations of that batch.

mmengine seeds each worker process once, so that augmentations depend on how long it has lived, and
a training that was stopped within an epoch starts that epoch anew. Here a picture's random numbers
follow from the training's seed, the epoch and the picture's index, in whatever process it is
loaded, and an epoch can begin at any batch without loading those before it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from types import FrameType
from typing import Any, NamedTuple

import torch
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader, Dataset

from gfl_det.engine.training import random_state
from gfl_det.engine.training.random_state import derive, seeded
from gfl_det.registry import LOOPS

VALIDATED = 'epoch_validated'  # in mmengine's message hub, which checkpoints hold


class Draw(NamedTuple):
    """What the sampler asks a data set for: the entry and the seed of its augmentations."""

    entry: int
    seed: int


class SeededDataset(Dataset):
    """A data set whose entries are loaded with random numbers of their own.

    Args:
        dataset: Any map-style data set; everything but its entries is passed on.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw | int) -> Any:
        if not isinstance(draw, Draw):
            return self.dataset[draw]
        with seeded(draw.seed):
            return self.dataset[draw.entry]

    def __len__(self) -> int:
        return len(self.dataset)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'dataset':
            super().__setattr__(name, value)
        else:  # mmdet's PipelineSwitchHook gives the data set another pipeline
            setattr(self.dataset, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


class ResumableBatches:
    """A batch sampler that can begin within an epoch.

    Args:
        batches: Lists of indices, in the order of an epoch.
        seed: Gives the training's seed; asked at the begin of each epoch, for resuming may set it.

    Attributes:
        epoch: Set by the train loop.
        done: How many batches the next epoch leaves out at its begin; 0 again from then on.
    """

    def __init__(self, batches: Any, seed: Callable[[], int]) -> None:
        self.batches = batches
        self.sampler = getattr(batches, 'sampler', None)
        self.seed = seed
        self.epoch = 0
        self.done = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        done, self.done = self.done, 0
        seed, epoch = self.seed(), self.epoch
        for batch in islice(self.batches, done, None):
            yield [Draw(index, derive(seed, epoch, index)) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)


class DeafWorker:
    """Start of a worker process that SIGTERM does not end before its training ends.

    Schedulers send it to every process there is, and the step that is to be finished needs its
    data.

    Args:
        then: What else to call with the worker's number.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then
        self.ending = multiprocessing.RawValue('b', 0)
        # Python ends its workers by SIGTERM and waits for them; what is registered last runs first.
        atexit.register(self._end)

    def __call__(self, worker: int) -> None:
        """Prepare a worker."""
        signal.signal(signal.SIGTERM, self._heed)
        if self.then is not None:
            self.then(worker)

    def _end(self) -> None:
        self.ending.value = 1

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self.ending.value:
            os._exit(0)


def make_resumable(loader: DataLoader, batches: ResumableBatches) -> DataLoader:
    """Return a loader of the same data that can begin within an epoch.

    Args:
        loader: Of a map-style data set.
        batches: Of the loader's own batch sampler.
    """
    return DataLoader(
        SeededDataset(loader.dataset),
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=DeafWorker(loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context,
        # Each new iterator draws a number: from its own generator, not from the training's.
        generator=torch.Generator(),
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


@LOOPS.register_module()
class EpochTrainLoop(EpochBasedTrainLoop):
    """``EpochBasedTrainLoop`` that a stopped training leaves at any batch and takes up there again.

    With :class:`gfl_det.engine.hooks.CheckpointHook` a resumed training gives the same weights as
    one that was never stopped. Augmentations follow from seed, epoch and picture;
    validation draws no random numbers of the training's, and is made up for if the training was
    stopped in it.

    Args:
        *args: mmengine's.
        **kwargs: mmengine's.

    Attributes:
        random_aside: The training's random state while a validation draws from the generators.
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
