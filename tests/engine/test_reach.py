"""Advice on reg_max and sizes, against mmdet's own pipeline and assigner and drawn geometry."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.assigners import ATSSAssigner as MMDetATSSAssigner
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

import gfl_det
from gfl_det.cli import suggest_reg_max
from gfl_det.engine.preflight.data import is_ours
from gfl_det.engine.reach.advice import (
    AdviceLimits,
    TriedPyramid,
    advise,
    as_dict,
    by_size,
    choose,
    format_text,
    variants,
)
from gfl_det.engine.reach.measure import (
    LARGEST,
    PriorPyramid,
    ResizedBoxes,
    Resizing,
    head_of,
    measure,
    read_boxes,
    resizing_of,
)
from gfl_det.errors import ConfigError, DataError
from gfl_det.models.assigners import ATSSAssigner
from tests.helpers.commands import run_tool

USUAL = PriorPyramid((8, 16, 32, 64, 128), 8.0)
SHAPES = [(640, 480), (333, 500), (1200, 90), (64, 64), (37, 211)]  # width, height


def coco(sizes: list[tuple[float, float]], shape: tuple[int, int] = (320, 240)) -> dict:
    """One box of each width and height, five an image, at places drawn at random."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number, (width, height) in enumerate(sizes):
        if number % 5 == 0:
            file = dict(file_name=f'{number}.png', width=shape[0], height=shape[1])
            images.append(dict(id=len(images) + 10, **file))
        x, y = random.uniform(0, np.array(shape) - (width, height))
        box = [float(x), float(y), float(width), float(height)]
        annotations.append(
            dict(id=number + 1, image_id=images[-1]['id'], category_id=3, bbox=box, iscrowd=0)
        )
    return dict(images=images, annotations=annotations, categories=[dict(id=3, name='thing')])


def write(folder: Path, content: Any) -> str:
    path = folder / 'boxes.json'
    path.write_text(json.dumps(content))
    return str(path)


def of_shapes(folder: Path) -> str:
    """Images of many shapes with boxes of any size; one is a crowd, one is broken."""
    random = np.random.default_rng(1)
    content = dict(images=[], annotations=[], categories=[dict(id=1, name='a')])
    for index, (width, height) in enumerate(SHAPES * 3):
        content['images'].append(dict(id=index, file_name='x', width=width, height=height))
        for _ in range(index % 7):
            side = np.exp(random.uniform(np.log(2), np.log(400), 2)).clip(
                1, (width - 2, height - 2)
            )
            corner = random.uniform(0, (width, height) - side)
            annotation = dict(bbox=[*map(float, corner), *map(float, side)], iscrowd=0)
            annotation.update(id=len(content['annotations']), image_id=index, category_id=1)
            content['annotations'].append(annotation)
    content['annotations'][3]['iscrowd'] = 1
    content['annotations'][5]['bbox'][2] = -4.0
    random.shuffle(content['annotations'])
    return write(folder, content)


