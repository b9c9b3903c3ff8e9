"""Each config: MMDetection's values, its state dicts, and a training step with finite gradients."""

from __future__ import annotations

import copy
import functools
import socket
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import DATASETS, MODEL_WRAPPERS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

import gfl_det
from gfl_det.engine.runner import build_runner
from gfl_det.errors import ConfigError, SetupError
from tests.helpers.initial_weights import take_from_one_block
from tests.helpers.paths import ROOT

CONFIGS = ROOT / 'configs'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))
ISSUED = {
    'gfl_r18_fpn_1x_coco',
    'gfl_r34_fpn_1x_coco',
    'gfl_r50_fpn_1x_coco',
    'gfl_r50_fpn_ms-2x_coco',
    'gfl_r101_fpn_ms-2x_coco',
    'gfl_r101-dconv-c3-c5_fpn_ms-2x_coco',
    'gfl_x101-32x4d_fpn_ms-2x_coco',
    'gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco',
}
ISSUED |= {
    name.replace('gfl_', 'gfl_v2_') for name in ISSUED if 'r18' not in name and 'r34' not in name
}
# Names of ours that MMDetection has another word for.
DISTILLATION = {
    'gfl_det.KnowledgeDistillationDetector': 'KnowledgeDistillationSingleStageDetector',
    'gfl_det.DistillationLoss': 'KnowledgeDistillationKLDivLoss',
}
STUDENTS_ALONE = {
    'ld_r18-gflv1-r101_fpn_1x_coco': 'gfl_r18_fpn_1x_coco',
    'ld_r50-gflv1-r101_fpn_1x_coco': 'gfl_r50_fpn_1x_coco',
    'ld_r18-w16-gflv1-r18_fpn_digits': 'gfl_r18-w16_fpn_digits',
}
ISSUED |= set(STUDENTS_ALONE)
STUDENTS = [name for name in NAMES if name.startswith('ld_')]
MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'


@pytest.fixture(autouse=True)
def default_scope():
    """Parts of a model are built by their plain names, as in a Runner of these configs."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@functools.cache
def shipped(name: str) -> Config:
    return gfl_det.get_config(name)


def as_mmdet(value):
    """The same settings with MMDetection's own classes: our prefix and scope marks removed."""
    if isinstance(value, dict):
        ours = ('_scope_', 'loss_kd')  # mmdet's LDHead learns no classes
        return {key: as_mmdet(item) for key, item in value.items() if key not in ours}
    if isinstance(value, (list, tuple)):
        return type(value)(as_mmdet(item) for item in value)
    # GFLv2 has no counterpart in MMDetection: its head is GFL's and a network more.
    names = {'gfl_det.GFLv2Head': 'GFLHead', **DISTILLATION}
    return names.get(value, value.replace('gfl_det.', '')) if isinstance(value, str) else value


def without_download(model: dict) -> dict:
    model = copy.deepcopy(model)
    model['backbone']['init_cfg'] = None
    if 'teacher_config' in model:
        model['teacher_config'] = shipped(model['teacher_config']).to_dict()
        model['teacher_config']['model']['backbone']['init_cfg'] = None
        model['teacher_ckpt'] = None
    return model


def batch(model: torch.nn.Module, num_classes: int) -> dict:
    """Two small pictures of different sizes, with two objects and with one."""
    boxes = [[[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 90.0, 60.0]], [[8.0, 8.0, 56.0, 40.0]]]
    shapes = [(96, 96), (64, 96)]  # the coarsest stage still covers a 3x3 kernel
    samples = []
    for shape, gts in zip(shapes, boxes):
        labels = torch.arange(len(gts)) % num_classes
        gt = InstanceData(bboxes=torch.tensor(gts), labels=labels)
        sample = DetDataSample(gt_instances=gt)
        sample.set_metainfo(dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in shapes]
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)


def train_step(model: torch.nn.Module, num_classes: int) -> dict[str, torch.Tensor]:
    total, losses = model.parse_losses(model(**batch(model, num_classes), mode='loss'))
    total.backward()
    return losses


