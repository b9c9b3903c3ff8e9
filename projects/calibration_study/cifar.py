"""Training losses on CIFAR-10, where the papers on calibration by focal loss report.

    python -m projects.calibration_study.cifar DATA [--losses CE FL-3 ...] [--seeds 0 1] [--noise 0]

DATA holds ``train.zip`` and ``test.zip`` with ``CLASS/NUMBER.jpg``. A residual network of 0.17 M
parameters is trained on 10,000 pictures; temperatures and maps are fitted on 5,000 others, and all
is judged on the 10,000 test pictures. This split is the same for all runs; a seed decides the first
weights, the order and the augmentation, and is the same for all losses. Each run writes one JSON
file; a run whose file is there is not repeated, and one that was cut goes on from its last epoch.
:mod:`.cifar_tables` compares them.

Post-hoc: temperature scaling by NLL (Guo et al., ICML 2017) and by ECE, histogram binning (Zadrozny
and Elkan, ICML 2001) of the confidence in 15 bins of equal counts, and focal temperature scaling
(Komisarenko and Kull, arXiv 2408.11598): the posterior that focal loss implies, after a
temperature; both parameters by NLL.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from gfl_det.cli import main as cli
from gfl_det.errors import DataError
from gfl_det.evaluation.floors import binned_floor
from gfl_det.models.losses import FocalLoss, InverseFocalLoss, MMCELoss
from gfl_det.models.losses.score_losses import ScoreLoss
from gfl_det.utils.files import write_json
from projects.calibration_study.classification import LOSSES as STUDIED
from projects.calibration_study.classification_metrics import (
    ECE_BINS,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    softmax,
)
from projects.calibration_study.softmax_temperature import (
    fit_softmax_temperature,
    search_temperature,
)
from projects.provenance import provenance

RESULTS = Path(__file__).parent / 'results' / 'cifar'
WORK = Path('work_dirs/cifar')
TRAIN, HELD_OUT = 10_000, 5_000  # pictures
EPOCHS, BATCH, RATE, WEIGHT_DECAY = 30, 128, 0.1, 5e-4
LOOK = 5  # epochs between two looks at the test pictures
WIDTHS = (24, 48, 96)
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # of CIFAR-10's training pictures
GAMMAS = np.arange(0, 5.01, 0.25)  # of focal temperature scaling
# Of a family one member is chosen, by seed 0 and the pictures that temperatures are fitted on.
FAMILIES: dict[str, dict[str, Callable[[], ScoreLoss]]] = {
    'IFL': {
        f'IFL-{gamma:g}': partial(InverseFocalLoss, use_sigmoid=False, gamma=gamma)
        for gamma in (0.5, 1.5, 3)
    },
    'MMCE': {
        f'MMCE-{weight:g}': partial(MMCELoss, use_sigmoid=False, mmce_weight=weight)
        for weight in (2, 4)
    },
}
LOSSES: dict[str, Callable[[], ScoreLoss]] = {
    **{name: make for name, make in STUDIED.items() if name not in ('MMCE', 'IFL-1.5')},
    'FL-p.2': partial(FocalLoss, use_sigmoid=False, p0=0.2),  # automatic gamma: 4.85
    **FAMILIES['MMCE'],
    **FAMILIES['IFL'],
}


class Pictures(NamedTuple):
    """Pictures ``(N, 3, 32, 32)`` uint8 and labels ``(N,)`` int64."""

    images: Tensor
    labels: Tensor


def read(data: Path, name: str) -> Pictures:
    """Read ``train`` or ``test``; what was decoded is kept in the work dir.

    Raises:
        DataError: If the archive is missing.
    """
    kept = WORK / f'{name}.npz'
    if not kept.is_file():
        path = data / f'{name}.zip'
        if not path.is_file():
            raise DataError(f'{path} is missing: give the folder with train.zip and test.zip.')
        with zipfile.ZipFile(path) as archive:
            names = sorted(each for each in archive.namelist() if each.endswith('.jpg'))
            classes = sorted({each.split('/')[-2] for each in names})
            images = np.stack(
                [np.asarray(Image.open(io.BytesIO(archive.read(each)))) for each in names]
            )
        labels = [classes.index(each.split('/')[-2]) for each in names]
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, images=images.transpose(0, 3, 1, 2), labels=labels)
    content = np.load(kept)
    return Pictures(torch.from_numpy(content['images']), torch.from_numpy(content['labels']))


def parts(data: Path, noise: float) -> tuple[Pictures, Pictures, Pictures]:
    """Pictures to train on, to fit on and to judge; a share of all labels is drawn anew."""
    generator = np.random.default_rng(0)
    whole, test = read(data, 'train'), read(data, 'test')
    order = torch.from_numpy(generator.permutation(len(whole.labels)))
    chosen = order[:TRAIN], order[TRAIN : TRAIN + HELD_OUT]
    found = [Pictures(whole.images[rows], whole.labels[rows]) for rows in chosen] + [test]
    noisy = []
    for part in found:
        labels = part.labels.numpy().copy()
        drawn = generator.random(len(labels)) < noise
        labels[drawn] = generator.integers(0, 10, int(drawn.sum()))
        noisy.append(Pictures(part.images, torch.from_numpy(labels)))
    first, second, third = noisy
    return first, second, third


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, after batch norms (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)``."""
        return (self.path(images) + self.shortcut(images)).relu()


