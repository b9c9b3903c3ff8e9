"""Intervals of edges: drawn geometry, identities, borders, and the head that gives them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfl_det.errors import ConfigError
from gfl_det.ops import distribution
from gfl_det.ops.intervals import (
    EdgeIntervals,
    edge_intervals,
    edge_positions,
    edge_quantiles,
    stretch_needed,
)
from tests.helpers.heads import head_pair, make_maps, make_meta


def certain(bins: list[int], num_bins: int = 17) -> torch.Tensor:
    """Logits ``(1, 4, num_bins)`` of edges that lie in one bin each."""
    logits = torch.full((1, 4, num_bins), -1e4)
    logits[0, range(4), bins] = 0
    return logits


def random_edges(seed: int, number: int = 20):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(number, 4, 17, generator=generator)
    widths = 4 + 28 * torch.rand(number, 4, generator=generator)
    centres = 100 + 200 * torch.rand(number, 2, generator=generator)
    return logits, widths, centres


def test_a_drawn_box() -> None:
    """A prior at (100, 60); the edges are 3, 2, 5 and 4 bins of 8 (x) and 10 px (y) away."""
    logits = certain([3, 2, 5, 4])
    widths = torch.tensor([[8.0, 10.0, 8.0, 10.0]])
    centres = torch.tensor([[100.0, 60.0]])
    distances = distribution.mean(logits)
    box = edge_positions(distances, widths, centres)
    torch.testing.assert_close(box, torch.tensor([[76.0, 40.0, 140.0, 100.0]]))
    # One certain bin is a uniform stretch of one bin: its central half is half a bin.
    low, high = edge_intervals(edge_quantiles(logits, widths, centres, 0.5))
    torch.testing.assert_close(low, torch.tensor([[74.0, 37.5, 138.0, 97.5]]))
    torch.testing.assert_close(high, torch.tensor([[78.0, 42.5, 142.0, 102.5]]))


def test_an_interval_keeps_its_sides_when_stretched() -> None:
    """Left edge: P(2) = .75, P(6) = .25, so the long side points away from the centre."""
    logits = torch.full((1, 4, 17), -1e4)
    logits[..., 2], logits[..., 6] = math.log(0.75), math.log(0.25)
    widths, centres = torch.ones(1, 4), torch.full((1, 2), 50.0)
    quantiles = edge_quantiles(logits, widths, centres, 0.9)
    once, twice = edge_intervals(quantiles), edge_intervals(quantiles, 2.0)
    for new, old in ((twice.low, once.low), (twice.high, once.high)):
        torch.testing.assert_close(new - quantiles.median, 2 * (old - quantiles.median))
    outer = quantiles.median[0, 0] - once.low[0, 0]
    inner = once.high[0, 0] - quantiles.median[0, 0]
    assert outer > 3 * inner
    # The right edge is the mirror of the left one.
    torch.testing.assert_close(100 - once.low[0, 0], once.high[0, 2])
    torch.testing.assert_close(100 - once.high[0, 0], once.low[0, 2])


@given(st.integers(0, 1000), st.floats(0.01, 0.98), st.floats(0, 4))
def test_intervals_hold_the_median_and_nest(seed: int, level: float, factor: float) -> None:
    edges = random_edges(seed)
    quantiles = edge_quantiles(*edges, level)
    assert (quantiles.low <= quantiles.median).all()
    assert (quantiles.median <= quantiles.high).all()
    interval = edge_intervals(quantiles, factor)
    wider = edge_intervals(edge_quantiles(*edges, level + 0.01), factor + 0.01)
    assert (wider.low <= interval.low + 1e-3).all()
    assert (wider.high >= interval.high - 1e-3).all()
    assert (interval.widths() >= 0).all()


@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_the_stretch_needed_is_the_least_that_contains(seed: int, level: float) -> None:
    logits, widths, centres = (each.double() for each in random_edges(seed))
    quantiles = edge_quantiles(logits, widths, centres, level)
    gt = quantiles.median + 50 * torch.randn(
        quantiles.median.shape, generator=torch.Generator().manual_seed(seed)
    )
    needed = stretch_needed(quantiles, gt)
    for row, side in ((0, 0), (3, 2), (7, 3)):
        stretch = float(needed[row, side])
        assert edge_intervals(quantiles, stretch * (1 + 1e-9)).contain(gt)[row, side]
        assert not edge_intervals(quantiles, stretch * (1 - 1e-6)).contain(gt)[row, side]


def test_borders_cut() -> None:
    logits, widths, centres = random_edges(0)
    limit = torch.tensor([150.0, 120.0, 150.0, 120.0])
    quantiles = edge_quantiles(logits, widths, centres, 0.99)
    free, cut = edge_intervals(quantiles, 5.0), edge_intervals(quantiles, 5.0, limit)
    assert (free.low < 0).any()
    assert (free.high > limit).any()
    for name in ('low', 'high'):
        expected = torch.minimum(getattr(free, name).clamp(min=0), limit)
        assert torch.equal(getattr(cut, name), expected)
    assert (cut.low <= cut.high).all()


def test_no_detections() -> None:
    quantiles = edge_quantiles(torch.zeros(0, 4, 17), torch.zeros(0, 4), torch.zeros(0, 2), 0.9)
    assert edge_intervals(quantiles, 2.0, torch.ones(4)).low.shape == (0, 4)


@pytest.mark.parametrize('level', [-0.1, 1.1])
def test_levels_are_shares(level: float) -> None:
    with pytest.raises(ValueError, match='level'):
        edge_quantiles(*random_edges(0), level)


def predict(rescale: bool = True, **test_cfg):
    head, _ = head_pair(test_cfg=dict(with_distribution=True, **test_cfg))
    maps = make_maps(2, (192, 256), torch.Generator().manual_seed(3), bias=-1.0)
    metas = [make_meta((192, 256), scale=0.5), make_meta((150, 200))]
    return head, head.predict_by_feat(*maps, batch_img_metas=metas, rescale=rescale)


def test_the_head_gives_the_intervals_of_its_distributions() -> None:
    _, results = predict(interval_level=0.8)
    sizes = ((256 / 0.5, 192 / 0.505), (200.0, 150 / 1.01))
    for found, size in zip(results, sizes):
        assert len(found) > 20
        limit = torch.tensor(size * 2)
        quantiles = edge_quantiles(found.edge_logits, found.bin_widths, found.prior_centres, 0.8)
        low, high = edge_intervals(quantiles, 1.0, limit)
        torch.testing.assert_close(found.edge_low, low)
        torch.testing.assert_close(found.edge_high, high)
        torch.testing.assert_close(found.edge_entropy, distribution.entropy(found.edge_logits))
        # Cut in the same image as the boxes are.
        assert (found.edge_high <= limit + 1e-3).all()
        centred = (found.bboxes >= found.edge_low) & (found.bboxes <= found.edge_high)
        assert centred.float().mean() > 0.9


def test_results_lack_fields_that_were_not_requested() -> None:
    _, (found, _) = predict()
    assert not {'edge_low', 'edge_high', 'edge_entropy', 'edge_std'} & set(found.keys())


@pytest.mark.parametrize('level', [0, 1, 90, 'high'])
def test_invalid_levels_are_refused(level) -> None:
    with pytest.raises(ConfigError, match=r'interval_level .*not'):
        predict(interval_level=level)


def test_an_edge_at_the_end_of_its_interval_is_contained() -> None:
    """A box on the image's border, where the intervals are cut, is as sure as it can be."""
    zeros, border = torch.zeros(1, 4), torch.tensor([[100.0, 80.0, 100.0, 80.0]])
    box = torch.tensor([[0.0, 0.0, 100.0, 80.0]])
    assert EdgeIntervals(zeros, border).contain(box).all()
    assert EdgeIntervals(box, box).contain(box).all()
    assert not EdgeIntervals(zeros, border).contain(box - 0.01)[:, :2].any()
    assert not EdgeIntervals(zeros, border).contain(box + 0.01)[:, 2:].any()
