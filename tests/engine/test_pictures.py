"""Pictures in use: the visualiser, the hook, the tools' options, TensorBoard and W&B."""

from __future__ import annotations

import json
from importlib.util import find_spec
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.structures import InstanceData

import gfl_det
from gfl_det.cli import show, train
from gfl_det.engine import config_edits
from gfl_det.engine.hooks import SamplePicturesHook
from gfl_det.errors import ConfigError, DataError, SetupError
from gfl_det.registry import HOOKS, VISUALIZERS
from gfl_det.utils.config import load_config
from gfl_det.visualization import Boxes, class_colours, draw_boxes
from gfl_det.visualization.visualizer import save_picture
from tests.helpers.commands import run_tool
from tests.helpers.paths import ROOT

# W&B itself is not among the tested packages: this stands in its place and keeps what it is told.
FAKE_WANDB = """
import json, os
class Image:
    def __init__(self, data):
        self.shape = list(data.shape)
class Config:
    def update(self, *args, **kwargs):
        pass
class Run:
    def log_code(self, name=None):
        pass
config, run = Config(), Run()
def init(**kwargs):
    global path
    path = os.path.join(kwargs['dir'], 'wandb.jsonl')
def log(values, commit=True):
    plain = {name: getattr(value, 'shape', str(value)) for name, value in values.items()}
    with open(path, 'a') as file:
        file.write(json.dumps(plain) + chr(10))
def join():
    pass
"""


def sample(**metas: object) -> DetDataSample:
    """Two gt boxes and three detections, one of them poor, in an image of 120 x 90 px."""
    found = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 60, 60], [70, 20, 110, 80], [0, 0, 30, 30]]),
        labels=torch.tensor([0, 1, 1]),
        scores=torch.tensor([0.9, 0.6, 0.1]),
        edge_logits=torch.zeros(3, 4, 5),
        bin_widths=torch.full((3, 4), 8.0),
        prior_centres=torch.tensor([[36.0, 36], [92, 52], [16, 16]]),
    )
    gts = InstanceData(
        bboxes=torch.tensor([[12.0, 8, 62, 58], [70, 24, 112, 80]]), labels=torch.tensor([0, 1])
    )
    return DetDataSample(gt_instances=gts, pred_instances=found, metainfo=metas)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


def visualizer(name: str, **kwargs: object) -> gfl_det.GFLVisualizer:
    built = VISUALIZERS.build({'type': 'gfl_det.GFLVisualizer', 'name': name, **kwargs})
    built.dataset_meta = {'classes': ('cat', 'dog')}
    return built


