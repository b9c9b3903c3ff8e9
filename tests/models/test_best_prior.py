"""ATSSAssigner(with_best_prior=True): gt boxes that ATSS leaves without a prior get one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.task_modules.assigners import ATSSAssigner as MMDetATSSAssigner
from mmengine.structures import InstanceData

from gfl_det.models.assigners import ATSSAssigner, closed_form, general
from gfl_det.models.assigners.closed_form import fit_lattice
from gfl_det.ops.boxes import iou
from tests.helpers.heads import feature_sizes, losses_and_gradients, make_maps, make_meta
from tests.helpers.oracles import lattice_priors, random_gts

SHAPE = (160, 224)


def grid(shape: tuple[int, int] = SHAPE) -> tuple[torch.Tensor, list[int]]:
    sizes = feature_sizes(*shape)
    priors = torch.tensor(lattice_priors(sizes), dtype=torch.float32)
    return priors, [rows * columns for rows, columns in sizes]


def run(assigner, priors, counts, gts, ignored=None):
    labels = torch.arange(len(gts)) % 5
    regions = None if ignored is None else InstanceData(bboxes=ignored)
    instances = InstanceData(bboxes=gts, labels=labels)
    return assigner.assign(InstanceData(priors=priors), counts, instances, regions)


def owners(priors, counts, gts, **options) -> torch.Tensor:
    """For each prior its gt box or -1."""
    return run(ATSSAssigner(topk=9, **options), priors, counts, gts).gt_inds - 1


def tiny_gts(count: int, generator: torch.Generator) -> torch.Tensor:
    """Boxes of 1 to 12 px, half of them in a crowd a stride wide, and a few of any size."""
    height, width = SHAPE
    centre = (
        torch.rand(count, 2, generator=generator) * torch.tensor([width - 24, height - 24]) + 12
    )
    crowd = torch.rand(count // 2, 2, generator=generator) * 8 + 60
    centre[: count // 2] = crowd
    sides = torch.exp(torch.rand(count, 2, generator=generator) * math.log(12))
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
    return torch.cat([boxes, random_gts(4, height, width, generator)])


def slow_best_priors(priors, counts, gts, given, k=9) -> list[int]:
    """The rule in loops, on what ATSS gave: a list with a gt box or -1 for each prior."""
    centres = (priors[:, :2] + priors[:, 2:]) / 2
    choices = {}
    for index, gt in enumerate(gts):
        if index in given:
            continue
        distance = (centres - (gt[:2] + gt[2:]) / 2).pow(2).sum(1).sqrt().tolist()
        candidates, first = [], 0
        for count in counts:
            level = range(first, first + count)
            candidates += sorted(level, key=distance.__getitem__)[:k]
            first += count
        overlap = iou(priors[candidates], gt).tolist()
        order = sorted(range(len(candidates)), key=lambda place: -overlap[place])
        choices[index] = [(candidates[i], overlap[i]) for i in order if overlap[i] > 0]
    owner = list(given)
    for _ in range(closed_form.ROUNDS):
        claims: dict[int, list] = {}
        for index, wanted in choices.items():
            free = [(prior, value) for prior, value in wanted if owner[prior] < 0]
            if free:
                claims.setdefault(free[0][0], []).append((-free[0][1], index))
        for prior, claimants in claims.items():
            owner[prior] = min(claimants)[1]
            del choices[owner[prior]]
    return owner


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_equal_to_the_slow_oracle(seed: int, on_lattice: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    gts = tiny_gts(16, generator)
    priors, counts = grid()
    if not on_lattice:
        priors = priors + torch.rand(priors.shape, generator=generator)
    assert (fit_lattice(priors, counts) is not None) == on_lattice
    plain = owners(priors, counts, gts)
    found = owners(priors, counts, gts, with_best_prior=True)
    assert found.tolist() == slow_best_priors(priors, counts, gts, plain.tolist())
    assert (found != plain).any()


@pytest.mark.parametrize('on_lattice', [True, False])
def test_every_gt_gets_one_and_others_stay(on_lattice: bool, monkeypatch) -> None:
    monkeypatch.setattr(general, 'MAX_PAIRS', 4000)  # several chunks
    priors, counts = grid()
    priors = priors if on_lattice else priors + 0.3 * torch.rand_like(priors)
    bare = 0
    for seed in range(40):
        gts = tiny_gts(16, torch.Generator().manual_seed(seed))
        plain = owners(priors, counts, gts)
        found = owners(priors, counts, gts, with_best_prior=True)
        assert torch.equal(found[plain >= 0], plain[plain >= 0])
        number = torch.bincount(found[found >= 0], minlength=len(gts))
        before = torch.bincount(plain[plain >= 0], minlength=len(gts))
        assert torch.equal(number, before.clamp(min=1))
        bare += int((before == 0).sum())
    assert bare > 200


def test_it_is_the_best_of_all_priors() -> None:
    """Of a lone gt box no prior of any level overlaps more, and none that overlaps so is nearer."""
    priors, counts = grid()
    centres = (priors[:, :2] + priors[:, 2:]) / 2
    alone = 0
    for seed in range(60):
        gt = tiny_gts(2, torch.Generator().manual_seed(seed))[:1]
        if (owners(priors, counts, gt) >= 0).any():
            continue
        result = run(ATSSAssigner(topk=9, with_best_prior=True), priors, counts, gt)
        (prior,) = (result.gt_inds > 0).nonzero().squeeze(1).tolist()
        overlap = iou(priors, gt[0])
        assert result.max_overlaps[prior] == overlap[prior] == overlap.max()
        assert result.labels[prior] == 0
        distance = (centres - (gt[0, :2] + gt[0, 2:]) / 2).norm(dim=1)
        assert distance[prior] == distance[overlap == overlap.max()].min()
        alone += 1
    assert alone > 20


def test_gts_that_compete_for_a_prior_get_its_neighbours() -> None:
    """Equal 2 px boxes in the middle of a cell: each gets a prior, the first one the nearest."""
    priors, counts = grid()
    box = torch.tensor([[65.5, 66.5, 67.5, 68.5]])  # off the centres at multiples of 8
    for count in (1, 2, 5, 9, 12):
        found = owners(priors, counts, box.repeat(count, 1), with_best_prior=True)
        taken = (found >= 0).nonzero().squeeze(1)
        assert sorted(found[taken].tolist()) == list(range(min(count, closed_form.ROUNDS)))
        centre = (priors[:, :2] + priors[:, 2:])[found == 0] / 2
        assert centre.tolist() == [[64.0, 64.0]]


def test_a_prior_goes_to_the_larger_overlap() -> None:
    priors, counts = grid()
    gts = torch.tensor([[65.0, 65, 66, 66], [65.0, 65, 68, 68]])  # both nearest to (64, 64)
    found = owners(priors, counts, gts, with_best_prior=True)
    centres = (priors[:, :2] + priors[:, 2:]) / 2
    assert centres[found == 1].tolist() == [[64.0, 64.0]]
    assert int((found == 0).sum()) == 1


def test_a_prior_that_atss_gave_away_stays() -> None:
    """A tiny gt box inside the only positive prior's cell of another takes a neighbour."""
    priors, counts = grid()
    large = torch.tensor([[32.0, 32.0, 98.0, 98.0]])
    plain = owners(priors, counts, large)
    tiny = torch.tensor([[64.5, 65.5, 66.5, 67.5]])
    found = owners(priors, counts, torch.cat([large, tiny]), with_best_prior=True)
    assert torch.equal(found == 0, plain == 0)
    assert int((found == 1).sum()) == 1


