"""The runtime's preprocessing gives the bits that mmdet's test pipeline gives."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

import gfl_det
from gfl_det.errors import ConfigError
from gfl_det.inference.export.evaluation import noise_pictures
from gfl_det.inference.export.graph import Preprocessing
from gfl_det.utils.config import config_names

SHAPES = [(480, 640), (641, 333), (192, 256), (31, 1000), (7, 5), (1, 300)]


def parts(cfg):
    return cfg.test_dataloader.dataset.pipeline, cfg.model.data_preprocessor


def by_mmdet(cfg, picture, folder):
    """A batch of one from a file, by the config's pipeline and data preprocessor."""
    path = folder / 'picture.png'
    cv2.imwrite(str(path), picture)
    pipeline, preprocessor = parts(cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        steps = Compose([dict(each) for each in pipeline if each['type'] != 'LoadAnnotations'])
        model = MODELS.build(preprocessor)
        data = steps(dict(img_path=str(path), img_id=0))
        batch = model(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))
    return batch['inputs'], batch['data_samples'][0]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('name', ['gfl_r18_fpn_digits', 'gfl_r50_fpn_1x_coco'])
def test_inputs_are_mmdets_bit_for_bit(name, shape, tmp_path):
    cfg = gfl_det.get_config(name)
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    want, sample = by_mmdet(cfg, picture, tmp_path)
    stored = Preprocessing.of(*parts(cfg)).to_json()
    got = Preprocessing.from_json(stored)([picture])
    assert torch.equal(torch.from_numpy(got.images), want)
    assert tuple(got.img_shape[0]) == sample.img_shape[:2]
    assert np.array_equal(got.scale_factor[0], np.float32(sample.scale_factor))


def test_without_ratio_and_without_normalisation(tmp_path):
    cfg = gfl_det.get_config('gfl_r18_fpn_digits')
    cfg.test_dataloader.dataset.pipeline[1] = dict(type='Resize', scale=(100, 60), keep_ratio=False)
    cfg.model.data_preprocessor = dict(type='DetDataPreprocessor')
    picture = noise_pictures([(50, 90)])[0]
    want, _ = by_mmdet(cfg, picture, tmp_path)
    got = Preprocessing.of(*parts(cfg))([picture])
    assert got.images.shape == (1, 3, 60, 100)
    assert torch.equal(torch.from_numpy(got.images), want.float())


def test_a_batch_is_padded_to_its_largest_with_the_value():
    preprocessing = Preprocessing((64, 64), divisor=32, pad_value=7)
    batch = preprocessing(noise_pictures([(64, 32), (16, 64)]))
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.img_shape.tolist() == [[64, 32], [16, 64]]
    assert (batch.images[0, :, :, 32:] == 7).all()
    assert (batch.images[1, :, 16:] == 7).all()


def test_a_fixed_size_holds_every_picture():
    preprocessing = Preprocessing((1333, 800), size=(96, 128))
    batch = preprocessing(noise_pictures([(480, 640), (640, 480), (10, 300)]))
    assert batch.images.shape == (3, 3, 96, 128)
    assert batch.img_shape.tolist() == [[96, 128], [96, 72], [4, 128]]


@pytest.mark.parametrize('name', config_names())
def test_every_shipped_config_has_a_preprocessing_that_can_be_stored(name):
    preprocessing = Preprocessing.of(*parts(gfl_det.get_config(name)))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


@pytest.mark.parametrize(
    'step',
    [
        dict(type='Resize', scale_factor=2.0),
        dict(type='RandomFlip', prob=0.5),
        dict(type='Resize', scale=(9, 9), interpolation='nearest'),
        dict(type='LoadImageFromFile', to_float32=True),
    ],
    ids=lambda step: step['type'],
)
def test_another_step_is_refused_by_name(step):
    pipeline, preprocessor = parts(gfl_det.get_config('gfl_r18_fpn_digits'))
    others = [each for each in pipeline if each.type != step['type']]
    with pytest.raises(ConfigError, match=step['type']):
        Preprocessing.of([*others, step], preprocessor)