class TestVisualizer:
    def test_ground_truth_is_beside_prediction(self, image, tmp_path):
        painter = visualizer('beside', scale=1)
        painter.add_datasample('x', image, sample(), out_file=str(tmp_path / 'new' / 'x.png'))
        drawn = cv2.imread(str(tmp_path / 'new' / 'x.png'))[..., ::-1]
        classes = ('cat', 'dog')
        gt = draw_boxes(image, Boxes.of(sample().gt_instances), classes, 1)
        found = draw_boxes(image, Boxes.of(sample().pred_instances, 0.3), classes, 1)
        np.testing.assert_array_equal(drawn[-90:, :120], gt)
        np.testing.assert_array_equal(drawn[-90:, -120:], found)
        assert (drawn[-90:, :120] != drawn[-90:, -120:]).any()
        np.testing.assert_array_equal(painter.get_image(), drawn)

    def test_one_part_alone_and_none(self, image):
        painter = visualizer('alone', scale=1)
        only = painter.draw(image, sample(), draw_gt=False)
        expected = draw_boxes(image, Boxes.of(sample().pred_instances, 0.3), ('cat', 'dog'), 1)
        np.testing.assert_array_equal(only, expected)
        assert painter.draw(image, sample(), draw_pred=False).shape == (90, 120, 3)
        np.testing.assert_array_equal(painter.draw(image, None), image)
        np.testing.assert_array_equal(painter.draw(image, DetDataSample()), image)

    def test_results_without_distributions_have_lines(self, image):
        plain = sample()
        del plain.pred_instances.edge_logits
        painter = visualizer('plain', scale=1)
        drawn = painter.draw(image, plain, draw_gt=False)
        hard = visualizer('hard', scale=1, soft=False).draw(image, sample(), draw_gt=False)
        np.testing.assert_array_equal(drawn, hard)

    @pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
    def test_flipped_gts_are_drawn_upright(self, image, direction):
        # What RandomFlip leaves in a sample under test-time augmentation, at half the size.
        mirrored = sample(flip=True, flip_direction=direction, img_shape=(45, 60))
        x1, y1, x2, y2 = mirrored.gt_instances.bboxes.unbind(1)
        if direction != 'vertical':
            x1, x2 = 60 - x2, 60 - x1
        if direction != 'horizontal':
            y1, y2 = 45 - y2, 45 - y1
        mirrored.gt_instances.bboxes = torch.stack([x1, y1, x2, y2], 1)
        painter = visualizer(f'mirror {direction}', scale=1)
        expected = painter.draw(image, sample(), draw_pred=False)
        np.testing.assert_array_equal(painter.draw(image, mirrored, draw_pred=False), expected)

    def test_masks_are_mmdets(self, image, tmp_path):
        masked = sample()
        masked.pred_instances.masks = torch.zeros(3, 90, 120, dtype=torch.bool)
        masked.pred_instances.masks[0, 20:40, 20:40] = True
        theirs = DetLocalVisualizer('theirs')
        theirs.dataset_meta = {'classes': ('cat', 'dog'), 'palette': [(9, 99, 9), (99, 9, 9)]}
        ours = visualizer('ours')
        ours.dataset_meta = theirs.dataset_meta
        written = []
        for number, painter in enumerate((ours, theirs)):
            written.append(tmp_path / f'{number}.png')
            np.random.seed(0)  # mmdet jitters colours
            painter.add_datasample('x', image, masked, draw_gt=False, out_file=str(written[-1]))
        assert written[0].read_bytes() == written[1].read_bytes()

    def test_a_picture_that_cannot_be_written(self, image, tmp_path):
        with pytest.raises(DataError, match=r'name a \.png or \.jpg'):
            save_picture(image, tmp_path / 'x.nothing')
        (tmp_path / 'file').touch()
        with pytest.raises(DataError, match='cannot be written'):
            save_picture(image, tmp_path / 'file' / 'x.png')


class TenImages:
    def __len__(self) -> int:
        return 10

    def get_data_info(self, place: int) -> dict[str, int]:
        return {'img_id': 100 + place}


class TestHook:
    def run_epoch(self, hook, order, epoch):
        drawn = []
        hook._visualizer = SimpleNamespace(
            add_datasample=lambda name, image, step, **kwargs: drawn.append((name, step))
        )
        loader = SimpleNamespace(dataset=TenImages())
        runner = SimpleNamespace(val_dataloader=loader, epoch=epoch, iter=7)
        hook.before_val_epoch(runner)
        for place in order:
            each = DetDataSample(metainfo={'img_id': 100 + place, 'img_path': f'a/{place}.png'})
            hook.after_val_iter(runner, place, {}, [each])
        return drawn

    @pytest.fixture
    def hook(self, monkeypatch, image):
        monkeypatch.setattr('gfl_det.engine.hooks.monitoring.get', lambda *args, **kwargs: b'')
        monkeypatch.setattr('mmcv.imfrombytes', lambda *args, **kwargs: image)
        visualizer('hooked')
        return HOOKS.build({'type': 'gfl_det.SamplePicturesHook', 'num_images': 3})

    def test_the_same_images_in_every_epoch_and_order(self, hook):
        first = self.run_epoch(hook, range(10), epoch=1)
        assert first == [('val_0', 1), ('val_3', 1), ('val_6', 1)]
        second = self.run_epoch(hook, reversed(range(10)), epoch=2)
        assert second == [('val_6', 2), ('val_3', 2), ('val_0', 2)]

    def test_of_several_processes_the_first_draws_of_its_own(self, hook, monkeypatch):
        monkeypatch.setattr('gfl_det.engine.hooks.monitoring.get_world_size', lambda: 4)
        # A process has every fourth image: 0, 4 and 8.
        assert self.run_epoch(hook, (0, 4, 8), epoch=1) == [
            ('val_0', 1),
            ('val_4', 1),
            ('val_8', 1),
        ]

    def test_iterations_count_where_there_are_no_epochs(self, hook):
        assert self.run_epoch(hook, [0], epoch=0) == [('val_0', 7)]

    def test_nothing_is_drawn_when_told_so_or_asked_for_none(self, hook):
        hook.draw = False
        assert self.run_epoch(hook, range(10), epoch=1) == []
        with pytest.raises(ConfigError, match='num_images'):
            SamplePicturesHook(num_images=0)


