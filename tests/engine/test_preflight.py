"""What stops a run before anything is built, and that a run which can go on is left alone."""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
from pathlib import Path

import pytest
from mmengine.config import Config

import gfl_det
from gfl_det.compat.pretrained import resolve
from gfl_det.engine import preflight
from gfl_det.engine.preflight.agreement import (
    check_best_priors,
    check_classes,
    check_pyramid,
    check_weights,
    class_names,
    unreachable,
)
from gfl_det.engine.preflight.data import check_data, check_metrics, sample_file_names, settle_best
from gfl_det.errors import CheckpointError, ConfigError, DataError
from gfl_det.utils.config import annotation_path, datasets_of, image_folder, metrics_of

CLASSES = ('cat', 'dog')
TRAINING = ('train', 'val')


def dataset(split: str, **fields) -> dict:
    return {
        'type': 'gfl_det.CocoDataset',
        'data_root': 'data/pets',
        'ann_file': f'{split}.json',
        'data_prefix': {'img': f'{split}/'},
        'metainfo': {'classes': CLASSES},
        'pipeline': [{'type': 'LoadImageFromFile'}],
        **fields,
    }


def config(work_dir: str = 'work', **parts) -> Config:
    metric = {'type': 'CocoMetric', 'ann_file': 'data/pets/val.json'}
    return Config(
        {
            'model': {
                'type': 'GFL',
                'backbone': {'type': 'ResNet', 'init_cfg': None, 'num_classes': 1000},
                'bbox_head': {'type': 'gfl_det.GFLHead', 'num_classes': 2},
            },
            'train_dataloader': {'dataset': dataset('train')},
            'val_dataloader': {'dataset': dataset('val', test_mode=True)},
            'test_dataloader': {'dataset': dataset('val', test_mode=True)},
            'val_evaluator': metric,
            'test_evaluator': metric,
            'work_dir': work_dir,
            'load_from': None,
            **parts,
        }
    )


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A current folder with the data of `config` in it."""
    monkeypatch.chdir(tmp_path)
    for split in TRAINING:
        folder = tmp_path / 'data' / 'pets' / split
        folder.mkdir(parents=True)
        names = [f'{split}_{i}.jpg' for i in range(30)]
        for name in names:
            (folder / name).touch()
        content = {
            'images': [
                {'id': i, 'file_name': name, 'width': 9, 'height': 9}
                for i, name in enumerate(names)
            ],
            'annotations': [
                {
                    'id': 1,
                    'image_id': 0,
                    'category_id': 0,
                    'bbox': [1, 1, 2, 2],
                    'area': 4,
                    'iscrowd': 0,
                }
            ],
            'categories': [{'id': i, 'name': name} for i, name in enumerate(CLASSES)],
        }
        (folder.parent / f'{split}.json').write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """A current folder with nothing in it, and an empty cache of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    return tmp_path


@pytest.fixture
def server(monkeypatch):
    """A host on this machine that has /here.pth, keeps /shut.pth to itself, and lists requests."""
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404 if 'gone' in self.path else 403 if 'shut' in self.path else 200)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        host.asked = asked
        host.address = f'http://127.0.0.1:{host.server_port}'
        yield host
        host.shutdown()


@pytest.fixture
def no_network(monkeypatch):
    """Every request goes to a port that nothing listens on."""
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    for name in ('http_proxy', 'https_proxy', 'HTTPS_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')


