"""The tools: what their options do to a config, and the command lines themselves."""

from __future__ import annotations

import json
import os
import re
import socket

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch._utils import ExceptionWrapper

import gfl_det
from gfl_det.cli import main as cli
from gfl_det.cli import test as testing
from gfl_det.cli import train
from gfl_det.compat import environment
from gfl_det.engine import amp, config_edits, runner
from gfl_det.errors import CheckpointError, ConfigError, DataError, SetupError
from gfl_det.utils.config import load_config, move_data_root, override, walk
from gfl_det.utils.faults import move
from tests.helpers.commands import run_script, run_tool
from tests.helpers.paths import ROOT

COCO = 'gfl_r50_fpn_1x_coco'


def shipped() -> Config:
    return gfl_det.get_config(COCO)


def strings(cfg: Config, key: str) -> list[str]:
    return [node[key] for _, node in walk(cfg.to_dict(), '') if isinstance(node.get(key), str)]


class TestDataRoot:
    @pytest.mark.parametrize('new', ['/big/coco', '/big/coco/', 'data', 'data/coco/2017'])
    def test_every_path_moves_once(self, new):
        cfg = shipped()
        override(cfg, {'data_root': new})
        root = new.rstrip('/')
        assert cfg.data_root == new
        assert {path.rstrip('/') for path in strings(cfg, 'data_root')} == {root}
        assert {cfg.val_evaluator.ann_file, cfg.test_evaluator.ann_file} == {
            f'{root}/annotations/instances_val2017.json'
        }
        # Paths below a root are joined by the data sets themselves.
        assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'

    def test_mmengine_alone_leaves_the_paths_behind(self):
        cfg = shipped()
        cfg.merge_from_dict({'data_root': '/big/coco'})
        assert cfg.val_evaluator.ann_file.startswith('data/coco/')

    def test_a_path_set_by_hand_wins(self):
        cfg = shipped()
        settings = {
            'val_evaluator.ann_file': 'mine.json',
            'data_root': '/big',
            'train_dataloader.dataset.data_root': '/other',
        }
        override(cfg, settings)
        assert cfg.val_evaluator.ann_file == 'mine.json'
        assert cfg.train_dataloader.dataset.data_root == '/other'
        assert cfg.val_dataloader.dataset.data_root == '/big/'

    def test_paths_elsewhere_stay(self):
        cfg = shipped()
        cfg.val_evaluator.ann_file = 'data/coco2/val.json'
        move_data_root(cfg, '/big')
        assert cfg.val_evaluator.ann_file == 'data/coco2/val.json'

    def test_a_config_with_one_root_and_no_variable_for_it(self):
        cfg = shipped()
        cfg.pop('data_root')
        move_data_root(cfg, '/big')
        assert cfg.val_evaluator.ann_file == '/big/annotations/instances_val2017.json'
        cfg.train_dataloader.dataset.data_root = '/third'
        cfg.pop('data_root')
        with pytest.raises(ConfigError, match='no single data_root'):
            move_data_root(cfg, '/big')


class TestOverrides:
    def test_keys_that_the_config_lacks_are_told_with_the_nearest(self):
        cfg = shipped()
        (warning,) = override(cfg, {'train_cfg.max_epoch': 3})
        assert 'has no train_cfg.max_epoch' in warning
        assert 'did you mean train_cfg.max_epochs?' in warning
        assert cfg.train_cfg.max_epoch == 3

    @pytest.mark.parametrize(
        'settings',
        [
            {'train_cfg.max_epochs': 3},
            {'model.bbox_head.num_classes': 3},
            {'train_dataloader.dataset.pipeline.2.scale': (640, 480)},
            {'randomness.seed': 0},  # an argument of the Runner, which any config may take
            {'work_dir': 'x'},
            {},
        ],
    )
    def test_known_keys_pass_without_a_word(self, settings):
        assert override(shipped(), settings) == []

    def test_an_index_beyond_a_list(self):
        with pytest.raises(ConfigError, match='cannot be merged'):
            override(shipped(), {'train_dataloader.dataset.pipeline.99.scale': 1})

    def test_settings_are_not_edited(self):
        settings = {'data_root': '/big'}
        override(shipped(), settings)
        assert settings == {'data_root': '/big'}


