"""Gamma by epoch: in a Runner's training, resumed too; each epoch's loss is that of its gamma."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from gfl_det.engine.hooks import GammaScheduleHook
from gfl_det.errors import ConfigError
from gfl_det.models.losses import FocalLoss

LOGITS = torch.tensor([[0.3, -0.4, 1.0], [2.0, 0.1, 0.0]])
LABELS = torch.tensor([0, 2])


class Classifier(BaseModel):
    """Fixed logits plus a weight that gets no say; it keeps the losses it has seen."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss, self.shift = loss, torch.nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def forward(self, inputs: Any, mode: str = 'loss') -> dict[str, torch.Tensor]:
        loss = self.loss(LOGITS + 0 * self.shift, LABELS)
        self.seen.append(loss.item())
        return dict(loss=loss)


def train(folder: Any, loss: torch.nn.Module, epochs: int, resume: bool = False) -> list[float]:
    model = Classifier(loss)
    runner = Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=DataLoader([0], collate_fn=lambda batch: dict(inputs=batch)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='gfl_det.GammaScheduleHook', gammas=(5, 3, 1), milestones=(1, 4))],
        resume=resume,
        experiment_name=f'{folder.name}_{epochs}',
        default_scope='mmdet',
    )
    runner.train()
    return model.seen


def by_gamma(gammas: tuple[float, ...]) -> list[float]:
    return [FocalLoss(use_sigmoid=False, gamma=gamma)(LOGITS, LABELS).item() for gamma in gammas]


def test_each_epoch_has_its_gamma_and_a_resumed_one_too(tmp_path) -> None:
    loss = FocalLoss(use_sigmoid=False, gammas=(5, 3))
    assert train(tmp_path, loss, 3) == pytest.approx(by_gamma((5, 3, 3)))
    again = train(tmp_path, FocalLoss(use_sigmoid=False), 6, resume=True)
    assert again == pytest.approx(by_gamma((3, 1, 1)))
    assert len(set(by_gamma((5, 3, 1)))) == 3


def test_a_model_without_a_focal_loss_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r'gfl_det\.FocalLoss'):
        train(tmp_path, torch.nn.CrossEntropyLoss(), 1)


def test_one_gamma_needs_no_milestone() -> None:
    hook = GammaScheduleHook((2.5,), ())
    assert [hook.gamma_at(epoch) for epoch in (0, 999)] == [2.5, 2.5]
    published = GammaScheduleHook((5, 3, 1), (100, 250))
    assert [published.gamma_at(epoch) for epoch in (0, 99, 100, 249, 250, 349)] == [
        5,
        5,
        3,
        3,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ('gammas', 'milestones'),
    [((), ()), ((5, -1), (3,)), ((5, 3), ()), ((5, 3, 1), (4, 2)), ((5, 3), (0,)), ((5,), (1,))],
)
def test_schedules_out_of_range_are_refused(gammas: tuple, milestones: tuple) -> None:
    with pytest.raises(ConfigError, match='GammaScheduleHook'):
        GammaScheduleHook(gammas, milestones)


def test_a_negative_gamma_is_refused() -> None:
    loss = FocalLoss(gammas=(5, 3))
    with pytest.raises(ValueError, match='at least 0'):
        loss.set_gamma(-1)
    assert loss.gammas == (5, 3)