class TestTheWholeCheck:
    def test_a_run_with_all_it_needs_is_left_alone(self, here):
        before = sorted(here.rglob('*'))
        preflight.check_training(config())
        (here / 'epoch.pth').touch()
        preflight.check_testing(config(load_from='epoch.pth'))
        assert sorted(here.rglob('*')) == sorted([*before, here / 'epoch.pth'])

    def test_coco_without_data_and_network_is_one_message(self, empty, no_network):
        cfg = gfl_det.get_config('gfl_r50_fpn_1x_coco')
        cfg.work_dir = 'work'
        with pytest.raises(DataError) as caught:
            preflight.check_training(cfg)
        message = str(caught.value)
        for part in (
            'gfl_r50_fpn_1x_coco.py needs data',
            '  data/coco/annotations/instances_train2017.json\n',
            '  data/coco/annotations/instances_val2017.json\n',
            '  data/coco/train2017/\n',
            '  data/coco/val2017/\n',
            'https://cocodataset.org',
            'train2017.zip',
            'val2017.zip',
            'annotations_trainval2017.zip',
            'data_root=/path/to/coco',
            'gfl-det train --data',
            '`make demo` trains on an embedded data set and needs no download',
            'Also, the weights torchvision://resnet50 of model.backbone',
            '--from-scratch',
        ):
            assert part in message
        assert list(empty.iterdir()) == []

    def test_a_checkpoint_that_is_not_there_names_its_neighbours(self, here):
        (here / 'epoch_3.pth').touch()
        cfg = config(load_from='epoch_4.pth')
        with pytest.raises(CheckpointError, match=r'epoch_4\.pth does not exist; .* epoch_3\.pth'):
            preflight.check_testing(cfg)

    def test_an_address_of_a_checkpoint_is_left_to_the_loader(self):
        preflight.check_checkpoint('https://example.org/epoch.pth')

    def test_a_work_dir_below_a_file(self, here):
        (here / 'occupied').touch()
        with pytest.raises(ConfigError, match=r'occupied/run cannot .*--work-dir'):
            preflight.check_training(config(work_dir='occupied/run'))

    def test_a_work_dir_without_permission(self, here, monkeypatch):
        monkeypatch.setattr('os.access', lambda path, mode: False)
        with pytest.raises(ConfigError, match='write permission'):
            preflight.check_training(config(work_dir='work'))
        assert not (here / 'work').exists()


