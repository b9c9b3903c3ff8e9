"""Weights to start from: other classes, and norms that get their statistics back."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from gfl_det.engine.own_data.start_weights import (
    FoldedNormsHook,
    fit_classes,
    fit_weights,
    folded_norms,
    holds_folded_norms,
    unfold_norms,
)
from gfl_det.inference.foreign_weights import convert
from gfl_det.utils.config import get_config
from tests.helpers.ncnn_files import random_detector, write_pair
from tests.helpers.own_data_files import write_coco

NAME = 'nanodet-plus-m_416_coco'


@pytest.fixture(scope='module')
def detector():
    return random_detector()


@pytest.fixture(scope='module')
def folded(detector, tmp_path_factory):
    """A checkpoint converted from a runtime's pair of files."""
    folder = tmp_path_factory.mktemp('folded')
    convert(write_pair(detector, folder, 'nanodet-plus-m_416'), folder / 'folded.pth')
    return folder / 'folded.pth'


def outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [level for part in model.bbox_head(model.extract_feat(images)) for level in part]


class TestNorms:
    def test_only_folded_norms_are_found(self, detector, folded):
        assert folded_norms(detector) == []
        fresh = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
        assert folded_norms(fresh) == []
        nn.init.constant_(fresh[1].weight, (1 + fresh[1].eps) ** 0.5)
        assert folded_norms(fresh) == [fresh[1]]
        model = copy.deepcopy(detector)
        model.load_state_dict(torch.load(folded)['state_dict'], strict=False)
        norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
        assert folded_norms(model) == norms

    def test_predictions_stay_and_training_computes_them_too(self, detector, folded):
        """In training mode, on the same batch, every norm divides by what it multiplies with."""
        model = copy.deepcopy(detector)
        model.load_state_dict(torch.load(folded)['state_dict'], strict=False)
        images = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
        before = outputs(model.eval(), images)
        norms = folded_norms(model)
        broken = outputs(copy.deepcopy(model).train(), images)
        unfold_norms(model, norms, images.split(1))
        assert folded_norms(model) == []
        after, trained = outputs(model.eval(), images), outputs(model.train(), images)
        for old, new, in_training, wrong in zip(before, after, trained, broken):
            scale = old.std()
            assert (new - old).abs().max() < 1e-3 * scale
            assert (in_training - old).abs().max() < 1e-2 * scale
            assert (wrong - old).abs().max() > 0.3 * scale


class TestClasses:
    def test_edges_keep_their_rows_and_classes_begin_anew(self, detector):
        cfg = get_config(NAME)
        cfg.model.bbox_head.num_classes = 3
        needed = random_detector(cfg)
        old = detector.state_dict()
        new = fit_classes(old, needed.state_dict())
        needed.load_state_dict(new)
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        expected, found = outputs(detector, images), outputs(needed, images)
        for level in range(4):
            assert torch.allclose(found[level].sigmoid(), torch.full_like(found[level], 0.01))
            assert found[level].shape[1] == 3
            assert torch.allclose(found[4 + level], expected[4 + level], atol=1e-5)

    def test_other_detectors_are_left_alone(self):
        state = {'bbox_head.gfl_cls.weight': torch.ones(80, 4, 3, 3)}
        fitted = fit_classes(state, {'bbox_head.gfl_cls.weight': torch.ones(3, 4, 3, 3)})
        assert torch.equal(fitted['bbox_head.gfl_cls.weight'], state['bbox_head.gfl_cls.weight'])


def own_config(folder) -> Config:
    """NanoDet-Plus for two classes of our own pictures."""
    write_coco(folder)
    cfg = Config(get_config(NAME).to_dict())
    cfg.model.bbox_head.num_classes = 2
    cfg.model.backbone.init_cfg = None
    data = dict(data_root=str(folder), ann_file='train.json', metainfo=dict(classes=('cat', 'dog')))
    cfg.train_dataloader.dataset.update(data, data_prefix=dict(img='images/'))
    cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    return cfg


def test_a_file_is_fitted_to_a_config(detector, folded, tmp_path):
    cfg = own_config(tmp_path / 'mine')
    path = tmp_path / 'start.pth'
    torch.save(dict(state_dict=torch.load(folded)['state_dict']), path)
    fit_weights(cfg, path)
    fitted = random_detector(cfg)
    fitted.load_state_dict(torch.load(path)['state_dict'])
    assert folded_norms(fitted) == []
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(outputs(fitted, images)[4:], outputs(detector, images)[4:]):
        assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)


class TestHook:
    """``load_from`` of any config: what the runner loads is mended before it reaches the model."""

    def runner(self, cfg: Config, training: bool = True, resume: bool = False) -> SimpleNamespace:
        loop = object.__new__(EpochBasedTrainLoop) if training else dict(max_epochs=1)
        logger = SimpleNamespace(info=lambda text: None)
        return SimpleNamespace(_train_loop=loop, _resume=resume, cfg=cfg, logger=logger)

    def test_a_training_starts_from_norms_with_statistics(self, folded, tmp_path):
        cfg = own_config(tmp_path / 'mine')
        state = torch.load(folded)['state_dict']
        fitted = tmp_path / 'start.pth'
        torch.save(dict(state_dict=state), fitted)
        fit_weights(cfg, fitted)
        checkpoint = dict(state_dict=dict(state))
        FoldedNormsHook().after_load_checkpoint(self.runner(cfg), checkpoint)
        expected = torch.load(fitted)['state_dict']
        assert expected.keys() == checkpoint['state_dict'].keys()
        for key, value in expected.items():
            assert torch.equal(checkpoint['state_dict'][key], value)

    @pytest.mark.parametrize('kind', [dict(training=False), dict(resume=True)])
    def test_tests_and_resumed_trainings_are_left_alone(self, folded, tmp_path, kind):
        state = torch.load(folded)['state_dict']
        checkpoint = dict(state_dict=state)
        runner = self.runner(own_config(tmp_path / 'mine'), **kind)
        FoldedNormsHook().after_load_checkpoint(runner, checkpoint)
        assert checkpoint['state_dict'] is state

    def test_other_weights_are_left_alone(self, detector, tmp_path):
        state = detector.state_dict()
        assert not holds_folded_norms(state)
        assert not holds_folded_norms(nn.BatchNorm2d(3).state_dict())
        checkpoint = dict(state_dict=state)
        runner = self.runner(own_config(tmp_path / 'mine'))
        FoldedNormsHook().after_load_checkpoint(runner, checkpoint)
        assert checkpoint['state_dict'] is state
