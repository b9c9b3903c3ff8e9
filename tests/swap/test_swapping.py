"""Swapping heads: what changes and why, what stays, who refuses, which weights fit."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope

import gfl_det
from gfl_det.cli import main, swap_head
from gfl_det.errors import CheckpointError, ConfigError, NotSwappableError
from gfl_det.swap.pyramid import measure_strides, read_pyramid
from gfl_det.swap.swap import (
    build_untrained,
    carry_over,
    check_config,
    match_weights,
    without_files,
)
from projects.zoo import sweep, zoo
from tests.helpers.commands import run_tool
from tests.helpers.heads import make_gts, make_meta
from tests.helpers.swapping import zoo_config

RETINA, ATSS = 'retinanet/retinanet_r50_fpn_1x_coco', 'atss/atss_r50_fpn_1x_coco'
FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco'
YOLO = 'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco'
SSDLITE = 'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco'


def build(cfg: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return build_untrained(cfg)


@pytest.mark.parametrize('head', ['GFLHead', 'GFLv2Head'])
def test_retinanet_becomes_the_shipped_gfl_config(head: str) -> None:
    """Schedule and data apart, RetinaNet R50 with a GFL head is GFL R50, down to each setting."""
    swap = gfl_det.swap_head(zoo_config(RETINA, small=False), head)
    gfl = gfl_det.get_config('gfl_r50_fpn_1x_coco').model.to_dict()
    ours = swap.config.model.to_dict()
    for part in ('data_preprocessor', 'backbone', 'train_cfg', 'test_cfg'):
        assert ours[part] == gfl[part], part
    assert ours['neck'] == {**gfl['neck'], 'add_extra_convs': 'on_input'}
    expected = {**gfl['bbox_head'], 'type': f'gfl_det.{head}'}
    expected['norm_cfg'] = dict(type='GN', num_groups=32, requires_grad=True)  # the head's default
    assert ours['bbox_head'] == expected


def test_all_but_the_head_stays_and_the_argument_too() -> None:
    cfg = zoo_config(RETINA)
    before = cfg.to_dict()
    swap = gfl_det.swap_head(cfg)
    assert cfg.to_dict() == before
    after = swap.config.to_dict()
    assert after.pop('custom_imports')['imports'] == ['gfl_det']
    model, old = after.pop('model'), before.pop('model')
    assert after == before
    for key in ('type', 'backbone', 'neck', 'data_preprocessor'):
        assert model[key] == old[key]


@pytest.mark.parametrize('name', [YOLO, SSDLITE, RETINA])
def test_every_difference_is_reported(name: str) -> None:
    cfg = zoo_config(name)
    swap = gfl_det.swap_head(cfg)
    reported = {change.path for change in swap.changes}
    old, new = cfg.to_dict(), swap.config.to_dict()
    for key in old.keys() | new.keys():
        if key != 'model' and old.get(key) != new.get(key):
            assert any(path.startswith(key) for path in reported), key
    old, new = old['model'], new['model']
    for key in old.keys() | new.keys():
        if key != 'bbox_head' and old.get(key) != new.get(key):
            assert f'model.{key}' in reported
    words = ' '.join(swap.report.split())
    assert '...' not in words  # values are wrapped, none is cut
    assert all(f'{each.before} -> {each.after} ({each.reason})' in words for each in swap.changes)
    head = f'{reported} {swap.report}'
    for key in old['bbox_head'].keys() | new['bbox_head'].keys():
        if old['bbox_head'].get(key) != new['bbox_head'].get(key):
            assert key in head
    assert all(change.reason and change.before != change.after for change in swap.changes)
    assert f'{cfg.model.bbox_head.type} -> gfl_det.GFLHead' in swap.report


def test_unequal_levels_get_an_adapter() -> None:
    cfg = zoo_config('ssd/ssd300_coco')
    swap = gfl_det.swap_head(cfg)
    old, adapter = swap.config.model.neck
    assert old == cfg.model.neck
    assert adapter.in_channels == [512, 1024, 512, 256, 256, 256]
    assert swap.config.model.bbox_head.in_channels == adapter.out_channels == 256
    assert swap.pyramid.strides == [8, 16, 32, 64, 100, 300]
    assert swap.config.model.test_cfg.max_per_img == 200  # as SSD was configured


def test_strides_follow_the_features_where_the_old_ones_do_not_fit() -> None:
    cfg = zoo_config(RETINA)
    cfg.model.neck.num_outs = 4  # the head is still configured for five
    swap = gfl_det.swap_head(cfg)
    assert (swap.pyramid.strides, swap.pyramid.declared) == ([8, 16, 32, 64], False)
    assert swap.config.model.bbox_head.anchor_generator.strides == [8, 16, 32, 64]
    assert 'measured' in swap.report
    cfg = zoo_config(FCOS)
    del cfg.model.bbox_head['strides']  # the class's own default
    assert gfl_det.swap_head(cfg).pyramid.strides == [8, 16, 32, 64, 128]


@pytest.mark.parametrize('channels', [1, 4])
def test_backbones_of_other_channels_are_measured(channels: int) -> None:
    config = zoo_config(RETINA)
    config.model.backbone.in_channels = channels
    pyramid = read_pyramid(config.model, config.model.bbox_head)
    assert pyramid.strides == measure_strides(config.model) == [8, 16, 32, 64, 128]
    assert pyramid.channels == [256] * 5
    assert pyramid.declared


def test_coarse_levels_may_come_first() -> None:
    assert gfl_det.swap_head(zoo_config(YOLO)).pyramid.strides == [32, 16, 8]


def test_deformable_convolution_needs_no_operator_to_be_looked_through() -> None:
    swap = gfl_det.swap_head(zoo_config('dyhead/atss_r50-caffe_fpn_dyhead_1x_coco'))
    assert swap.pyramid.channels == [256] * 5
    assert swap.config.model.bbox_head.anchor_generator.center_offset == 0.5


PYTHON_STYLE = """
from mmdet.models.backbones import ResNet
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RetinaHead
from mmdet.models.detectors import RetinaNet
from mmdet.models.necks import FPN

