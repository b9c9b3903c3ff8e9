"""The loss guard: what it stops, what it skips, what it costs, and the step done again."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS, OPTIM_WRAPPERS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from gfl_det.cli.replay import parse_arguments, run
from gfl_det.engine.hooks import LossGuardHook
from gfl_det.engine.training import replay
from gfl_det.engine.training.replay import DumpedStep, read_dump, write_dump
from gfl_det.errors import CheckpointError, ConfigError, NonFiniteLossError
from tests.helpers.project import CONFIG, DROPPING

SGD = dict(type='SGD', lr=0.1, momentum=0.9)
SEMI = """
model = dict(
    type='SemiBaseDetector', detector=model,
    data_preprocessor=dict(
        type='MultiBranchDataPreprocessor', data_preprocessor=model['data_preprocessor']),
    semi_train_cfg=dict(freeze_teacher=True, cls_pseudo_thr=0.005, min_pseudo_bbox_wh=(1, 1)))
"""
BRANCHES = ('sup', 'unsup_teacher', 'unsup_student')


class Training:
    """A model, an optimizer, and the guard on them, stepped as mmengine's runner does."""

    text = CONFIG

    def __init__(self, folder: Path, policy: str = 'stop', **wrapper: object) -> None:
        sys.path.insert(0, str(folder))
        (folder / 'tiny.py').write_text(self.text)
        (folder / 'dropping.py').write_text(DROPPING)
        self.cfg = Config.fromfile(folder / 'tiny.py')
        with DefaultScope.overwrite_default_scope('mmdet'):
            self.model = MODELS.build(self.cfg.model)
        self.model.init_weights()
        self.model.train()
        self.hub = MessageHub.get_instance(f'guard {folder.name}')
        settings = dict(type='OptimWrapper', optimizer=SGD, clip_grad=dict(max_norm=35)) | wrapper
        settings = copy.deepcopy(settings)  # mmengine edits it
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.optim = OPTIM_WRAPPERS.build(settings | dict(optimizer=optimizer))
        self.optim.message_hub = self.hub
        self.messages: list[str] = []
        logger = SimpleNamespace(warning=self.messages.append)
        self.runner = SimpleNamespace(
            model=self.model, optim_wrapper=self.optim, message_hub=self.hub, work_dir=str(folder)
        )
        vars(self.runner).update(iter=0, epoch=0, cfg=self.cfg, logger=logger)
        self.guard = LossGuardHook(policy)
        self.guard.before_train(self.runner)

    def step(self, spoil: str = '', scale: float = 1.0) -> dict[str, float]:
        self.guard.before_train_iter(self.runner, 0)
        batch = self.batch(spoil == 'image')
        handle = None
        if spoil == 'gradient':  # finite losses, one infinite gradient
            parameter = self.model.neck.fpn_convs[0].conv.weight
            handle = parameter.register_hook(lambda grad: grad * float('inf'))
        if spoil == 'constant':  # a loss that no gradient tells of
            inner = self.model.bbox_head.loss
            self.model.bbox_head.loss = lambda *args: (
                inner(*args) | {'loss_more': torch.tensor(float('inf'))}
            )
        try:
            outputs = self.model.train_step(batch, self.optim)
        finally:
            if handle:
                handle.remove()
            if spoil == 'constant':
                del self.model.bbox_head.loss
        for key, value in outputs.items():
            self.hub.update_scalar(f'train/{key}', value)
        self.guard.after_train_iter(self.runner, 0, batch, outputs)
        self.runner.iter += 1
        return {key: float(value.detach()) for key, value in outputs.items()}

    def batch(self, spoilt: bool) -> dict:
        batch = make_batch(self.runner.iter)
        if spoilt:
            batch['inputs'][1][0, 5, 5] = float('nan')
        return batch

    def state(self) -> dict[str, torch.Tensor]:
        moments = self.optim.optimizer.state_dict()['state']
        tensors = {f'{key} moment': value['momentum_buffer'] for key, value in moments.items()}
        weights = self.model.state_dict()
        return {key: value.clone() for key, value in (weights | tensors).items()}