BROKEN = [
    (10.0, 10.0, 10.0, 40.0),
    (40.0, 40.0, 10.0, 10.0),
    (math.nan, 0.0, 50.0, 50.0),
    (1e30, 1e30, 2e30, 2e30),
    (-5000.0, -500.0, -4900.0, -400.0),
]
# On priors that are no lattice ATSS itself gives an infinite gt box priors, as mmdet's does.
INFINITE = (0.0, 0.0, math.inf, math.inf)


@pytest.mark.parametrize(
    ('box', 'on_lattice'),
    [(box, flag) for box in BROKEN for flag in (True, False)] + [(INFINITE, True)],
)
def test_an_invalid_gt_still_gets_nothing(box: tuple, on_lattice: bool) -> None:
    priors, counts = grid()
    priors = priors if on_lattice else priors + 0.25 * torch.rand_like(priors)
    gts = tiny_gts(6, torch.Generator().manual_seed(0))
    clean = owners(priors, counts, gts, with_best_prior=True)
    both = torch.cat([gts, torch.tensor([box])])
    assert torch.equal(owners(priors, counts, both, with_best_prior=True), clean)


def test_an_ignored_prior_is_not_given() -> None:
    priors, counts = grid()
    gts = torch.tensor([[65.5, 66.5, 67.5, 68.5]])
    regions = torch.tensor([[0.0, 0.0, 110.0, 110.0]])
    assigner = ATSSAssigner(topk=9, ignore_iof_thr=0.9, with_best_prior=True)
    result = run(assigner, priors, counts, gts, regions)
    plain = run(MMDetATSSAssigner(topk=9, ignore_iof_thr=0.9), priors, counts, gts, regions)
    ignored = plain.gt_inds < 0
    assert ignored[(owners(priors, counts, gts, with_best_prior=True) == 0)].all()
    assert torch.equal(result.gt_inds < 0, ignored)
    assert int((result.gt_inds == 1).sum()) == 1