def make_network() -> nn.Sequential:
    """Images ``(N, 3, 32, 32)`` to logits ``(N, 10)``; the first convolution halves them."""
    first, second, third = WIDTHS
    return nn.Sequential(
        nn.Conv2d(3, first, 3, 2, 1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        Block(first, first, 1),
        Block(first, second, 2),
        Block(second, third, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, 10),
    )


def normalised(images: Tensor) -> Tensor:
    """Float images of mean 0 and deviation 1, channels last."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops of padded images and flips, the field's standard."""
    number = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, number, 1), generator=generator)
    flip = torch.rand(number, 1, generator=generator) < 0.5
    rows, columns = top + torch.arange(32), left + torch.arange(32)
    columns = torch.where(flip, columns.flip(1), columns)
    index = torch.arange(number)[:, None, None]
    return padded.movedim(1, 3)[index, rows[:, :, None], columns[:, None]].movedim(3, 1)


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor) -> np.ndarray:
    """Logits ``(N, 10)`` float64, in test mode."""
    network.eval()
    found = [network(normalised(chunk)) for chunk in images.split(500)]
    return torch.cat(found).double().numpy()


def train(
    loss: str, seed: int, data: tuple[Pictures, Pictures, Pictures], state: Path
) -> tuple[nn.Module, list[dict[str, float]], float]:
    """Train a network, or go on from a cut training.

    Returns:
        The network, what was seen of it every `LOOK` epochs, and seconds of processor time.
    """
    torch.manual_seed(seed)
    network = make_network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    criterion, (images, labels) = LOSSES[loss](), data[0]
    seen: list[dict[str, float]] = []
    first, spent = 0, 0.0
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        network.load_state_dict(kept['network'])
        optimizer.load_state_dict(kept['optimizer'])
        schedule.load_state_dict(kept['schedule'])
        first, seen, spent = kept['epoch'], kept['seen'], kept['seconds']
    for epoch in range(first, EPOCHS):
        start = time.process_time()
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        network.train()
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            optimizer.zero_grad()
            batch = normalised(augmented(images[rows], generator))
            criterion(network(batch), labels[rows]).backward()
            optimizer.step()
        schedule.step()
        spent += time.process_time() - start
        if (epoch + 1) % LOOK == 0:
            seen.append(dict(epoch=epoch + 1, **mechanism(network, data[2])))
        kept = dict(network=network.state_dict(), optimizer=optimizer.state_dict())
        kept |= dict(schedule=schedule.state_dict(), epoch=epoch + 1, seen=seen, seconds=spent)
        torch.save(kept, state.with_suffix('.part'))
        state.with_suffix('.part').replace(state)
    return network, seen, spent


