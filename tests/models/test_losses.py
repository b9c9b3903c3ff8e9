"""Equations against plain Python, modules against mmdet's, the fused sum against both."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.losses import DistributionFocalLoss as MMDetDFL
from mmdet.models.losses import KnowledgeDistillationKLDivLoss
from mmdet.models.losses import QualityFocalLoss as MMDetQFL
from mmdet.models.losses import VarifocalLoss as MMDetVarifocalLoss

from gfl_det.models.assigners.positives import LevelSlots, _TakeCells
from gfl_det.models.losses import (
    DistillationLoss,
    DistributionFocalLoss,
    QualityFocalLoss,
    VarifocalLoss,
    functional,
    fused,
)
from gfl_det.models.losses.fused import ElementLoss, TargetEntries, focal_sum, mean_and_focal_loss
from gfl_det.ops import convolutions, distribution
from tests.helpers.oracles import distribution_focal, quality_focal


@given(st.floats(-12, 12), st.floats(0, 1), st.floats(0, 4))
def test_quality_focal_loss_equation(logit: float, quality: float, beta: float) -> None:
    value = functional.quality_focal_loss(
        torch.tensor(logit, dtype=torch.float64), torch.tensor(quality), beta
    )
    quality = float(torch.tensor(quality))  # as float32 holds it
    assert float(value) == pytest.approx(quality_focal(logit, quality, beta), rel=1e-6, abs=1e-12)


def quality_focal_sum(maps, entries, excluded, beta=2.0, weight=1.0, scale=None):
    return focal_sum(maps, entries, excluded, ElementLoss.quality_focal(beta), weight, scale)


def test_quality_focal_loss_is_cross_entropy_at_beta_0_and_focal_for_hard_targets() -> None:
    logits = torch.randn(200, dtype=torch.float64, requires_grad=True)
    target = (torch.arange(200) % 2).double()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction='none')
    loss = functional.quality_focal_loss(logits, target, 0)
    torch.testing.assert_close(loss, entropy)
    for ours, theirs in zip(
        torch.autograd.grad(loss.sum(), logits), torch.autograd.grad(entropy.sum(), logits)
    ):
        torch.testing.assert_close(ours, theirs)
    target_score = torch.where(target == 1, logits.sigmoid(), 1 - logits.sigmoid())
    focal = -((1 - target_score) ** 2) * target_score.log()
    torch.testing.assert_close(functional.quality_focal_loss(logits, target, 2), focal)


def test_quality_focal_loss_is_least_at_the_quality() -> None:
    quality = torch.tensor([0.1, 0.5, 0.83], dtype=torch.float64)
    logits = quality.logit().requires_grad_()
    loss = functional.quality_focal_loss(logits, quality)
    assert loss.abs().max() < 1e-20
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize('beta', [0, 1, 1.5, 2, 3])
def test_closed_gradient_is_autograds(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, dtype=torch.float64, generator=generator) * 4
    quality = torch.rand(500, dtype=torch.float64, generator=generator)
    quality[::3] = 0
    logits.requires_grad_()
    loss = functional.quality_focal_loss(logits, quality, beta)
    (expected,) = torch.autograd.grad(loss.sum(), logits)
    with torch.no_grad():
        found = functional.quality_focal_gradient(logits, quality, beta)
    torch.testing.assert_close(found, expected)


def test_the_gradient_without_a_focus_is_the_difference() -> None:
    """Also where 1 / difference overflows."""
    logits = torch.tensor([-200.0, -1.0, 0.0, 2.0])
    quality = torch.tensor([1e-39, 0.5, 0.5, 1.0])
    found = functional.quality_focal_gradient(logits, quality, beta=0.0)
    assert torch.equal(found, logits.sigmoid() - quality)


def test_scores_instead_of_logits() -> None:
    logits = torch.randn(300, dtype=torch.float64)
    quality = torch.rand(300, dtype=torch.float64)
    torch.testing.assert_close(
        functional.quality_focal_loss_from_scores(logits.sigmoid(), quality),
        functional.quality_focal_loss(logits, quality),
    )
    sure = functional.quality_focal_loss_from_scores(torch.tensor([0.0, 1.0]), torch.ones(2))
    assert sure.tolist() == [100, 0]


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=17), st.floats(0, 1))
def test_distribution_focal_loss_equation(values: list, share: float) -> None:
    distance = share * (len(values) - 1)
    logits = torch.tensor(values, dtype=torch.float64)
    found = functional.distribution_focal_loss(logits, torch.tensor(distance, dtype=torch.float64))
    assert float(found) == pytest.approx(distribution_focal(values, distance), rel=1e-6, abs=1e-9)


def test_distribution_focal_loss_is_least_at_the_two_bins() -> None:
    """Its minimiser is the two-bin distribution (paper, eq. 6 and below)."""
    logits = torch.log(torch.tensor([1e-12, 0.3, 0.7, 1e-12], dtype=torch.float64))
    logits.requires_grad_()
    loss = functional.distribution_focal_loss(logits, torch.tensor(1.7, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
def test_mean_and_focal_loss_together(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(40, 4, 9, generator=generator, dtype=torch.float64) * 3).to(dtype)
    distances = torch.rand(40, 4, generator=generator, dtype=torch.float64) * 9 - 0.5
    weights = torch.randn(2, 40, 4, generator=generator, dtype=torch.float64)
    results = []
    for fused_pass in (True, False):
        leaf = logits.clone().requires_grad_()
        if fused_pass:
            mean, loss = mean_and_focal_loss(leaf, distances)
        else:
            whole = leaf.double()
            mean = distribution.mean(whole)
            loss = functional.distribution_focal_loss(whole, distances)
        (gradient,) = torch.autograd.grad((mean * weights[0] + loss * weights[1]).sum(), leaf)
        assert gradient.dtype == dtype
        results.append([each.detach().double() for each in (mean, loss, gradient)])
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3}[dtype]
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


REDUCTIONS = [
    dict(),
    dict(weight=True),
    dict(avg_factor=7.0),
    dict(weight=True, avg_factor=7.0),
    dict(reduction_override='sum'),
    dict(reduction_override='none', weight=True),
]


@pytest.mark.parametrize(
    ('options', 'activated'), list(itertools.product(REDUCTIONS, (False, True)))
)
def test_quality_focal_module_is_mmdets(options: dict, activated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 6, generator=generator)
    scores = logits.sigmoid() if activated else logits
    labels = torch.randint(-1, 7, (50,), generator=generator)  # background on both sides
    quality = torch.rand(50, generator=generator)
    dense = torch.rand(50, 6, generator=generator) * (logits > 0)
    options = dict(options)
    if options.pop('weight', False):
        options['weight'] = torch.rand(50, generator=generator)
    ours, theirs = (
        kind(beta=1.5, loss_weight=0.3, activated=activated)
        for kind in (QualityFocalLoss, MMDetQFL)
    )
    for target in ((labels, quality), dense):
        results = []
        for loss in (ours, theirs):
            leaf = scores.clone().requires_grad_()
            value = loss(leaf, target, **options)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            results.append((value, gradient))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize('options', REDUCTIONS)
def test_distribution_focal_module_is_mmdets(options: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 17, generator=generator)
    distances = torch.rand(50, generator=generator) * 15.99
    options = dict(options)
    if options.pop('weight', False):
        options['weight'] = torch.rand(50, generator=generator)
    found, expected = (
        kind(loss_weight=0.25)(logits, distances, **options)
        for kind in (DistributionFocalLoss, MMDetDFL)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (QualityFocalLoss, MMDetQFL),
        (DistributionFocalLoss, MMDetDFL),
        (DistillationLoss, KnowledgeDistillationKLDivLoss),
        (VarifocalLoss, MMDetVarifocalLoss),
    ],
)
def test_defaults_are_mmdets(ours: type, theirs: type) -> None:
    settings = {name: value for name, value in vars(theirs()).items() if name[0] != '_'}
    made = ours()
    assert {'reduction', 'loss_weight'} <= set(settings)
    assert settings == {name: getattr(made, name) for name in settings}


def test_modules_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match='activated=True'):
        QualityFocalLoss(use_sigmoid=False)
    loss, logits = QualityFocalLoss(), torch.zeros(3, 2)
    with pytest.raises(ValueError, match='pair'):
        loss(logits, (torch.zeros(3),))
    with pytest.raises(ValueError, match=r'\(3, 2\)'):
        loss(logits, torch.zeros(3))
    target = (torch.zeros(3).long(), torch.zeros(3))
    with pytest.raises(ValueError, match='avg_factor'):
        loss(logits, target, avg_factor=2.0, reduction_override='sum')
    with pytest.raises(ValueError, match='median'):
        QualityFocalLoss(reduction='median')(logits, target)


def test_empty_inputs_have_gradients() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    target = (torch.zeros(0, dtype=torch.long), torch.zeros(0))
    loss = QualityFocalLoss()(logits, target, avg_factor=1.0)
    loss.backward()
    assert float(loss) == 0
    assert logits.grad is not None


def make_pyramid(dtype: torch.dtype, layout: torch.memory_format, bias: float = -3.0):
    generator = torch.Generator().manual_seed(3)
    sizes = [(13, 17), (7, 9), (1, 1)]
    maps = [
        (torch.randn(2, 5, *size, generator=generator, dtype=torch.float64) * 2 + bias)
        .to(dtype)
        .contiguous(memory_format=layout)
        for size in sizes
    ]
    count = 30
    level = torch.randint(0, 3, (count,), generator=generator)
    area = torch.tensor([rows * columns for rows, columns in sizes])[level]
    cell = (torch.rand(count, generator=generator) * area).long()
    image = torch.randint(0, 2, (count,), generator=generator)
    label = torch.randint(0, 5, (count,), generator=generator)
    seen: set = set()
    valid = []
    for place in zip(level.tolist(), image.tolist(), label.tolist(), cell.tolist()):
        valid.append(place not in seen and len(valid) % 4 != 3)
        seen.add(place)
    quality = torch.rand(count, generator=generator, dtype=torch.float64)
    return maps, TargetEntries(torch.tensor(valid), level, image, label, cell, quality)


def dense_sum(maps, entries, excluded, beta, weight):
    """The same sum with dense targets and weights, by the plain equation."""
    total = 0.0
    for index, logits in enumerate(maps):
        quality = torch.zeros_like(logits, dtype=torch.float64).flatten(2)
        weights = torch.ones_like(quality)
        for slot in range(len(entries.valid)):
            if entries.valid[slot] and entries.level[slot] == index:
                place = (entries.image[slot], entries.label[slot], entries.cell[slot])
                quality[place], weights[place] = entries.quality[slot], weight
        loss = functional.quality_focal_loss(logits.double().flatten(2), quality, beta) * weights
        if excluded[index] is not None:
            loss = loss * ~excluded[index].flatten(2)
        total = total + loss.sum()
    return total


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(('beta', 'weight'), [(2.0, 1.0), (1.5, 3.0), (3.0, 1.0), (0.0, 1.0)])
def test_fused_sum_is_the_dense_sum(monkeypatch, layout, dtype, beta, weight) -> None:
    monkeypatch.setattr(fused, 'BLOCK', 100)  # many blocks even here
    maps, entries = make_pyramid(dtype, layout)
    generator = torch.Generator().manual_seed(0)
    excluded = [torch.rand(2, 1, *level.shape[2:], generator=generator) < 0.3 for level in maps]
    excluded[1] = None
    for slot in range(len(entries.valid)):  # a positive is never excluded
        mask = excluded[int(entries.level[slot])]
        if mask is not None:
            mask.flatten(2)[entries.image[slot], 0, entries.cell[slot]] = False
    values, gradients = [], []
    for function in (quality_focal_sum, dense_sum):
        leaves = [level.clone().requires_grad_() for level in maps]
        value = function(leaves, entries, excluded, beta, weight)
        values.append(float(value))
        gradients.append(torch.autograd.grad(value * 3, leaves))
    scaled = quality_focal_sum(maps, entries, excluded, beta, weight, torch.tensor(0.25))
    assert float(scaled) == pytest.approx(values[0] / 4, rel=1e-6)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    assert values[0] == pytest.approx(values[1], rel=tolerance)
    for found, expected in zip(*gradients):
        assert found.dtype == dtype
        close = {} if dtype != torch.float16 else dict(rtol=2e-3, atol=1e-5)
        torch.testing.assert_close(found, expected, **close)


@pytest.mark.parametrize(
    ('block', 'layout', 'sizes'),
    [
        (80, torch.contiguous_format, [80, 40]),
        (80, torch.channels_last, [60, 60]),
        (20, torch.contiguous_format, [40, 40, 40]),
        (20, torch.channels_last, [30, 30, 30, 30]),
    ],
)
def test_blocks_are_whole_channels_or_rows(monkeypatch, block, layout, sizes) -> None:
    """Channels of 40 values or rows of 30: two of either are within 80, and one is the least."""
    monkeypatch.setattr(fused, 'BLOCK', block)
    maps = torch.zeros(2, 3, 4, 5).contiguous(memory_format=layout)
    blocks = [maps[where] for where in fused._blocks(maps)]
    assert [block.numel() for block in blocks] == sizes
    for block in blocks:
        block += 1
    assert (maps == 1).all()


def test_fused_sum_of_extreme_logits_is_finite() -> None:
    for value in (-1e4, -100.0, 0.0, 100.0, 1e4):
        maps = [torch.full((1, 2, 3, 3), value, requires_grad=True)]
        empty = torch.zeros(0, dtype=torch.long)
        entries = TargetEntries(empty.bool(), empty, empty, empty, empty, empty.float())
        loss = quality_focal_sum(maps, entries, [None])
        (gradient,) = torch.autograd.grad(loss, maps)
        each = 0.25 * math.log(2) if value == 0 else max(value, 0.0)
        assert float(loss) == pytest.approx(18 * each, rel=1e-5)
        assert gradient.isfinite().all()


def test_fused_sum_keeps_five_digits_over_millions() -> None:
    maps = [torch.full((2, 80, 100, 168), -4.595)]
    empty = torch.zeros(0, dtype=torch.long)
    entries = TargetEntries(empty.bool(), empty, empty, empty, empty, empty.float())
    one = functional.quality_focal_loss(torch.tensor(-4.595).double(), torch.zeros(()))
    assert float(quality_focal_sum(maps, entries, [None])) == pytest.approx(
        float(one) * maps[0].numel(), rel=1e-6
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_fused_sum_gradient_twice(seed: int) -> None:
    """The graph may be walked twice: nothing kept for backward is overwritten."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(1, 3, 4, 4, generator=generator, requires_grad=True)]
    empty = torch.zeros(0, dtype=torch.long)
    entries = TargetEntries(empty.bool(), empty, empty, empty, empty, empty.float())
    loss = quality_focal_sum(maps, entries, [None], scale=torch.tensor(0.25))
    first, second = (torch.autograd.grad(loss, maps, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(torch.autograd.grad(loss * 4, maps)[0], first * 4)


def no_entries() -> TargetEntries:
    empty = torch.zeros(0, dtype=torch.long)
    return TargetEntries(empty.bool(), empty, empty, empty, empty, empty.float())


def taken_cells(maps: list) -> torch.Tensor:
    where = torch.tensor([0, 0]), torch.tensor([3, 7]), torch.tensor([0, 1])
    return _TakeCells.apply([LevelSlots(*where)], 2, *maps).square().sum()


WALKED = {
    'focal sum': lambda maps: quality_focal_sum(maps, no_entries(), [None]),
    'mean and loss': lambda maps: sum(
        each.sum() for each in mean_and_focal_loss(maps[0], torch.full((1, 3, 4), 1.3))
    ),
    'cells': taken_cells,
    'convolution': lambda maps: convolutions.convolve(maps[0], torch.ones(2, 3, 3, 3)).sum(),
}


@pytest.mark.parametrize('name', WALKED)
def test_a_gradient_belongs_to_its_receiver(name: str) -> None:
    """Whatever is done to it, a second walk over the graph gives the same gradient."""
    maps = [torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))]
    maps[0].requires_grad_()
    loss = WALKED[name](maps)
    (expected,) = torch.autograd.grad(WALKED[name](maps), maps)
    for last in (False, False, True):
        loss.backward(retain_graph=not last)
        torch.testing.assert_close(maps[0].grad, expected)
        maps[0].grad.zero_()
    loss = WALKED[name](maps)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(loss, maps, retain_graph=True)
        torch.testing.assert_close(gradient, expected)
        gradient.zero_()
    for _ in range(2):
        loss.backward(retain_graph=True)
    torch.testing.assert_close(maps[0].grad, 2 * expected)