# MMDetection has no NanoDet-Plus: tests/models/test_nanodet_plus.py trains it.
@pytest.mark.parametrize('name', [name for name in NAMES if not name.startswith('nanodet')])
def test_builds_loads_mmdets_weights_and_trains(name, monkeypatch):
    settings = without_download(shipped(name).model.to_dict())
    with monkeypatch.context() as patch:
        take_from_one_block(patch)
        ours = MODELS.build(copy.deepcopy(settings))
        # Ours are loaded into the other model.
        patch.setattr(torch.nn.init, 'kaiming_uniform_', lambda tensor, **_: tensor)
        theirs = MODELS.build(as_mmdet(settings))
    assert type(ours.bbox_head).__module__.startswith('gfl_det.')
    assert type(theirs.bbox_head).__module__.startswith('mmdet.')
    added = {key for key in ours.state_dict() if 'reg_conf' in key}
    assert bool(added) == (type(ours.bbox_head).__name__ == 'GFLv2Head')
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert (missing, set(unexpected)) == ([], added)
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (set(missing), unexpected) == (added, [])

    num_classes = settings['bbox_head']['num_classes']
    losses = train_step(ours, num_classes)
    assert {'loss_cls', 'loss_bbox', 'loss_dfl'} <= losses.keys()
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    trained = {key: value for key, value in ours.named_parameters() if value.requires_grad}
    assert all(value.grad is not None for value in trained.values())
    assert all(value.grad.sum().isfinite() for value in trained.values())  # else NaN or infinite
    assert any('backbone.' in key and value.grad.any() for key, value in trained.items())
    if 'dcn' in settings['backbone']:
        ours.bbox_head.test_cfg = ConfigDict(ours.bbox_head.test_cfg)
        ours.eval()
        with torch.no_grad():
            found = ours(**batch(ours, num_classes), mode='predict')
        assert all(each.pred_instances.scores.isfinite().all() for each in found)


def test_the_published_names_are_there():
    assert set(NAMES) >= ISSUED
    assert gfl_det.utils.config.config_names() == NAMES


@pytest.mark.parametrize('name', [name for name in STUDENTS if name.endswith('_1x_coco')])
def test_a_student_says_what_mmdets_of_the_same_name_says(name):
    ours = shipped(name).to_dict()
    theirs = Config.fromfile(MMDET_CONFIGS / 'ld' / f'{name}.py').to_dict()
    assert ours.pop('custom_imports')['imports'] == ['gfl_det']
    assert ours['optim_wrapper'].pop('clip_grad') == dict(max_norm=35, norm_type=2)
    theirs.pop('teacher_ckpt')  # a name that mmdet's file gives to an address used below it
    # mmdet's is a path below a folder that it is started in.
    assert (
        theirs['model'].pop('teacher_config')
        == f'configs/gfl/{ours["model"].pop("teacher_config")}.py'
    )
    assert as_mmdet(ours) == as_mmdet(theirs)


@pytest.mark.parametrize('name', STUDENTS)
def test_a_student_differs_from_the_same_model_alone_in_its_teacher(name):
    taught, alone = (shipped(each).to_dict() for each in (name, STUDENTS_ALONE[name]))
    assert taught['model'].pop('type') == 'gfl_det.KnowledgeDistillationDetector'
    assert alone['model'].pop('type') == 'GFL'
    teacher = shipped(taught['model'].pop('teacher_config')).model
    assert teacher.bbox_head.num_classes == alone['model']['bbox_head']['num_classes']
    assert taught['model'].pop('teacher_ckpt').endswith('.pth')
    assert taught['model']['bbox_head'].pop('type') == 'gfl_det.LDHead'
    assert alone['model']['bbox_head'].pop('type') == 'gfl_det.GFLHead'
    assert taught['model']['bbox_head'].pop('loss_ld')['loss_weight'] > 0
    taught['model']['bbox_head'].pop('loss_kd', None)
    assert taught == alone


@pytest.mark.parametrize('path', sorted((MMDET_CONFIGS / 'gfl').glob('*.py')), ids=lambda p: p.stem)
def test_says_what_mmdets_config_of_the_same_name_says(path):
    ours, theirs = shipped(path.stem).to_dict(), Config.fromfile(path).to_dict()
    assert ours.pop('custom_imports')['imports'] == ['gfl_det']
    theirs.pop('max_epochs', None)  # a name that mmdet's file gives to a number used below it
    assert ours['optim_wrapper'].pop('clip_grad') == dict(max_norm=35, norm_type=2)
    assert as_mmdet(ours) == as_mmdet(theirs)


@pytest.mark.parametrize('name', sorted(name for name in NAMES if '_v2_' in name))
def test_v2_differs_from_v1_in_the_head_alone(name):
    v2, v1 = (shipped(each).to_dict() for each in (name, name.replace('_v2_', '_')))
    assert v2['model']['bbox_head'].pop('type') == 'gfl_det.GFLv2Head'
    assert v1['model']['bbox_head'].pop('type') == 'gfl_det.GFLHead'
    assert v2 == v1