class TestOptions:
    def test_the_work_dir_comes_from_option_config_or_name(self):
        cfg = Config({})
        config_edits.set_work_dir(cfg, None, 'some/folder/name.py')
        assert cfg.work_dir == 'work_dirs/name'
        config_edits.set_work_dir(cfg, None, 'other.py')
        assert cfg.work_dir == 'work_dirs/name'
        config_edits.set_work_dir(cfg, 'mine', 'other.py')
        assert cfg.work_dir == 'mine'

    def test_training_from_scratch_frees_what_rested_on_the_weights(self):
        cfg = shipped()
        assert cfg.model.backbone.frozen_stages == 1
        config_edits.train_from_scratch(cfg)
        backbone = cfg.model.backbone
        assert (backbone.init_cfg, backbone.frozen_stages, backbone.norm_eval) == (None, -1, False)

    @pytest.mark.parametrize(
        ('launcher', 'variable', 'batch', 'steps', 'expected'),
        [
            ('none', None, 2, 1, '0.01 x 2/16 = 0.00125 for batches of 2 images, set for 16'),
            ('pytorch', 'WORLD_SIZE', 2, 1, '0.01 x 16/16 = 0.01 for batches of 2 images x 8 proc'),
            ('slurm', 'SLURM_NTASKS', 4, 1, '0.01 x 32/16 = 0.02 for batches of 4 images x 8 proc'),
            ('none', None, 4, 2, '0.01 x 8/16 = 0.005 for batches of 4 images x 2 steps, set for'),
        ],
    )
    def test_the_learning_rate_is_scaled_and_said(
        self, monkeypatch, launcher, variable, batch, steps, expected
    ):
        cfg = shipped()
        cfg.train_dataloader.batch_size = batch
        if steps > 1:
            cfg.optim_wrapper.accumulative_counts = steps
        if variable:
            monkeypatch.setenv(variable, '8')
        line = config_edits.scale_learning_rate(cfg, launcher)
        assert line.startswith(f'learning rate {expected}')
        assert line.endswith('(--no-scale-lr keeps 0.01)')
        assert cfg.auto_scale_lr.enable
        # What mmengine will make of it.
        processes = 8 if variable else 1
        rate = 0.01 * batch * processes / cfg.auto_scale_lr.base_batch_size
        assert f'= {rate:g} ' in line

    def test_the_learning_rate_is_left_alone(self):
        cfg = shipped()
        line = config_edits.scale_learning_rate(cfg, wanted=False)
        assert line == 'learning rate 0.01, as in the config (--no-scale-lr)'
        assert not cfg.auto_scale_lr.enable
        cfg.auto_scale_lr = None
        assert 'does not say for what batch size' in config_edits.scale_learning_rate(cfg)
        assert not cfg.auto_scale_lr.enable
        cfg.optim_wrapper.optimizer.lr = 'high'
        with pytest.raises(ConfigError, match=r"optimizer\.lr is 'high'"):
            config_edits.scale_learning_rate(cfg)
        cfg = shipped()
        cfg.train_dataloader.batch_size = 0
        with pytest.raises(ConfigError, match='batch_size is 0'):
            config_edits.scale_learning_rate(cfg)

    def test_what_is_lost_otherwise_is_protected(self):
        cfg = shipped()
        config_edits.protect(cfg)
        config_edits.protect(cfg)  # again: nothing twice
        assert cfg.train_cfg.type == 'gfl_det.EpochTrainLoop'
        assert cfg.default_hooks.checkpoint.type == 'gfl_det.CheckpointHook'
        assert [hook.type for hook in cfg.custom_hooks] == [
            'gfl_det.StopSignalHook',
            'gfl_det.FoldedNormsHook',
            'gfl_det.LossGuardHook',
        ]
        cfg = shipped()
        cfg.train_cfg = dict(by_epoch=True, max_epochs=3)
        cfg.default_hooks.checkpoint = dict(type='MyHook')
        config_edits.protect(cfg, 'off')
        assert cfg.train_cfg == dict(type='gfl_det.EpochTrainLoop', max_epochs=3)
        assert cfg.default_hooks.checkpoint.type == 'MyHook'
        assert len(cfg.custom_hooks) == 2
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3)
        config_edits.protect(cfg, 'skip')
        assert cfg.train_cfg.type == 'IterBasedTrainLoop'
        assert cfg.custom_hooks[-1].policy == 'skip'

    def test_resuming_needs_no_other_weights(self, tmp_path):
        cfg = shipped()
        cfg.work_dir = str(tmp_path)
        config_edits.resume(cfg, None)
        assert cfg.resume is False
        assert config_edits.resume(cfg, 'auto')[0].endswith('to resume from: a new training')
        assert (cfg.resume, cfg.load_from) == (False, None)
        assert cfg.model.backbone.init_cfg is not None
        path = tmp_path / 'epoch_1.pth'
        torch.save(dict(meta=dict(epoch=1, iter=7), state_dict={}, optimizer={}), path)
        (said,) = config_edits.resume(cfg, 'auto')
        assert said == f'resuming from {path}: epoch 1, iteration 7'
        assert (cfg.resume, cfg.load_from) == (True, str(path))
        assert cfg.model.backbone.init_cfg is None
        with pytest.raises(CheckpointError, match=r'gone\.pth does not exist; .*epoch_1\.pth'):
            config_edits.resume(cfg, 'gone.pth')

    def test_a_configs_own_resume_is_the_options(self, tmp_path):
        cfg = shipped()
        cfg.resume, cfg.work_dir = True, str(tmp_path)
        assert config_edits.resume(cfg, None)[0].endswith('to resume from: a new training')
        weights = tmp_path / 'weights.pth'
        torch.save(dict(state_dict={}), weights)
        cfg.resume, cfg.load_from = True, str(weights)
        with pytest.raises(
            CheckpointError, match=r'weights\.pth holds weights but no training state'
        ):
            config_edits.resume(cfg, None)

    def test_pictures_go_to_the_folder_named(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        cfg = shipped()
        config_edits.draw_into(cfg, 'pictures')
        assert cfg.default_hooks.visualization.draw
        assert cfg.default_hooks.visualization.test_out_dir == str(tmp_path / 'pictures')
        with pytest.raises(ConfigError, match='DetVisualizationHook'):
            config_edits.draw_into(Config({}), 'pictures')

    def test_results_by_their_ending(self):
        cfg = shipped()
        config_edits.write_results(cfg, 'out/r.json')
        assert cfg.test_evaluator.outfile_prefix == 'out/r'
        config_edits.write_results(cfg, 'r.pkl')
        assert [metric.type for metric in cfg.test_evaluator] == ['CocoMetric', 'DumpDetResults']
        with pytest.raises(ConfigError, match=r'r\.txt must end in \.pkl .* or \.json'):
            config_edits.write_results(cfg, 'r.txt')
        cfg.test_evaluator = {'type': 'VOCMetric'}
        with pytest.raises(ConfigError, match='needs a CocoMetric'):
            config_edits.write_results(cfg, 'r.json')

    def test_metrics_are_resampled(self):
        cfg = shipped()
        own = dict(type='gfl_det.CalibrationMetric')
        cfg.test_evaluator = [cfg.test_evaluator, own, dict(type='VOCMetric')]
        config_edits.resample_metrics(cfg, 7)
        kinds = ['gfl_det.CocoMetric', 'gfl_det.CalibrationMetric', 'VOCMetric']
        assert [metric.type for metric in cfg.test_evaluator] == kinds
        assert [metric.get('resamples') for metric in cfg.test_evaluator] == [7, 7, None]
        cfg.test_evaluator = dict(type='VOCMetric')
        with pytest.raises(ConfigError, match='--resamples 7'):
            config_edits.resample_metrics(cfg, 7)

    def test_augmentation_wraps_the_model_and_mirrors_the_images(self):
        cfg = shipped()
        model, before = cfg.model, cfg.test_dataloader.dataset.pipeline
        config_edits.use_test_time_augmentation(cfg)
        assert (cfg.model.type, cfg.model.module) == ('DetTTAModel', model)
        *steps, augment = cfg.test_dataloader.dataset.pipeline
        assert steps == before[:-1]
        assert [step.prob for step in augment.transforms[0]] == [1.0, 0.0]
        assert {'flip', 'flip_direction'} <= set(augment.transforms[1][0].meta_keys)
        assert 'flip' not in before[-1].meta_keys

    def test_augmentation_of_the_config_is_taken(self):
        cfg = shipped()
        cfg.tta_model = {'type': 'DetTTAModel', 'tta_cfg': {'max_per_img': 7}}
        cfg.tta_pipeline = [{'type': 'LoadImageFromFile'}]
        config_edits.use_test_time_augmentation(cfg)
        assert cfg.model.tta_cfg.max_per_img == 7
        assert cfg.test_dataloader.dataset.pipeline == [{'type': 'LoadImageFromFile'}]


class TestMixedPrecision:
    def test_by_device(self, monkeypatch):
        monkeypatch.setattr(environment, 'computes_bfloat16', lambda: True)
        cfg = shipped()
        config_edits.use_amp(cfg, has_gpu=True)
        assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ('AmpOptimWrapper', 'float16')
        assert cfg.optim_wrapper.loss_scale == 'dynamic'
        cfg = shipped()
        config_edits.use_amp(cfg, has_gpu=False)
        assert cfg.optim_wrapper.type == 'gfl_det.CPUAmpOptimWrapper'
        assert cfg.optim_wrapper.optimizer == shipped().optim_wrapper.optimizer

    def test_a_processor_without_bfloat16(self, monkeypatch):
        monkeypatch.setattr(environment, 'computes_bfloat16', lambda: False)
        cfg = shipped()
        with pytest.raises(SetupError, match='float32, without --amp'):
            config_edits.use_amp(cfg, has_gpu=False)
        assert cfg.optim_wrapper == shipped().optim_wrapper
        config_edits.use_amp(cfg, has_gpu=True)
        monkeypatch.setattr(amp, 'computes_bfloat16', lambda: False)
        optimizer = torch.optim.SGD(nn.Linear(4, 1).parameters(), lr=0.1)
        with pytest.warns(UserWarning, match='float32'):
            amp.CPUAmpOptimWrapper(optimizer=optimizer)

    def test_a_processor_computes_in_bfloat16_and_learns_in_float32(self):
        model = nn.Linear(4, 1)
        before = model.weight.detach().clone()
        wrapper = amp.OPTIM_WRAPPERS.build(
            {
                'type': 'gfl_det.CPUAmpOptimWrapper',
                'optimizer': torch.optim.SGD(model.parameters(), lr=0.1),
                'clip_grad': {'max_norm': 1.0},
            }
        )
        with wrapper.optim_context(model):
            output = model(torch.ones(2, 4))
        assert output.dtype == torch.bfloat16
        wrapper.update_params(output.float().mean())
        assert model.weight.dtype == torch.float32
        # The gradient is 1 for each of four weights and the bias: clipped to 1 / sqrt(5).
        torch.testing.assert_close(before - model.weight, torch.full((1, 4), 0.1 / 5**0.5))


class TestCommandLine:
    def test_training(self, monkeypatch):
        monkeypatch.delenv('LOCAL_RANK', raising=False)
        words = 'c.py --work-dir w --resume --amp --auto-scale-lr --from-scratch --local-rank 3'
        args = train.parse_arguments([*words.split(), '--cfg-options', 'a.b=1', 'c=[x,y]'])
        assert (args.config, args.work_dir, args.resume) == ('c.py', 'w', 'auto')
        assert args.amp
        assert args.scale_lr
        assert args.from_scratch
        assert args.cfg_options == {'a.b': 1, 'c': ['x', 'y']}
        assert os.environ['LOCAL_RANK'] == '3'
        args = train.parse_arguments(['c.py', '--no-scale-lr', '--loss-guard', 'skip'])
        assert (args.scale_lr, args.loss_guard) == (False, 'skip')
        args = train.parse_arguments(['c.py', '--resume', 'x.pth', '--launcher', 'slurm'])
        assert (args.scale_lr, args.loss_guard) == (True, 'stop')
        assert (args.resume, args.launcher) == ('x.pth', 'slurm')

    def test_testing(self):
        words = 'c.py x.pth --show-dir d --out r.json --tta --classwise --resamples 9'
        args = testing.parse_arguments(words.split())
        assert (args.checkpoint, args.show_dir, args.out) == ('x.pth', 'd', 'r.json')
        assert args.tta
        assert args.classwise
        assert args.resamples == 9
        assert args.launcher == 'none'

    def test_an_option_without_a_value_is_a_usage_error(self, capsys):
        with pytest.raises(SystemExit) as caught:
            train.parse_arguments(['c.py', '--cfg-options', 'a=1', 'oops'])
        assert caught.value.code == 2
        assert "'oops' is not of the form KEY=VALUE" in capsys.readouterr().err

    def test_a_config_by_path_or_by_name(self):
        by_name = load_config(COCO)
        by_path = load_config(str(ROOT / 'configs' / f'{COCO}.py'), {'train_cfg.max_epochs': 1})
        assert by_path.train_cfg.max_epochs == 1
        assert by_name.model == by_path.model

    @pytest.mark.parametrize('command', [train, testing])
    def test_a_config_without_the_data_of_the_command(self, tmp_path, command):
        (tmp_path / 'c.py').write_text('model = dict(type="GFL")\ntrain_dataloader = None\n')
        words = [str(tmp_path / 'c.py'), *(['x.pth'] if command is testing else [])]
        with pytest.raises(ConfigError, match=r'c\.py has no (train|test)_dataloader: add it'):
            command.run(command.parse_arguments(words))

    def test_a_loop_without_one_of_its_parts(self, tmp_path):
        cfg = Config(dict(model=dict(type='GFL'), work_dir=str(tmp_path), val_cfg=dict()))
        with pytest.raises(ConfigError, match='val_dataloader, val_cfg, and val_evaluator should'):
            runner.build_runner(cfg)

    def test_an_unknown_key_is_warned_of(self, capsys):
        load_config(COCO, {'model.bbox_head.num_clases': 3})
        assert 'did you mean model.bbox_head.num_classes?' in capsys.readouterr().err

    @pytest.mark.parametrize('name', ['gfl_r50_fpn_2x_coco', 'gfl_r50_fpn_2x_coco.py'])
    def test_an_unknown_config_names_the_nearest(self, name):
        with pytest.raises(ConfigError, match='gfl_r50_fpn_1x_coco'):
            load_config(name)

    def test_an_unknown_file_names_its_neighbours(self, tmp_path):
        (tmp_path / 'pets_r50.py').touch()
        with pytest.raises(ConfigError, match=r'no config .*pets_r51\.py; nearest: .*pets_r50\.py'):
            load_config(str(tmp_path / 'pets_r51.py'))

    def test_a_work_dir_is_its_config(self, tmp_path):
        with pytest.raises(ConfigError, match='has no config'):
            load_config(f'{tmp_path}/')
        (tmp_path / 'whole.py').write_text('x = 1')
        (tmp_path / 'config_whole.py').write_text('x = 3')  # mmengine's, of a later test
        assert load_config(f'{tmp_path}/').x == 1
        (tmp_path / 'config.py').write_text('x = 2')  # the one that is edited
        assert load_config(str(tmp_path)).x == 2
        (tmp_path / 'config.py').rename(tmp_path / 'mine.py')
        with pytest.raises(ConfigError, match='has several configs'):
            load_config(str(tmp_path))

    @pytest.mark.parametrize(
        ('text', 'expected'),
        [
            ('model = dict(', r'is not valid Python: .*line 1'),
            ("_base_ = 'absent.py'", r'cannot be read: .*absent\.py'),
            ('x = 1 / 0', 'cannot be read: ZeroDivisionError'),
            (
                "val_dataloader = dict(dataset=dict(ann_file=['a.json', 'b.json']))",
                r'ann_file of val in .*broken\.py is .* ConcatDataset',
            ),
        ],
    )
    def test_a_config_that_does_not_run(self, tmp_path, text, expected):
        path = tmp_path / 'broken.py'
        path.write_text(text)
        with pytest.raises(ConfigError, match=expected):
            load_config(str(path))

    def test_torchruns_variables_are_asked_for(self, monkeypatch):
        monkeypatch.delenv('RANK', raising=False)
        with pytest.raises(SetupError, match=r'torchrun .* -m gfl_det train'):
            runner.build_runner(Config({}), 'pytorch')


class TestErrors:
    def test_one_line_and_status_1(self, capsys):
        def main() -> None:
            raise DataError('labels.json is empty.')

        with pytest.raises(SystemExit) as caught:
            cli.run(main)
        assert caught.value.code == 1
        assert capsys.readouterr().err == 'error: labels.json is empty.\n'

    def test_an_error_from_a_workers_traceback_is_its_sentence(self, capsys):
        def main() -> None:
            try:
                raise DataError('img/7.jpg does not exist: restore it.')
            except DataError:  # as a DataLoader passes it to the main process
                ExceptionWrapper(where='in DataLoader worker process 0').reraise()

        with pytest.raises(SystemExit):
            cli.run(main)
        assert capsys.readouterr().err == 'error: img/7.jpg does not exist: restore it.\n'

    def test_of_several_processes_the_first_tells_all(self, capsys, monkeypatch):
        def main() -> None:
            raise DataError('first line\nsecond line')

        for rank, expected in (('0', 'error: first line\nsecond line\n'), ('3', None)):
            monkeypatch.setenv('RANK', rank)
            with pytest.raises(SystemExit):
                cli.run(main)
            expected = expected or 'error (process 3): first line\n'
            assert capsys.readouterr().err == expected

    @pytest.mark.parametrize(
        ('part', 'sentence'),
        [
            (
                dict(type='gfl_det.GFLHead', num_classes=2, in_channels=16, nun_classes=4),
                'GFLHead of the config cannot be built (TypeError: AnchorHead.__init__() got an '
                "unexpected keyword argument 'nun_classes'): correct its settings (num_classes=2, "
                'in_channels=16, nun_classes=4).',
            ),
            (
                dict(type='GFL', backbone=dict(type='ResNet', depth=17), neck=None, bbox_head=None),
                'ResNet of the config cannot be built (KeyError: invalid depth 17 for resnet): '
                'correct its settings (depth=17).',
            ),
            (
                dict(type='NoSuchHead'),
                'A part of the config cannot be built: NoSuchHead is not in the mmdet::model '
                'registry.',
            ),
        ],
    )
    def test_a_part_that_cannot_be_built_is_named_with_its_settings(self, part, sentence, capsys):
        def main() -> None:
            with DefaultScope.overwrite_default_scope('mmdet'):
                MODELS.build(part)

        with pytest.raises(SystemExit):
            cli.run(main)
        # Of a class of the user's own, the line says where to look.
        said = re.sub(r'; at [^ ]+\.py:\d+\)', ')', capsys.readouterr().err)
        assert said == f'error: {sentence}\n'

    @pytest.mark.parametrize('device', ['xpu9', 'cuda:99'])
    def test_a_device_that_is_not_there(self, device):
        with pytest.raises(SetupError, match=rf"The device '{device}' cannot be used .*use cpu"):
            move(torch.nn.Linear(1, 1), device)

    def test_a_folder_that_is_not_there(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            cli.run((tmp_path / 'gone' / 'out.json').touch)
        assert 'gone/out.json cannot be used: No such file or directory.' in capsys.readouterr().err

    def test_a_programming_error_keeps_its_traceback(self):
        with pytest.raises(ZeroDivisionError):
            cli.run(lambda: 1 / 0)
        with pytest.raises(TypeError):
            cli.run(lambda: max(1))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def test_without_coco_training_stops_before_anything_is_made(tmp_path):
    config = ROOT / 'configs' / f'{COCO}.py'
    result = run_tool('train', config, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ''
    assert result.stderr.startswith(f'error: {config} needs data that is not there.\n')
    for part in ('data/coco/train2017/', 'https://cocodataset.org', 'make demo', '--from-scratch'):
        assert part in result.stderr
    assert 'Traceback' not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_training_in_two_processes_resuming_and_testing(pets):
    amp_option = ['--amp'] if environment.computes_bfloat16() else []
    here = ['--cfg-options', 'data_root=pets']
    trained = run_script(
        *('dist_train.sh', 'tiny.py', 2, '--work-dir', 'run'),
        *('--from-scratch', '--auto-scale-lr', '--verbose', *amp_option, *here),
        cwd=pets,
        PORT=free_port(),
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    output = trained.stdout + trained.stderr
    assert 'takes a schedule several times as long' in output
    assert 'learning rate 0.01 x 4/4 = 0.01 for batches of 2 images x 2 processes' in output
    assert 'LR is set based on batch size of 4 and the current batch size is 4' in output
    assert 'pkg_resources' not in output
    assert 'clipped_edges: 0.' in output
    assert 'truths_without_positive: 0.' in output
    assert 'Epoch(val) [1][4/4]' in output  # each process has half of the eight images
    assert (pets / 'run' / 'epoch_1.pth').is_file()

    # A resumed run fetches no weights: there is no network here, and no --from-scratch.
    resumed = run_tool(
        *('train', 'tiny.py', '--work-dir', 'run', '--resume', '--verbose'),
        *(*here, 'train_cfg.max_epochs=2'),
        cwd=pets,
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert 'Epoch(train) [2]' in resumed.stdout + resumed.stderr
    assert 'Epoch(train) [1]' not in resumed.stdout + resumed.stderr

    tested = run_tool(
        *('test', 'tiny.py', 'run/epoch_2.pth', '--work-dir', 'tested'),
        *('--show-dir', 'pictures', '--out', 'found/boxes.json', '--tta', '--classwise', *here),
        cwd=pets,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95' in tested.stdout
    assert '| green ' in tested.stdout + tested.stderr
    assert 'detections: found/boxes.json' in tested.stdout
    assert 'pictures: pictures (8 files)' in tested.stdout
    pictures = sorted(path.name for path in (pets / 'pictures').iterdir())
    assert pictures == [f'{number}.png' for number in range(1, 9)]
    assert [path.name for path in (pets / 'found').iterdir()] == ['boxes.json']
    boxes = json.loads((pets / 'found' / 'boxes.json').read_text())
    assert {box['image_id'] for box in boxes} <= set(range(1, 9))
    assert {box['category_id'] for box in boxes} <= {10, 11}


def test_a_broken_image_stops_a_training_with_one_sentence(pets):
    (pets / 'pets' / 'img' / '5.png').write_bytes(b'torn')
    result = run_tool(
        *('train', 'tiny.py', '--from-scratch', '--cfg-options', 'data_root=pets'),
        *('train_dataloader.persistent_workers=False', 'val_dataloader=None', 'val_cfg=None'),
        *('val_evaluator=None',),
        cwd=pets,
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: pets/img/5.png is damaged or not a readable image')
    assert 'image id 5 of pets/labels.json' in last
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
    ('script', 'words'),
    [('dist_train.sh', ['c.py']), ('dist_test.sh', ['c.py', 'x.pth']), ('slurm_train.sh', ['p'])],
)
def test_scripts_say_how_they_are_used(tmp_path, script, words):
    result = run_script(script, *words, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith('usage: ')


def test_slurm_is_asked_for_what_was_said(tmp_path):
    fake = tmp_path / 'srun'
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    words = ['part', 'job', 'c.py', 'my work', '--cfg-options', 'a=1']
    result = run_script(
        *('slurm_train.sh', *words),
        cwd=tmp_path,
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
        GPUS='4',
        SRUN_ARGS='--qos=high --time=10',
    )
    said = result.stdout.splitlines()
    assert said[:2] == ['--partition=part', '--job-name=job']
    assert {'--ntasks=4', '--ntasks-per-node=4', '--gres=gpu:4', '--qos=high', '--time=10'} <= set(
        said
    )
    tool = said.index(str(ROOT / 'tools' / 'train.py'))
    assert said[tool + 1 :] == [
        *('c.py', '--work-dir', 'my work', '--launcher', 'slurm', '--cfg-options', 'a=1')
    ]
