"""Resumable data order: the same entries and augmentations for a training that resumes.

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
from torch.utils.data import DataLoader, Dataset

from gfl_det.engine.training.random_state import derive, seeded


class Draw(NamedTuple):
    """What the sampler asks a data set for: the entry and the seed of its augmentations."""

    entry: int
    seed: int


class SeededDataset(Dataset):
    """A data set whose entries are loaded with random numbers of their own.

    Args:
        dataset: any map-style data set; everything but its entries is passed on.
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
        batches: lists of indices, in the order of an epoch.
        seed: gives the training's seed; asked at the begin of each epoch, for resuming may set it.

    Attributes:
        epoch: set by the train loop.
        done: how many batches the next epoch leaves out at its begin; 0 again from then on.
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
        then: what else to call with the worker's number.
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
        loader: of a map-style data set.
        batches: of the loader's own batch sampler.
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
