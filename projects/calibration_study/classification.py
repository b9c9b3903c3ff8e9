"""Training losses and temperature scaling on a real task small enough for a processor.

The data are scikit-learn's scans of handwritten digits with labels that are wrong by chance. As in
Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss" (NeurIPS 2020), the network is
trained to the end and without choosing an epoch, so that it can remember its labels: then cross
entropy promises too much. A label is changed with the same chance in all parts, so that the best
possible probabilities are those of the noise, (1 - noise) + noise / 10 and noise / 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gfl_det.errors import ConfigError
from gfl_det.models.losses import (
    BrierLoss,
    FocalLoss,
    InverseFocalLoss,
    LabelSmoothingLoss,
    MMCELoss,
)
from gfl_det.models.losses.score_losses import ScoreLoss
from projects.calibration_study.classification_metrics import (
    expected_calibration_error,
    negative_log_likelihood,
    softmax,
)
from projects.calibration_study.softmax_temperature import fit_softmax_temperature

CLASSES = 10
SCANS = 1797
WIDTH = 256  # enough to remember every wrong label
LOSSES: dict[str, Callable[[], ScoreLoss]] = {
    'CE': lambda: FocalLoss(use_sigmoid=False, gamma=0),
    'Brier': lambda: BrierLoss(use_sigmoid=False),
    'MMCE': lambda: MMCELoss(use_sigmoid=False, mmce_weight=2),
    'LS-.05': lambda: LabelSmoothingLoss(use_sigmoid=False, smoothing=0.05),
    'FL-3': lambda: FocalLoss(use_sigmoid=False, gamma=3),
    'FLSD-53': lambda: FocalLoss(use_sigmoid=False, gammas=(5, 3), thresholds=(0.2,)),
    'IFL-1.5': lambda: InverseFocalLoss(use_sigmoid=False, gamma=1.5),
}
MEASURES = ('ECE', 'AdaECE', 'NLL')


@dataclass(frozen=True)
class Recipe:
    """What decides a run.

    Args:
        noise: chance that a label is drawn anew, from all classes alike.
        epochs: of training.
        train: scans to train on.
        held_out: scans that the temperature is fitted on; the rest are judged.
        learning_rate: at first; it falls to 0 as a cosine.

    Raises:
        ConfigError: a value is out of range.
    """

    noise: float = 0.1
    epochs: int = 80
    train: int = 700
    held_out: int = 400
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 1:
            raise ConfigError(f'the noise of the labels lies in [0, 1), not {self.noise!r}')
        if self.epochs < 1:
            raise ConfigError(f'training takes at least 1 epoch, not {self.epochs!r}')
        if min(self.train, self.held_out) < 1 or self.train + self.held_out >= SCANS:
            raise ConfigError(
                f'{self.train} scans to train on and {self.held_out} to fit the temperature on '
                f'leave none of the {SCANS} to judge'
            )


class Part(NamedTuple):
    """Scans with labels, some of them wrong."""

    images: Tensor  # (N, 8, 8) float32 of mean 0
    labels: Tensor  # (N,) int64


class Run(NamedTuple):
    """What one loss and one seed gave; the measures before and after temperature scaling."""

    loss: str
    seed: int
    error: float  # fraction of the judged labels that are missed
    temperature: float
    before: dict[str, float]  # by MEASURES
    after: dict[str, float]


def run_all(
    recipe: Recipe, seeds: int, progress: Callable[[Run], None] | None = None
) -> Iterator[Run]:
    """Train each loss on each seed: a seed decides the parts, the noise and the first weights.

    Args:
        recipe: of each run.
        seeds: how many, from 0.
        progress: is told each run.
    """
    for seed in range(seeds):
        parts = load_parts(recipe, seed)
        for name in LOSSES:
            result = run_one(name, parts, recipe, seed)
            if progress:
                progress(result)
            yield result


def load_parts(recipe: Recipe, seed: int) -> tuple[Part, Part, Part]:
    """Scans to train on, to fit the temperature on, and to judge: a random cut."""
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    generator = np.random.default_rng(seed)
    labels = digits.target.copy()
    drawn = generator.random(len(labels)) < recipe.noise
    labels[drawn] = generator.integers(0, CLASSES, int(drawn.sum()))
    images = (digits.images - digits.images.mean()) / digits.images.std()
    order = generator.permutation(len(labels))
    ends = (recipe.train, recipe.train + recipe.held_out)
    first, second, third = (
        Part(torch.from_numpy(images[rows]).float(), torch.from_numpy(labels[rows]).long())
        for rows in np.split(order, ends)
    )
    return first, second, third


def run_one(name: str, parts: tuple[Part, Part, Part], recipe: Recipe, seed: int) -> Run:
    """Train with one loss and judge it before and after temperature scaling."""
    train, held_out, judged = parts
    network = fit_network(train, LOSSES[name](), recipe, seed)
    with torch.no_grad():
        fitted, logits = (network(part.images).double().numpy() for part in (held_out, judged))
    labels = judged.labels.numpy()
    temperature = fit_softmax_temperature(fitted, held_out.labels.numpy())
    return Run(
        name,
        seed,
        float((logits.argmax(1) != labels).mean()),
        temperature,
        measure(softmax(logits), labels),
        measure(softmax(logits / temperature), labels),
    )


def measure(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The measures of probabilities ``(N, K)`` against labels ``(N,)``."""
    return dict(
        ECE=expected_calibration_error(probabilities, labels),
        AdaECE=expected_calibration_error(probabilities, labels, adaptive=True),
        NLL=negative_log_likelihood(probabilities, labels),
    )


def make_network() -> nn.Module:
    """Three linear layers: images ``(N, 8, 8)`` to logits ``(N, 10)``."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )


def fit_network(train: Part, loss: ScoreLoss, recipe: Recipe, seed: int) -> nn.Module:
    """Train a network from random weights by SGD with momentum; all losses see the same batches."""
    torch.manual_seed(seed)
    network = make_network()
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=0.9,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(train.labels), generator=generator)
        for rows in order.split(recipe.batch_size):
            optimizer.zero_grad()
            loss(network(train.images[rows]), train.labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return network.eval()
