"""Permutation tests of whether boxes and labels match their pictures.

A model overfits any eight pictures, even with shuffled labels. The pictures tell the difference:
true boxes follow edges in their own picture more than in others, and boxes of one class resemble
each other in size, shape or colour.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub

from gfl_det.errors import DataError
from gfl_det.registry import DATASETS

TRIES = 20  # pictures loaded at most per picture needed

Batch = dict[str, Any]  # inputs: uint8 pictures; data_samples: their gt boxes
ROUNDS = 200  # permutations: the smallest measurable share is half a percent
FEW_BOXES = 20  # fewer are not significant
NEIGHBOURS = 3
CHANCE = 0.02  # correct data stays below this by chance in all but two percent of datasets


class Examples(NamedTuple):
    """Pictures with their boxes."""

    pictures: list[np.ndarray]  # (H, W, 3) uint8
    boxes: list[np.ndarray]  # (N, 4) float64 xyxy px
    labels: list[np.ndarray]  # (N,) int64

    @classmethod
    def of(cls, batch: Batch) -> Examples:
        """Build from a batch."""
        gts = [sample.gt_instances for sample in batch['data_samples']]
        return cls(
            [picture.permute(1, 2, 0).numpy() for picture in batch['inputs']],
            [get_box_tensor(each.bboxes).double().numpy() for each in gts],
            [each.labels.numpy() for each in gts],
        )


def build_dataset(cfg: Config) -> Any:
    """Build the training dataset of a config.

    Raises:
        DataError: If the dataset cannot be read.
    """
    hub = MessageHub.get_current_instance()
    for counter in ('iter', 'epoch'):
        hub.update_info(counter, 0)  # some augmentations read counters
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    return dataset


def load(dataset: Any, number: int, seed: int = 0) -> Batch:
    """Load pictures with boxes, spread over a dataset, through the pipeline.

    Args:
        dataset: Training dataset.
        number: Number of pictures; fewer if not enough have boxes.
        seed: Seed of the pipeline's random transforms.

    Raises:
        DataError: If no picture has boxes.
    """
    np.random.seed(seed)
    torch.manual_seed(seed)
    total = len(dataset)
    number = min(number, total)
    # Evenly spaced pictures first, then their neighbours if those have no boxes.
    starts = [first * total // max(number, 1) for first in range(number)]
    places = (start + offset for offset in range(TRIES) for start in starts)
    samples: list[Any] = []
    for index in dict.fromkeys(place for place in places if place < total):
        if len(samples) == number:
            break
        sample = dataset[index]
        if sample is not None and len(sample['data_samples'].gt_instances):
            samples.append(sample)
    if not samples:
        raise DataError('No picture of the training set has boxes: see gfl-det check.')
    return pseudo_collate(samples)


def gts_of(sample: DetDataSample) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes ``(N, 4)`` xyxy px and labels ``(N,)`` of a sample."""
    gts = sample.gt_instances
    return get_box_tensor(gts.bboxes).cpu().double().numpy(), gts.labels.cpu().numpy()


def box_chance(examples: Examples, seed: int = 0) -> float | None:
    """Share of random swaps of pictures in which boxes follow edges as well as in their own.

    Near 0 for true boxes, arbitrary for others; None with too few boxes or pictures.

    Args:
        examples: Pictures with boxes.
        seed: Seed of the swaps.
    """
    strengths = [edge_sums(picture) for picture in examples.pictures]
    number = len(strengths)
    if number < 4 or sum(map(len, examples.boxes)) < FEW_BOXES:
        return None
    # along[i, j]: score of the boxes of picture i, placed on picture j.
    along = np.array(
        [[along_edges(strength, boxes).sum() for strength in strengths] for boxes in examples.boxes]
    )
    own = float(np.trace(along))
    generator = np.random.default_rng(seed)
    rows = np.arange(number)
    others = [float(along[rows, generator.permutation(number)].sum()) for _ in range(ROUNDS)]
    return (1 + sum(other >= own for other in others)) / (1 + ROUNDS)


def edge_sums(picture: np.ndarray) -> np.ndarray:
    """Integral images ``(2, H + 1, W + 1)`` of the gradient magnitudes along x and y.

    Args:
        picture: ``(H, W, 3)`` uint8.

    Returns:
        Normalised by the mean gradient, so that pictures have equal weight.
    """
    values = picture.astype(np.float64)
    change = np.zeros((2, *picture.shape[:2]))
    # Per channel: red on blue of equal brightness is an edge too.
    change[0, :, 1:] = np.abs(np.diff(values, axis=1)).mean(2)
    change[1, 1:] = np.abs(np.diff(values, axis=0)).mean(2)
    change /= change.mean() + 1e-9
    return np.pad(change.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))


