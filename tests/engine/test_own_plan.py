"""What follows from a data set: sizes, pyramid, schedule, and the config that says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from gfl_det.datasets.formats.own_data import read_own, write_parts
from gfl_det.datasets.formats.pictures import DataPart, OwnData
from gfl_det.datasets.table import CocoTable, table_of
from gfl_det.engine.own_data.config_text import config_text
from gfl_det.engine.own_data.plan import (
    StartingPoint,
    TrainingPlan,
    choose_epochs,
    choose_rate,
    choose_scale,
    edit_pyramid,
    make_plan,
    name_of,
)
from gfl_det.engine.preflight.agreement import check_pyramid
from gfl_det.engine.reach.measure import PriorPyramid
from gfl_det.errors import ConfigError, DataError
from gfl_det.utils.config import get_config, load_config, shipped_base
from tests.helpers.own_data_files import write_voc

SMALL, COCO = 'gfl_r18_fpn_bccd', 'gfl_r50_fpn_1x_coco'


def start(name: str = SMALL, **facts: object) -> StartingPoint:
    return StartingPoint(shipped_base(name), name, get_config(name), **facts)


def boxes_of_side(*sides: float, wh: tuple[int, int] = (640, 480), pictures: int = 40) -> dict:
    """Pictures with a square box of each side."""
    images, annotations = [], []
    for number in range(pictures):
        images.append(dict(id=number, file_name=f'{number}.png', width=wh[0], height=wh[1]))
        for side in sides:
            x = float(np.random.default_rng(number).uniform(0, wh[0] - side))
            entry = dict(id=len(annotations) + 1, image_id=number, category_id=1)
            entry.update(bbox=[x, 7.0, side, side], area=side * side, iscrowd=0)
            annotations.append(entry)
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name='cell')])


def data_of(dataset: dict, folder: Path) -> OwnData:
    parts = {}
    for split in ('train', 'val'):
        file = folder / f'{split}.json'
        file.write_text(json.dumps(dataset))
        parts[split] = DataPart(dataset, folder, file)
    return OwnData('COCO', folder, ['cell'], parts, [])


def table(*args: float, **options: object) -> CocoTable:
    return table_of(boxes_of_side(*args, **options), 'a.json')


class TestScale:
    @pytest.mark.parametrize(
        ('sides', 'wh', 'expected'),
        [
            ((100,), (640, 480), (320, 256)),  # large boxes: the least
            ((22,), (640, 480), (480, 352)),  # 16 px of 22 at 465
            ((5,), (640, 480), (640, 480)),  # never larger than the pictures
            ((5,), (4000, 3000), (640, 480)),  # nor than the limit
            ((5,), (200, 200), (224, 224)),  # rounded up to whole cells
            ((22,), (480, 640), (480, 352)),  # upright: long side first
        ],
    )
    def test_nine_of_ten_boxes_keep_16_px_where_that_can_be(self, sides, wh, expected):
        assert choose_scale(table(*sides, wh=wh), get_config(SMALL))[0] == expected

    def test_a_model_of_large_pictures_may_have_them(self):
        assert choose_scale(table(5, wh=(4000, 3000)), get_config(COCO))[0] == (1344, 1024)

    def test_a_model_that_keeps_no_ratio_keeps_its_size(self):
        scale, setting = choose_scale(table(50), get_config('nanodet-plus-m_320_coco'))
        assert scale is None
        assert '320x320' in setting.value

    def test_data_without_a_box_is_refused(self):
        with pytest.raises(DataError, match=r'a\.json has no box'):
            choose_scale(table(), get_config(SMALL))


class TestSchedule:
    @pytest.mark.parametrize(
        ('number', 'weights', 'epochs'),
        [(205, None, 24), (20, None, 100), (3000, None, 12), (100, 'a.pth', 25)],
    )
    def test_small_sets_are_seen_as_often_as_the_recipe(self, number, weights, epochs):
        assert choose_epochs(number, start(weights=weights))[0] == epochs

    def test_the_rate_is_that_of_the_batch_and_an_adams_at_most_twice(self):
        assert choose_rate(get_config(SMALL), 4)[0] == 0.001
        assert choose_rate(get_config(SMALL), 16)[0] == 0.002
        assert choose_rate(get_config(COCO), 4)[0] == 0.0025
        nanodet = get_config('nanodet-plus-m_416_coco')  # AdamW, 96 pictures
        assert choose_rate(nanodet, 24)[0] == nanodet.optim_wrapper.optimizer.lr / 2
        assert choose_rate(nanodet, 4, fitted=True)[0] == 0.002
        with pytest.raises(ConfigError, match='lr'):
            choose_rate(Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD')))), 4)


class TestPyramid:
    now = PriorPyramid((8, 16, 32, 64, 128), 8.0)

    @pytest.mark.parametrize('name', [SMALL, COCO])
    @pytest.mark.parametrize('strides', [(8, 16, 32, 64, 128, 256), (4, 8, 16, 32, 64, 128)])
    def test_backbone_and_neck_give_the_levels(self, name, strides):
        cfg = get_config(name)
        edits = edit_pyramid(cfg.model, self.now, self.now._replace(strides=strides))
        cfg.merge_from_dict({'model': edits})
        cfg.model.bbox_head.anchor_generator.strides = list(strides)
        cfg.model.backbone.init_cfg = None
        check_pyramid(cfg)  # which builds and runs them

    def test_another_neck_cannot(self):
        model = get_config('nanodet-plus-m_320_coco').model
        finer = self.now._replace(strides=(4, 8, 16))
        assert edit_pyramid(model, self.now._replace(strides=(8, 16)), finer) is None

    def test_small_boxes_get_a_finer_level_few_of_them_their_best_prior(self, tmp_path):
        tiny = make_plan(data_of(boxes_of_side(2, 3), tmp_path), start())
        assert tiny.pyramid.pyramid.strides[0] == 4
        some = boxes_of_side(100, 110, 90, 120, pictures=40)
        for entry in some['annotations'][:3]:  # 2 % of them
            entry.update(bbox=[3.0, 3.0, 2.0, 2.0], area=4.0)
        few = make_plan(data_of(some, tmp_path), start())
        assert few.pyramid.pyramid.strides[0] == 8
        assert few.pyramid.best_prior
        assert not make_plan(data_of(boxes_of_side(100), tmp_path), start()).pyramid.best_prior

    def test_a_trained_detector_keeps_its_own(self, tmp_path):
        plan = make_plan(data_of(boxes_of_side(2, 3), tmp_path), start(COCO, weights='a.pth'))
        assert (plan.pyramid.pyramid, plan.pyramid.reg_max) == (None, None)
        assert next(each for each in plan.settings if each.name == 'strides').value.startswith(
            '8 16'
        )


class TestConfig:
    def build(self, tmp_path: Path, first: StartingPoint) -> tuple[Config, TrainingPlan, str]:
        data = write_parts(read_own(write_voc(tmp_path / 'mine')), tmp_path / 'w' / 'data')
        plan = make_plan(data, first)
        text = config_text(data, plan, 'mine', tmp_path / 'w')
        file = tmp_path / 'w' / 'config.py'
        file.write_text(text)
        return load_config(str(file)), plan, text

    @pytest.mark.parametrize('name', [SMALL, COCO, 'gfl_v2_r50_fpn_1x_coco'])
    def test_it_is_small_and_says_what_was_planned(self, tmp_path, name):
        cfg, plan, text = self.build(tmp_path, start(name))
        assert len(text.splitlines()) < 110
        assert max(map(len, text.splitlines())) < 160
        assert cfg.model.bbox_head.num_classes == 2
        assert cfg.train_dataloader.batch_size == plan.batch == 4
        assert cfg.train_cfg.max_epochs == plan.epochs == 100
        assert cfg.optim_wrapper.optimizer.lr == plan.rate
        assert cfg.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'
        assert cfg.work_dir == str(tmp_path / 'w')
        for split in ('train', 'val', 'test'):
            dataset = cfg[f'{split}_dataloader'].dataset
            assert dataset.metainfo.classes == ('cat', 'dog')
            assert Path(dataset.ann_file).is_file()
            assert 'filter_cfg' not in dataset  # background is trained on
            assert dataset.pipeline[0].type == 'LoadImageFromFile'
        assert cfg.test_evaluator.ann_file == cfg.test_dataloader.dataset.ann_file

    def test_the_model_is_built_with_what_is_planned(self, tmp_path):
        cfg, plan, _ = self.build(tmp_path, start())
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(cfg.model)
        assert model.bbox_head.reg_max == plan.pyramid.reg_max
        check_pyramid(cfg)

    def test_weights_and_their_absence(self, tmp_path):
        cfg, _, _ = self.build(tmp_path, start(COCO, weights='/w/gfl.pth'))
        assert cfg.load_from == '/w/gfl.pth'
        assert cfg.model.backbone.init_cfg is None
        assert cfg.model.backbone.frozen_stages == 1
        scratch, _, _ = self.build(tmp_path, start(COCO, scratch=True))
        assert scratch.load_from is None
        assert scratch.model.backbone.init_cfg is None
        assert scratch.model.backbone.frozen_stages == -1
        assert scratch.model.backbone.norm_eval is False
        other, _, _ = self.build(tmp_path, start(COCO))
        assert other.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'

    def test_ten_lines_with_reasons(self, tmp_path):
        _, plan, _ = self.build(tmp_path, start())
        assert [each.name for each in plan.settings] == [
            'data', 'classes', 'model', 'scale', 'strides', 'reg_max', 'batch', 'epochs', 'rate',
        ]  # fmt: skip
        assert all('\n' not in str(each) and ': ' in str(each) for each in plan.settings[1:2])


@pytest.mark.parametrize(
    ('path', 'name'),
    [
        ('a/cats', 'cats'),
        ('a/cats/data.yaml', 'cats'),
        ('a/cats.json', 'cats'),
        ('a/v1.2/', 'v1.2'),
    ],
)
def test_the_name_of_a_set(path, name) -> None:
    assert name_of(path) == name
