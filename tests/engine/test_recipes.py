"""The recipes for averaged weights and for test-time augmentation, run on a tiny data set."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

import gfl_det
from gfl_det.engine import config_edits
from gfl_det.engine.runner import build_runner
from gfl_det.utils.config import override

WATCHED = 'bbox_head.gfl_cls.weight'
BUFFER = 'backbone.bn1.running_mean'


def tiny(folder: Path, **changes: Any) -> Config:
    """The tiny detector of the tools' tests on eight pictures, without pretrained weights."""
    cfg = Config.fromfile(folder / 'tiny.py')
    override(cfg, {'data_root': str(folder / 'pets')})
    config_edits.train_from_scratch(cfg)
    cfg.train_dataloader.num_workers, cfg.model.backbone.norm_eval = 0, False
    cfg.work_dir, cfg.randomness = str(folder / 'run'), dict(seed=0)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.merge_from_dict(changes)
    return cfg


class Watch(Hook):
    """Keeps a weight and a statistic as they are after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        state = runner.model.state_dict()
        self.seen.append({key: state[key].clone() for key in (WATCHED, BUFFER)})


def train(cfg: Config) -> tuple[Runner, Watch]:
    runner, watch = build_runner(cfg), Watch()
    runner.register_hook(watch)
    runner.train()
    return runner, watch


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location='cpu', weights_only=True)


def test_the_checkpoint_holds_the_average_of_the_weights(pets) -> None:
    hooks = gfl_det.get_config('gfl_r50_fpn_1x-ema_coco').custom_hooks
    cfg = tiny(pets, custom_hooks=copy.deepcopy(hooks))
    config_edits.log_assignment(cfg)
    _, watch = train(copy.deepcopy(cfg))
    assert len(watch.seen) == 4
    saved = load(pets / 'run' / 'epoch_1.pth')
    momentum, gamma = hooks[0].momentum, 2000
    for key in (WATCHED, BUFFER):
        average = watch.seen[0][key].clone()  # the first step is copied
        for step, weights in enumerate(watch.seen[1:], start=1):
            share = (1 - momentum) * math.exp(-(1 + step) / gamma) + momentum
            average += share * (weights[key] - average)
        torch.testing.assert_close(saved['state_dict'][key], average)
        torch.testing.assert_close(saved['ema_state_dict'][f'module.{key}'], watch.seen[-1][key])
        assert not torch.equal(average, watch.seen[-1][key])

    cfg.resume, cfg.train_cfg.max_epochs = True, 2
    runner, later = train(cfg)
    assert len(later.seen) == 4
    (hook,) = (each for each in runner.hooks if isinstance(each, EMAHook))
    assert int(hook.ema_model.steps) == 8
    assert runner.message_hub.get_scalar('train/truths_without_positive').current() >= 0


def test_all_views_of_the_recipe_are_tested(pets) -> None:
    recipe = gfl_det.get_config('gfl_r50_fpn_1x_coco_tta')
    pipeline = copy.deepcopy(recipe.tta_pipeline)
    for step in pipeline[1].transforms[0]:
        step.scale = tuple(round(side / 1333 * 96) for side in step.scale)
    cfg = tiny(pets, tta_model=recipe.tta_model, tta_pipeline=pipeline)
    config_edits.use_test_time_augmentation(cfg)
    assert cfg.model.type == 'DetTTAModel'
    runner = build_runner(cfg)
    views = runner.test_dataloader.dataset[0]
    shapes = [tuple(each.shape[1:]) for each in views['inputs']]
    flips = [each.flip for each in views['data_samples']]
    assert len(set(zip(shapes, flips))) == len(shapes) == 6
    metrics = runner.test()
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    (result,) = runner.model.test_step(
        dict(
            inputs=[each[None] for each in views['inputs']],
            data_samples=[[each] for each in views['data_samples']],
        )
    )
    boxes = result.pred_instances.bboxes
    assert 0 < len(boxes) <= 100
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= torch.tensor([96.5, 64.5])).all()


@pytest.mark.parametrize('name', ['gfl_r50_fpn_1x-ema_coco', 'gfl_r50_fpn_1x_coco_tta'])
def test_the_model_is_the_one_they_are_for(name: str) -> None:
    assert gfl_det.get_config(name).model == gfl_det.get_config('gfl_r50_fpn_1x_coco').model
