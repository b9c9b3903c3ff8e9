"""Resumable epoch loop: starts at any batch, with the pictures and augmentations of that batch.

mmengine seeds each worker process once, so that augmentations depend on its age, and a training
stopped within an epoch restarts that epoch. Here the random numbers of a picture depend on the
training's seed, the epoch and the picture's index, whichever process loads it, and an epoch can
start at any batch without loading the ones before.
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

VALIDATED = 'epoch_validated'  # key in mmengine's message hub, which checkpoints store


class Draw(NamedTuple):
    """Index of an entry and seed of its augmentations, passed from sampler to dataset."""

    entry: int
    seed: int


class SeededDataset(Dataset):
    """Dataset whose entries are loaded with their own random numbers.

    Args:
        dataset: Map-style dataset; other attributes are passed through.
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
        else:  # mmdet's PipelineSwitchHook replaces the pipeline
            setattr(self.dataset, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # during copying or unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)


class ResumableBatches:
    """Batch sampler that can start within an epoch.

    Args:
        batches: Lists of indices for one epoch.
        seed: Function that returns the seed, called at each epoch, because resuming may change it.

    Attributes:
        epoch: Set by the train loop.
        done: Number of batches to skip in the next epoch; reset to 0 when it starts.
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
    """Initialiser for worker processes that ignore SIGTERM until training ends.

    Schedulers send SIGTERM to every process, but the step to be finished needs its data.

    Args:
        then: Additional function to call with the worker's number.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then
        self.ending = multiprocessing.RawValue('b', 0)
        # Python ends its workers by SIGTERM and waits; what is registered last runs first.
        atexit.register(self._end)

    def __call__(self, worker: int) -> None:
        """Initialise a worker."""
        signal.signal(signal.SIGTERM, self._heed)
        if self.then is not None:
            self.then(worker)

    def _end(self) -> None:
        self.ending.value = 1

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self.ending.value:
            os._exit(0)


def make_resumable(loader: DataLoader, batches: ResumableBatches) -> DataLoader:
    """Return a loader of the same data that can start within an epoch.

    Args:
        loader: Loader of a map-style dataset.
        batches: Batches from the loader's own batch sampler.
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
        # Each new iterator draws a number: take it from a separate generator.
        generator=torch.Generator(),
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


@LOOPS.register_module()
class EpochTrainLoop(EpochBasedTrainLoop):
    """``EpochBasedTrainLoop`` that can be stopped and resumed at any batch.

    With :class:`gfl_det.engine.hooks.CheckpointHook` a resumed training gives the same weights as
    an uninterrupted one. Augmentations depend on seed, epoch and picture; validation does not
    affect the random state of the training, and is repeated if the training was stopped during it.

    Args:
        *args: Arguments of mmengine's loop.
        **kwargs: Arguments of mmengine's loop.

    Attributes:
        random_aside: Random state of the training while validation uses the generators.
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
        """Whether the data loader supports skipping batches."""
        return self._batches is not None

    def resume_within(self, batches_done: int) -> None:
        """Start the next epoch after this number of batches."""
        if self._batches is not None:
            self._batches.done = batches_done
        # A checkpoint written within an epoch follows the validation of the previous one.
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
        """Train one epoch, or its rest after resuming."""
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
