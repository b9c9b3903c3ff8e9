"""A student beside its teacher: what belongs to whom, what fits, what is refused in time."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData

import gfl_det
from gfl_det.datasets.digits.build import DigitsRecipe, build_digits
from gfl_det.engine.preflight.agreement import check_teacher, pretrained_parts
from gfl_det.errors import CheckpointError, ConfigError, NotSwappableError
from gfl_det.models.detectors import KnowledgeDistillationDetector
from gfl_det.models.detectors.distillation import build_teacher, load_teacher
from tests.helpers.commands import run_tool

NAME = 'ld_r18-w16-gflv1-r18_fpn_digits'


@pytest.fixture(scope='module', autouse=True)
def registered():
    register_all_modules()


@pytest.fixture
def weights(tmp_path) -> str:
    """Weights of the teacher of the shipped pair, unlike those of a fresh one."""
    torch.manual_seed(7)
    teacher = build_teacher('gfl_r18_fpn_digits')
    path = tmp_path / 'teacher.pth'
    torch.save({'state_dict': teacher.state_dict(), 'meta': {'CLASSES': tuple('0123456789')}}, path)
    return str(path)


def pair(weights: str | None, **changes) -> Config:
    cfg = gfl_det.get_config(NAME)
    cfg.model.teacher_ckpt = weights
    cfg.merge_from_dict(changes)
    return cfg


def batch() -> dict:
    gt = InstanceData(bboxes=torch.tensor([[20.0, 20.0, 60.0, 70.0]]), labels=torch.tensor([3]))
    sample = DetDataSample(gt_instances=gt)
    sample.set_metainfo(dict(img_shape=(96, 128), ori_shape=(96, 128), scale_factor=(1.0, 1.0)))
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    return dict(inputs=[image], data_samples=[sample])


def total(model) -> torch.Tensor:
    data = model.data_preprocessor(batch(), training=True)
    return model.parse_losses(model(**data, mode='loss'))[0]


# --- What belongs to whom ----------------------------------------------------------------------


def test_the_teacher_is_no_part_of_the_student(weights: str) -> None:
    model = MODELS.build(pair(weights).model)
    keys = set(model.state_dict())
    model.init_weights()
    student = MODELS.build(gfl_det.get_config('gfl_r18-w16_fpn_digits').model)
    assert keys == set(model.state_dict()) == set(student.state_dict())
    own = {id(value) for value in model.parameters()}
    assert not own & {id(value) for value in model.teacher_model.parameters()}
    total(model.train()).backward()
    assert all(value.grad is None for value in model.teacher_model.parameters())
    trained = [value for value in model.parameters() if value.requires_grad]
    assert all(value.grad is not None and value.grad.isfinite().all() for value in trained)


def test_the_teacher_has_its_weights_and_they_stay(weights: str) -> None:
    model = MODELS.build(pair(weights).model)
    model.init_weights()
    saved = torch.load(weights, weights_only=True)['state_dict']
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    total(model.train()).backward()
    optimizer.step()
    for key, value in model.teacher_model.state_dict().items():
        assert torch.equal(value, saved[key]), key  # the norms' statistics too
    copied = copy.deepcopy(model)
    assert copied.teacher_model is not model.teacher_model


def test_the_teacher_follows_the_student_but_not_its_mode(weights: str) -> None:
    model = MODELS.build(pair(weights).model)
    model.init_weights()
    teacher = model.teacher_model
    assert model.train() is model
    assert model.training
    assert not teacher.training
    model.to(torch.float64)
    assert {value.dtype for value in teacher.parameters()} == {torch.float64}
    model.float().to(memory_format=torch.channels_last)
    convolution = teacher.backbone.layer1[0].conv1.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    model.to('meta')
    assert {value.device.type for value in teacher.parameters()} == {'meta'}
    free = MODELS.build(pair(weights, **{'model.eval_teacher': False}).model).train()
    assert free.teacher_model.training
    assert not free.eval().teacher_model.training


def test_testing_needs_no_teacher(tmp_path) -> None:
    """Neither its weights nor its config have to be there when the student is used."""
    missing = {'model.teacher_config': 'nowhere/teacher.py'}
    model = MODELS.build(pair(str(tmp_path / 'gone.pth'), **missing).model).eval()
    with torch.no_grad():
        (result,) = model.test_step(batch())
    assert result.pred_instances.bboxes.shape[1] == 4
    with pytest.raises(ConfigError, match=r'nowhere/teacher\.py'):
        model.init_weights()


def test_mmdets_name_and_arguments_do(weights: str) -> None:
    cfg = pair(weights).model
    cfg.type = 'gfl_det.KnowledgeDistillationSingleStageDetector'
    cfg.teacher_config = gfl_det.get_config('gfl_r18_fpn_digits')
    assert type(MODELS.build(cfg)) is KnowledgeDistillationDetector
    cfg.output_feature = True
    with pytest.raises(ConfigError, match='output_feature'):
        MODELS.build(cfg)


@pytest.mark.parametrize('bins', [7, 16, 24])
def test_teacher_and_student_of_different_reg_max_train(bins: int) -> None:
    cfg = pair(None, **{'model.bbox_head.reg_max': bins})
    term = dict(type='gfl_det.DistillationLoss', loss_weight=0.25, T=10)
    cfg.model.bbox_head.update(loss_ld_vlr=term, loss_kd=term)
    model = MODELS.build(cfg.model).train()
    loss = total(model)
    loss.backward()
    assert loss.isfinite()
    assert all(each.grad.isfinite().all() for each in model.parameters())


def test_mixed_precision_trains_a_pair(weights: str) -> None:
    term = dict(type='gfl_det.DistillationLoss', loss_weight=0.25, T=10)
    cfg = pair(weights)
    cfg.model.bbox_head.update(loss_ld_vlr=term, loss_kd=term)
    model = MODELS.build(cfg.model).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = total(model)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(each.grad.isfinite().all() for each in model.parameters())


# --- What is refused ---------------------------------------------------------------------------

MISFITS = [
    ({'num_classes': 4}, r'num_classes=4, the teacher of model\.teacher_config 10'),
    (
        {'anchor_generator.strides': [8, 16, 64]},
        r'3 levels of strides \[\(8, 8\), \(16, 16\), \(64, 64\)\], the teacher .* 3 of',
    ),
    ({'anchor_generator.strides': [8, 16]}, '2 levels of strides'),
    ({'anchor_generator.center_offset': 0.5}, r'center_offset'),
]


@pytest.mark.parametrize(('changes', 'message'), MISFITS)
def test_heads_that_do_not_fit(changes: dict, message: str, weights: str) -> None:
    settings = {f'model.bbox_head.{key}': value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=message):
        check_teacher(pair(weights, **settings))
    with pytest.raises(ConfigError, match=message):  # other tools train without our checks
        MODELS.build(pair(weights, **settings).model).init_weights()


def test_images_that_do_not_fit(weights: str) -> None:
    for settings, message in (
        (
            {'model.data_preprocessor.mean': [0, 0, 0]},
            r'mean \[0, 0, 0\], but .* \[123\.675, 116\.28, 103\.53\]',
        ),
        ({'model.data_preprocessor.bgr_to_rgb': False}, 'bgr_to_rgb False'),
    ):
        with pytest.raises(ConfigError, match=message):
            check_teacher(pair(weights, **settings))


def test_parts_that_do_not_fit(weights: str) -> None:
    atss = Config.fromfile(
        Path(sys.modules['mmdet'].__file__).parent / '.mim/configs/atss/atss_r50_fpn_1x_coco.py'
    )
    cfg = pair(weights)
    cfg.model.teacher_config = atss
    with pytest.raises(ConfigError, match=r'ATSSHead, .*distributions'):
        check_teacher(cfg)
    cfg = pair(weights)
    for loss in ('loss_ld', 'loss_kd'):
        cfg.model.bbox_head.pop(loss)
    cfg.model.bbox_head.type = 'gfl_det.GFLHead'
    with pytest.raises(ConfigError, match=r"is GFLHead, .* type='gfl_det\.LDHead'"):
        check_teacher(cfg)
    cfg.model.teacher_config = ConfigDict(model=dict(type='FasterRCNN'))
    with pytest.raises(ConfigError, match='no model with a bbox_head'):
        check_teacher(cfg)


def test_weights_that_do_not_fit(tmp_path, weights: str) -> None:
    wrong = pair(weights, **{'model.teacher_config': 'gfl_r18-w16_fpn_digits'})
    with pytest.raises(CheckpointError) as caught:
        check_teacher(wrong)
    message = str(caught.value)
    assert message.count('\n') == 0
    assert weights in message
    assert 'has another shape for backbone.conv1.weight ((32, 3, 7, 7), not (16, 3, 7, 7))' in (
        message
    )
    state = torch.load(weights, weights_only=True)['state_dict']
    state['bbox_head.extra'] = state.pop('bbox_head.gfl_reg.bias')
    torch.save(state, tmp_path / 'torn.pth')
    with pytest.raises(CheckpointError, match=r'no bbox_head\.gfl_reg\.bias and has beside them'):
        check_teacher(pair(str(tmp_path / 'torn.pth')))
    state = build_teacher('gfl_r18_fpn_digits').state_dict()
    wrapped = {f'module.{key}': value for key, value in state.items()}
    torch.save(wrapped, tmp_path / 'wrapped.pth')
    check_teacher(pair(str(tmp_path / 'wrapped.pth')))


def test_weights_that_are_not_there_or_not_safe(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r'gone\.pth .*teacher'):
        check_teacher(pair(str(tmp_path / 'gone.pth')))
    with pytest.raises(ConfigError, match='teacher_ckpt is None'):
        check_teacher(pair(None))
    (tmp_path / 'bad.pth').write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError):
        check_teacher(pair(str(tmp_path / 'bad.pth')))


def test_classes_in_another_order(weights: str) -> None:
    cfg = pair(weights)
    cfg.train_dataloader.dataset.metainfo.classes = tuple('9876543210')
    by_class = cfg.model.bbox_head.pop('loss_kd')
    check_teacher(cfg)  # edges have no classes
    cfg.model.bbox_head.loss_kd = by_class
    with pytest.raises(ConfigError, match='loss_kd needs the same'):
        check_teacher(cfg)


def test_a_checkpoint_at_an_address_is_fetched_to_be_checked(
    tmp_path, weights: str, monkeypatch
) -> None:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as host:
        Thread(target=host.serve_forever, daemon=True).start()
        cfg = pair(f'http://127.0.0.1:{host.server_port}/teacher.pth')
        cfg.train_dataloader.dataset.metainfo.classes = tuple('9876543210')
        for name in ('LOCAL_RANK', 'SLURM_LOCALID'):
            monkeypatch.setenv(name, '1')
            check_teacher(cfg)  # the first process fetches it, and says what is wrong
            assert not list(tmp_path.glob('cache/**/*.pth'))
            monkeypatch.delenv(name)
        with pytest.raises(ConfigError, match='loss_kd needs the same'):
            check_teacher(cfg)
        host.shutdown()
    assert len(list(tmp_path.glob('cache/**/teacher.pth'))) == 1


def test_a_fitting_pair_passes_and_others_are_left_alone(weights: str) -> None:
    check_teacher(pair(weights))
    check_teacher(gfl_det.get_config('gfl_r18_fpn_digits'))
    coco = gfl_det.get_config('ld_r18-gflv1-r101_fpn_1x_coco')
    coco.model.teacher_config = gfl_det.get_config('gfl_r101_fpn_ms-2x_coco')
    parts = [path for path, _ in pretrained_parts(coco.model)]
    assert parts == ['model.backbone']  # of the teacher its checkpoint alone is needed


def test_swap_head_leaves_pairs_alone() -> None:
    with pytest.raises(NotSwappableError, match='heads of teacher and student'):
        gfl_det.swap_head(gfl_det.get_config(NAME))


# --- The command -------------------------------------------------------------------------------


def train(root: Path, weights: str, *settings: str) -> subprocess.CompletedProcess[str]:
    options = [f'data_root={root}/digits/', f'model.teacher_ckpt={weights}', *settings]
    return run_tool('train', NAME, '--work-dir', root / 'run', '--cfg-options', *options)


def test_the_tool_trains_a_pair_and_stops_before_it_without_the_teacher(
    tmp_path, weights: str
) -> None:
    build_digits(tmp_path / 'digits', DigitsRecipe(train=8, val=2), workers=0)
    refused = train(tmp_path, f'{tmp_path}/gone.pth')
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith('error: The weights')
    assert 'Traceback' not in refused.stderr
    assert not (tmp_path / 'run').exists()
    short = 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.logger.interval=1'
    done = train(tmp_path, weights, *short)
    assert done.returncode == 0, done.stderr
    assert ' loss_ld ' in done.stdout
    saved = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)['state_dict']
    student = MODELS.build(gfl_det.get_config('gfl_r18-w16_fpn_digits').model)
    student.load_state_dict(saved)


def test_the_authors_gfl_v2_is_a_teacher(tmp_path) -> None:
    """Their release has a class channel to spare, which the head drops as it is loaded."""
    cfg = gfl_det.get_config('gfl_r18_fpn_digits')
    cfg.model.bbox_head.type = 'gfl_det.GFLv2Head'
    teacher = build_teacher(cfg)
    state = teacher.state_dict()
    for name in ('weight', 'bias'):
        key = f'bbox_head.gfl_cls.{name}'
        state[key] = torch.cat([state[key] + 1, state[key][:1]])
    torch.save(dict(state_dict=state, meta=dict(epoch=1)), tmp_path / 'v2.pth')
    assert load_teacher(teacher, str(tmp_path / 'v2.pth')) == dict(epoch=1)
    assert torch.equal(teacher.bbox_head.gfl_cls.bias, state['bbox_head.gfl_cls.bias'][:-1])


@pytest.mark.parametrize('part', ['teacher_config', 'bbox_head'])
def test_a_student_without_one_of_its_parts(weights: str, part: str) -> None:
    cfg = pair(weights)
    del cfg.model[part]
    with pytest.raises(ConfigError, match=f'{part} is missing'):
        check_teacher(cfg)