def along_edges(sums: np.ndarray, boxes: np.ndarray, band: int = 2) -> np.ndarray:
    """Mean gradient across the four edges of boxes, relative to inside and around them.

    Args:
        sums: See :func:`edge_sums`.
        boxes: ``(N, 4)`` xyxy px.
        band: Width in px on either side of an edge.

    Returns:
        ``(N,)``, 0 on average if boxes are unrelated to the picture.
    """
    height, width = sums.shape[1] - 1, sums.shape[2] - 1
    x1, y1, x2, y2 = np.rint(boxes).astype(int).T

    def mean(
        axis: int, left: np.ndarray, top: np.ndarray, right: np.ndarray, end: np.ndarray
    ) -> np.ndarray:
        left, right = np.clip(left, 0, width), np.clip(right, 0, width)
        top, end = np.clip(top, 0, height), np.clip(end, 0, height)
        table = sums[axis]
        total = table[end, right] - table[top, right] - table[end, left] + table[top, left]
        return total / np.maximum((right - left) * (end - top), 1)

    edges = (
        mean(0, x1 - band, y1, x1 + band, y2)
        + mean(0, x2 - band, y1, x2 + band, y2)
        + mean(1, x1, y1 - band, x2, y1 + band)
        + mean(1, x1, y2 - band, x2, y2 + band)
    )
    wide, high = (x2 - x1) // 2, (y2 - y1) // 2
    around = [mean(axis, x1 - wide, y1 - high, x2 + wide, y2 + high) for axis in (0, 1)]
    return edges - 2 * sum(around)


def label_chance(examples: Examples, seed: int = 0) -> float | None:
    """Share of random label permutations in which neighbours agree on the class as often.

    Neighbours are the most similar boxes in size, shape and a thumbnail of their content, in any
    picture. Near 0 for true labels; None with too few boxes or only one class.

    Args:
        examples: Pictures, boxes and labels.
        seed: Seed of the permutations.
    """
    labels = np.concatenate(examples.labels)
    counts = np.bincount(labels)
    if len(labels) < FEW_BOXES or (counts > 1).sum() < 2:
        return None
    features = np.concatenate(
        [looks(picture, boxes) for picture, boxes in zip(examples.pictures, examples.boxes)]
    )
    features = (features - features.mean(0)) / (features.std(0) + 1e-9)
    features *= _weights(features.shape[1])
    square = (features**2).sum(1)
    distance = square[:, None] + square - 2 * features @ features.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :NEIGHBOURS]

    def agreement(given: np.ndarray) -> float:
        # Equal weight per class: if one class has 90 % of the boxes, agreement says little.
        agree = (given[nearest] == given[:, None]).mean(1)
        return float((agree / counts[given]).sum())

    own = agreement(labels)
    generator = np.random.default_rng(seed)
    others = [agreement(generator.permutation(labels)) for _ in range(ROUNDS)]
    return (1 + sum(other >= own for other in others)) / (1 + ROUNDS)


THUMB = 8  # px: enough for strokes, few enough for similar boxes to exist
SHAPES = 2  # leading features: log size, log aspect


def looks(picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Features ``(N, F)`` of boxes: size, shape, colour, and a normalised thumbnail.

    Args:
        picture: ``(H, W, 3)`` uint8.
        boxes: ``(N, 4)`` xyxy px.
    """
    height, width = picture.shape[:2]
    rows = []
    for x1, y1, x2, y2 in boxes:
        left, top = int(np.clip(x1, 0, width - 1)), int(np.clip(y1, 0, height - 1))
        right, end = (
            int(np.clip(np.ceil(x2), left + 1, width)),
            int(np.clip(np.ceil(y2), top + 1, height)),
        )
        inside = picture[top:end, left:right].astype(np.float64)
        y = (np.arange(THUMB) + 0.5) * inside.shape[0] / THUMB
        x = (np.arange(THUMB) + 0.5) * inside.shape[1] / THUMB
        small = inside.mean(2)[y.astype(int)][:, x.astype(int)]
        small = (small - small.mean()) / (small.std() + 1)
        sides = max(x2 - x1, 1), max(y2 - y1, 1)
        shape = [np.log(sides[0] * sides[1]), np.log(sides[0] / sides[1])]
        # Ink may be darker or lighter than its ground: use the sign of the centre.
        sign = np.sign(small[2:-2, 2:-2].mean()) or 1.0
        rows.append([*shape, *inside.mean((0, 1)), *(sign * small).ravel()])
    return np.array(rows).reshape(len(boxes), SHAPES + 3 + THUMB * THUMB)


def _weights(number: int) -> np.ndarray:
    """Give size and shape, colour, and thumbnail equal weight."""
    groups = np.array([SHAPES, 3, number - SHAPES - 3])
    return np.repeat(1 / np.sqrt(groups), groups)