class SemiTraining(Training):
    """Of mmdet's semi-supervised detectors: a teacher's boxes are gt boxes of unlabelled images."""

    text = CONFIG + SEMI

    def batch(self, spoilt: bool) -> dict:
        parts = {name: make_batch(seed) for seed, name in enumerate(BRANCHES)}
        for part in parts.values():
            for number, sample in enumerate(part['data_samples']):
                moved = np.array([[1, 0, 3], [0, 1, number], [0, 0, 1]], np.float32)
                sample.set_metainfo(dict(homography_matrix=moved))
        if spoilt:
            parts['unsup_student']['inputs'][1][0, 5, 5] = float('nan')
        keys = ('inputs', 'data_samples')
        return {key: {name: part[key] for name, part in parts.items()} for key in keys}


def make_batch(seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(2):
        boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 90.0, 60.0]])[: index + 1]
        labels = torch.arange(len(boxes))
        sample = DetDataSample(gt_instances=InstanceData(bboxes=boxes, labels=labels))
        sample.set_metainfo(
            dict(img_id=100 + index, img_shape=(64, 96), ori_shape=(64, 96), img_path='a.png')
            | dict(scale_factor=(1.0, 1.0), flip_direction=None)
        )
        samples.append(sample)
    images = [torch.rand(3, 64, 96, generator=generator) * 255 for _ in range(2)]
    return dict(inputs=images, data_samples=samples)


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_good_steps_are_left_alone(tmp_path):
    """With the guard and without: the same bits after three steps."""
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    results = []
    for folder in (tmp_path / 'a', tmp_path / 'b'):
        torch.manual_seed(1)
        training = Training(folder, 'skip')
        if folder.name == 'b':
            training.guard.after_train(training.runner)
        torch.manual_seed(2)
        for _ in range(3):
            training.step()
        results.append(training.state())
        assert training.messages == []
        assert not (folder / 'non_finite').exists()
    assert_same(*results)


@pytest.mark.parametrize('spoil', ['image', 'gradient', 'constant'])
@pytest.mark.parametrize('clip', [dict(max_norm=35), None, dict(type='value', clip_value=1.0)])
def test_a_bad_step_stops_the_training_before_it_changes_weights(tmp_path, spoil, clip):
    training = Training(tmp_path, clip_grad=clip)
    training.step()
    before = dict(training.model.named_parameters())
    before = {key: value.detach().clone() for key, value in before.items()}
    with pytest.raises(NonFiniteLossError) as caught:
        training.step(spoil)
    assert_same(before, {k: v.detach() for k, v in training.model.named_parameters()})
    message = str(caught.value)
    assert message.startswith('Training stopped at iteration 2: a loss or a gradient')
    assert 'image ids 100, 101' in message
    assert 'non_finite/iter_2_rank_0.pt' in message
    assert ('loss_more inf' in message) == (spoil == 'constant')


@pytest.mark.parametrize('spoil', ['image', 'gradient', 'constant'])
def test_a_skipped_step_leaves_everything_as_it_was(tmp_path, spoil):
    training = Training(tmp_path, 'skip')
    training.step()
    before = training.state()
    training.step(spoil)
    assert_same(before, training.state())  # weights, momentum, running statistics
    assert training.messages[0].startswith('Skipped iteration 2')
    losses = training.step()
    assert all(torch.tensor(value).isfinite() for value in losses.values())
    assert len(training.messages) == 1


def test_too_many_skips_stop_the_training(tmp_path):
    training = Training(tmp_path, 'skip')
    for _ in range(10):
        training.step('image')
    with pytest.raises(NonFiniteLossError, match=r'11th time'):
        training.step('image')
    assert len(list((tmp_path / 'non_finite').glob('*.pt'))) == 3  # not one each: they are large
    training = Training(tmp_path, 'skip')
    for _ in range(2):
        for _ in range(6):
            training.step('image')
        training.step()  # a good step between: counted anew


def test_accumulated_gradients_are_dropped_together(tmp_path):
    training = Training(tmp_path, 'skip', accumulative_counts=2)
    training.optim.initialize_count_status(training.model, 0, 6)
    training.step()
    training.step()
    before = {key: value.detach().clone() for key, value in training.model.named_parameters()}
    training.step('gradient')
    training.step()
    assert_same(before, {k: v.detach() for k, v in training.model.named_parameters()})
    training.step()
    training.step()
    after = dict(training.model.named_parameters())
    assert any(not torch.equal(value, after[key]) for key, value in before.items())