class TestData:
    def test_all_that_is_missing_is_listed_once(self, here):
        (here / 'data/pets/train.json').unlink()
        (here / 'data/pets/val.json').unlink()
        with pytest.raises(DataError) as caught:
            check_data(config(), TRAINING)
        message = str(caught.value)
        assert message.count('data/pets/train.json') == 1
        assert message.count('data/pets/val.json') == 1
        assert f'start at {here}' in message
        assert 'data_root=/path/to/data' in message
        assert 'cocodataset.org' not in message

    def test_a_missing_image_folder(self, here):
        (here / 'data/pets/val').rename(here / 'data/pets/moved')
        with pytest.raises(DataError, match=r'(?m)^  data/pets/val/$'):
            check_data(config(), TRAINING)

    def test_another_folder_than_the_files_is_noticed_by_a_sample(self, here):
        cfg = config()
        cfg.train_dataloader.dataset.data_prefix.img = 'val/'
        with pytest.raises(DataError, match=r'20 of 20 .*data/pets/train\.json'):
            check_data(cfg, TRAINING)
        cfg.train_dataloader.dataset.pipeline[0].ignore_empty = True
        check_data(cfg, TRAINING)

    def test_only_the_splits_of_the_run_count(self, here):
        (here / 'data/pets/train.json').unlink()
        check_data(config(), ['test'])

    def test_the_metrics_own_file_counts(self, here):
        cfg = config(test_evaluator=[{'type': 'CocoMetric', 'ann_file': 'data/other.json'}])
        with pytest.raises(DataError, match=r'(?m)^  data/other\.json$'):
            check_data(cfg, ['test'])

    def test_the_embedded_data_set_is_built(self, empty):
        cfg = gfl_det.get_config('gfl_r18_fpn_digits')
        with pytest.raises(DataError, match=r'built, not downloaded: gfl-det digits'):
            check_data(cfg, TRAINING)

    def test_remote_data_is_left_to_its_backend(self, empty):
        cfg = config(
            train_dataloader={'dataset': dataset('train', data_root='s3://bucket/pets')},
            val_dataloader=None,
            val_evaluator=None,
        )
        cfg.train_dataloader.dataset.ann_file = 's3://bucket/pets/train.json'
        cfg.train_dataloader.dataset.data_prefix.img = 's3://bucket/pets/train'
        check_data(cfg, TRAINING)

    @pytest.mark.parametrize('number', [1, 2, 7, 20])
    @pytest.mark.parametrize('style', [{}, {'indent': 2}, {'ensure_ascii': False}])
    def test_sampled_names_are_spread_over_the_file(self, tmp_path, number, style):
        names = [f'folder/Bild "{i}" é.jpg' for i in range(1000)]
        content = {
            'images': [{'file_name': name, 'id': i} for i, name in enumerate(names)],
            'annotations': [{'bbox': [1, 2, 3, 4]} for _ in range(5000)],
        }
        path = tmp_path / 'labels.json'
        path.write_text(json.dumps(content, **style), encoding='utf-8')
        found = [names.index(name) for name in sample_file_names(str(path), number)]
        assert found == sorted(set(found))
        assert len(found) == number
        assert found[0] == 0
        if number > 1:
            assert found[-1] == 999
            assert max(b - a for a, b in zip(found, found[1:])) <= 1000 / (number - 1) + 5

    @pytest.mark.parametrize('content', ['', '{}', '[1, 2]', '{"file_name": 5}'])
    def test_files_without_names_give_no_sample(self, tmp_path, content):
        path = tmp_path / 'labels.json'
        path.write_text(content)
        assert list(sample_file_names(str(path))) == []

    @pytest.mark.parametrize(
        ('change', 'words'),
        [
            (dict(id=0), r'mixes up: 1 \(id 0\)'),
            (dict(area='4'), 'strings'),
            (dict(area=None), 'no area'),
            (dict(iscrowd=None), 'no iscrowd'),
            (dict(image_id='0'), 'joined by value'),
        ],
    )
    def test_what_mmdets_metric_would_misjudge_is_left_to_ours(self, here, capsys, change, words):
        path = here / 'data/pets/val.json'
        content = json.loads(path.read_text())
        cfg = config()
        check_metrics(cfg, TRAINING)
        assert cfg.val_evaluator.type == 'CocoMetric'
        content['annotations'][0].update(change)
        path.write_text(json.dumps(content))
        check_metrics(cfg, TRAINING)
        assert cfg.val_evaluator.type == 'gfl_det.CocoMetric'
        assert re.search(words, capsys.readouterr().err)

    @pytest.mark.parametrize(
        ('options', 'words'),
        [
            (dict(iou_thrs=[0.5, 0.75]), r'iou_thrs=\[0.5, 0.75\]'),
            (dict(metric=['bbox', 'proposal_fast']), 'proposal_fast'),
        ],
    )
    def test_settings_at_which_mmdets_metric_stops(self, here, capsys, options, words):
        metric = dict(type='CocoMetric', ann_file='data/pets/val.json', **options)
        cfg = config(val_evaluator=metric)
        check_metrics(cfg, TRAINING)
        assert cfg.val_evaluator.type == 'gfl_det.CocoMetric'
        assert re.search(words, capsys.readouterr().err)

    def test_a_metric_without_its_package(self, here, monkeypatch):
        monkeypatch.setattr('gfl_det.engine.preflight.data.find_spec', lambda name: None)
        with pytest.raises(ConfigError, match='package lvis'):
            check_metrics(config(val_evaluator=dict(type='LVISMetric')), TRAINING)

    def test_a_class_that_one_split_does_not_list(self, here, capsys):
        path = here / 'data/pets/val.json'
        content = json.loads(path.read_text())
        gone = content['categories'].pop()
        content['annotations'] = [
            each for each in content['annotations'] if each['category_id'] != gone['id']
        ]
        path.write_text(json.dumps(content))
        cfg = config()
        cfg.val_dataloader.dataset.type = 'gfl_det.CocoDataset'
        check_metrics(cfg, TRAINING)
        assert cfg.val_evaluator.type == 'gfl_det.CocoMetric'
        assert f'[{gone["name"]!r}]' in capsys.readouterr().err

    @pytest.mark.parametrize('kind', ['gfl_det.CocoMetric', 'gfl_det.CalibrationMetric'])
    def test_a_metric_of_other_images(self, here, kind):
        metric = {'type': kind, 'ann_file': 'data/pets/train.json'}
        with pytest.raises(DataError, match=r'30 images .* data/pets/val/val_0\.jpg'):
            check_metrics(config(test_evaluator=metric), ['test'])

    @pytest.mark.parametrize(
        'kind', ['CocoMetric', 'gfl_det.CocoMetric', 'gfl_det.CalibrationMetric']
    )
    def test_a_metric_without_gt(self, here, kind):
        """Neither a file nor gt boxes with the samples: it would stop at the first batch."""
        cfg = config(test_evaluator=[{'type': kind}])
        inner = cfg.test_dataloader.dataset
        cfg.test_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [inner]}
        check_metrics(cfg, ['test'])  # a pipeline of one's own may do anything
        pack = {'type': 'PackDetInputs'}
        cfg.test_dataloader.dataset.datasets[0].pipeline = [{'type': 'LoadAnnotations'}, pack]
        for keys in (None, ('img_id', 'ori_shape')):
            cfg.test_dataloader.dataset.datasets[0].pipeline[1].meta_keys = keys
            with pytest.raises(ConfigError, match=r'test_evaluator .* ann_file .* test_dataloader'):
                check_metrics(cfg, ['test'])
        cfg.test_dataloader.dataset.datasets[0].pipeline[1].meta_keys = (
            'img_id',
            'ori_shape',
            'instances',
        )
        check_metrics(cfg, ['test'])

    @pytest.mark.parametrize('moved', [0, 1, 40])
    def test_a_metric_of_other_boxes_under_the_same_names(self, here, moved):
        """Splits in folders of their own often number their images alike."""
        path = here / 'data/pets/val.json'
        content = json.loads(path.read_text())
        boxes = [dict(content['annotations'][0], id=n, bbox=[90 * n, 9, 20, 20]) for n in range(5)]
        path.write_text(json.dumps({**content, 'annotations': boxes}))
        for box in boxes:
            box['bbox'] = [box['bbox'][0] + moved, 9, 20, 20]
        other = here / 'other.json'  # without the first box, as if it were of another class
        other.write_text(json.dumps({**content, 'annotations': boxes[1:]}))
        cfg = config(test_evaluator={'type': 'gfl_det.CocoMetric', 'ann_file': str(other)})
        if moved < 20:
            check_metrics(cfg, ['test'])
        else:
            with pytest.raises(DataError, match=r'other\.json, .* 0 of 5 boxes'):
                check_metrics(cfg, ['test'])

    @pytest.mark.parametrize(
        'name', ['bbox_mAP', 'bbox_mAP_s', 'AR@1000', 'dog_precision', 'bbox_map']
    )
    def test_the_number_that_is_best_is_one_of_the_metrics(self, name):
        cfg = config(default_hooks={'checkpoint': {'save_best': f'coco/{name}'}})
        if name == 'bbox_map':
            with pytest.raises(ConfigError, match=r'did you mean coco/bbox_mAP'):
                settle_best(cfg)
        else:
            settle_best(cfg)
            assert cfg.default_hooks.checkpoint.save_best == f'coco/{name}'

    @pytest.mark.parametrize('key', ['img_id', 'ori_shape'])
    def test_a_metric_without_ids_or_sizes_of_images(self, here, key):
        cfg = config()
        pack = {'type': 'PackDetInputs', 'meta_keys': ['img_id', 'ori_shape']}
        cfg.test_dataloader.dataset.pipeline = [pack]
        check_metrics(cfg, ['test'])
        cfg.test_dataloader.dataset.pipeline[0].meta_keys.remove(key)
        with pytest.raises(ConfigError, match=f'test_evaluator needs {key} .* meta_keys'):
            check_metrics(cfg, ['test'])

    def test_invalid_evaluation_data_stops_a_test_too(self, here):
        path = here / 'data/pets/val.json'
        content = json.loads(path.read_text())
        content['annotations'][0]['image_id'] = 99
        path.write_text(json.dumps(content))
        (here / 'epoch.pth').touch()
        with pytest.raises(DataError, match=r'val\.json cannot be judged:\n.*image_id'):
            preflight.check_testing(config(load_from='epoch.pth'))

    @pytest.mark.parametrize('name', ['other/val_0.jpg', 'other\\\\val_0.jpg'])
    def test_names_of_other_machines(self, here, name):
        """Backslashes mean a file here; a folder more may mean another file, so that is told."""
        path = here / 'data/pets/val.json'
        path.write_text(path.read_text().replace('val_0.jpg', name))
        if '\\' in name:
            check_data(config(), ['test'])
        else:
            with pytest.raises(DataError, match=r'val_0\.jpg is there: .* --fix OUT\.json'):
                check_data(config(), ['test'])