def mechanism(network: Any, test: Pictures) -> dict[str, float]:
    """What Mukhoti et al. look at: entropy, the last layer's norm, NLL of right and wrong ones."""
    probabilities = softmax(logits_of(network, test.images))
    labels = test.labels.numpy()
    true = -np.log(probabilities[np.arange(len(labels)), labels].clip(min=1e-300))
    wrong = probabilities.argmax(1) != labels
    entropy = -(probabilities * np.log(probabilities.clip(min=1e-300))).sum(1)
    return dict(
        error=float(wrong.mean()),
        entropy=float(entropy.mean()),
        entropy_of_wrong=_mean(entropy[wrong]),
        nll_of_right=_mean(true[~wrong]),
        nll_of_wrong=_mean(true[wrong]),
        last_layer_norm=float(network[-1].weight.detach().norm()),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def focal_posterior(probabilities: np.ndarray, gamma: float) -> np.ndarray:
    """Posterior ``(N, K)`` at which softmax focal loss is least for these outputs.

    Proportional to ``1 / ((1-q)^g / q - g (1-q)^(g-1) log q)``; gamma 0 changes nothing.
    """
    q = probabilities.clip(1e-12, 1 - 1e-12)
    weight = 1 / ((1 - q) ** gamma / q - gamma * (1 - q) ** (gamma - 1) * np.log(q))
    return weight / weight.sum(1, keepdims=True)


def fit_focal_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Gamma and temperature with the least NLL, on a grid about the best plain temperature."""
    plain = fit_softmax_temperature(logits, labels)
    pairs = [(gamma, plain * scale) for gamma in GAMMAS for scale in 2 ** np.arange(-1, 1.01, 0.1)]
    values = [
        negative_log_likelihood(focal_posterior(softmax(logits / temperature), gamma), labels)
        for gamma, temperature in pairs
    ]
    return pairs[int(np.argmin(values))]


def measure(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measures of probabilities, with the noise floor and debiased value of ECE."""
    confidence = probabilities.max(1)
    correct = (probabilities.argmax(1) == labels).astype(float)
    floor = binned_floor(confidence, correct, ECE_BINS, binary=True)
    return dict(
        ECE=expected_calibration_error(probabilities, labels),
        ECE_floor=float(floor.pooled.mean),
        ECE_debiased=float(floor.pooled.debiased),
        AdaECE=expected_calibration_error(probabilities, labels, adaptive=True),
        classwise_ECE=classwise_calibration_error(probabilities, labels),
        NLL=negative_log_likelihood(probabilities, labels),
        Brier=brier_score(probabilities, labels),
    )


def binned_confidence(fitted: Sequence[np.ndarray], judged: Sequence[np.ndarray]) -> float:
    """ECE after histogram binning of the confidence, fitted on the first pair of arrays."""
    (probabilities, labels), (others, other_labels) = fitted, judged
    confidence = probabilities.max(1)
    edges = np.quantile(confidence, np.linspace(0, 1, ECE_BINS + 1))[1:-1]
    place = np.searchsorted(edges, confidence)
    correct = probabilities.argmax(1) == labels
    number = np.bincount(place, minlength=ECE_BINS)
    values = np.bincount(place, correct, minlength=ECE_BINS) / np.maximum(number, 1)
    new = values[np.searchsorted(edges, others.max(1))]
    right = others.argmax(1) == other_labels
    cell = np.minimum((new * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(cell, new - right, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(new))


def judge(network: nn.Module, data: tuple[Pictures, Pictures, Pictures]) -> dict[str, Any]:
    """Measures of the test pictures, raw and after each method; how the others were fitted."""
    trained, fit, logits = (logits_of(network, part.images) for part in data)
    trained_labels, fit_labels, labels = (part.labels.numpy() for part in data)
    by_nll = fit_softmax_temperature(fit, fit_labels)
    by_ece = search_temperature(fit, fit_labels)
    gamma, focal = fit_focal_temperature(fit, fit_labels)
    binned = binned_confidence((softmax(fit), fit_labels), (softmax(logits), labels))
    return dict(
        error=float((logits.argmax(1) != labels).mean()),
        train_error=float((trained.argmax(1) != trained_labels).mean()),
        temperature=by_nll,
        fitted_NLL=negative_log_likelihood(softmax(fit / by_nll), fit_labels),
        temperature_by_ece=by_ece,
        focal_gamma=float(gamma),
        focal_temperature=float(focal),
        before=measure(softmax(logits), labels),
        after={
            'T by NLL': measure(softmax(logits / by_nll), labels),
            'T by ECE': measure(softmax(logits / by_ece), labels),
            'histogram': dict(ECE=binned),
            'focal T': measure(focal_posterior(softmax(logits / focal), gamma), labels),
        },
    )


def run(data: Path, losses: Sequence[str], seeds: Sequence[int], noise: float) -> None:
    """Train and judge what is not there yet."""
    torch.set_num_threads(1)  # one gives the same digits wherever it runs
    loaded = None
    for seed in seeds:
        for loss in losses:
            name = f'{loss}-noise{noise:g}-seed{seed}'
            if (RESULTS / f'{name}.json').is_file():
                continue
            loaded = loaded or parts(data, noise)
            state = WORK / f'{name}.pth'
            state.parent.mkdir(parents=True, exist_ok=True)
            network, seen, seconds = train(loss, seed, loaded, state)
            content = dict(loss=loss, seed=seed, noise=noise, epochs=EPOCHS, train=TRAIN)
            content |= dict(provenance(), seconds=round(seconds))
            content |= judge(network, loaded) | dict(mechanism=seen)
            RESULTS.mkdir(parents=True, exist_ok=True)
            write_json(RESULTS / f'{name}.json', content, indent=1)
            print(
                f'{name}: error {content["error"]:.3f}, ECE {content["before"]["ECE"]:.3f}, '
                f'{seconds:.0f} s',
                file=sys.stderr,
            )


def main() -> None:
    """Train and judge what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('data', type=Path, help='folder of train.zip and test.zip')
    parser.add_argument('--losses', nargs='+', choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument('--noise', type=float, default=0.0, help='share of labels drawn anew')
    args = parser.parse_args()
    run(args.data, args.losses, args.seeds, args.noise)


if __name__ == '__main__':
    cli.run(main)