class TestLossScaler:
    """CPUAmpOptimWrapper with a scaler goes the ways of mmengine's AmpOptimWrapper on a GPU."""

    def training(self, folder: Path, policy: str = 'stop', **scale: float) -> Training:
        return Training(folder, policy, type='gfl_det.CPUAmpOptimWrapper', loss_scale=scale)

    def test_an_overflow_is_the_scalers_business(self, tmp_path):
        training = self.training(tmp_path, init_scale=1024.0)
        training.step()
        training.step('gradient')  # no error: the scaler has left the step out
        assert training.optim.loss_scaler.get_scale() == 512
        assert training.messages == []
        assert not (tmp_path / 'non_finite').exists()

    @pytest.mark.parametrize('spoil', ['image', 'constant'])
    def test_a_loss_that_is_not_finite_is_an_event(self, tmp_path, spoil):
        training = self.training(tmp_path, init_scale=1024.0)
        with pytest.raises(NonFiniteLossError, match=r'iteration 1: .*not finite'):
            training.step(spoil)

    def test_overflow_whatever_the_scale_is_an_event(self, tmp_path):
        training = self.training(tmp_path, init_scale=65536.0)
        for _ in range(32):
            training.step('gradient')
        with pytest.raises(NonFiniteLossError, match=r'gradients overflow'):
            training.step('gradient')

    def test_its_state_is_saved_and_loaded(self, tmp_path):
        one = self.training(tmp_path, init_scale=1024.0, growth_interval=3)
        for _ in range(2):
            one.step()
        other = self.training(tmp_path, init_scale=4.0, growth_interval=3)
        other.optim.load_state_dict(one.optim.state_dict())
        one.step()
        other.step()
        assert one.optim.loss_scaler.get_scale() == 2048
        assert other.optim.loss_scaler.get_scale() == 2048


