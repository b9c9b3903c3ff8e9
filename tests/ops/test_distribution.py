"""Moments, entropy, quantiles and targets of edge distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfl_det.ops import distribution

NUM_BINS = 17


def one_bin(index: int, num_bins: int = NUM_BINS) -> torch.Tensor:
    logits = torch.full((num_bins,), -200.0)
    logits[index] = 200.0
    return logits


def test_a_certain_edge() -> None:
    for index in (0, 5, 16):
        logits = one_bin(index)
        assert float(distribution.mean(logits)) == index
        assert float(distribution.std(logits)) == 0
        assert float(distribution.entropy(logits)) == pytest.approx(0, abs=1e-6)


def test_uniform_edge() -> None:
    logits = torch.zeros(2, 3, NUM_BINS)
    assert distribution.mean(logits).shape == (2, 3)
    torch.testing.assert_close(distribution.mean(logits), torch.full((2, 3), 8.0))
    variance = sum((i - 8) ** 2 for i in range(NUM_BINS)) / NUM_BINS
    torch.testing.assert_close(distribution.std(logits), torch.full((2, 3), variance**0.5))
    expected = torch.full((2, 3), math.log(NUM_BINS))
    torch.testing.assert_close(distribution.entropy(logits), expected)


def test_two_equal_bins() -> None:
    logits = torch.logaddexp(one_bin(2, 9), one_bin(6, 9))
    assert float(distribution.mean(logits)) == pytest.approx(4)
    assert float(distribution.std(logits)) == pytest.approx(2)
    assert float(distribution.entropy(logits)) == pytest.approx(math.log(2))
    assert float(distribution.quantile(logits, 0.25)) == pytest.approx(2)  # middle of bin 2
    assert float(distribution.quantile(logits, 0.75)) == pytest.approx(6)


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_rise_and_stay_in_range(values: list, first: float, second: float) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    low = float(distribution.quantile(logits, min(first, second)))
    high = float(distribution.quantile(logits, max(first, second)))
    assert -1e-9 <= low <= high + 1e-9 <= len(values) - 1 + 2e-9


def test_quantile_levels_are_checked() -> None:
    with pytest.raises(ValueError, match=r'1\.5'):
        distribution.quantile(torch.zeros(3), 1.5)


@given(st.floats(0, 16))
def test_the_two_bins_have_the_target_as_mean(distance: float) -> None:
    target = distribution.two_bin_target(torch.tensor(distance, dtype=torch.float64), NUM_BINS)
    left = int(target.left)
    assert 0 <= left <= NUM_BINS - 2
    assert float(target.left_weight + target.right_weight) == pytest.approx(1)
    mean = left * target.left_weight + (left + 1) * target.right_weight
    assert float(mean) == pytest.approx(distance, abs=1e-9)


def test_targets_out_of_range_are_clamped() -> None:
    target = distribution.two_bin_target(torch.tensor([-3.0, 40.0]), NUM_BINS)
    assert target.left.tolist() == [0, 15]
    assert target.right_weight.tolist() == [0, 1]


def test_half_precision_is_computed_in_full() -> None:
    logits = torch.randn(100, NUM_BINS, generator=torch.Generator().manual_seed(0)).half()
    assert distribution.mean(logits).dtype == torch.float32
    assert torch.equal(distribution.mean(logits), distribution.mean(logits.float()))


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    for function in (distribution.mean, distribution.std, distribution.entropy):
        assert torch.autograd.gradcheck(function, (logits,))
    assert torch.autograd.gradcheck(lambda x: distribution.quantile(x, 0.3), (logits,))


def test_quantiles_on_the_border_of_a_bin() -> None:
    """Half lies in bin 2 and half in bin 6: the share of .5 ends with the first, that of 1 with the
    second, and no bin between or after them is looked at."""
    logits = torch.full((9,), -math.inf)
    logits[[2, 6]] = 0
    assert float(distribution.quantile(logits, 0.5)) == 2.5
    assert float(distribution.quantile(logits, 1.0)) == 6.5


def cumulative(probabilities: list[float], distance: float) -> float:
    """The share below a distance; a bin is spread over its unit interval, cut at the ends."""
    total, last = 0.0, len(probabilities) - 1
    for index, share in enumerate(probabilities):
        low, high = max(0.0, index - 0.5), min(float(last), index + 0.5)
        total += share * min(1.0, max(0.0, (distance - low) / (high - low)))
    return total


@pytest.mark.parametrize('peak', [1.0, 5.0, 12.0])
def test_a_quantile_has_its_share_below_it(peak: float) -> None:
    """Of peaked distributions too, whose far quantiles lie in bins of hardly any probability."""
    logits = torch.zeros(9, dtype=torch.float64)
    logits[3] = peak
    for share in (0.001, 0.1, 0.5, 0.9, 0.995, 0.99995, 0.99999):
        distance = float(distribution.quantile(logits, share))
        assert cumulative(logits.softmax(0).tolist(), distance) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize('num_bins', [1, 3, 5, 9])
def test_folded_bins_lie_on_the_last_axis(num_bins: int) -> None:
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    found = distribution.fold(logits, num_bins)
    kept = min(num_bins, 5)
    assert found.shape == (3, 4, kept)
    expected = logits.softmax(-1)
    torch.testing.assert_close(found.softmax(-1)[..., : kept - 1], expected[..., : kept - 1])
    torch.testing.assert_close(found.softmax(-1)[..., -1], expected[..., kept - 1 :].sum(-1))