class TestPyramid:
    @pytest.mark.parametrize('strides', [[4, 8, 16], [8, 16, 32, 64], [4, 8, 16, 32, 64]])
    def test_strides_of_other_features_are_refused_with_both_lists(self, strides):
        cfg = gfl_det.get_config('gfl_r18_fpn_digits')
        cfg.merge_from_dict(
            {
                'model.backbone.out_indices': (0, 1, 2, 3),
                'model.neck.in_channels': [32, 64, 128, 256],
                'model.neck.num_outs': 4,
            }
        )
        cfg.model.bbox_head.anchor_generator.strides = strides
        with pytest.raises(ConfigError) as caught:
            check_pyramid(cfg)
        assert f'are {strides}' in str(caught.value)
        assert '4 levels of strides [4, 8, 16, 32]' in str(caught.value)
        cfg.model.bbox_head.anchor_generator.strides = [4, 8, 16, 32]
        check_pyramid(cfg)

    def test_a_test_compares_them_too(self, here):
        (here / 'epoch.pth').touch()
        cfg = config(load_from='epoch.pth', model=gfl_det.get_config('gfl_r18_fpn_digits').model)
        cfg.model.bbox_head.num_classes = 2
        preflight.check_testing(cfg)
        cfg.model.bbox_head.anchor_generator.strides = [16, 32, 64]
        with pytest.raises(ConfigError, match=r'are \[16, 32, 64\]'):
            preflight.check_testing(cfg)

    @pytest.mark.parametrize('channels', [1, 3, 6])
    def test_those_of_the_shipped_config_fit_images_of_any_channels(self, channels):
        cfg = gfl_det.get_config('gfl_r18_fpn_digits')
        cfg.model.backbone.in_channels = channels
        check_pyramid(cfg)


