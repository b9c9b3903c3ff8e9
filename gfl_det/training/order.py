"""Data in an order and with augmentations that a resumed training finds again.

mmengine seeds each worker process once, so that augmentations depend on how long it has lived, and a
training that was stopped within an epoch starts that epoch anew. Here a picture's random numbers
follow from the training's seed, the epoch and the picture's index, in whatever process it is loaded,
and an epoch can begin at any batch without loading those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from gfl_det.training.random_state import derive, seeded


class Draw(NamedTuple):
    """What the sampler asks a data set for: the entry and the seed of its augmentations."""

    index: int
    seed: int


class SeededDataset:
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
            return self.dataset[draw.index]

    def __len__(self) -> int:
        return len(self.dataset)

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

    def __init__(self, batches: Iterable[list[int]], seed: Callable[[], int]) -> None:
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
        return len(self.batches)  # type: ignore[arg-type]  # batch samplers of torch have a length


def make_resumable(loader: DataLoader, seed: Callable[[], int]) -> DataLoader:
    """Return a loader of the same batches that can begin within an epoch.

    Args:
        loader: of a map-style data set with batches.
        seed: gives the training's seed.

    Returns:
        Its ``batch_sampler`` is a :class:`ResumableBatches`.
    """
    return DataLoader(
        SeededDataset(loader.dataset),
        batch_sampler=ResumableBatches(loader.batch_sampler, seed),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        # Each new iterator draws a number: from its own generator, not from the training's.
        generator=torch.Generator(),
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
