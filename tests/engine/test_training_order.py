"""The order of a training's entries: seeds, what passes through to the data set, signals."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import torch

from gfl_det.engine.hooks import StopSignalHook
from gfl_det.engine.hooks import checkpoint as stop_signal
from gfl_det.engine.training.loop import Draw, ResumableBatches, SeededDataset


class Numbers:
    """Entries that are drawn at random by a pipeline, as of mmengine's data sets."""

    def __init__(self) -> None:
        self.pipeline = torch.rand

    def __getitem__(self, entry: int) -> torch.Tensor:
        return self.pipeline(3) + entry

    def __len__(self) -> int:
        return 5


def test_an_entry_follows_from_its_seed_alone() -> None:
    dataset = SeededDataset(Numbers())
    first = dataset[Draw(2, seed=7)]
    torch.rand(100)
    assert torch.equal(dataset[Draw(2, seed=7)], first)
    assert not torch.equal(dataset[Draw(2, seed=8)], first)
    assert len(dataset) == 5


def seeds(batches: ResumableBatches, epoch: int) -> dict[int, int]:
    batches.epoch = epoch
    return {draw.entry: draw.seed for batch in batches for draw in batch}


def test_an_entry_has_another_seed_in_each_epoch_and_in_each_training() -> None:
    batches = ResumableBatches([[0, 1], [2, 3]], lambda: 7)
    first, second = seeds(batches, 0), seeds(batches, 1)
    assert len({*first.values(), *second.values()}) == 8
    assert seeds(batches, 0) == first
    other = seeds(ResumableBatches([[0, 1], [2, 3]], lambda: 8), 0)
    assert not {*other.values()} & {*first.values(), *second.values()}


def test_an_epoch_that_is_gone_on_with_has_the_seeds_it_would_have_had() -> None:
    batches = ResumableBatches([[0, 1], [2, 3]], lambda: 7)
    whole = seeds(batches, 5)
    batches.done = 1
    assert seeds(batches, 5) == {entry: whole[entry] for entry in (2, 3)}
    assert seeds(batches, 5) == whole


def test_a_pipeline_that_is_switched_reaches_the_data_set() -> None:
    """mmdet's PipelineSwitchHook sets the attribute on the loader's data set."""
    inner = Numbers()
    dataset = SeededDataset(inner)
    dataset.pipeline = torch.zeros
    assert inner.pipeline is torch.zeros
    assert dataset[Draw(4, seed=0)].tolist() == [4, 4, 4]


@pytest.fixture
def heeded():
    hook = StopSignalHook()
    own = signal.getsignal(signal.SIGTERM)
    hook.before_train(SimpleNamespace())
    yield hook
    hook.after_train(SimpleNamespace())
    signal.signal(signal.SIGTERM, own)


def test_two_signals_at_once_are_one(heeded, monkeypatch) -> None:
    """The scheduler tells every process, and the launcher hands on what it was told."""
    ended = []
    monkeypatch.setattr(stop_signal.os, 'kill', lambda *what: ended.append(what))
    clock = iter([10.0, 10.1, 10.0 + stop_signal.TOGETHER_SECONDS + 0.1])
    monkeypatch.setattr(stop_signal.time, 'monotonic', lambda: next(clock))
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == heeded._note
    assert not ended
    signal.raise_signal(signal.SIGTERM)  # somebody means it
    assert len(ended) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_batches_that_some_processes_lack_are_not_reduced(heeded) -> None:
    asked = []
    heeded._ask = lambda: asked.append(1)
    runner = SimpleNamespace(val_dataloader=[0] * 3)
    heeded.before_val_epoch(runner)
    for batch in range(5):
        heeded.before_val_iter(runner, batch_idx=batch)
    assert len(asked) == 3
