"""The focal family: reference values and gradients, closed-form optima, identities, limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gfl_det.models.losses import functional
from tests.helpers.calibration_cases import case_json

# Of 1.1 in the notes on calibration: chance of the truth -> optimum of the score.
OPTIMA = {
    2: {0.05: 0.25021, 0.2: 0.37339, 0.5: 0.5, 0.8: 0.62661, 0.95: 0.74979},
    3: {0.05: 0.30747, 0.2: 0.40552, 0.5: 0.5, 0.8: 0.59448, 0.95: 0.69253},
}


def confident(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    probability, guess = logits.softmax(1).max(1)
    return probability, guess == labels


def by_sample(logits: Tensor, labels: Tensor, gammas: tuple, thresholds: tuple) -> Tensor:
    logs = functional.true_log_probability(logits, labels)
    return functional.focal_loss(
        logs, functional.gamma_by_sample(logs.exp(), gammas, thresholds)
    ).sum()


REFERENCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{
        f'focal_sum gamma={gamma}': lambda z, y, gamma=gamma: functional.focal_loss(
            functional.true_log_probability(z, y), gamma
        ).sum()
        for gamma in (0, 1, 2, 3, 5)
    },
    'FLSD-53 sum (gamma=3)': lambda z, y: by_sample(z, y, (5, 3), (0.2,)),
    'FLSD-53 sum with the default gamma=0': lambda z, y: by_sample(z, y, (5, 3, 0), (0.2, 0.5)),
    'FLSD-532 sum (gamma=2)': lambda z, y: by_sample(z, y, (5, 3, 2), (0.2, 0.5)),
    'inverse focal mean gamma=2 (own)': lambda z, y: functional.inverse_focal_loss(
        functional.true_log_probability(z, y), 2
    ).mean(),
    'inverse focal mean gamma=2, weight detached (own)': lambda z, y: functional.inverse_focal_loss(
        functional.true_log_probability(z, y), 2, detach_weight=True
    ).mean(),
    'MMCE': lambda z, y: functional.mmce(*confident(z, y)),
    'MMCE_weighted': lambda z, y: functional.weighted_mmce(*confident(z, y), as_published=True),
    'Brier (own formula)': lambda z, y: functional.brier_loss(z, y).mean(),
    'label smoothing 0.05 mean (own)': lambda z, y: functional.label_smoothing_loss(
        z, y, 0.05
    ).mean(),
}


@pytest.mark.parametrize('name', REFERENCE)
def test_reference(name: str) -> None:
    case = case_json('classification.json')
    logits = torch.tensor(case['logits'], requires_grad=True)
    loss = REFERENCE[name](logits, torch.tensor(case['labels']))
    (gradient,) = torch.autograd.grad(loss, logits)
    wanted = case['losses'][name]
    # Both worked in float32.
    assert loss.item() == pytest.approx(wanted['value'], rel=5e-6)
    assert gradient.norm().item() == pytest.approx(wanted['grad_norm'], rel=5e-6)
    expected = torch.tensor(wanted['grad_row0'])
    torch.testing.assert_close(
        gradient[0], expected, rtol=0, atol=1e-5 * expected.abs().max().item()
    )


def test_every_reference_loss_is_compared() -> None:
    losses = case_json('classification.json')['losses']
    assert set(REFERENCE) == {name for name in losses if 'error' not in losses[name]}


def test_reference_of_the_automatic_gamma() -> None:
    for p0, wanted in case_json('classification.json')['gamma'].items():
        # From .5 on the reference holds what is left of its 1e-12.
        assert functional.automatic_gamma(float(p0)) == pytest.approx(wanted, abs=1e-9)


def stationary(expected: Callable[[Tensor], Tensor]) -> float:
    """The score at which a loss of one logit has no gradient, if there is but one."""
    low, high = -15.0, 15.0
    for _ in range(60):
        middle = (low + high) / 2
        logit = torch.tensor(middle, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(expected(logit), logit)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 1 / (1 + math.exp(-low))


def of_two(loss: Callable[[Tensor], Tensor], chance: float) -> Callable[[Tensor], Tensor]:
    """Expected loss of a logit whose class is true with a chance, by the loss of ``log p``."""
    return lambda z: chance * loss(F.logsigmoid(z)) + (1 - chance) * loss(F.logsigmoid(-z))


class TestOptima:
    @pytest.mark.parametrize('gamma', OPTIMA)
    def test_focal(self, gamma: int) -> None:
        for chance, score in OPTIMA[gamma].items():
            found = stationary(of_two(lambda logs: functional.focal_loss(logs, gamma), chance))
            assert found == pytest.approx(score, abs=1e-5)

    def test_focal_with_the_weight_detached(self) -> None:
        for chance, score in {0.2: 0.4142, 0.8: 0.5858}.items():
            found = stationary(of_two(lambda logs: functional.focal_loss(logs, 3, True), chance))
            assert found == pytest.approx(score, abs=1e-4)

    def test_cross_entropy(self) -> None:
        for chance in (0.05, 0.3, 0.8):
            for loss in (functional.focal_loss, functional.inverse_focal_loss):
                found = stationary(of_two(lambda logs, loss=loss: loss(logs, 0), chance))
                assert found == pytest.approx(chance)

    def test_inverse_focal_with_the_weight_detached(self) -> None:
        for chance, score in {0.2: 0.0717, 0.5: 0.5, 0.8: 0.9283, 0.95: 0.9865}.items():
            found = stationary(
                of_two(lambda logs: functional.inverse_focal_loss(logs, 2, True), chance)
            )
            assert found == pytest.approx(score, abs=1e-4)

    def test_inverse_focal(self) -> None:
        logits = torch.linspace(-8, 8, 160001, dtype=torch.float64)

        def lowest(gamma: float, chance: float) -> list[float]:
            values = of_two(lambda logs: functional.inverse_focal_loss(logs, gamma), chance)(logits)
            inner = values[1:-1]
            dips = (inner < values[:-2]) & (inner < values[2:])
            return [round(score, 4) for score in logits[1:-1][dips].sigmoid().tolist()]

        for chance, score in {0.2: 0.0516, 0.8: 0.9484, 0.95: 0.9878}.items():
            assert lowest(2, chance) == [pytest.approx(score, abs=1e-4)]
        assert lowest(2, 0.5) == [pytest.approx(0.2083, abs=1e-4), pytest.approx(0.7917, abs=1e-4)]
        assert lowest(1.5, 0.5) == [pytest.approx(0.5, abs=1e-3)]

    def test_quality_focal_of_a_random_quality(self) -> None:
        grid = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000

        def optimum(density: Tensor, beta: float) -> float:
            weight = density / density.sum()
            return stationary(
                lambda z: (weight * functional.quality_focal_loss(z, grid, beta)).sum()
            )

        often = grid**7 * (1 - grid)  # Beta(8, 2), of mean .8
        for beta, score in {0: 0.8, 1: 0.7815, 2: 0.7665, 3: 0.7536}.items():
            assert optimum(often, beta) == pytest.approx(score, abs=2e-3)
        assert optimum((1 - grid) ** 5, 2) == pytest.approx(0.1939, abs=2e-3)  # Beta(1, 6)

    def test_quality_focal_of_a_rare_object(self) -> None:
        quality = torch.tensor([0.8, 0.0], dtype=torch.float64)
        chance = torch.tensor([0.2, 0.8], dtype=torch.float64)
        found = stationary(lambda z: (chance * functional.quality_focal_loss(z, quality, 2)).sum())
        assert found == pytest.approx(0.3132, abs=1e-4)

    def test_brier_is_proper(self) -> None:
        quality = torch.tensor([0.8, 0.0], dtype=torch.float64)
        chance = torch.tensor([0.2, 0.8], dtype=torch.float64)
        found = stationary(lambda z: (chance * functional.quality_brier(z, quality)).sum())
        assert found == pytest.approx(0.16)


class TestPosterior:
    @pytest.mark.parametrize('gamma', OPTIMA)
    def test_it_undoes_the_optimum(self, gamma: int) -> None:
        for chance, score in OPTIMA[gamma].items():
            found = functional.focal_to_posterior(torch.tensor(score, dtype=torch.float64), gamma)
            assert float(found) == pytest.approx(chance, abs=5e-5)

    @pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0, 5.0])
    def test_ends_symmetry_and_order(self, gamma: float) -> None:
        scores = torch.linspace(0, 1, 1001, dtype=torch.float64)
        found = functional.focal_to_posterior(scores, gamma)
        assert found[[0, 500, 1000]].tolist() == [0, 0.5, 1]
        torch.testing.assert_close(found.flip(0), 1 - found)
        assert (found.diff() >= 0).all()
        assert (
            found[50:951].diff() > 0
        ).all()  # at the ends of a large gamma they round to 0 and 1
        if gamma == 0:
            torch.testing.assert_close(found, scores)


class TestAutomaticGamma:
    def test_table(self) -> None:
        table = {
            0.05: 37.844779351,
            0.1: 14.923992648,
            0.2: 4.850554445,
            0.25: 3.070227102,
            0.3: 1.957169807,
            0.4: 0.680507623,
            0.49: 0.052447332,
        }
        for p0, gamma in table.items():
            assert functional.automatic_gamma(p0) == pytest.approx(gamma, abs=2e-9)
        assert functional.automatic_gamma(0.01) == pytest.approx(253.67, abs=5e-3)

    @given(st.floats(0.001, 0.4999))
    def test_it_solves_its_equation(self, p0: float) -> None:
        gamma = functional.automatic_gamma(p0)
        logs = torch.tensor(math.log(p0), dtype=torch.float64, requires_grad=True)
        slopes = [
            torch.autograd.grad(loss, logs)[0].item()
            for loss in (
                functional.focal_loss(logs, gamma),
                functional.focal_loss(logs, 0),
            )
        ]
        assert gamma > 0
        assert slopes[0] / slopes[1] == pytest.approx(1, abs=1e-5)

    def test_near_the_branch_point_and_beyond(self) -> None:
        assert 0 <= functional.automatic_gamma(0.5 - 1e-9) < 1e-5
        assert functional.automatic_gamma(0.5) == functional.automatic_gamma(0.8) == 0

    @pytest.mark.parametrize('p0', [0, 1, -0.1, 2, math.nan])
    def test_out_of_range(self, p0: float) -> None:
        with pytest.raises(ValueError, match=f'p0 .*{p0!r}'):
            functional.automatic_gamma(p0)


class TestIdentities:
    def test_gamma_0_is_cross_entropy_in_value_and_gradient(self) -> None:
        logits = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
        labels = torch.arange(50) % 4
        entropy = F.cross_entropy(logits, labels, reduction='none')
        (wanted,) = torch.autograd.grad(entropy.sum(), logits, retain_graph=True)
        for loss in (functional.focal_loss, functional.inverse_focal_loss):
            found = loss(functional.true_log_probability(logits, labels), 0)
            torch.testing.assert_close(found, entropy)
            torch.testing.assert_close(torch.autograd.grad(found.sum(), logits)[0], wanted)

    @pytest.mark.parametrize('gamma', [0.3, 1, 2, 3])
    def test_quality_losses_of_hard_targets_are_those_of_two_classes(self, gamma: float) -> None:
        logits = torch.randn(200, dtype=torch.float64) * 4
        target = (torch.arange(200) % 2).double()
        logs = F.logsigmoid(logits * (2 * target - 1))
        torch.testing.assert_close(
            functional.quality_focal_loss(logits, target, gamma),
            functional.focal_loss(logs, gamma),
        )
        torch.testing.assert_close(
            functional.quality_inverse_focal(logits, target, gamma),
            functional.inverse_focal_loss(logs, gamma),
        )

    def test_quality_focal_is_the_heads_loss(self) -> None:
        logits = torch.randn(200, dtype=torch.float64) * 4
        quality = torch.rand(200, dtype=torch.float64)
        torch.testing.assert_close(
            functional.quality_focal_loss(logits, quality, 2),
            functional.quality_focal_loss(logits, quality, 2),
        )

    def test_by_hand(self) -> None:
        logs = torch.tensor([0.25, 0.8], dtype=torch.float64).log()
        wanted = [-(0.75**2) * math.log(0.25), -(0.2**2) * math.log(0.8)]
        assert functional.focal_loss(logs, 2).tolist() == pytest.approx(wanted)
        wanted = [-(1.25**2) * math.log(0.25), -(1.8**2) * math.log(0.8)]
        assert functional.inverse_focal_loss(logs, 2).tolist() == pytest.approx(wanted)

    @pytest.mark.parametrize('name', ['focal', 'inverse'])
    def test_a_detached_weight_is_a_constant(self, name: str) -> None:
        logits = torch.randn(60, dtype=torch.float64, requires_grad=True)
        quality = torch.rand(60, dtype=torch.float64)
        equation = (
            functional.quality_focal_loss if name == 'focal' else functional.quality_inverse_focal
        )
        loss = equation(logits, quality, 2, detach_weight=True)
        torch.testing.assert_close(loss, equation(logits, quality, 2))
        weight = (loss / functional.quality_entropy(logits, quality)).detach()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        torch.testing.assert_close(gradient, weight * (logits.sigmoid() - quality).detach())


class TestGammaBySample:
    def test_a_probability_on_a_threshold_lies_above_it(self) -> None:
        probability = torch.tensor([0, 0.1999, 0.2, 0.5, 1])
        assert functional.gamma_by_sample(probability).tolist() == [5, 5, 3, 3, 3]
        three = functional.gamma_by_sample(probability, (5, 3, 2), (0.2, 0.5))
        assert three.tolist() == [5, 5, 3, 2, 2]

    def test_no_gradient_passes_through_gamma(self) -> None:
        logs = torch.tensor([math.log(0.1), math.log(0.6)], dtype=torch.float64, requires_grad=True)
        gamma = functional.gamma_by_sample(logs.exp())
        assert not gamma.requires_grad
        (found,) = torch.autograd.grad(functional.focal_loss(logs, gamma).sum(), logs)
        for index, fixed in enumerate((5, 3)):
            (wanted,) = torch.autograd.grad(functional.focal_loss(logs, fixed).sum(), logs)
            assert found[index] == wanted[index]

    def test_the_value_jumps_at_the_threshold(self) -> None:
        below, above = (torch.tensor([p], dtype=torch.float64) for p in (0.2 - 1e-12, 0.2))
        ratio = functional.focal_loss(
            above.log(), functional.gamma_by_sample(above)
        ) / functional.focal_loss(below.log(), functional.gamma_by_sample(below))
        assert ratio.item() == pytest.approx(0.8**-2)


class TestExtremes:
    @pytest.mark.parametrize('gamma', [0.0, 0.3, 1.0, 2.0, 5.0])
    @pytest.mark.parametrize('detach', [False, True])
    def test_values_and_gradients_stay_finite(self, gamma: float, detach: bool) -> None:
        logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [0.0, 0.0]], requires_grad=True)
        labels = torch.tensor([0, 0, 1])
        logs = functional.true_log_probability(logits, labels)
        loss = functional.focal_loss(logs, gamma, detach) + functional.inverse_focal_loss(
            logs, min(gamma, 3), detach
        )
        assert torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()
        flat = logits.detach().flatten().requires_grad_()
        quality = torch.tensor([1, 0.5, 0, 1, 0.5, 0])
        loss = functional.quality_focal_loss(flat, quality, gamma, detach)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), flat)[0]).all()
        assert loss[4].item() == pytest.approx(math.log(2) if gamma == 0 else 0)

    def test_a_power_of_0(self) -> None:
        base = torch.tensor([0.0, 0.5], requires_grad=True)
        for exponent in (0.0, 0.5, 2.0):
            value = functional.power(base, exponent)
            assert value.tolist() == pytest.approx([0.0**exponent, 0.5**exponent])
            (slope,) = torch.autograd.grad(value.sum(), base)
            assert slope.tolist() == pytest.approx([0, exponent * 0.5 ** (exponent - 1)])
        each = functional.power(torch.zeros(2), torch.tensor([0.0, 3.0]))
        assert each.tolist() == [1, 0]

    def test_nothing(self) -> None:
        logs = functional.true_log_probability(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
        assert functional.focal_loss(logs, functional.gamma_by_sample(logs.exp())).shape == (0,)


def test_non_monotone_inverse_gammas_are_refused() -> None:
    logs = torch.linspace(0.001, 0.999, 9999, dtype=torch.float64).log()
    limit = functional.MAX_INVERSE_GAMMA
    assert (functional.inverse_focal_loss(logs, limit).diff() < 0).all()
    assert not (functional.inverse_focal_loss(logs, limit + 0.01).diff() < 0).all()
    p = np.linspace(1e-4, 1 - 1e-4, 10**6)
    assert limit == pytest.approx(((1 + p) / (-p * np.log(p))).min(), abs=1e-9)
    functional.check_inverse_gamma(limit, False)
    functional.check_inverse_gamma(10, True)
    for gamma in (limit + 1e-6, 10):
        with pytest.raises(ValueError, match='detach_weight=True'):
            functional.check_inverse_gamma(gamma, False)
    for gamma in (-1, math.nan):
        with pytest.raises(ValueError, match='at least 0'):
            functional.check_inverse_gamma(gamma, True)
