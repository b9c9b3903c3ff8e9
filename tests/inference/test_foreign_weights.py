"""Weights of NanoDet-Plus: a made-up ncnn pair and a made-up checkpoint of the authors' trainer."""

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest
import torch

import gfl_det
from gfl_det.cli import weights
from gfl_det.compat.published import find_published
from gfl_det.errors import CheckpointError, ConfigError
from gfl_det.inference import foreign_weights
from gfl_det.inference.foreign_weights import convert, run_order, take_authors
from tests.helpers.ncnn_files import random_detector, write_pair

NAME = 'nanodet-plus-m_416'


@pytest.fixture(scope='module')
def detector():
    return random_detector()


@pytest.fixture
def pair(detector, tmp_path):
    return write_pair(detector, tmp_path, NAME)


def outputs(detector, images):
    with torch.no_grad():
        classes, edges = detector.bbox_head(detector.neck(detector.backbone(images)))
    return [*classes, *edges]


def refusal(*args) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        convert(*args)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def theirs(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our keys as the authors write them: the table of the module, backwards, by hand."""
    rules = [
        (r'^neck\.', 'fpn.'),
        (r'^bbox_head\.integral\.', 'head.distribution_project.'),
        (r'^bbox_head\.', 'head.'),
        (r'\.extra_(in|out)\.', r'.extra_lvl_\1_conv.'),
        (r'_blocks\.(\d)\.', r'_blocks.\1.blocks.0.'),
        (r'\.(primary_conv|cheap_operation)\.conv\.', r'.\1.0.'),
        (r'\.(primary_conv|cheap_operation)\.bn\.', r'.\1.1.'),
        (r'\.shortcut\.depthwise_conv\.conv\.', '.shortcut.0.'),
        (r'\.shortcut\.depthwise_conv\.bn\.', '.shortcut.1.'),
        (r'\.shortcut\.pointwise_conv\.conv\.', '.shortcut.2.'),
        (r'\.shortcut\.pointwise_conv\.bn\.', '.shortcut.3.'),
        (r'\.(depth|point)wise_conv\.conv\.', r'.\1wise.'),
        (r'\.depthwise_conv\.bn\.', '.dwnorm.'),
        (r'\.pointwise_conv\.bn\.', '.pwnorm.'),
    ]
    renamed = {}
    for key, value in state.items():
        for ours, other in rules:
            key = re.sub(ours, other, key)
        renamed[key] = value
    return renamed


# Keys of the authors' release, one of each kind of layer.
RELEASED = {
    'backbone.conv1.0.weight',
    'backbone.conv1.1.running_mean',
    'backbone.stage2.0.branch1.2.weight',
    'backbone.stage4.3.branch2.6.running_var',
    'fpn.reduce_layers.2.conv.weight',
    'fpn.reduce_layers.2.bn.bias',
    'fpn.top_down_blocks.1.blocks.0.ghost1.primary_conv.0.weight',
    'fpn.bottom_up_blocks.0.blocks.0.ghost2.cheap_operation.1.bias',
    'fpn.bottom_up_blocks.0.blocks.0.shortcut.0.weight',
    'fpn.bottom_up_blocks.0.blocks.0.shortcut.3.running_mean',
    'fpn.downsamples.0.depthwise.weight',
    'fpn.downsamples.0.pwnorm.weight',
    'fpn.extra_lvl_in_conv.0.dwnorm.weight',
    'fpn.extra_lvl_out_conv.0.pointwise.weight',
    'head.cls_convs.3.1.depthwise.weight',
    'head.cls_convs.0.0.dwnorm.running_var',
    'head.gfl_cls.2.bias',
    'head.distribution_project.project',
}


def test_a_pair_gives_what_the_model_it_was_folded_from_gives(detector, pair, tmp_path):
    found = convert(pair, tmp_path / 'out.pth')
    assert found == ('nanodet-plus-m_416_coco', 'folded', 80)
    inferencer = gfl_det.GFLInferencer(str(tmp_path / 'out.pth'))
    assert inferencer.classes[0] == 'person'
    images = torch.randn(1, 3, 96, 128)
    converted = random_detector()
    state = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    converted.load_state_dict(state, strict=True)
    for ours, expected in zip(outputs(converted, images), outputs(detector, images)):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    (result,) = inferencer([np.zeros((60, 80, 3), np.uint8)])
    assert result.error is None


def test_folded_norms_add_a_bias_and_nothing_else(pair, tmp_path):
    convert(pair, tmp_path / 'out.pth')
    state = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    norm = {key: state[f'backbone.conv1.1.{key}'] for key in ('weight', 'running_mean')}
    assert (norm['weight'] == np.float32((1 + 1e-5) ** 0.5)).all()
    assert not norm['running_mean'].any()
    assert (state['backbone.conv1.1.running_var'] == 1).all()


def test_half_precision_weights_differ_by_their_rounding_alone(detector, tmp_path):
    convert(write_pair(detector, tmp_path, NAME, half=True), tmp_path / 'out.pth')
    state = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    first = run_order(detector)[0]
    factor = first.norm.weight / (first.norm.running_var + first.norm.eps).sqrt()
    expected = (first.conv.weight * factor[:, None, None, None]).half().float()
    torch.testing.assert_close(state['backbone.conv1.0.weight'], expected, rtol=1e-3, atol=1e-6)
    assert not torch.equal(state['backbone.conv1.0.weight'], first.conv.weight)


def test_the_networks_convolutions_run_in_the_order_of_the_release(detector):
    names = [layer.name for layer in run_order(detector)]
    assert len(names) == 110
    assert names[0] == 'backbone.conv1.0'
    # Both branches of a block, the finer level after the coarser, and the levels of the head.
    assert names.index('backbone.stage2.0.branch1.2') < names.index('backbone.stage2.0.branch2.0')
    assert [name for name in names if 'gfl_cls' in name] == [
        f'bbox_head.gfl_cls.{level}' for level in range(4)
    ]
    assert names.index('neck.extra_in.0.pointwise_conv.conv') < names.index(
        'neck.extra_out.0.depthwise_conv.conv'
    )


@pytest.mark.parametrize('form', ['averaged', 'trained', 'plain', 'parallel'])
def test_the_authors_checkpoints_load_with_averaged_weights_first(form, detector, tmp_path):
    release = theirs(detector.state_dict())
    assert release.keys() >= RELEASED
    assert not any('neck' in key or 'bbox_head' in key for key in release)
    release['head.project'] = torch.arange(8.0)
    release['aux_head.gfl_cls.bias'] = torch.zeros(80)
    release['aux_fpn.reduce_layers.0.conv.weight'] = torch.zeros(1)
    prefix = dict(averaged='avg_model.', trained='model.', plain='', parallel='module.')[form]
    state = {f'{prefix}{key}': value for key, value in release.items()}
    if form == 'averaged':
        state |= {f'model.{key}': torch.zeros_like(value) for key, value in release.items()}
    path = tmp_path / f'{NAME}.ckpt'
    torch.save(dict(state_dict=state, epoch=3, global_step=7), path)
    found = convert([path], tmp_path / 'out.pth')
    assert found.kind == ('averaged' if form == 'averaged' else 'trained')
    stored = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    expected = detector.state_dict()
    assert {key for key in expected if 'num_batches' not in key} == stored.keys()
    assert all(torch.equal(value, expected[key]) for key, value in stored.items())
    assert len(gfl_det.GFLInferencer(str(tmp_path / 'out.pth')).classes) == 80


def test_the_release_is_run_by_its_name(detector, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    entry = find_published('nanodet-plus-m_416_coco')
    assert entry.url.endswith('/nanodet-plus-m_416_checkpoint.ckpt')
    assert entry.size is None
    entry.path.parent.mkdir(parents=True)
    state = {f'avg_model.{key}': value for key, value in theirs(detector.state_dict()).items()}
    torch.save(dict(state_dict=state), entry.path)
    inferencer = gfl_det.GFLInferencer('nanodet-plus-m_416_coco')
    assert inferencer.classes[79] == 'toothbrush'
    expected = detector.state_dict()
    for key, value in inferencer.model.state_dict().items():
        assert 'num_batches' in key or torch.equal(value, expected[key]), key


def test_a_checkpoint_that_runs_code_stays_refused(tmp_path):
    path = tmp_path / f'{NAME}.ckpt'
    torch.save(dict(state_dict={}, callback=argparse.Namespace(a=print)), path)
    assert 'refused' in refusal([path], tmp_path / 'out.pth')


def test_another_archive_is_refused(tmp_path):
    path = tmp_path / f'{NAME}.pth'
    path.write_bytes(b'PK\x03\x04 and no more')
    assert str(path) in refusal([path], tmp_path / 'out.pth')
    torch.save([1, 2], path)
    assert str(path) in refusal([path], tmp_path / 'out.pth')
    torch.save(dict(state_dict=dict(x=torch.zeros(1))), path)
    assert 'head.*' in refusal([path], tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


def test_weights_of_another_width_are_refused(pair, detector, tmp_path):
    wide = 'nanodet-plus-m-1.5x_416_coco'
    message = refusal(pair, tmp_path / 'out.pth', wide)
    assert wide in message
    assert 'output channels' in message
    path = tmp_path / f'{NAME}.ckpt'
    torch.save(dict(state_dict=theirs(detector.state_dict())), path)
    assert 'shape' in refusal([path], tmp_path / 'out.pth', wide)


def test_weights_of_another_reg_max_or_class_count_are_refused(tmp_path):
    for change in (dict(reg_max=15), dict(num_classes=20)):
        cfg = gfl_det.get_config('nanodet-plus-m_416_coco')
        cfg.model.bbox_head.update(change)
        message = refusal(write_pair(random_detector(cfg), tmp_path, NAME), tmp_path / 'out.pth')
        assert 'bbox_head.gfl_cls.0 needs 112' in message


def test_a_param_of_another_network_is_refused(pair, tmp_path):
    param, weights = pair
    lines = param.read_text().splitlines()
    fewer = [lines[0], f'{len(lines) - 3} 1', *lines[2:-1]]
    size = len(weights.read_bytes()) - (4 + 4 * 112 * 96 + 4 * 112)
    weights.write_bytes(weights.read_bytes()[:size])
    param.write_text('\n'.join(fewer))
    assert '109 convolutions' in refusal(pair, tmp_path / 'out.pth')


def test_another_slope_and_other_files_are_refused(pair, tmp_path):
    param, weights = pair
    param.write_text(param.read_text().replace('1.000000e-01', '2.000000e-01', 1))
    assert 'rectifier' in refusal(pair, tmp_path / 'out.pth')
    assert 'in this order' in refusal([weights, param], tmp_path / 'out.pth', NAME + '_coco')
    assert 'in this order' in refusal([param], tmp_path / 'out.pth')
    (tmp_path / 'mine.ckpt').touch()
    assert '--config' in refusal([tmp_path / 'mine.ckpt'], tmp_path / 'out.pth')


def test_a_missing_file_is_named_first(pair, tmp_path):
    missing = str(tmp_path / 'nanodet.bin')
    with pytest.raises(CheckpointError, match=r'nanodet\.bin is not a file'):
        convert([pair[0], missing], tmp_path / 'x.pth')


def test_the_longest_name_that_fits_is_taken():
    assert foreign_weights.config_of('a/nanodet-plus-m-1.5x_416_checkpoint.ckpt') == (
        'nanodet-plus-m-1.5x_416_coco'
    )
    assert foreign_weights.config_of('nanodet-plus-m_320.pth') == 'nanodet-plus-m_320_coco'


def test_the_command_says_what_it_wrote(pair, tmp_path, capsys):
    out = str(tmp_path / 'out.pth')
    weights.run(weights.parse_arguments(['convert', *map(str, pair), '--out', out]))
    assert capsys.readouterr().out == (
        f'{out}: folded weights of nanodet-plus-m_416_coco, 80 classes\n'
    )


def test_the_authors_norms_keep_their_statistics(detector):
    state, _ = take_authors(dict(state_dict=theirs(detector.state_dict())), 'x')
    mean = 'neck.downsamples.0.pointwise_conv.bn.running_mean'
    assert torch.equal(state[mean], detector.state_dict()[mean])
