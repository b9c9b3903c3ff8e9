"""``--data PATH`` and work dirs, on the command line: every command that takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import gfl_det
from gfl_det.cli import check_dataset, own_data, report, sanity, suggest_reg_max, test, train
from gfl_det.cli.calibrate import read_data
from gfl_det.cli.main import main
from gfl_det.engine import config_edits
from gfl_det.engine.preflight import check_testing
from gfl_det.errors import CheckpointError, ConfigError, DataError
from gfl_det.inference.loading import load_detector
from gfl_det.utils.config import load_config, shipped_base
from tests.helpers.commands import run_command
from tests.helpers.ncnn_files import random_detector
from tests.helpers.own_data_files import write_coco, write_voc, write_yolo

MODEL = ['--model', own_data.SCRATCH_MODEL]  # the default may be fetched
SMALL = [
    'model.backbone.base_channels=8',
    'model.backbone.stem_channels=8',
    'model.neck.out_channels=16',
    'model.neck.in_channels=[16,32,64]',
    'model.bbox_head.in_channels=16',
    'model.bbox_head.feat_channels=32',
    'model.bbox_head.stacked_convs=1',
    'model.bbox_head.norm_cfg.num_groups=8',
    'train_cfg.max_epochs=2',
    'train_cfg.val_interval=1',
    'model.test_cfg.score_thr=0.0',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'test_dataloader.num_workers=0',
]


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A folder with the set in three formats, and a detector that a line has trained."""
    folder = tmp_path_factory.mktemp('own')
    write_coco(folder / 'coco')
    write_yolo(folder / 'yolo')
    write_voc(folder / 'voc')
    done = run_command('train', '--data', 'voc', *MODEL, '--cfg-options', *SMALL, cwd=folder)
    (folder / 'printed.txt').write_text(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class TestTraining:
    def test_it_prints_a_plan_a_header_a_line_an_epoch_and_what_to_type_next(self, trained):
        lines = (trained / 'printed.txt').read_text().splitlines()
        plan = next(place for place, line in enumerate(lines) if line.startswith('config '))
        assert plan == 9
        assert len(lines) <= 24
        begins = [line.split()[0] for line in lines[plan + 1 :]]
        assert begins[-10:-3] == ['data', 'model', 'schedule', 'device', 'log', 'epoch', 'epoch']
        assert 'coco/bbox_mAP: ' in lines[-4]
        assert 'bbox_mAP_copypaste: ' in lines[-4]
        assert lines[-3].startswith('best AP')
        assert 'gfl-det report work_dirs/voc' in lines[-2]
        assert 'gfl-det infer work_dirs/voc' in lines[-1]

    def test_the_log_file_has_the_rest(self, trained):
        printed = (trained / 'printed.txt').read_text()
        log = next((trained / 'work_dirs' / 'voc').glob('2*/*.log')).read_text()
        for text in ('System environment', 'Config:', 'Hooks will be executed', 'Epoch(train)'):
            assert text in log
            assert text not in printed

    def test_the_config_that_is_to_be_edited_is_not_written_over(self, trained):
        work_dir = trained / 'work_dirs' / 'voc'
        assert '_base_' in (work_dir / 'config.py').read_text()
        assert 'max_epochs=2' in (work_dir / 'config_whole.py').read_text()
        assert load_config(str(work_dir)).filename == str(work_dir / 'config.py')


def test_one_checkpoint_is_judged_alike_through_every_format(trained) -> None:
    checkpoint = next((trained / 'work_dirs' / 'voc').glob('best_*.pth'))
    found = {}
    for name in ('coco', 'yolo/data.yaml', 'voc'):
        done = run_command('test', '--data', name, checkpoint, '--out', 'a.json', cwd=trained)
        assert done.returncode == 0, done.stderr
        assert 'Average Precision' in done.stdout
        assert 'System environment' not in done.stdout
        results = json.loads((trained / 'a.json').read_text())
        found[name] = [(each['image_id'], each['score'], each['bbox']) for each in results]
    # COCO's ids are those of its file, from 0; those of the readers begin at 1.
    begin = min(each[0] for each in found['coco'])
    assert [(each[0] - begin + 1, *each[1:]) for each in found['coco']] == found['voc']
    assert found['yolo/data.yaml'] == found['voc']


class TestJudging:
    def test_the_work_dir_of_the_data_has_config_and_checkpoint(self, trained, monkeypatch):
        monkeypatch.chdir(trained)
        args = test.parse_arguments(['--data', 'voc', '--cfg-options', *SMALL])
        cfg, checkpoint = own_data.judged_config(args, args.checkpoint)
        assert cfg.filename == 'work_dirs/voc/config.py'
        assert Path(checkpoint).name.startswith('best_')
        args = test.parse_arguments(['--data', 'coco'])
        with pytest.raises(CheckpointError, match='work_dirs/coco'):
            own_data.judged_config(args, args.checkpoint)

    def test_calibrate_runs_a_detector_on_the_data(self, trained, monkeypatch):
        from gfl_det.cli.calibrate import parse_arguments

        monkeypatch.chdir(trained)
        checkpoint = str(next(Path('work_dirs/voc').glob('best_*.pth')))
        words = ['fit', 'a.json', '--data', 'coco', '--checkpoint', checkpoint]
        judged, head = read_data(parse_arguments(words))
        assert head == 'GFLHead'
        assert judged.gts.class_names == ['cat', 'dog']
        assert len(judged.detections.scores)
        words = ['fit', 'a.json', '--config', 'work_dirs/voc', '--data', 'coco']
        with pytest.raises(ConfigError, match='not both'):
            read_data(parse_arguments(words))

    def test_report_of_the_data_is_that_of_its_work_dir(self, trained):
        words = ['report', '--data', 'voc', '--cfg-options', *SMALL]
        done = run_command(*words, cwd=trained)
        assert done.returncode == 0, done.stderr
        (trained / 'report.html').unlink()
        done = run_command('report', 'work_dirs/voc', '--data', 'coco', cwd=trained)
        assert done.returncode == 0, done.stderr
        assert ' on coco' in (trained / 'report.html').read_text()

    def test_inference_takes_a_work_dir(self, trained):
        loaded = load_detector(trained / 'work_dirs' / 'voc', None, 'cpu', {})
        assert loaded.classes == ('cat', 'dog')

    def test_classes_follow_the_detector(self, trained, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        checkpoint = str(next((trained / 'work_dirs' / 'voc').glob('best_*.pth')))
        for names, known in ((('dog', 'cat'), True), (('dog', 'cow'), True), (('a', 'b'), False)):
            path = write_yolo(tmp_path / names[1], names=list(names))
            args = test.parse_arguments(['--data', str(path), checkpoint])
            if not known:
                with pytest.raises(DataError, match='knows none'):
                    own_data.judged_config(args, args.checkpoint)
                continue
            cfg, _ = own_data.judged_config(args, args.checkpoint)
            assert cfg.test_dataloader.dataset.metainfo.classes == ('cat', 'dog')
            cfg.load_from, cfg.work_dir = checkpoint, str(tmp_path)
            check_testing(cfg)  # which refuses a file in another order
        assert 'cow' in capsys.readouterr().err


class TestOtherCommands:
    def test_check_judges_every_split(self, trained, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        gfl_det.register()
        for name in ('coco', 'voc', 'yolo'):
            args = check_dataset.parse_arguments(['--data', str(trained / name), '--decode'])
            assert check_dataset.run(args) == 0
            printed = capsys.readouterr().out
            for split in ('train', 'val', 'test'):
                assert f'{split}: ' in printed
            assert 'aeroplane' not in printed

    def test_suggestions_are_for_the_planned_config(self, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        suggest_reg_max.run(
            suggest_reg_max.parse_arguments(['--data', 'voc', *MODEL, '--out', 'reach'])
        )
        assert 'train.json: ' in capsys.readouterr().out
        assert (trained / 'reach' / 'reach.json').is_file()

    def test_sanity_plans_a_config_where_there_is_none_and_keeps_one(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_coco(tmp_path / 'mine')
        args = sanity.parse_arguments(['--data', 'mine', *MODEL, '--images', '2'])
        path = own_data.planned_config(args)
        text, args.model = Path(path).read_text(), None
        Path(path).write_text(text + '# mine\n')
        assert own_data.planned_config(args) == path
        assert Path(path).read_text().endswith('# mine\n')
        args.model = own_data.SCRATCH_MODEL
        own_data.planned_config(args, anew=True)
        assert Path(path).read_text() == text
        assert Path(f'{path}.before').read_text().endswith('# mine\n')

    def test_the_config_of_a_training_is_never_replaced_by_a_plan(self, tmp_path, monkeypatch):
        """A plan to look at would otherwise become the config of the checkpoints beside it."""
        monkeypatch.chdir(tmp_path)
        write_coco(tmp_path / 'mine')
        work_dir = Path('work_dirs/mine')
        work_dir.mkdir(parents=True)
        (work_dir / 'mine.py').write_text('model = dict()')  # of gfl-det train mine.py
        args = sanity.parse_arguments(['--data', 'mine', '--images', '2'])
        assert own_data.planned_config(args) == str(work_dir / 'mine.py')
        args.model = own_data.SCRATCH_MODEL
        assert own_data.planned_config(args) == str(work_dir / 'planned' / 'config.py')
        with pytest.raises(ConfigError, match=r'mine holds the training of mine\.py: .*--work-dir'):
            own_data.planned_config(args, anew=True)
        assert not (work_dir / 'config.py').exists()
        (work_dir / 'other.py').write_text('model = dict()')
        args.model = None
        with pytest.raises(ConfigError, match='several configs'):
            own_data.planned_config(args)


class TestCommandLines:
    @pytest.mark.parametrize('command', [train, sanity, suggest_reg_max, check_dataset])
    @pytest.mark.parametrize('words', [[], ['a.py', '--data', 'b'], ['a.py', '--image-dir', 'b']])
    def test_one_of_config_and_data(self, command, words, capsys):
        with pytest.raises(SystemExit):
            command.parse_arguments(words)
        assert '--data PATH' in capsys.readouterr().err

    @pytest.mark.parametrize(
        'words', [[], ['a.py'], ['a.py', 'b.pth', '--data', 'c'], ['--work-dir', 'a']]
    )
    def test_test_needs_a_detector(self, words, capsys):
        with pytest.raises(SystemExit):
            test.parse_arguments(words)
        assert 'give' in capsys.readouterr().err

    def test_options_may_stand_between(self):
        args = test.parse_arguments(['a.py', '--work-dir', 'w', 'b.pth'])
        assert (args.config, args.checkpoint) == ('a.py', 'b.pth')
        args = test.parse_arguments(['--data', 'd', 'b.pth'])
        assert (args.config, args.checkpoint) == (None, 'b.pth')
        assert report.parse_arguments(['--data', 'd']).source is None

    def test_what_is_no_data_set_gets_one_sentence(self, tmp_path, capsys):
        (tmp_path / 'compose.yaml').write_text('services: {}')
        with pytest.raises(SystemExit):
            main(['train', '--data', str(tmp_path / 'compose.yaml')])
        message = capsys.readouterr().err.strip().splitlines()
        assert len(message) == 1
        assert 'compose.yaml' in message[0]


class TestModels:
    def test_names_configs_and_their_students(self, tmp_path, monkeypatch):
        monkeypatch.setenv('TORCH_HOME', str(tmp_path))
        monkeypatch.setattr(
            'gfl_det.engine.preflight.agreement.unreachable', lambda url: 'no network'
        )
        found = own_data.starting_point('gfl_r50_fpn_ms-2x_coco', tmp_path)
        assert found.base == shipped_base('gfl_r50_fpn_ms-2x_coco')
        assert (found.weights, found.scratch) == (None, True)
        assert 'random weights' in found.reason
        student = own_data.starting_point('ld_r18-gflv1-r101_fpn_1x_coco', tmp_path)
        assert student.base == shipped_base('gfl_r18_fpn_1x_coco')
        own = tmp_path / 'own.py'
        own.write_text("_base_ = 'gfl_det::gfl/gfl_r18_fpn_bccd.py'\n")
        assert own_data.starting_point(str(own), tmp_path).base == str(own)
        with pytest.raises(ConfigError, match='gfl_r18_fpn_bcc'):
            own_data.starting_point('gfl_r18_fpn_bcc', tmp_path)

    def test_weights_that_are_here_are_started_from(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            own_data, '_weights', lambda model, folder: (f'/cache/{model.name}.pth', False)
        )
        found = own_data.starting_point('gfl_r50_fpn_1x_coco', tmp_path)
        assert found.weights == '/cache/gfl_r50_fpn_1x_coco.pth'

    def test_the_default_is_the_model_whose_weights_are_here(self, tmp_path, monkeypatch):
        monkeypatch.setattr(own_data, '_weights', lambda model, folder: ('/cache/a.pth', True))
        found = own_data.choose_start(None, tmp_path, False)
        assert (found.name, found.weights, found.copied) == (
            own_data.DEFAULT_MODEL,
            '/cache/a.pth',
            True,
        )
        found = own_data.choose_start(None, tmp_path, True)
        assert (found.name, found.weights) == (own_data.SCRATCH_MODEL, None)
        found = own_data.choose_start(own_data.DEFAULT_MODEL, tmp_path, True)
        assert (found.name, found.weights) == (own_data.DEFAULT_MODEL, None)
        assert '--from-scratch' in found.reason

    def test_without_its_weights_the_default_is_another_and_one_sentence_says_why(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setenv('TORCH_HOME', str(tmp_path))
        monkeypatch.setattr(
            'gfl_det.engine.preflight.agreement.unreachable', lambda url: 'no network'
        )
        found = own_data.choose_start(None, tmp_path / 'work', False)
        assert (found.name, found.weights) == (own_data.SCRATCH_MODEL, None)
        assert found.reason.startswith('from random weights')
        for text in ('nanodet-plus-m_416_checkpoint.ckpt', 'no network', str(tmp_path)):
            assert text in found.reason
        assert '\n' not in found.reason
        assert not (tmp_path / 'work').exists()

    def test_a_converted_checkpoint_names_its_config(self, tmp_path):
        path = tmp_path / 'mine.pth'
        state = {'bbox_head.gfl_cls.0.bias': torch.zeros(112)}
        meta = dict(config='nanodet-plus-m_320_coco')
        torch.save(dict(meta=meta, state_dict=state), path)
        found = own_data.starting_point(str(path), tmp_path / 'work')
        assert found.base == shipped_base('nanodet-plus-m_320_coco')
        assert (found.name, found.copied) == ('nanodet-plus-m_320_coco', True)
        assert Path(found.weights) == tmp_path / 'work' / 'nanodet-plus-m_320_coco.pth'
        assert Path(found.weights).is_file()
        torch.save(dict(state_dict=state), path)
        with pytest.raises(CheckpointError, match=r'mine\.pth'):
            own_data.starting_point(str(path), tmp_path)
        with pytest.raises(CheckpointError, match=r'none\.pth'):
            own_data.starting_point(str(tmp_path / 'none.pth'), tmp_path)

    def test_the_plan_starts_from_a_copy_with_the_classes_of_the_data(
        self, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        write_coco(tmp_path / 'mine')
        state = random_detector().state_dict()
        name = own_data.DEFAULT_MODEL
        torch.save(dict(meta=dict(config=name), state_dict=state), tmp_path / 'coco.pth')
        words = ['--data', 'mine', '--model', 'coco.pth']
        cfg = load_config(own_data.planned_config(train.parse_arguments(words)))
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 9
        assert f'model     {name}: starts from coco.pth, classes anew' in lines
        assert cfg.load_from == str(tmp_path / 'work_dirs' / 'mine' / f'{name}.pth')
        assert cfg.optim_wrapper.optimizer.lr == 0.002
        random_detector(cfg).load_state_dict(torch.load(cfg.load_from)['state_dict'])
        config_edits.train_from_scratch(cfg)
        assert cfg.load_from is None


class TestVocConfigs:
    def config(self, root: Path) -> Config:
        data = dict(
            type='VOCDataset',
            data_root=str(root),
            ann_file='VOC2007/ImageSets/Main/train.txt',
            data_prefix=dict(sub_data_root='VOC2007/'),
            metainfo=dict(classes=('cat', 'dog')),
            pipeline=[],
        )
        loader = dict(dataset=data)
        return Config(
            dict(
                train_dataloader=loader,
                val_dataloader=loader,
                val_evaluator=dict(type='VOCMetric', metric='mAP'),
                default_hooks=dict(checkpoint=dict(save_best='coco/bbox_mAP')),
            )
        )

    def test_check_reads_them(self, tmp_path):
        write_voc(tmp_path / 'VOC2007')
        [source] = check_dataset.sources_of_split(self.config(tmp_path), 'train')
        assert [each['name'] for each in source.dataset['categories']] == ['cat', 'dog']
        assert len(source.dataset['images']) == 6
        assert source.folder == str(tmp_path / 'VOC2007' / 'JPEGImages')

    def test_save_best_names_a_number_that_there_is(self, tmp_path):
        from gfl_det.engine.preflight.data import settle_best

        cfg = self.config(tmp_path)
        settle_best(cfg)
        assert cfg.default_hooks.checkpoint.save_best == 'pascal_voc/mAP'
        for kept in ('auto', 'pascal_voc/AP50'):
            cfg.default_hooks.checkpoint.save_best = kept
            settle_best(cfg)
            assert cfg.default_hooks.checkpoint.save_best == kept

    def test_our_metric_takes_the_place_of_mmdets(self, tmp_path):
        from gfl_det.engine.preflight.data import check_metrics

        cfg = self.config(tmp_path)
        check_metrics(cfg, ['val'])
        assert cfg.val_evaluator.type == 'gfl_det.VOCMetric'
        cfg = self.config(tmp_path)
        cfg.val_dataloader.dataset.pop('metainfo')
        check_metrics(cfg, ['val'])
        assert cfg.val_evaluator.type == 'gfl_det.VOCMetric'