def test_off_by_default_and_empty_inputs() -> None:
    priors, counts = grid()
    assert not ATSSAssigner(topk=9).with_best_prior
    gts = tiny_gts(6, torch.Generator().manual_seed(0))
    expected = run(MMDetATSSAssigner(topk=9), priors, counts, gts)
    assert torch.equal(run(ATSSAssigner(topk=9), priors, counts, gts).gt_inds, expected.gt_inds)
    assert owners(priors, counts, gts[:0], with_best_prior=True).eq(-1).all()
    few = torch.cat([priors[:1], priors[-1:]])
    assert owners(few, [1, 0, 1], gts, with_best_prior=True).shape == (2,)


def test_the_head_trains_on_them() -> None:
    """A gt box between priors has no loss without the option; with it box losses are finite."""
    from mmdet.registry import MODELS

    from tests.helpers.heads import head_config

    generator = torch.Generator().manual_seed(0)
    maps, meta = make_maps(1, (64, 64), generator), [make_meta((64, 64))]
    gt = InstanceData(bboxes=torch.tensor([[26.5, 27.0, 29.0, 29.5]]), labels=torch.tensor([3]))
    losses = {}
    for flag in (False, True):
        assigner = dict(type='gfl_det.ATSSAssigner', topk=9, with_best_prior=flag)
        head = MODELS.build(head_config(True, train_cfg=dict(assigner=assigner)))
        values, gradients = losses_and_gradients(head, maps, [gt], meta)
        losses[flag] = values['loss_bbox']
        assert all(each.isfinite().all() for each in gradients)
    assert losses[False] == 0 < losses[True] < math.inf


def test_nine_equal_objects_share_nine_priors() -> None:
    """As many as there are rounds: each gets one of the nine candidates, all at equal overlap."""
    priors = torch.tensor(lattice_priors([(3, 3)], (8,)), dtype=torch.float32)
    box = torch.tensor([[9.0, 9.0, 11.0, 11.0]])  # in all nine priors, around no centre
    found = owners(priors, [9], box.repeat(9, 1), with_best_prior=True)
    assert sorted(found.tolist()) == list(range(9))


def test_of_gts_that_want_the_same_priors_nine_are_served() -> None:
    """In each round one more goes on to the next prior; after the ninth the last goes without."""
    overlap = torch.linspace(0.9, 0.1, 12).repeat(10, 1)
    prior = torch.arange(12).repeat(10, 1)
    needy, taken = torch.ones(10, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)
    chosen = closed_form.choose_free(needy, overlap, prior, taken)
    assert torch.equal(chosen, torch.eye(10, 12, dtype=torch.bool) & (prior < 9))