@pytest.mark.parametrize('depth', [18, 34])
def test_small_models_have_the_shape_of_mmdets_distilled_ones(depth):
    student = f'ld_r{depth}-gflv1-r101_fpn_1x_coco.py'
    theirs = Config.fromfile(MMDET_CONFIGS / 'ld' / student).model.to_dict()
    ours = as_mmdet(shipped(f'gfl_r{depth}_fpn_1x_coco').model.to_dict())
    for part in ('data_preprocessor', 'backbone', 'neck', 'train_cfg', 'test_cfg'):
        assert ours[part] == theirs[part]
    distillation = {'type', 'loss_ld'}
    for key in theirs['bbox_head'].keys() - distillation:
        assert ours['bbox_head'][key] == theirs['bbox_head'][key]


@pytest.mark.parametrize('name', NAMES)
def test_every_split_is_read_by_the_checked_dataset(name):
    config = shipped(name)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        dataset = loader.dataset
        while 'dataset' in dataset:  # wrappers such as RepeatDataset
            dataset = dataset.dataset
        assert dataset.type == 'gfl_det.CocoDataset'
        assert DATASETS.get(dataset.type) is gfl_det.datasets.CocoDataset


@pytest.mark.parametrize('path', sorted(CONFIGS.rglob('*.py')), ids=lambda path: path.stem)
def test_gradients_are_clipped_and_the_rate_warms_up_and_scales(path):
    config = Config.fromfile(path)
    assert set(config.optim_wrapper.clip_grad) & {'max_norm', 'clip_value'}
    warm_up, *rest = config.param_scheduler
    assert warm_up.type == 'LinearLR'
    assert warm_up.start_factor <= 0.1
    assert (warm_up.begin, warm_up.by_epoch) == (0, False)
    assert warm_up.end >= 50
    assert rest
    assert config.auto_scale_lr.base_batch_size >= 1


def test_a_name_may_end_in_py():
    with_suffix = gfl_det.get_config('gfl_r50_fpn_1x_coco.py')
    assert with_suffix.to_dict() == shipped('gfl_r50_fpn_1x_coco').to_dict()


def test_an_unknown_name_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(ConfigError) as caught:
        gfl_det.get_config('gfl_r50_fpn_2x_coco')
    message = str(caught.value)
    assert '"gfl_r50_fpn_2x_coco" (did you mean "gfl_r50_fpn_1x_coco"?)' in message
    assert all(name in message for name in NAMES)
    with pytest.raises(ConfigError, match='named "zzz";'):
        gfl_det.get_config('zzz')
    with pytest.raises(ConfigError):  # no way out of the folder
        gfl_det.get_config('../configs/gfl_r50_fpn_1x_coco')


def test_an_installation_without_configs_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr('gfl_det.utils.config.CONFIG_FOLDERS', (tmp_path, tmp_path / 'absent'))
    with pytest.raises(SetupError, match='install gfl_det again'):
        gfl_det.get_config('gfl_r50_fpn_1x_coco')


def test_the_sharded_config_builds(monkeypatch, tmp_path):
    """The runner with its strategy, and the model; FSDP itself wants a GPU."""
    config = gfl_det.get_config('gfl_r50_fpn_1x_coco_fsdp')
    assert config.model == shipped('gfl_r50_fpn_1x_coco').model
    config.work_dir = str(tmp_path)
    config.model.backbone.init_cfg = None
    variables = dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')  # mmengine would set them for good
    variables |= dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        variables['MASTER_PORT'] = str(probe.getsockname()[1])
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    try:
        runner = build_runner(config, 'pytorch')
        assert type(runner.strategy).__name__ == 'FSDPStrategy'
        wrapper = MODEL_WRAPPERS.get(runner.strategy.model_wrapper['type'])
        assert wrapper is gfl_det.engine.training.ShardedDataParallel
        model = runner.strategy.build_model(config.model)
        assert sum(each.dim() == 0 for each in model.parameters()) == 5  # what FSDP refuses
        if not torch.cuda.device_count():
            with pytest.raises(RuntimeError, match='accelerator'):
                runner.strategy._wrap_model(model)
    finally:
        torch.distributed.destroy_process_group()


def test_the_metafile_lists_every_coco_config():
    index = Config.fromfile(CONFIGS.parent / 'model-index.yml')
    models = [m for path in index.Import for m in Config.fromfile(CONFIGS.parent / path).Models]
    assert {model.Name for model in models} == {name for name in NAMES if name.endswith('_coco')}
    for model in models:
        assert model.Config == f'configs/{model.Name}.py'
        assert model.Metadata.Epochs == shipped(model.Name).train_cfg.max_epochs