class TestOptions:
    def test_show_dir_draws_softly(self, tmp_path):
        cfg = gfl_det.get_config('gfl_r50_fpn_1x_coco')
        config_edits.draw_into(cfg, str(tmp_path))
        assert cfg.visualizer.type == 'gfl_det.GFLVisualizer'
        assert cfg.model.test_cfg.with_distribution is True
        assert cfg.model.test_cfg.score_thr == 0.05

    def test_what_is_not_ours_stays(self, tmp_path):
        cfg = load_config('mmdet::gfl/gfl_r50_fpn_1x_coco.py')
        cfg.visualizer.type = 'MyVisualizer'
        config_edits.draw_into(cfg, str(tmp_path))
        assert cfg.visualizer.type == 'MyVisualizer'
        assert 'with_distribution' not in cfg.model.test_cfg
        bare = Config({'model': {'type': 'FasterRCNN'}})
        config_edits.draw_softly(bare)
        assert bare.visualizer.type == 'gfl_det.GFLVisualizer'
        assert bare.model == {'type': 'FasterRCNN'}

    def test_a_sample_of_validation_images(self):
        cfg = gfl_det.get_config('gfl_r50_fpn_1x_coco')
        cfg.default_hooks.visualization.score_thr = 0.5
        config_edits.draw_sample(cfg, 4)
        hook = cfg.default_hooks.visualization
        assert (hook.type, hook.num_images) == ('gfl_det.SamplePicturesHook', 4)
        assert hook.score_thr == 0.5
        with pytest.raises(ConfigError, match='--pictures 0'):
            config_edits.draw_sample(cfg, 0)
        cfg.val_dataloader = None
        with pytest.raises(ConfigError, match='no val_dataloader'):
            config_edits.draw_sample(cfg, 4)

    def test_back_ends_are_added_once(self, monkeypatch):
        monkeypatch.setattr(config_edits, 'find_spec', lambda name: name)
        cfg = gfl_det.get_config('gfl_r50_fpn_1x_coco')
        config_edits.log_to(cfg, ['tensorboard', 'tensorboard', 'wandb'])
        config_edits.log_to(cfg, ['tensorboard'])
        kinds = [backend['type'] for backend in cfg.visualizer.vis_backends]
        assert kinds == ['LocalVisBackend', 'TensorboardVisBackend', 'WandbVisBackend']

    def test_a_missing_package_is_named(self, monkeypatch):
        monkeypatch.setattr(config_edits, 'find_spec', lambda name: None)
        with pytest.raises(SetupError, match=r'pip install "gfl_det\[wandb\]"'):
            config_edits.log_to(gfl_det.get_config('gfl_r50_fpn_1x_coco'), ['wandb'])

    def test_command_line(self):
        args = train.parse_arguments(['c.py', '--pictures', '--log-to', 'tensorboard'])
        assert (args.pictures, args.log_to) == (8, ['tensorboard'])
        args = train.parse_arguments(['c.py'])
        assert (args.pictures, args.log_to) == (None, [])


class TestShowTool:
    def test_gts_of_a_coco_file(self, tmp_path):
        path = tmp_path / 'labels.json'
        content = {
            'images': [{'id': 5, 'file_name': 'in/a.png'}, {'id': 6, 'file_name': 'b.png'}],
            'categories': [{'id': 3, 'name': 'cat'}, {'id': 9, 'name': 'cow'}],
            'annotations': [
                {'image_id': 5, 'category_id': 3, 'bbox': [1, 2, 3, 4]},
                {'image_id': 5, 'category_id': 9, 'bbox': [0, 0, 9, 9]},
            ],
        }
        path.write_text(json.dumps(content))
        gts = show.CocoGroundTruth(path)
        boxes = gts.of('a.png', ('dog', 'cat'))
        assert boxes.boxes.tolist() == [[1, 2, 4, 6]]
        assert boxes.labels.tolist() == [1]
        assert gts.of('b.png', ('cat',)).boxes.shape == (0, 4)
        with pytest.raises(DataError, match=r"no image 'c\.png'"):
            gts.of('c.png', ('cat',))
        content['images'][1]['file_name'] = 'other/a.png'
        path.write_text(json.dumps(content))
        gts = show.CocoGroundTruth(path)
        assert len(gts.of('x/in/a.png', ('cat',)).boxes) == 1
        assert len(gts.of('other/a.png', ('cat',)).boxes) == 0
        with pytest.raises(DataError, match=r"no image 'a\.png'"):  # either may be meant
            gts.of('a.png', ('cat',))
        for text, fault in (('{}', 'no COCO'), ('[', 'no.* valid JSON'), ('[]', 'JSON list')):
            path.write_text(text)
            with pytest.raises(DataError, match=rf'labels\.json .*{fault}'):
                show.CocoGroundTruth(path)
        with pytest.raises(DataError, match='cannot be read'):
            show.CocoGroundTruth(tmp_path / 'absent.json')

    def test_scores_are_shares(self, capsys):
        with pytest.raises(SystemExit):
            show.parse_arguments(['x.pth', 'a.png', '--score-thr', '30'])
        assert 'a share in 0 to 1 is needed, not 30' in capsys.readouterr().err


