"""Losses of distillation: equations, mmdet's head as a witness, what must not change them."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from gfl_det.errors import ConfigError
from gfl_det.models.assigners.positives import take_cells
from gfl_det.models.heads.ld_head import edge_divergence, region_weights
from gfl_det.models.losses import DistillationLoss
from gfl_det.models.losses.functional import distillation_loss
from gfl_det.ops import distribution
from tests.helpers.compiling import LEVELS, assert_compiles, shorten
from tests.helpers.heads import (
    NUM_CLASSES,
    Taught,
    head_config,
    losses_and_gradients,
    make_gts,
    make_maps,
    make_meta,
)
from tests.helpers.synchronisation import NoSynchronisation

SIZE = (128, 160)
LOSS = dict(type='gfl_det.DistillationLoss', loss_weight=0.25, T=10)
EVERYTHING = dict(loss_ld_vlr=LOSS, loss_kd=dict(LOSS, T=2, loss_weight=0.5))
TERMS = ('loss_ld', 'loss_ld_vlr', 'loss_kd')


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def ld_head(**changes):
    torch.manual_seed(0)
    return MODELS.build(head_config(True, type='gfl_det.LDHead', **{'loss_ld': LOSS, **changes}))


def scene(counts=(4, 6), seed=0, num_bins=17):
    """Student's maps, teacher's maps, gt boxes and metas."""
    generator = torch.Generator().manual_seed(seed)
    ours = make_maps(len(counts), SIZE, generator)
    theirs = make_maps(len(counts), SIZE, generator, num_bins=num_bins)
    gts = [make_gts(count, SIZE, generator) for count in counts]
    return ours, theirs, gts, [make_meta(SIZE) for _ in counts]


def terms_of(head, maps, gts, metas):
    """The head's own positives, which other tests hold against mmdet's."""
    assigned = head.match(maps[0], gts, metas, [None] * len(metas), maps[1])
    return assigned, head.loss_terms(*maps, assigned)


# --- Folding a teacher's bins ------------------------------------------------------------------


def test_fold_sums_bins_beyond_the_last() -> None:
    logits = noise(5, 4, 17)
    folded = distribution.fold(logits, 9)
    expected = logits.softmax(-1)
    expected = torch.cat([expected[..., :8], expected[..., 8:].sum(-1, keepdim=True)], dim=-1)
    torch.testing.assert_close(folded.softmax(-1), expected)
    clamped = (logits.softmax(-1) * torch.arange(17).clamp(max=8)).sum(-1)
    torch.testing.assert_close(distribution.mean(folded), clamped)
    assert distribution.fold(logits, 1).softmax(-1).eq(1).all()
    assert distribution.fold(logits.half(), 9).dtype == torch.float32


def test_fold_keeps_the_mean_if_the_folded_bins_are_empty() -> None:
    logits = noise(6, 17)
    logits[:, 9:] = -80.0
    torch.testing.assert_close(
        distribution.mean(distribution.fold(logits, 9)), distribution.mean(logits)
    )
    for num_bins in (17, 18, 40):
        assert distribution.fold(logits, num_bins) is logits


# --- The divergence ----------------------------------------------------------------------------


def test_divergence_is_kl_with_its_factor() -> None:
    ours, theirs = noise(7, 17), noise(7, 17, seed=1)
    for temperature in (0.5, 1, 10):
        expected = F.kl_div(
            (ours / temperature).log_softmax(-1),
            (theirs / temperature).log_softmax(-1),
            log_target=True,
            reduction='none',
        ).sum(-1)
        found = distillation_loss(ours, theirs, temperature)
        torch.testing.assert_close(found, expected * temperature**2)
        assert (found > 0).all()
    assert distillation_loss(ours, ours + 5, 10).abs().max() < 1e-4  # a shift is no difference


def test_divergence_of_high_temperature_is_half_the_variance_of_the_difference() -> None:
    """Hinton et al., 2015: in the limit logits are regressed."""
    ours, theirs = noise(5, 17).double(), noise(5, 17, seed=1).double()
    expected = (ours - theirs).var(-1, unbiased=False) / 2
    torch.testing.assert_close(distillation_loss(ours, theirs, 1e4), expected, rtol=2e-3, atol=0)


def test_divergence_has_the_gradient_of_cross_entropy_and_none_for_the_teacher() -> None:
    ours, theirs = noise(5, 9).requires_grad_(), noise(5, 9, seed=1).requires_grad_()
    distillation_loss(ours, theirs, 4).sum().backward()
    expected = 4 * ((ours / 4).softmax(-1) - (theirs / 4).softmax(-1))
    torch.testing.assert_close(ours.grad, expected.detach())
    assert theirs.grad is None


def test_module_is_mmdets_without_the_mean_over_bins() -> None:
    ours, theirs = noise(6, 17), noise(6, 17, seed=1)
    weight = torch.rand(6, generator=torch.Generator().manual_seed(2))
    settings = dict(loss_weight=0.25, T=10)
    witness = MODELS.build(dict(type='KnowledgeDistillationKLDivLoss', **settings))
    module = DistillationLoss(**settings)
    for arguments in ({}, dict(weight=weight), dict(weight=weight, avg_factor=4.0)):
        found = module(ours, theirs, **arguments)
        torch.testing.assert_close(found, 17 * witness(ours, theirs, **arguments))
    assert module(ours, theirs, reduction_override='none').shape == (6,)
    with pytest.raises(ValueError, match=r'temperature .*not 0'):
        DistillationLoss(T=0)


def test_a_teacher_of_more_bins_is_folded_and_of_fewer_leaves_the_rest_alone() -> None:
    divergence = DistillationLoss(reduction='none', T=2)
    ours = noise(3, 9).requires_grad_()
    longer = noise(3, 17, seed=1)
    torch.testing.assert_close(
        edge_divergence(ours, longer, divergence),
        divergence(ours, distribution.fold(longer, 9)),
    )
    shorter = noise(3, 5, seed=1)
    loss = edge_divergence(ours, shorter, divergence)
    torch.testing.assert_close(loss, divergence(ours[:, :5], shorter))
    (gradient,) = torch.autograd.grad(loss.sum(), ours)
    assert (gradient[:, 5:] == 0).all()
    assert (gradient[:, :5] != 0).all()
    same = torch.cat([shorter, noise(3, 4)], dim=-1)
    assert edge_divergence(same, shorter, divergence).abs().max() < 1e-6


# --- The head's terms --------------------------------------------------------------------------


def test_the_losses_of_gfl_stay() -> None:
    ours, theirs, gts, metas = scene()
    plain = MODELS.build(head_config(True))
    expected = plain.loss_by_feat(*ours, gts, metas)
    found = Taught(ld_head(**EVERYTHING), theirs).loss_by_feat(*ours, gts, metas)
    assert found.keys() == expected.keys() | set(TERMS)
    for key, value in expected.items():
        assert torch.equal(found[key], value)
    only = Taught(ld_head(), theirs).loss_by_feat(*ours, gts, metas)
    assert only.keys() == expected.keys() | {'loss_ld'}
    assert torch.equal(only['loss_ld'], found['loss_ld'])


def test_loss_ld_is_mmdets_divided_by_the_weights() -> None:
    """And mmdet's alone doubles with the batch, though nothing new is in it."""
    ours, theirs, gts, metas = scene()
    distil = dict(LOSS, type='KnowledgeDistillationKLDivLoss')
    witness = MODELS.build(head_config(False, type='LDHead', loss_ld=distil))
    head = ld_head()
    values = {}
    for times in (1, 2, 4):
        maps, teacher = (
            tuple([torch.cat([level] * times) for level in kind] for kind in both)
            for both in (ours, theirs)
        )
        many = gts * times, metas * times
        found = Taught(head, teacher).loss_by_feat(*maps, *many)
        expected = witness.loss_by_feat(*maps, *many, teacher[1])
        _, terms = terms_of(head, maps, *many)
        summed = sum(expected['loss_ld'])
        torch.testing.assert_close(found['loss_ld'] * terms.weight_sum / 17, summed)
        torch.testing.assert_close(found['loss_dfl'], sum(expected['loss_dfl']))
        values[times] = float(found['loss_ld']), float(summed)
    assert values[1][0] > 0.1
    for times in (2, 4):
        assert values[times][0] == pytest.approx(values[1][0], rel=1e-5)
        assert values[times][1] == pytest.approx(times * values[1][1], rel=1e-4)