class TestReplay:
    @pytest.mark.parametrize('spoil', ['image', 'gradient', ''])
    @pytest.mark.parametrize('mixed', [False, True])
    def test_the_same_losses(self, tmp_path, spoil, mixed, capsys):
        """Dropout, batch statistics and mixed precision included."""
        kind = dict(type='gfl_det.CPUAmpOptimWrapper') if mixed else {}
        training = Training(tmp_path, **kind)
        training.step()
        if not spoil:  # a weight that became too large
            training.model.backbone.layer1[0].conv1.weight.data[0] = 1e38
        with pytest.raises(NonFiniteLossError):
            training.step(spoil)
        path = tmp_path / 'non_finite' / 'iter_2_rank_0.pt'
        torch.load(path, weights_only=True)
        torch.manual_seed(99)  # whatever was drawn since
        dump = read_dump(path)
        result = replay.replay(dump, training.cfg)
        assert dump.record['image_ids'] == [100, 101]
        assert replay.same_losses(dump, result)
        assert result.bad_inputs == ([1] if spoil == 'image' else [])
        assert result.first_bad == {
            'image': 'backbone.conv1',
            'gradient': None,
            '': 'backbone.layer1.0.conv1',
        }.get(spoil)
        assert run(parse_arguments([str(path)])) == 0
        assert 'images: 100, 101' in capsys.readouterr().out

    @pytest.mark.parametrize('spoil', ['image', ''])
    def test_a_batch_with_branches(self, tmp_path, spoil):
        """The teacher's boxes are found and moved again, to the same losses."""
        training = SemiTraining(tmp_path)
        if not spoil:
            training.model.student.backbone.layer1[0].conv1.weight.data[0] = 1e38
        with pytest.raises(NonFiniteLossError, match='image ids sup 100, sup 101, unsup_teacher 1'):
            training.step(spoil)
        path = tmp_path / 'non_finite' / 'iter_1_rank_0.pt'
        dump = read_dump(path)
        assert dump.step.inputs.keys() == dump.step.samples.keys() == set(BRANCHES)
        samples = dump.step.samples['unsup_student']
        assert samples[1].homography_matrix.dtype == np.float32
        assert samples[1].homography_matrix[1, 2] == 1
        assert len(samples[0].gt_instances) > 0
        result = replay.replay(dump, training.cfg)
        assert replay.same_losses(dump, result)
        assert any(key.startswith('unsup_loss') for key in result.losses)
        assert result.bad_inputs == (['unsup_student 1'] if spoil else [])
        assert run(parse_arguments([str(path)])) == 0

    def test_a_file_that_is_not_a_step(self, tmp_path):
        torch.save({'state_dict': {}}, tmp_path / 'a.pt')
        with pytest.raises(CheckpointError, match=r'not written by the loss guard'):
            read_dump(tmp_path / 'a.pt')

    def test_a_file_cannot_choose_a_config_elsewhere(self, tmp_path):
        for name in ('../evil.py', '/etc/evil.py', None, 'missing.py'):
            with pytest.raises(ConfigError, match=r'work dir'):
                replay.find_config(str(tmp_path / 'non_finite' / 'a.pt'), {'config': name})

    def test_another_model_is_an_error(self, tmp_path):
        training = Training(tmp_path)
        with pytest.raises(NonFiniteLossError):
            training.step('image')
        cfg = training.cfg.copy()
        cfg.model.bbox_head.num_classes = 7
        dump = read_dump(tmp_path / 'non_finite' / 'iter_1_rank_0.pt')
        with pytest.raises(CheckpointError, match='--config'):
            replay.replay(dump, cfg)

    def test_another_step_is_told_from_this_one(self, tmp_path):
        training = Training(tmp_path)
        with pytest.raises(NonFiniteLossError):
            training.step('gradient')
        dump = read_dump(tmp_path / 'non_finite' / 'iter_1_rank_0.pt')
        other = dump.step._replace(inputs=dump.step.inputs + 0.01)
        assert not replay.same_losses(dump, replay.replay(dump._replace(step=other), training.cfg))

    def test_the_record_is_json(self, tmp_path):
        training = Training(tmp_path)
        with pytest.raises(NonFiniteLossError):
            training.step('gradient')
        path = tmp_path / 'non_finite' / 'iter_1_rank_0.pt'
        record = json.loads(torch.load(path, weights_only=True)['record'])
        assert record['iteration'] == 1
        assert record['metainfo'][0]['img_shape'] == [64, 96]


def test_a_file_that_cannot_be_written_changes_no_policy(tmp_path, monkeypatch):
    training = Training(tmp_path, 'skip')
    (tmp_path / 'non_finite').touch()  # where the folder should be
    training.step('image')
    assert 'iter_1_rank_0.pt cannot be written' in training.messages[0]
    (tmp_path / 'non_finite').unlink()
    training.guard.max_dumps = 1
    for _ in range(2):
        training.step('image')
    assert 'non_finite/iter_2_rank_0.pt' in training.messages[1]
    assert 'no file was written: non_finite already has 1' in training.messages[2]


def test_a_batch_that_no_file_holds(tmp_path):
    training = Training(tmp_path, 'skip')
    step = DumpedStep([torch.zeros(3, 8, 8)], None, {}, {}, None)
    with pytest.raises(CheckpointError, match=r'no file .* a list'):
        write_dump(tmp_path / 'a.pt', step, {}, training.model)
    step = step._replace(inputs=torch.zeros(1, 3, 8, 8), samples=[dict()])
    with pytest.raises(CheckpointError, match='holds a dict'):
        write_dump(tmp_path / 'a.pt', step, {}, training.model)
    assert step.image_ids() == [0]
    step = step._replace(samples=torch.zeros(2, 5))
    training.runner.model.neck.fpn_convs[0].conv.weight.grad = None
    training.guard._step = step
    training.guard._bad_step('the loss is not finite', float('nan'))
    assert 'image ids 0, 1; ' in training.messages[-1]
    assert 'holds a Tensor' in training.messages[-1]
    assert not (tmp_path / 'a.pt').exists()


def test_an_unknown_policy():
    with pytest.raises(ConfigError, match="policy='ignore' must be 'stop' or 'skip'"):
        LossGuardHook('ignore')