def mmdets_view(
    path: str, scale: tuple[int, int], pyramid: PriorPyramid
) -> tuple[list, np.ndarray, int]:
    """Boxes, needed reg_max of positives by level, unassigned gts; with mmdet's parts in loops."""
    content = json.loads(Path(path).read_text())
    with DefaultScope.overwrite_default_scope('mmdet'):
        resize = TRANSFORMS.build(dict(type='Resize', scale=scale, keep_ratio=True))
    generator = AnchorGenerator(
        strides=list(pyramid.strides), ratios=[1.0], octave_base_scale=8, scales_per_octave=1
    )
    boxes, needed, unassigned = [], np.zeros((len(pyramid.strides), LARGEST + 1), int), 0
    for image in content['images']:
        mine = [
            (x, y, x + w, y + h)
            for each in content['annotations']
            if each['image_id'] == image['id'] and not each['iscrowd']
            for x, y, w, h in [each['bbox']]
            if w > 0
        ]
        if not mine:
            continue
        sample = dict(
            img=np.zeros((image['height'], image['width'], 3), np.uint8),
            gt_bboxes=HorizontalBoxes(torch.tensor(mine)),
        )
        sample = resize(sample)
        gts = sample['gt_bboxes'].tensor
        height, width = (-(-side // 32) * 32 for side in sample['img_shape'])
        sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in pyramid.strides]
        levels = generator.grid_priors(sizes, device='cpu')
        gt = InstanceData(bboxes=gts, labels=torch.zeros(len(gts), dtype=torch.long))
        counts = [len(level) for level in levels]
        priors = InstanceData(priors=torch.cat(levels))
        found = MMDetATSSAssigner(topk=9).assign(priors, counts, gt).gt_inds
        level_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        for prior in (found > 0).nonzero().squeeze(1).tolist():
            stride = pyramid.strides[level_of[prior]]
            x, y = ((priors.priors[prior, :2] + priors.priors[prior, 2:]) / 2).tolist()
            left, top, right, bottom = gts[found[prior] - 1].tolist()
            farthest = max(x - left, y - top, right - x, bottom - y) / stride
            reg_max = next(n for n in range(LARGEST) if farthest <= n - 0.1)
            needed[level_of[prior], reg_max] += 1
        unassigned += len(gts) - len(found[found > 0].unique())
        boxes += gts.tolist()
    return boxes, needed, unassigned


@pytest.mark.parametrize('scale', [(640, 400), (200, 1333)])
def test_boxes_and_positives_are_those_of_mmdets_pipeline(tmp_path, scale) -> None:
    path = of_shapes(tmp_path)
    boxes = read_boxes(path, Resizing((scale,)), np.random.default_rng(0))
    expected, needed, unassigned = mmdets_view(path, scale, USUAL)
    found = sorted(boxes.xyxy.tolist())
    np.testing.assert_allclose(found, sorted(expected), rtol=1e-5, atol=1e-3)
    measured = measure(boxes, USUAL, ATSSAssigner(9))
    assert (measured.needed == needed).all()
    assert measured.unassigned.sum() == unassigned > 0
    assert (needed.sum(1) > 0).sum() >= 3
    assert '1 of' in boxes.dropped


def test_batches_change_nothing(tmp_path, monkeypatch) -> None:
    boxes = read_boxes(of_shapes(tmp_path), Resizing(), np.random.default_rng(0))
    whole = measure(boxes, USUAL, ATSSAssigner(9))
    told: list[tuple[int, int]] = []
    monkeypatch.setattr('gfl_det.engine.reach.measure.BATCH_GTS', 5)
    parts = measure(boxes, USUAL, ATSSAssigner(9), lambda *each: told.append(each))
    assert (whole.needed == parts.needed).all()
    assert (whole.unassigned == parts.unassigned).all()
    assert len(told) > 5
    assert told[-1] == (len(boxes.xyxy), len(boxes.xyxy))
    monkeypatch.setattr('gfl_det.engine.reach.measure.BATCH_CELLS', 1)
    assert (measure(boxes, USUAL, ATSSAssigner(9)).needed == whole.needed).all()


def drawn(*boxes: tuple, shape: tuple[int, int] = (256, 256)) -> ResizedBoxes:
    image = np.zeros(len(boxes), int)
    return ResizedBoxes(
        np.array([shape]), image, np.array(boxes, np.float32).reshape(-1, 4), 1, None
    )


def test_what_a_reg_max_clips_in_drawn_geometry() -> None:
    """On one level of stride 8 a box of 80 px has edges 5 strides from its middle prior."""
    pyramid = PriorPyramid((8,), 10.0)
    measured = measure(drawn((88.0, 88.0, 168.0, 168.0)), pyramid, ATSSAssigner(1 + 8))
    centre_alone = measured.needed[0, 6]  # 5 strides need a last bin at 5.1 or more: 6
    assert centre_alone == 1
    assert measured.needed.sum() == measured.needed[0, 6:8].sum()
    assert measured.clipped_of_all(5) == 1
    assert measured.clipped_of_all(7) == 0
    assert measured.least_reg_max(0.0) == (7 if measured.needed[0, 7] else 6)


def test_a_gt_between_priors_is_unassigned_without_best_prior() -> None:
    boxes = drawn((65.5, 66.5, 67.5, 68.5), (60.0, 60, 130, 130))
    assert measure(boxes, USUAL, ATSSAssigner(9)).unassigned.tolist() == [True, False]
    given = measure(boxes, USUAL, ATSSAssigner(9, with_best_prior=True))
    assert given.unassigned.tolist() == [False, False]
    (small, large) = by_size(boxes, measure(boxes, USUAL, ATSSAssigner(9)))
    assert small == (2, 4, 1, 1.0)
    assert large == (64, 128, 1, 0.0)


def test_a_sample_holds_whole_images(tmp_path) -> None:
    boxes = read_boxes(of_shapes(tmp_path), Resizing(), np.random.default_rng(0))
    part = boxes.sample(12, np.random.default_rng(3))
    assert 12 <= len(part.xyxy) < 20
    number = np.bincount(boxes.image, minlength=len(boxes.image_wh))
    for index in range(len(part.image_wh)):
        mine = part.xyxy[part.image == index]
        same = [
            i
            for i in np.flatnonzero(number == len(mine))
            if np.array_equal(boxes.xyxy[boxes.image == i], mine)
        ]
        assert any((boxes.image_wh[i] == part.image_wh[index]).all() for i in same)
    assert boxes.sample(10**6, np.random.default_rng(3)) is boxes


class TestChoice:
    def candidates(self, **unassigned: float) -> list[TriedPyramid]:
        """``f`` in a name: a finer level; ``c``: a coarser one; the number: the scale."""
        found = []
        for name, share in unassigned.items():
            strides = (4,) * ('f' in name) + (8, 16, 32) + (64,) * ('c' in name)
            scale = float(name.strip('sfc'))
            reg_max = 30 if 'c' not in name else 12
            found.append(TriedPyramid(PriorPyramid(strides, scale), share, reg_max, 1.0))
        return found

    def test_what_there_is_stays_where_it_will_do(self):
        tried = self.candidates(c8=0.01, c4=0.0, fc8=0.0, fc4=0.0)
        assert choose(tried, AdviceLimits(unassigned=0.01)) is tried[0]

    def test_a_finer_level_comes_last(self):
        tried = self.candidates(c8=0.3, c4=0.008, c6=0.009, fc8=0.0)
        assert choose(tried, AdviceLimits(unassigned=0.01)) is tried[2]  # the scale nearer to 8
        assert choose(tried, AdviceLimits(unassigned=0.001)) is tried[3]

    def test_a_coarser_level_comes_before_a_large_reg_max(self):
        tried = self.candidates(s8=0.0, c8=0.0, c4=0.0)
        assert choose(tried, AdviceLimits()) is tried[1]

    def test_where_none_will_do_the_fewest_are_left(self):
        tried = self.candidates(c8=0.5, c4=0.4, fc8=0.2, fc6=0.21, fc4=0.3)
        assert choose(tried, AdviceLimits()) is tried[2]

    def test_variants_begin_with_what_there_is(self):
        tried = variants(PriorPyramid((8, 16, 32), 7.0))
        assert tried[0] == PriorPyramid((8, 16, 32), 7.0)
        assert {each.strides[0] for each in tried} == {4, 8}
        assert len(set(tried)) == len(tried)
        assert {each.strides[0] for each in variants(PriorPyramid((4, 8), 8.0))} == {4}


def advice_for(
    tmp_path, sizes: list[tuple[float, float]], pyramid: PriorPyramid = USUAL, **options
):
    path = write(tmp_path, coco(sizes))
    boxes = read_boxes(path, Resizing(), np.random.default_rng(0))
    return advise(boxes, pyramid, ATSSAssigner(9), **options)


def test_tiny_boxes_call_for_a_finer_level(tmp_path) -> None:
    random = np.random.default_rng(0)
    advice = advice_for(tmp_path, [tuple(random.uniform(3, 7, 2)) for _ in range(200)])
    assert advice.now.unassigned.mean() > 0.3
    assert advice.chosen.pyramid.strides[0] == 4
    assert advice.then.unassigned.mean() < advice.now.unassigned.mean() / 3
    text = format_text(advice)
    assert 'strides=[4, 8, 16' in text
    assert 'with_best_prior=True' in text or advice.then.unassigned.mean() <= 0.01


def test_long_boxes_call_for_a_larger_reg_max(tmp_path) -> None:
    random = np.random.default_rng(0)
    sizes = [(random.uniform(150, 300), random.uniform(8, 14)) for _ in range(100)]
    advice = advice_for(tmp_path, sizes, PriorPyramid((8,), 8.0), reg_max=8)
    assert advice.now.clipped_of_all(8) > 0.9
    reg_max = advice.suggested_reg_max
    assert advice.then.clipped_of_all(reg_max) <= 0.005 < advice.then.clipped_of_all(reg_max - 1)
    assert reg_max > 16


def test_the_json_holds_the_tables(tmp_path) -> None:
    advice = advice_for(tmp_path, [(20, 30), (50, 40), (4, 4)], reg_max=4)
    found = json.loads(json.dumps(as_dict(advice), allow_nan=False))
    assert (found['images'], found['boxes'], found['classes']) == (1, 3, 1)
    assert found['now']['reg_max'] == 4
    assert [level['reach_px'] for level in found['now']['levels']] == [32, 64, 128, 256, 512]
    for level in found['now']['levels']:
        assert level['clipped'] == sorted(level['clipped'], reverse=True)
    assert sum(level['positives'] for level in found['now']['levels']) == advice.now.needed.sum()
    assert len(found['tried']) == len(advice.candidates)
    assert sum(row['truths'] for row in found['by_size']) == 3
    assert all(0 <= row['bare'] <= 1 for row in [*found['by_size'], *found['tried']])
    assert found['limits']['bare'] == advice.limits.unassigned


class TestResizing:
    def test_pipelines_of_shipped_configs(self):
        plain = gfl_det.get_config('gfl_r50_fpn_1x_coco').train_dataloader.dataset.pipeline
        assert resizing_of(plain) == (Resizing(((1333, 800),)), [])
        scales = gfl_det.get_config('gfl_r50_fpn_ms-2x_coco').train_dataloader.dataset.pipeline
        between = Resizing(((1333, 480), (1333, 800)), between=True)
        assert resizing_of(scales) == (between, [])
        sizes = between.sizes(np.full((400, 2), (640.0, 480.0)), np.random.default_rng(0))
        assert 480 <= sizes.min(1).min() < 500 < 780 < sizes.min(1).max() <= 800

    def test_choices_ratios_and_steps_that_move_boxes(self):
        choice = dict(type='RandomChoiceResize', scales=[(100, 50), (200, 100)], keep_ratio=True)
        sides = dict(type='RandomChoiceResize', scales=[640, (800, 600)], keep_ratio=True)
        assert resizing_of([sides]) == (Resizing(((640, 640), (800, 600))), [])
        one = dict(type='RandomChoiceResize', scales=(1333, 800), keep_ratio=True)
        assert resizing_of([one]) == (Resizing(((1333, 800),)), [])
        found, moving = resizing_of([dict(type='mmdet.RandomCrop'), choice])
        assert (found.scales, moving) == (((100, 50), (200, 100)), ['mmdet.RandomCrop'])
        sizes = found.sizes(np.full((50, 2), (200.0, 100.0)), np.random.default_rng(0))
        assert {tuple(each) for each in sizes.tolist()} == {(100, 50), (200, 100)}
        ratios = dict(type='RandomResize', scale=(100, 100), ratio_range=(0.5, 2.0))
        found, _ = resizing_of([ratios])
        sizes = found.sizes(np.full((400, 2), (50.0, 20.0)), np.random.default_rng(0))
        assert not found.keep_ratio
        assert (sizes[:, 0] == sizes[:, 1]).all()
        assert 50 <= sizes.min() < 60 < 190 < sizes.max() <= 200

    def test_a_pipeline_that_does_not_say(self):
        with pytest.raises(ConfigError, match='--scale W H'):
            resizing_of([dict(type='LoadImageFromFile'), dict(type='PackDetInputs')])


class TestSetting:
    def test_a_config_says_all(self):
        args = suggest_reg_max.parse_arguments(['x.json', '--config', 'gfl_r18_fpn_digits'])
        setting = suggest_reg_max.read_setting(args)
        assert setting.pyramid == PriorPyramid((8, 16, 32), 4.0, 32)
        assert (setting.reg_max, setting.assigner.topk) == (16, 9)
        assert setting.resizing == Resizing(((256, 192),))
        assert setting.classes == [str(digit) for digit in range(10)]

    def test_options_come_first(self):
        words = 'x.json --config gfl_r18_fpn_digits --strides 16 8 --anchor-scale 6 --reg-max 9'
        words += ' --scale 640 480 --topk 5 --pad 1'
        setting = suggest_reg_max.read_setting(suggest_reg_max.parse_arguments(words.split()))
        assert setting.pyramid == PriorPyramid((8, 16), 6.0, 1)
        assert (setting.reg_max, setting.assigner.topk) == (9, 5)
        assert setting.resizing == Resizing(((640, 480),))

    def test_the_papers_values_without_any(self):
        setting = suggest_reg_max.read_setting(suggest_reg_max.parse_arguments(['x.json']))
        assert setting.pyramid == USUAL
        assert setting.resizing == Resizing()

    def test_heads_of_several_priors_a_cell_are_refused(self):
        words = ['x.json', '--config', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
        with pytest.raises(ConfigError, match='gfl-det swap-head'):
            suggest_reg_max.read_setting(suggest_reg_max.parse_arguments(words))


def test_the_command(tmp_path) -> None:
    random = np.random.default_rng(0)
    path = write(tmp_path, coco([tuple(random.uniform(8, 200, 2)) for _ in range(60)]))
    done = run_tool('suggest_reg_max', path, '--scale', 640, 480, '--out', 'advice', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '60 boxes of 12 images, 1 classes, resized to 640x480, ratio kept' in done.stdout
    for part in ('reach px', 'without a positive', '<- suggested', 'suggested: strides'):
        assert part in done.stdout
    assert '60/60 boxes assigned' in done.stderr
    assert '24/24 pyramids tried' in done.stderr
    assert (tmp_path / 'advice' / 'reach.png').read_bytes().startswith(b'\x89PNG')
    assert json.loads((tmp_path / 'advice' / 'reach.json').read_text())['boxes'] == 60


def test_what_cannot_be_used_is_one_sentence(tmp_path) -> None:
    empty = dict(coco([]), categories=[dict(id=1, name='a')])
    with pytest.raises(DataError, match=r'no box'):
        read_boxes(write(tmp_path, empty), Resizing(), np.random.default_rng(0))
    done = run_tool('suggest_reg_max', 'nowhere.json', cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith('error: nowhere.json cannot be read: No such file or directory.\n')


@pytest.mark.parametrize(
    ('anchors', 'message'),
    [
        (dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]), 'no head with one square'),
        (
            dict(
                type='AnchorGenerator',
                ratios=[1.0],
                octave_base_scale=8,
                scales_per_octave=1,
                strides=[8, 16],
                center_offset=0.5,
            ),
            'center_offset=0.5, ',
        ),
    ],
)
def test_priors_that_are_not_ours_are_refused(anchors: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        head_of(dict(bbox_head=dict(anchor_generator=anchors)), 'x.py')


def test_a_bare_name_of_a_data_set_is_mmdets() -> None:
    assert is_ours('gfl_det.CocoDataset')
    assert not is_ours('CocoDataset')
