"""Trainings that are stopped by a signal, and go on as if they had not been, in one process."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from gfl_det.engine.hooks import CheckpointHook, StopSignalHook
from gfl_det.engine.hooks.checkpoint import TrainingStopped
from gfl_det.engine.training import random_state
from gfl_det.errors import CheckpointError

BATCHES, EPOCHS = 4, 3
NUMBER = itertools.count()


class Noisy(BaseModel):
    """Draws from all three generators, whose states a checkpoint has to hold."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, inputs: torch.Tensor, mode: str) -> Any:
        noise = random.random() + np.random.rand() + torch.rand(1)
        found = self.layer(inputs[:, : self.layer.in_features]) * noise
        return dict(loss=found.square().mean()) if mode == 'loss' else [found.mean()]


class Noise(torch.utils.data.Dataset):
    """Pictures with an augmentation."""

    def __len__(self) -> int:
        return 2 * BATCHES

    def __getitem__(self, entry: int) -> dict[str, torch.Tensor]:
        return dict(inputs=torch.full((3,), entry / 8) + torch.rand(3))


class Score(BaseMetric):
    """Gives the scores that it was made with, one a validation."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(score=self.scores.pop(0))


class SignalAt(Hook):
    """Sends SIGTERM after some step, or before some batch of a validation."""

    def __init__(self, step: int | None, batch: tuple[int, int] | None = None) -> None:
        self.step, self.batch = step, batch

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if (runner.epoch, batch_idx) == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


def train(
    folder: Path,
    *hooks: Hook,
    model: BaseModel | None = None,
    scores: tuple[float, ...] = (0.1, 0.3, 0.2),
    loop: str = 'gfl_det.EpochTrainLoop',
    resume: bool = False,
    averaged: bool = True,
    **saving: Any,
) -> Runner:
    """Train to the end, with averaged weights, momentum and a validation an epoch."""
    torch.manual_seed(5)  # the model is built before mmengine seeds
    random.seed(5)
    np.random.seed(5)
    runner = Runner(
        Noisy() if model is None else model,
        str(folder),
        train_dataloader=dict(
            dataset=Noise(),
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        val_dataloader=DataLoader(Noise(), batch_size=2),
        train_cfg=dict(type=loop, max_epochs=EPOCHS),
        val_cfg=dict(),
        val_evaluator=Evaluator(Score(list(scores))),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_hooks=dict(checkpoint=CheckpointHook(interval=1, **saving), logger=None),
        custom_hooks=[*[EMAHook()] * averaged, *hooks, StopSignalHook()],
        randomness=dict(seed=3),
        default_scope='mmdet',
        resume=resume,
        log_level='ERROR',
        experiment_name=f'stopping_{next(NUMBER)}',
    )
    runner.train()
    return runner


def weights(runner: Runner) -> torch.Tensor:
    averaged = next(each for each in runner.hooks if isinstance(each, EMAHook)).ema_model
    networks = (runner.model, averaged)
    return torch.cat([each.flatten() for network in networks for each in network.parameters()])


@pytest.fixture(scope='module')
def unstopped(tmp_path_factory) -> torch.Tensor:
    return weights(train(tmp_path_factory.mktemp('whole')))


@pytest.mark.parametrize(
    ('stop', 'name'),
    [
        (SignalAt(step=2), 'stopped_iter_2.pth'),
        (SignalAt(step=6), 'stopped_iter_6.pth'),
        (SignalAt(None, batch=(2, 1)), 'stopped_iter_8.pth'),
    ],
)
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    unstopped, tmp_path, capsys, stop, name
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(TrainingStopped) as ended:
            train(tmp_path, stop)
    finally:
        signal.signal(signal.SIGTERM, before)  # the process ends there, and restores nothing
    assert ended.value.code == 0
    assert f'stopped by a signal: saved {tmp_path / name}, go on' in capsys.readouterr().out
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / name)
    assert torch.equal(weights(train(tmp_path, resume=True)), unstopped)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / name).exists()  # the next regular checkpoint takes its place


class EndsAFork(Hook):
    """Ends a process that was forked within a training, as pools do at their end."""

    status: int | None = None

    def after_train_epoch(self, runner: Runner) -> None:
        process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(30)
        self.status = process.exitcode


def test_forks_end_when_they_are_told_to(unstopped, tmp_path) -> None:
    """A pool that mmdet's metrics begin waits for the end of its processes, without limit."""
    ending = EndsAFork()
    assert torch.equal(weights(train(tmp_path, ending)), unstopped)  # which goes on
    assert ending.status == -signal.SIGTERM


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.glob('*.pth')}