def test_loss_ld_and_loss_kd_by_hand() -> None:
    ours, theirs, gts, metas = scene(num_bins=9)
    head = ld_head(loss_kd=dict(LOSS, T=2, loss_weight=0.5))
    found = Taught(head, theirs).loss_by_feat(*ours, gts, metas)
    assigned, _ = terms_of(head, ours, gts, metas)
    places = assigned.positives
    total = weights = classes = 0.0
    for slot in places.valid.nonzero().flatten().tolist():
        level, image, cell = (int(each[slot]) for each in (places.level, places.image, places.cell))
        logits, teacher = (maps[1][level][image].flatten(1)[:, cell] for maps in (ours, theirs))
        logits, teacher = logits.view(4, 17)[:, :9], teacher.view(4, 9)
        scores, soft = (maps[0][level][image].flatten(1)[:, cell] for maps in (ours, theirs))
        weight = float(scores.sigmoid().max())
        total += weight * float(distillation_loss(logits, teacher, 10).mean())
        weights += weight
        classes += float(distillation_loss(scores, soft, 2))
    assert weights > 1
    assert float(found['loss_ld']) == pytest.approx(0.25 * total / weights, rel=1e-5)
    count = int(places.valid.sum())
    assert float(found['loss_kd']) == pytest.approx(0.5 * classes / count, rel=1e-5)