@pytest.mark.parametrize('name', WALKED)
def test_gradients_of_gradients_are_refused(name: str) -> None:
    maps = [torch.zeros(1, 3, 4, 4, requires_grad=True)]
    (gradient,) = torch.autograd.grad(WALKED[name](maps) * maps[0].sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


def test_without_another_backward_the_gradient_is_not_copied(monkeypatch) -> None:
    kept = []
    plain = fused.Layout.view
    monkeypatch.setattr(
        fused.Layout, 'view', lambda *args: (kept.append(args[1].data_ptr()), plain(*args))[1]
    )
    maps = [torch.zeros(1, 3, 4, 4, requires_grad=True)]
    for retain in (False, True):
        loss = quality_focal_sum(maps, no_entries(), [None])
        (gradient,) = torch.autograd.grad(loss, maps, retain_graph=retain)
        assert (gradient.data_ptr() == kept[-1]) == (not retain)


BETAS = [0.1, 0.5, 0.9, 1.0, 2.0]


@pytest.mark.parametrize('beta', BETAS)
@pytest.mark.parametrize('activated', [False, True])
@pytest.mark.parametrize('dense', [False, True])
def test_the_gradient_is_zero_where_score_and_quality_are_equal(beta, activated, dense) -> None:
    """There the loss is 0, its least; below a beta of 1 a plain power makes NaN of it."""
    scores = torch.tensor([[0.5, 0.25], [0.25, 0.5]], dtype=torch.float64)
    pred = (scores if activated else scores.logit()).requires_grad_()
    loss = QualityFocalLoss(beta=beta, activated=activated, reduction='sum')
    quality = torch.tensor([0.5, 0.5], dtype=torch.float64)
    target = torch.diag(quality) if dense else (torch.tensor([0, 1]), quality)
    (gradient,) = torch.autograd.grad(loss(pred, target), pred)
    assert gradient.diagonal().tolist() == [0, 0]
    assert (gradient[0, 1] > 0) & (gradient[1, 0] > 0)  # negatives are still pushed down


@pytest.mark.parametrize('beta', BETAS)
def test_scores_of_0_and_1_have_finite_gradients(beta: float) -> None:
    for logit in (-200.0, 200.0):
        pred = torch.full((1, 2), logit, requires_grad=True)
        target = torch.full((1, 2), 1.0 * (logit > 0))
        (gradient,) = torch.autograd.grad(QualityFocalLoss(beta=beta)(pred, target), pred)
        assert gradient.tolist() == [[0, 0]]


def test_a_sure_score_that_is_wrong_costs_a_hundred() -> None:
    """A logarithm is cut at -100 on both sides, as torch's binary cross entropy does."""
    scores, quality = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for beta in (0.5, 2.0):
        loss = functional.quality_focal_loss_from_scores(scores, quality, beta)
        assert loss.tolist() == [100, 100]