def test_the_best_and_the_last_checkpoints_are_kept(tmp_path) -> None:
    train(tmp_path, save_best='auto', rule='greater', max_keep_ckpts=1)
    assert names(tmp_path) == {'best_score_epoch_2.pth', 'epoch_3.pth'}
    last, best = (
        torch.load(tmp_path / name, weights_only=False)
        for name in ('epoch_3.pth', 'best_score_epoch_2.pth')
    )
    assert last['message_hub']['runtime_info']['best_ckpt'].endswith('best_score_epoch_2.pth')
    assert best['meta']['epoch'] == 2
    assert {'optimizer', 'ema_state_dict'} <= best.keys()  # a training can go on from it


def test_a_nan_score_is_not_the_best(tmp_path) -> None:
    scores = (0.2, float('nan'), 0.1)
    train(tmp_path, save_best=['score'], rule='less', scores=scores, max_keep_ckpts=2)
    assert names(tmp_path) == {'best_score_epoch_3.pth', 'epoch_2.pth', 'epoch_3.pth'}


def test_another_models_checkpoint_is_refused(tmp_path) -> None:
    train(tmp_path, averaged=False)
    with pytest.raises(CheckpointError, match=r'1 of 2 .*layer\.w'):
        train(tmp_path, model=Noisy(width=2), averaged=False, resume=True)


class Steps(Hook):
    """Counts the steps of each epoch."""

    def __init__(self) -> None:
        self.counts = [0] * EPOCHS

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.counts[runner.epoch] += 1


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> tuple[Path, list[str]]:
    """A training that was stopped after half of its second epoch, and the warnings from then on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(TrainingStopped):
            train(tmp_path, SignalAt(step=6))
    finally:
        signal.signal(signal.SIGTERM, before)
    said: list[str] = []
    monkeypatch.setattr('mmengine.logging.MMLogger.warning', lambda _, text: said.append(text))
    return tmp_path, said


def test_mmengines_loop_restarts_the_epoch(stopped) -> None:
    folder, said = stopped
    assert train(folder, resume=True, loop='EpochBasedTrainLoop').epoch == EPOCHS
    assert any('within an epoch: the epoch starts over' in text for text in said)


@pytest.mark.parametrize(('processes', 'expected'), [(1, [0, 2, 4]), (2, [0, 4, 4])])
def test_another_number_of_processes_restarts_the_epoch(
    stopped, monkeypatch, processes, expected
) -> None:
    """Each process would leave out as many batches, of another share of the data."""
    folder, said = stopped
    monkeypatch.setattr('gfl_det.engine.hooks.checkpoint.get_world_size', lambda: processes)
    steps = Steps()
    train(folder, steps, resume=True)
    assert steps.counts == expected
    assert any('another number of processes' in text for text in said) == (processes == 2)


def test_states_of_all_generators_come_back() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), *np.random.randn(3), *torch.rand(2).tolist()]

    random.gauss(0, 1)  # keeps a second number for the next call, as randn of an odd count does
    np.random.randn(1)
    state = random_state.capture()
    first = draw()
    with random_state.seeded(7):
        inner = draw()
    follows = draw()
    random_state.restore(state)
    assert draw() == first
    with random_state.seeded(7):
        assert draw()[0] == inner[0]
    assert draw() == follows  # what is drawn within leaves the outer ones as they were


def test_seeds_differ_wherever_a_part_does() -> None:
    parts = [(a, b, c) for a in range(4) for b in range(4) for c in range(4)]
    seeds = {random_state.derive(*each) for each in (*parts, (12,), (1, 2))}
    assert len(seeds) == len(parts) + 2
    assert all(0 <= each < 2**32 for each in seeds)