model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, pad_size_divisor=32),
    backbone=dict(type=ResNet, depth=18),
    neck=dict(type=FPN, in_channels=[64, 128, 256, 512], out_channels=32, num_outs=5),
    bbox_head=dict(type=RetinaHead, num_classes=3, in_channels=32, feat_channels=32),
)
"""


def test_configs_that_name_classes(tmp_path: Path) -> None:
    (tmp_path / 'retina.py').write_text(PYTHON_STYLE)
    swap = gfl_det.swap_head(Config.fromfile(tmp_path / 'retina.py'))
    assert 'model.bbox_head.type: RetinaHead -> gfl_det.GFLHead' in swap.report
    assert swap.pyramid.strides == [4, 8, 16, 32, 64]
    swap.config.dump(tmp_path / 'gfl.py')
    check_config(Config.fromfile(tmp_path / 'gfl.py'), 64)


def test_other_numbers_of_classes_and_old_imports() -> None:
    cfg = zoo_config(RETINA)
    cfg.custom_imports = dict(imports=['json'], allow_failed_imports=True)
    swap = gfl_det.swap_head(cfg, num_classes=3)
    assert swap.config.model.bbox_head.num_classes == 3
    assert swap.config.custom_imports.imports == ['gfl_det', 'json']
    again = gfl_det.swap_head(swap.config, 'GFLv2Head')
    assert {change.path for change in again.changes} == {'model.bbox_head.type'}


@pytest.mark.parametrize(
    ('name', 'why'),
    [
        ('glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365', 'words of a caption'),
        ('cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco', 'pairs of corners'),
        (
            'centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco',
            'pairs of corners',
        ),
        ('centernet/centernet_r18_8xb16-crop512-140e_coco', 'heat map'),
        ('ld/ld_r18-gflv1-r101_fpn_1x_coco', 'teacher and student'),
        ('lad/lad_r50-paa-r101_fpn_2xb8_coco_1x', 'comes from a teacher'),
        ('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco', 'masks together with boxes'),
        ('yolact/yolact_r50_1xb8-55e_coco', 'mask head reads'),
        ('detr/detr_r50_8xb2-150e_coco', 'learned queries'),
        ('solo/solo_r50_fpn_1x_coco', 'mask head reads'),
        ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco', 'proposals are learned'),
        (
            'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
            'another detector',
        ),
    ],
)
def test_refusals_say_why_in_one_sentence(name: str, why: str) -> None:
    with pytest.raises(NotSwappableError, match=why) as caught:
        gfl_det.swap_head(zoo_config(name, small=False))
    message = str(caught.value)
    assert message.endswith('.')
    assert message.count('. ') == 0
    assert '\n' not in message


def test_other_mistakes_are_told() -> None:
    cfg = zoo_config(RETINA)
    with pytest.raises(ConfigError, match=r"GFLHead, GFLv2Head, not 'FCOSHead'"):
        gfl_det.swap_head(cfg, 'FCOSHead')
    with pytest.raises(ConfigError, match='RetinaNet has no rpn_head'):
        gfl_det.swap_head(cfg, target='rpn_head')
    with pytest.raises(ConfigError, match='has no model'):
        gfl_det.swap_head(Config(dict(data_root='data')))
    for changes, message in (
        (dict(bbox_head=dict(num_classes=None)), 'give num_classes'),
        (dict(bbox_head=dict(type='MyHead')), 'MyHead is not registered'),
        (dict(neck=dict(type='MyNeck')), r'model\.neck cannot be built.*MyNeck'),
        (dict(neck=dict(in_channels=[8, 8, 8, 8])), 'do not run on images'),
    ):
        broken = copy.deepcopy(cfg)
        broken.merge_from_dict(dict(model=changes))
        with pytest.raises(ConfigError, match=message):
            gfl_det.swap_head(broken)


def test_proposals_of_two_stages_under_autocast() -> None:
    """The second stage needs compiled operators, the proposal head does not."""
    cfg = zoo_config('faster_rcnn/faster-rcnn_r50_fpn_1x_coco')
    old = copy.deepcopy(cfg.model)
    swap = gfl_det.swap_head(cfg)
    assert swap.target == 'rpn_head'
    model = swap.config.model
    assert model.roi_head == old.roi_head
    assert model.train_cfg.rcnn == old.train_cfg.rcnn
    assert model.test_cfg.rcnn == old.test_cfg.rcnn
    assert (model.rpn_head.num_classes, model.rpn_head.stacked_convs) == (1, 1)
    detector = build(swap.config)
    detector.rpn_head.init_weights()
    size, generator = (128, 160), torch.Generator().manual_seed(0)
    samples = []
    for count in (3, 0):
        gts = make_gts(count, size, generator)
        gts.labels = torch.zeros_like(gts.labels)
        samples.append(DetDataSample(gt_instances=gts, metainfo=make_meta(size)))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features = detector.extract_feat(torch.randn(2, 3, *size, generator=generator))
        losses, proposals = detector.rpn_head.loss_and_predict(
            features, samples, proposal_cfg=model.train_cfg.rpn_proposal
        )
    sum(losses.values()).backward()
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert all(each.grad.isfinite().all() for each in detector.rpn_head.parameters())
    for each in proposals:
        assert 0 < len(each) <= model.train_cfg.rpn_proposal.max_per_img
        assert each.bboxes.dtype == torch.float32
        assert each.labels.eq(0).all()


def trained(name: str) -> tuple[Config, torch.nn.Module]:
    """A config and its own model with weights that no initialisation gives."""
    cfg = zoo_config(name)
    model = build(cfg)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=0.05)
    return cfg, model


@pytest.mark.parametrize(
    ('name', 'class_layer'), [(ATSS, 'atss_cls'), (FCOS, 'conv_cls'), (RETINA, None)]
)
def test_weights_that_fit_are_carried_over(name: str, class_layer: str | None) -> None:
    cfg, old = trained(name)
    swap = gfl_det.swap_head(cfg)
    transfer = match_weights(swap, old.state_dict())
    new = build(swap.config)
    missing, unexpected = new.load_state_dict(transfer.state, strict=False)
    assert (missing, unexpected) == (transfer.new, [])
    kept, old_state = set(transfer.kept), old.state_dict()
    assert {key for key in old_state if not key.startswith('bbox_head.')} <= kept
    for tower in ('cls_convs', 'reg_convs'):
        for index in range(4):
            key = f'bbox_head.{tower}.{index}.conv.weight'
            assert torch.equal(new.state_dict()[key], old_state[key])
    assert set(transfer.kept.values()) | set(transfer.dropped) == set(old_state)
    assert not any('scales' in key for key in kept)
    if class_layer:
        assert transfer.kept['bbox_head.gfl_cls.weight'] == f'bbox_head.{class_layer}.weight'
        features = [torch.randn(1, 256, 4, 4)] * 5
        with torch.no_grad():
            classes = [model.bbox_head(features)[0][0] for model in (old, new)]
        torch.testing.assert_close(*classes)
    else:
        assert 'bbox_head.gfl_cls.weight' in transfer.new  # nine anchors a cell
        assert 'bbox_head.retina_cls.weight' in transfer.dropped
        assert 'bbox_head.cls_convs.0.gn.weight' in transfer.new


def test_weights_of_a_wrapped_neck_and_of_gfl_itself(tmp_path: Path) -> None:
    cfg, old = trained(SSDLITE)
    transfer = match_weights(gfl_det.swap_head(cfg), old.state_dict())
    neck = [key for key in old.state_dict() if key.startswith('neck.')]
    assert [transfer.kept[key.replace('neck.', 'neck.0.', 1)] for key in neck] == neck
    assert [key for key in transfer.new if key.startswith('neck.')] == [
        f'neck.1.convs.{level}.conv.{kind}' for level in range(6) for kind in ('weight', 'bias')
    ]
    cfg, old = trained('gfl/gfl_r50_fpn_1x_coco')
    torch.save(dict(state_dict=old.state_dict()), tmp_path / 'gfl.pth')
    transfer = carry_over(gfl_det.swap_head(cfg, 'GFLv2Head'), str(tmp_path / 'gfl.pth'))
    assert transfer.dropped == []
    assert {key.rsplit('.', 2)[0] for key in transfer.new} == {'bbox_head.reg_conf'}
    torch.save(dict(state_dict={'other': torch.ones(1)}), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=r'other\.pth .*first is other'):
        carry_over(gfl_det.swap_head(cfg), str(tmp_path / 'other.pth'))


def test_check_finds_non_finite_losses() -> None:
    cfg = gfl_det.swap_head(zoo_config(RETINA)).config
    outcome = check_config(cfg, 64)
    assert {'loss_cls', 'loss_bbox', 'loss_dfl', 'loss'} == set(outcome.losses)
    assert 0 < outcome.detections <= 200
    infinite = copy.deepcopy(cfg)
    infinite.model.bbox_head.loss_dfl.loss_weight = float('inf')
    with pytest.raises(ConfigError, match='NaN or infinite loss'):
        check_config(infinite, 64)


@pytest.mark.parametrize('name', [RETINA, 'pvt/retinanet_pvt-t_fpn_1x_coco'])
def test_a_check_fetches_no_weights(name: str) -> None:
    model = zoo_config(name).model
    assert 'checkpoint' in model.backbone.init_cfg
    assert without_files(model).backbone.init_cfg is None
    assert 'checkpoint' in model.backbone.init_cfg


def run(*words: str) -> None:
    swap_head.run(swap_head.parse_arguments([str(word) for word in words]))


def test_command_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, old = trained(ATSS)
    source, out = tmp_path / 'atss.py', tmp_path / 'new' / 'gfl.py'
    cfg.dump(source)
    torch.save(dict(state_dict=old.state_dict()), tmp_path / 'atss.pth')
    run(source, '--out', out, '--weights', tmp_path / 'atss.pth', '--check')
    told = capsys.readouterr().out
    assert 'ATSSHead -> gfl_det.GFLHead' in told
    assert 'kept' in told
    assert 'bbox_head.atss_cls.weight -> bbox_head.gfl_cls.weight' in told
    assert 'dropped 9 keys' in told
    assert 'one training step: loss ' in told
    written = Config.fromfile(out)
    assert written.model == gfl_det.swap_head(cfg).config.model
    weights = torch.load(written.load_from, weights_only=True)['state_dict']
    assert build(written).load_state_dict(weights, strict=False).unexpected_keys == []
    with pytest.raises(ConfigError, match=r'config that is read'):
        run(source, '--out', source)
    with pytest.raises(ConfigError, match=r'must end in'):
        run(source, '--out', tmp_path / 'gfl.txt')
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r'gfl\.py exists, and nothing is overwritten'):
        run(source, '--out', out, '--head', 'GFLv2Head')
    out.rename(tmp_path / 'kept.py')
    with pytest.raises(ConfigError, match=r'gfl\.pth exists, and nothing is overwritten'):
        run(source, '--out', out, '--weights', tmp_path / 'atss.pth')
    assert (tmp_path / 'kept.py').read_bytes() == before
    with pytest.raises(ConfigError, match=r'nowhere: install it'):
        run('nowhere::x.py', '--out', out)


def test_the_tool_on_a_config_of_mmdet(tmp_path: Path) -> None:
    name = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    done = run_tool('swap_head', name, '--head', 'GFLv2Head', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = Config.fromfile(tmp_path / 'retinanet_r18_fpn_1x_coco_gflv2head.py')
    assert written.model.bbox_head.type == 'gfl_det.GFLv2Head'
    assert MODELS.get(written.model.bbox_head.type) is gfl_det.models.heads.GFLv2Head


def test_a_refusal_is_one_line_of_the_tool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main.run(lambda: run('mmdet::detr/detr_r50_8xb2-150e_coco.py'))
    told = capsys.readouterr()
    assert (caught.value.code, told.out) == (1, '')
    assert told.err.startswith('error: DETR cannot take another head: ')
    assert len(told.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_zoo_is_tried_once_a_model_and_goes_on(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / 'configs'
    (folder / '_base_').mkdir(parents=True)
    (folder / '_base_' / 'not_one.py').write_text('model = 1')
    small = zoo_config('yolox/yolox_nano_8xb8-300e_coco')
    for name, changes in (('a', {}), ('b', dict(max_epochs=1))):
        cfg = copy.deepcopy(small)
        cfg.merge_from_dict(changes)
        cfg.dump(folder / f'{name}.py')
    zoo_config('centernet/centernet_r18_8xb16-crop512-140e_coco').dump(folder / 'c.py')
    zoo_config('faster_rcnn/faster-rcnn_r50_fpn_1x_coco').dump(folder / 'two_stages.py')
    broken = zoo_config('retinanet/retinanet_r18_fpn_1x_coco')
    broken.model.neck.in_channels = [8] * 4
    broken.dump(folder / 'd.py')
    out, tried = tmp_path / 'zoo.jsonl', []
    monkeypatch.setattr(zoo, 'check_config', lambda *_: tried.append(1))
    rows = zoo.run_zoo(out, zoo=folder, chosen=lambda name: name != 'd.py')
    assert [(row.config, row.outcome) for row in rows] == [
        ('a.py', zoo.WORKS),
        ('b.py', zoo.WORKS),
        ('c.py', zoo.REFUSED),
    ]
    assert len(tried) == 1
    rows = zoo.run_zoo(out, zoo=folder)
    assert len(tried) == 1
    assert [json.loads(line)['config'] for line in out.read_text().splitlines()] == [
        'a.py',
        'b.py',
        'c.py',
        'd.py',
    ]
    assert zoo.table(rows).splitlines() == [
        '| old head | works | refused | fails |',
        '| --- | ---: | ---: | ---: |',
        '| CenterNetHead |  | 1 |  |',
        '| RetinaHead |  |  | 1 |',
        '| YOLOXHead | 2 |  |  |',
        '| all 4 | 2 | 1 | 1 |',
    ]
    assert 'heat map' in zoo.sentences(rows)
    assert 'do not run on images' in zoo.sentences(rows)


def test_the_sweep_writes_what_the_page_shows(tmp_path: Path, monkeypatch, capsys) -> None:
    configs = [('a.py', zoo_config('yolox/yolox_nano_8xb8-300e_coco'))]
    monkeypatch.setattr(zoo, 'single_stage_configs', lambda _: iter(configs))
    monkeypatch.setattr(zoo, 'check_config', lambda *_: None)
    monkeypatch.setattr(sweep, 'RESULTS', tmp_path / 'results')
    sweep.try_zoo(sweep.parse_arguments(['--zoo', '--out', str(tmp_path / 'zoo.jsonl')]))
    assert '| YOLOXHead | 1 |' in capsys.readouterr().out
    path = tmp_path / 'results' / 'GFLHead.json'
    assert [row.config for row in zoo.read_json(path)] == ['a.py']
    assert json.loads(path.read_text())['machine']['processor']