def test_region_loss_by_hand() -> None:
    ours, theirs, gts, metas = scene(num_bins=25)
    head = ld_head(loss_ld_vlr=LOSS)
    found = Taught(head, theirs).loss_by_feat(*ours, gts, metas)['loss_ld_vlr']
    assigned, _ = terms_of(head, ours, gts, metas)
    maps = region_weights(assigned, 9)
    total = weights = 0.0
    for weight, logits, teacher in zip(maps, ours[1], theirs[1]):
        for image, row, column in weight.nonzero().tolist():
            mine = logits[image, :, row, column].view(4, 17)
            other = distribution.fold(teacher[image, :, row, column].view(4, 25), 17)
            value = float(distillation_loss(mine, other, 10).mean())
            total += float(weight[image, row, column]) * value
            weights += float(weight[image, row, column])
    assert weights > 1
    assert float(found) == pytest.approx(0.25 * total / weights, rel=1e-5)
    # The positives are distilled by themselves.
    chosen = take_cells([weight[:, None] for weight in maps], assigned.positives)
    assert (chosen == 0).all()


def test_cells_outside_an_image_are_in_no_region() -> None:
    generator = torch.Generator().manual_seed(0)
    gts = [make_gts(6, (64, 80), generator)]
    maps = make_maps(1, SIZE, generator)
    head = ld_head(loss_ld_vlr=LOSS)
    assigned, _ = terms_of(head, maps, gts, [make_meta((64, 80), (64, 96))])
    weights = region_weights(assigned, 9)
    assert (weights[0][0, :8, :12] > 0).any()
    assert not weights[0][0, 8:].any()
    assert not weights[0][0, :, 12:].any()


def test_an_identical_teacher_gives_zero_loss() -> None:
    ours, _, gts, metas = scene()
    for value in _terms(ld_head(**EVERYTHING), ours, ours, gts, metas).values():
        assert abs(value) < 1e-5


def _terms(head, ours, theirs, gts, metas) -> dict[str, float]:
    losses = Taught(head, theirs).loss_by_feat(*ours, gts, metas)
    return {key: float(losses[key]) for key in TERMS if key in losses}


@pytest.mark.parametrize('times', [2, 3])
def test_no_term_grows_with_the_batch(times: int) -> None:
    ours, theirs, gts, metas = scene()
    many = [
        tuple([torch.cat([level] * times) for level in kind] for kind in both)
        for both in (ours, theirs)
    ]
    once = _terms(ld_head(**EVERYTHING), ours, theirs, gts, metas)
    again = _terms(ld_head(**EVERYTHING), *many, gts * times, metas * times)
    assert once.keys() == set(TERMS)
    assert again == pytest.approx(once, rel=1e-5)


# --- Contracts of the skeleton -----------------------------------------------------------------

COUNTS = [(3, 5), (0, 2), (0, 0)]


@pytest.mark.parametrize('counts', COUNTS)
def test_every_logit_gets_a_defined_gradient(counts: tuple) -> None:
    ours, theirs, gts, metas = scene(counts)
    values, gradients = losses_and_gradients(
        Taught(ld_head(**EVERYTHING), theirs), ours, gts, metas
    )
    assert all(math.isfinite(value) for value in values.values())
    assert all(each.isfinite().all() for each in gradients)
    assert [values[key] > 0 for key in TERMS] == [sum(counts) > 0] * 3