@pytest.mark.skipif(find_spec('tensorboard') is None, reason='the package tensorboard is missing')
def test_a_training_sends_the_same_images_each_epoch_and_a_tool_draws_them(pets):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (pets / 'wandb.py').write_text(FAKE_WANDB)
    python_path = f'{ROOT}:{pets}'
    trained = run_tool(
        *('train', 'tiny.py', '--work-dir', 'run', '--from-scratch'),
        *('--pictures', '3', '--log-to', 'tensorboard', 'wandb'),
        *('--cfg-options', 'data_root=pets', 'train_cfg.max_epochs=2'),
        *('default_hooks.visualization.score_thr=0.0',),
        cwd=pets,
        PYTHONPATH=python_path,
        DISPLAY='',
        MPLBACKEND='',
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    (folder,) = pets.glob('run/*/vis_data')
    names = [f'val_{number}' for number in (1, 3, 6)]

    events = EventAccumulator(str(folder)).Reload()
    assert sorted(events.Tags()['images']) == names
    for name in names:
        assert [event.step for event in events.Images(name)] == [1, 2]
        picture = cv2.imdecode(
            np.frombuffer(events.Images(name)[0].encoded_image_string, np.uint8), 1
        )
        assert picture.shape[1] > 2 * 96  # gt box beside prediction, enlarged
    assert 'loss' in events.Tags()['scalars']

    logged = [json.loads(line) for line in (folder / 'wandb.jsonl').read_text().splitlines()]
    images = [name for entry in logged for name in entry if name.startswith('val_')]
    assert images == names * 2
    assert all(
        entry[name] == list(picture.shape) for entry in logged for name in entry if name in names
    )
    local = sorted(path.name for path in (folder / 'vis_image').iterdir())
    assert local == sorted(f'{name}_{epoch}.png' for name in names for epoch in (1, 2))

    (pets / 'torn.png').write_bytes(b'torn')
    (pets / 'more').mkdir()
    (pets / 'more' / '2.png').write_bytes((pets / 'pets' / 'img' / '5.png').read_bytes())
    drawn = run_tool(
        *(
            'show',
            'run/epoch_2.pth',
            'pets/img/2.png',
            'torn.png',
            'pets/img/7.png',
            'more',
        ),
        *('--truths', 'pets/labels.json', '--out', 'shown', '--score-thr', '0'),
        *('--edges', '--format', 'svg'),
        cwd=pets,
        DISPLAY='',
    )
    assert drawn.returncode == 1  # for the torn one; the others are done
    assert 'warning: torn.png' in drawn.stderr
    assert 'error: 1 of the images could not be read' in drawn.stderr
    written = sorted(path.name for path in (pets / 'shown').iterdir())
    assert written == [
        *('2.edges.svg', '2.png', '2_2.edges.svg', '2_2.png', '7.edges.svg', '7.png')
    ]
    assert drawn.stdout.count('written: shown/') == 6
    seen = cv2.imread(str(pets / 'shown' / '2.png'))[..., ::-1]
    left = seen[:, : seen.shape[1] // 2].reshape(-1, 3)
    labels = json.loads((pets / 'pets' / 'labels.json').read_text())['annotations']
    for entry in labels:
        if entry['image_id'] == 2:  # a gt box's colour is in the left half
            colour = class_colours(2)[entry['category_id'] - 10]
            assert (left == colour).all(1).sum() > 50
