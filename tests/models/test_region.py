"""The valuable localization region against its definition, prior by prior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gfl_det.models.assigners.closed_form import make_lattice
from gfl_det.models.heads import ld_head
from gfl_det.models.heads.ld_head import valuable_region
from tests.helpers.heads import feature_sizes
from tests.helpers.oracles import STRIDES, lattice_priors, pair_iou, random_gts

SIZE = (96, 160)
SIZES = feature_sizes(*SIZE)
BASE = [[-4.0 * stride, -4.0 * stride, 4.0 * stride, 4.0 * stride] for stride in STRIDES]


def lattice_of(images: int):
    rectangles = [[(0, 0, columns, rows) for rows, columns in SIZES]] * images
    pairs = [(float(stride), float(stride)) for stride in STRIDES]
    return make_lattice(BASE, pairs, SIZES, rectangles, torch.device('cpu'))


def centre(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def pair_diou(a, b):
    """Distance-IoU of two boxes (Zheng et al., AAAI 2020)."""
    width, height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    return pair_iou(a, b) - math.dist(centre(a), centre(b)) ** 2 / (width**2 + height**2)


def by_definition(gts, k=9):
    """For each prior the largest IoU with a gt box in whose region it lies, else 0."""
    priors = lattice_priors(SIZES)
    counts = [rows * columns for rows, columns in SIZES]
    weights = np.zeros(len(priors))
    for gt in gts:
        distances = np.array([math.dist(centre(prior), centre(gt)) for prior in priors])
        overlaps = np.array([pair_iou(prior, gt) for prior in priors])
        measures = np.array([pair_diou(prior, gt) for prior in priors])
        chosen, first = [], 0
        for count in counts:
            chosen += (np.argsort(distances[first : first + count])[:k] + first).tolist()
            first += count
        threshold = overlaps[chosen].mean() + overlaps[chosen].std(ddof=1)
        inside = (measures >= 0.25 * threshold) & (measures < threshold)
        weights = np.maximum(weights, np.where(inside, overlaps, 0))
    return weights


def flat(maps, image: int) -> np.ndarray:
    return torch.cat([level[image].flatten() for level in maps]).numpy()


@pytest.mark.parametrize('seed', range(4))
def test_region_equals_its_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = (4, 0, 3)
    gts = [random_gts(count, *SIZE, generator, smallest=8, spread=2.5) for count in counts]
    image = torch.tensor([index for index, count in enumerate(counts) for _ in range(count)])
    found = valuable_region(lattice_of(3), SIZES, torch.cat(gts), image, 9)
    assert [tuple(level.shape) for level in found] == [(3, *size) for size in SIZES]
    for index, boxes in enumerate(gts):
        expected = by_definition(boxes.tolist())
        np.testing.assert_allclose(flat(found, index), expected, atol=1e-5)
        assert (expected > 0).any() == (counts[index] > 0)


def test_chunks_of_gts_change_nothing(monkeypatch) -> None:
    gts = random_gts(9, *SIZE, torch.Generator().manual_seed(0), smallest=8)
    image = torch.tensor([0] * 5 + [1] * 4)
    whole = valuable_region(lattice_of(2), SIZES, gts, image, 9)
    monkeypatch.setattr(ld_head, 'MAX_PAIRS', 500)
    parts = valuable_region(lattice_of(2), SIZES, gts, image, 9)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts))


@pytest.mark.parametrize(
    'box',
    [
        (30.0, 30.0, 30.0, 60.0),
        (60.0, 60.0, 30.0, 30.0),
        (float('nan'), 0.0, 50.0, 50.0),
        (float('inf'), 0.0, 50.0, float('inf')),
        (1e20, 1e20, 3e20, 3e20),
    ],
)
def test_an_invalid_gt_has_no_region(box: tuple) -> None:
    good = random_gts(2, *SIZE, torch.Generator().manual_seed(1), smallest=16)
    both = torch.cat([good, torch.tensor([box])])
    found = valuable_region(lattice_of(1), SIZES, both, torch.zeros(3, dtype=torch.long), 9)
    expected = valuable_region(lattice_of(1), SIZES, good, torch.zeros(2, dtype=torch.long), 9)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


def test_no_gts() -> None:
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    found = valuable_region(lattice_of(2), SIZES, *none, 9)
    assert all((level == 0).all() for level in found)