@pytest.mark.parametrize('counts', COUNTS)
def test_losses_never_wait_for_the_device(counts: tuple) -> None:
    ours, theirs, gts, _ = scene(counts)
    metas = [make_meta(SIZE), make_meta((100, 160), (128, 160))]
    leaves = [[level.requires_grad_() for level in kind] for kind in ours]
    with NoSynchronisation():
        losses = Taught(ld_head(**EVERYTHING), theirs).loss_by_feat(*leaves, gts, metas)
    sum(losses.values()).backward()
    assert all(level.grad is not None for kind in leaves for level in kind)


def test_training_never_needs_a_value(monkeypatch) -> None:
    """On the meta device tensors have shapes alone, so reading any value fails, in backward too."""
    ours, theirs, gts, metas = scene()
    leaves = [level.to('meta').requires_grad_() for kind in ours for level in kind]
    teacher = tuple([level.to('meta') for level in kind] for kind in theirs)
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: nullcontext())  # knows no meta device
    head = Taught(ld_head(**EVERYTHING), teacher)
    losses = head.loss_by_feat(leaves[:5], leaves[5:], [each.to('meta') for each in gts], metas)
    gradients = torch.autograd.grad(sum(losses.values()), leaves)
    assert [each.shape for each in gradients] == [each.shape for each in leaves]


def test_losses_compile_into_one_graph() -> None:
    ours, theirs, gts, metas = scene()
    head = Taught(shorten(ld_head(**EVERYTHING)), tuple(kind[:LEVELS] for kind in theirs))
    assert_compiles(head, ours, gts, metas)


def test_half_precision_maps_are_distilled_in_float32() -> None:
    ours, theirs, gts, metas = scene()
    half = [[level.bfloat16() for level in kind] for kind in (ours[0], *theirs)]
    head = ld_head(**EVERYTHING)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = losses_and_gradients(Taught(head, tuple(half[1:])), (half[0], ours[1]), gts, metas)
    whole = [[level.float() for level in kind] for kind in half]
    expected = losses_and_gradients(Taught(head, tuple(whole[1:])), (whole[0], ours[1]), gts, metas)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for one, other in zip(found[1], expected[1]):
        torch.testing.assert_close(one.float(), other, rtol=1e-2, atol=1e-5)


def test_gt_of_an_unknown_class_has_no_loss() -> None:
    ours, theirs, gts, metas = scene((1, 0))
    gts[0].labels.fill_(NUM_CLASSES)
    assert _terms(ld_head(**EVERYTHING), ours, theirs, gts, metas) == dict.fromkeys(TERMS, 0.0)


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_classes=1, loss_kd=LOSS), 'loss_kd compares classes'),
        (
            dict(
                loss_ld_vlr=LOSS,
                train_cfg=dict(
                    assigner=dict(
                        type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0
                    )
                ),
            ),
            'loss_ld_vlr needs .* ATSSAssigner without alpha, not MaxIoUAssigner',
        ),
        (
            dict(
                loss_ld_vlr=LOSS,
                train_cfg=dict(assigner=dict(type='gfl_det.ATSSAssigner', topk=9, alpha=0.8)),
            ),
            'ATSSAssigner without alpha',
        ),
    ],
)
def test_configs_that_cannot_work_are_refused(changes: dict, message: str) -> None:
    settings = head_config(True, type='gfl_det.LDHead')
    for key, value in changes.items():  # update() would merge the assigners
        settings[key] = value
    with pytest.raises(ConfigError, match=message):
        MODELS.build(settings)


def test_class_distillation_needs_the_teachers_classes() -> None:
    ours, theirs, gts, metas = scene()
    with pytest.raises(ValueError, match='soft_labels'):
        ld_head(**EVERYTHING).loss_by_feat(*ours, gts, metas, theirs[1])


def test_mmdets_loss_and_mmdets_arguments_do() -> None:
    """mmdet's own default names a loss that mmdet does not have."""
    assert ld_head().loss_ld.loss_weight == 0.25
    default = MODELS.build(dict(type='gfl_det.LDHead', num_classes=3, in_channels=16))
    assert (default.loss_ld.loss_weight, default.loss_ld.T) == (0.25, 10)
    ours, theirs, gts, metas = scene()
    distil = dict(LOSS, type='KnowledgeDistillationKLDivLoss')
    found = _terms(ld_head(loss_ld=distil), ours, theirs, gts, metas)
    expected = _terms(ld_head(), ours, theirs, gts, metas)
    assert found['loss_ld'] == pytest.approx(expected['loss_ld'] / 17, rel=1e-5)