class TestBestPriors:
    """Priors outside a box, which have no centerness."""

    @pytest.mark.parametrize('kind', ['ATSSHead', 'mmdet.ATSSHead'])
    def test_a_head_with_a_centerness_is_refused(self, kind):
        cfg = gfl_det.get_config('gfl_r18_fpn_digits')
        cfg.model.train_cfg.assigner.with_best_prior = True
        check_best_priors(cfg)
        cfg.model.bbox_head.type = kind
        with pytest.raises(ConfigError, match=f'with_best_prior=True .*{kind}'):
            check_best_priors(cfg)
        cfg.model.train_cfg.assigner.with_best_prior = False
        check_best_priors(cfg)

    def test_heads_that_inherit_from_it_without_its_loss_are_left_alone(self):
        cfg = gfl_det.get_config('gfl_r18_fpn_digits')
        cfg.model.train_cfg.assigner.with_best_prior = True
        for kind in ('TOODHead', 'VFNetHead', 'GFLHead'):
            cfg.model.bbox_head.type = kind
            check_best_priors(cfg)


class TestClasses:
    def test_a_head_for_other_classes_names_both_numbers_and_the_list(self):
        cfg = config()
        cfg.model.bbox_head.num_classes = 80
        with pytest.raises(ConfigError) as caught:
            check_classes(cfg, TRAINING)
        message = str(caught.value)
        assert 'model.bbox_head.num_classes is 80' in message
        assert "train_dataloader has 2 classes ['cat', 'dog']" in message

    def test_every_split_and_every_head_counts(self):
        cfg = config()
        cfg.val_dataloader.dataset.metainfo.classes = ('cat', 'dog', 'owl')
        with pytest.raises(ConfigError, match='val_dataloader has 3 classes'):
            check_classes(cfg, TRAINING)
        cfg = config()
        cfg.model.roi_head = {'bbox_head': [{'num_classes': 2}, {'num_classes': 5}]}
        with pytest.raises(ConfigError, match=r'roi_head\.bbox_head\.1\.num_classes is 5'):
            check_classes(cfg, TRAINING)

    def test_the_type_brings_its_own_classes(self):
        cfg = config()
        del cfg.train_dataloader.dataset['metainfo']
        with pytest.raises(ConfigError, match=r'is 2.* 80 classes'):
            check_classes(cfg, TRAINING)
        check_classes(gfl_det.get_config('gfl_r50_fpn_1x_coco'), ('train', 'val', 'test'))

    def test_other_names_in_another_split(self):
        cfg = config()
        cfg.val_dataloader.dataset.metainfo.classes = ('dog', 'cat')
        with pytest.raises(ConfigError, match=r'metainfo'):
            check_classes(cfg, TRAINING)

    def test_wrapped_data_sets_are_looked_into(self):
        cfg = config()
        inner = [dataset('train'), dataset('train', metainfo={'classes': ('cat',)})]
        concat = {'type': 'ConcatDataset', 'datasets': inner}
        cfg.train_dataloader.dataset = {'type': 'RepeatDataset', 'times': 2, 'dataset': concat}
        assert [d['metainfo']['classes'] for d in datasets_of(cfg, 'train')] == [CLASSES, ('cat',)]
        with pytest.raises(ConfigError, match='has 1 classes'):
            check_classes(cfg, TRAINING)

    def test_classes_from_a_file(self, tmp_path):
        path = tmp_path / 'names.txt'
        path.write_text('cat\ndog\n')
        assert class_names({'metainfo': {'classes': str(path)}}) == ['cat', 'dog']
        assert class_names({'metainfo': {'classes': 'cat'}}) is None
        assert class_names({'type': 'NoSuchDataset'}) is None


