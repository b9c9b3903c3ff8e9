"""What training logs of a head's reach: counted right, without waiting, read with the log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.hub import get_config as hub_config
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData

import gfl_det
from gfl_det.engine import config_edits
from gfl_det.engine.hooks import AssignmentLogHook
from gfl_det.engine.hooks.monitoring import AssignmentCounts
from tests.helpers.compiling import compiled_pair
from tests.helpers.heads import head_pair, losses_and_gradients, make_gts, make_maps, make_meta
from tests.helpers.synchronisation import NoSynchronisation

SIZE = (192, 256)
KEYS = ('train/clipped_edges', 'train/truths_without_positive')


def counting_head(reg_max: int = 4) -> tuple[Any, AssignmentCounts]:
    """A head of few bins, so that some edges lie beyond the last, and its counts."""
    head, _ = head_pair(reg_max=reg_max)
    counts = AssignmentCounts(reg_max, torch.device('cpu'))
    head.assignment_observer = counts.add
    return head, counts


def batch(counts: tuple, seed: int = 0, reg_max: int = 4) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    maps = make_maps(len(counts), SIZE, generator, num_bins=reg_max + 1)
    gts = [make_gts(count, SIZE, generator) for count in counts]
    for each in gts:
        each.bboxes[:1] = torch.tensor([50.0, 61, 52, 63])  # no prior's centre lies in it
        each.bboxes[1:2] = torch.tensor([2.0, 3, 190, 37])  # long: beyond four strides
    return maps, gts, [make_meta(SIZE) for _ in counts]


def slow_counts(head: Any, gts: list) -> list[int]:
    """In loops over mmdet's result for each prior."""
    sizes = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    levels = head.prior_generator.grid_priors(sizes, device='cpu')
    strides = [stride for level, stride in zip(levels, (8, 16, 32, 64, 128)) for _ in level]
    priors = InstanceData(priors=torch.cat(levels))
    clipped = edges = bare = total = 0
    for each in gts:
        found = head.assigner.assign(priors, [len(level) for level in levels], each).gt_inds
        total += len(each.bboxes)
        for index, (left, top, right, bottom) in enumerate(each.bboxes.tolist()):
            known = 0 <= int(each.labels[index]) < head.num_classes
            mine = (found == index + 1).nonzero().squeeze(1).tolist() if known else []
            bare += not mine
            for prior in mine:
                x, y = ((priors.priors[prior, :2] + priors.priors[prior, 2:]) / 2).tolist()
                for distance in (x - left, y - top, right - x, bottom - y):
                    clipped += distance / strides[prior] > head.reg_max - 0.1
                    edges += 1
    return [clipped, edges, bare, total]


def test_totals_are_those_of_loops() -> None:
    head, found = counting_head()
    expected = torch.zeros(4, dtype=torch.long)
    for seed, counts in enumerate([(5, 3), (0, 8), (0, 0), (30, 1)]):
        maps, gts, metas = batch(counts, seed)
        if seed == 3:
            gts[0].labels[4] = 255  # unknown: trains nothing
        losses_and_gradients(head, maps, gts, metas)
        expected += torch.tensor(slow_counts(head, gts))
    assert found.totals.tolist() == expected.tolist()
    assert (expected > 0).all()


def test_counting_changes_no_loss() -> None:
    (head, _), data = counting_head(), batch((5, 3))
    values, gradients = losses_and_gradients(head, *data)
    head.assignment_observer = None
    expected, others = losses_and_gradients(head, *data)
    assert values == expected
    assert set(values) == {'loss_cls', 'loss_bbox', 'loss_dfl'}
    assert all(torch.equal(one, other) for one, other in zip(gradients, others))


@pytest.mark.parametrize('counts', [(3, 5), (0, 0)])
def test_counting_never_waits_for_the_device(counts: tuple) -> None:
    head, found = counting_head()
    maps, gts, metas = batch(counts)
    with NoSynchronisation():
        head.loss_by_feat(*maps, gts, metas)
    assert found.totals[3] == sum(counts)


def test_counting_compiles_into_the_graph() -> None:
    head, counts = counting_head()
    compiled, plain, _ = compiled_pair(head, *batch((3, 5)))
    expected = plain()
    once = counts.totals.clone()
    for times in (2, 3):
        torch.testing.assert_close(compiled(), expected)
        assert torch.equal(counts.totals, times * once)


class FakeRunner(SimpleNamespace):
    """As much of a runner as both hooks look at; notes when LoggerHook writes."""

    def __init__(self, model: torch.nn.Module, length: int, logger: LoggerHook) -> None:
        self.written: list[int] = []
        processor = SimpleNamespace(
            get_log_after_iter=lambda runner, index, mode: (self.written.append(index), ({}, ''))[1]
        )
        super().__init__(
            model=model,
            hooks=[logger],
            train_dataloader=[None] * length,
            log_processor=processor,
            message_hub=MessageHub('reach'),
            experiment_name='',
            iter=0,
            logger=SimpleNamespace(info=lambda text: None),
            visualizer=SimpleNamespace(add_scalars=lambda *_, **__: None),
        )


@pytest.mark.parametrize('length', [1, 3, 7, 8])
@pytest.mark.parametrize('interval', [1, 3, 4, 10])
@pytest.mark.parametrize('ignore_last', [True, False])
def test_the_shares_are_read_when_the_log_is_written(length, interval, ignore_last) -> None:
    (head, _), logger = counting_head(), LoggerHook(interval=interval, ignore_last=ignore_last)
    logger.json_log_path = 'x.json'
    runner = FakeRunner(torch.nn.Sequential(head), length, logger)
    hook = AssignmentLogHook()
    hook.before_train(runner)
    (counts,) = hook.counts
    assert head.assignment_observer == counts.add
    read, pending = [], torch.zeros(4, dtype=torch.long)
    for index in range(length):
        step = torch.tensor([index, 10, 1, 4])
        counts.totals += step
        pending += step
        hook.after_train_iter(runner, index)
        logger.after_train_iter(runner, index)
        scalars = runner.message_hub.log_scalars
        if KEYS[0] in scalars and len(scalars[KEYS[0]].data[0]) > len(read):
            read.append(index)
            clipped, edges, bare, gts = pending.tolist()
            assert scalars[KEYS[0]].current() == clipped / edges
            assert scalars[KEYS[1]].current() == bare / gts
            assert not counts.totals.any()
            pending.zero_()
    assert read == runner.written


def test_models_without_our_head_are_left_alone() -> None:
    hook, logger = AssignmentLogHook(), LoggerHook(interval=1)
    runner = FakeRunner(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), 2, logger)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    assert not runner.message_hub.log_scalars


@pytest.mark.parametrize('name', ['gfl_r50_fpn_1x_coco', 'gfl_v2_r50_fpn_1x_coco'])
def test_the_training_tool_adds_the_hook_once(name: str) -> None:
    cfg = gfl_det.get_config(name)
    cfg.custom_hooks = [dict(type='NumClassCheckHook')]
    for _ in range(2):
        config_edits.log_assignment(cfg)
        assert [each.type for each in cfg.custom_hooks] == [
            *('NumClassCheckHook', 'gfl_det.AssignmentLogHook')
        ]


def test_other_heads_get_no_hook() -> None:
    cfg: Config = hub_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    config_edits.log_assignment(cfg)
    assert 'custom_hooks' not in cfg