class TestWeights:
    def with_weights(self, checkpoint: str) -> Config:
        cfg = config()
        cfg.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': checkpoint}
        return cfg

    def test_without_network_the_message_says_what_where_and_how_without(self, empty, no_network):
        name = 'torchvision://resnet50'
        with pytest.raises(CheckpointError) as caught:
            check_weights(self.with_weights(name))
        message = str(caught.value)
        weights = resolve(name)
        assert weights.path.startswith(str(empty / 'cache'))
        for part in (
            f'{name} of model.backbone are not on this machine: download.pytorch.org is',
            f'File: {os.path.basename(weights.path)}',
            f'From: {weights.url}',
            f'Belongs at: {weights.path}',
            '--from-scratch',
            'make demo',
        ):
            assert part in message

    def test_cached_weights_need_no_network(self, empty, no_network):
        path = Path(resolve('torchvision://resnet50').path)
        path.parent.mkdir(parents=True)
        path.touch()
        check_weights(self.with_weights('torchvision://resnet50'))

    def test_a_list_of_initialisations_is_looked_through(self, empty, no_network):
        cfg = self.with_weights('torchvision://resnet50')
        cfg.model.backbone.init_cfg = [
            {'type': 'Kaiming', 'layer': 'Conv2d'},
            cfg.model.backbone.init_cfg,
        ]
        with pytest.raises(CheckpointError, match='resnet50'):
            check_weights(cfg)

    def test_a_file_that_is_not_there(self, empty):
        with pytest.raises(CheckpointError, match=r'mine\.pth of load_from .*does not exist'):
            check_weights(config(load_from='mine.pth'))
        (empty / 'mine.pth').touch()
        check_weights(config(load_from='mine.pth'))

    def test_a_host_that_answers(self, server):
        assert unreachable(f'{server.address}/here.pth') is None
        assert unreachable(f'{server.address}/shut.pth') is None  # HEAD alone may be refused
        assert 'HTTP status 404' in unreachable(f'{server.address}/gone.pth')
        assert server.asked == ['/here.pth', '/shut.pth', '/gone.pth']

    def test_a_proxy_is_used(self, server, monkeypatch):
        monkeypatch.setenv('http_proxy', server.address)
        assert unreachable('http://weights.invalid/here.pth') is None
        assert server.asked == ['http://weights.invalid/here.pth']

    def test_a_host_that_never_answers_does_not_hold_the_run_up(self, monkeypatch):
        monkeypatch.setattr('gfl_det.engine.preflight.agreement.ANSWER_SECONDS', 0.05)
        released = threading.Event()
        monkeypatch.setattr(
            'gfl_det.engine.preflight.agreement._ask', lambda url: released.wait(10)
        )
        assert 'no answer in 0.05 seconds' in unreachable('https://weights.invalid/x.pth')
        released.set()

    def test_other_storage_is_left_to_its_client(self):
        assert unreachable('s3://bucket/x.pth') is None


class TestPaths:
    @pytest.mark.parametrize(
        ('root', 'name', 'expected'),
        [
            ('data', 'a.json', 'data/a.json'),
            ('data/', 'sub/a.json', 'data/sub/a.json'),
            ('data', '/abs/a.json', '/abs/a.json'),
            ('data', 's3://b/a.json', 's3://b/a.json'),
            (None, 'a.json', 'a.json'),
            ('', 'a.json', 'a.json'),
        ],
    )
    def test_paths_join_as_mmengine_joins_them(self, root, name, expected):
        node = {'data_root': root, 'ann_file': name, 'data_prefix': {'img': name}}
        assert annotation_path(node) == expected
        assert image_folder(node) == expected

    def test_a_data_set_may_have_neither(self):
        assert annotation_path({}) is None
        assert image_folder({'data_prefix': {}}) is None

    def test_metrics_come_as_one_or_as_a_list(self):
        assert len(metrics_of(config(), 'val')) == 1
        assert metrics_of(config(val_evaluator=None), 'val') == []
