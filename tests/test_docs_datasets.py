"""docs/howto/data.md: every config is built, and all but Objects365 are run on a few pictures."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from gfl_det.engine import config_edits, preflight
from gfl_det.engine.preflight.agreement import check_classes
from gfl_det.engine.runner import build_runner
from gfl_det.utils.config import SPLITS, override, walk
from tests.helpers.paths import ROOT
from tests.helpers.tiny_project import TINY_CONFIG

SHAPE = (64, 96)  # height, width of the pictures
CODE = re.compile(r'^## ([^\n]+)\n|^```python[^\n]*\n(.*?)^```', re.DOTALL | re.MULTILINE)


def code_blocks(path: Path) -> dict[str, list[str]]:
    """Python code by the section it stands in."""
    blocks: dict[str, list[str]] = {}
    section = ''
    for title, code in CODE.findall(path.read_text()):
        section = title or section
        if code:
            blocks.setdefault(section, []).append(code)
    return blocks


DOCS = code_blocks(ROOT / 'docs' / 'howto' / 'data.md')
TUTORIAL = code_blocks(ROOT / 'docs' / 'tutorial.md')['3. Write a config'][0]
CONFIGS = {section: code[-1] for section, code in DOCS.items()} | {'tutorial': TUTORIAL}
MODULE = DOCS['A format of your own'][0]


@pytest.fixture(autouse=True)
def csv_dataset(tmp_path, monkeypatch):
    """The module of the docs, importable from the folder that a user starts in."""
    (tmp_path / 'csv_dataset.py').write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop('csv_dataset', None)
    DATASETS._module_dict.pop('CSVDataset', None)


def config_of(section: str, folder: Path) -> Config:
    """The config as a user has it; the prefix needs an installation, see test_packaging.py."""
    path = folder / 'mine.py'
    path.write_text(CONFIGS[section].replace('gfl_det::gfl/', f'{ROOT / "configs"}/'))
    return Config.fromfile(path)


def test_the_sections_are_there():
    assert set(CONFIGS) == {
        *('COCO JSON', 'Pascal VOC', 'Objects365', 'A format of your own', 'tutorial')
    }
    assert all('_base_ = ' in code for code in CONFIGS.values())


@pytest.mark.parametrize('section', CONFIGS)
def test_every_config_is_built(section, tmp_path):
    cfg = config_of(section, tmp_path)
    check_classes(cfg, SPLITS)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        for split in SPLITS:
            dataset = DATASETS.build(dict(lazy_init=True, **cfg[f'{split}_dataloader'].dataset))
            assert len(dataset.metainfo['classes']) == model.bbox_head.num_classes
            assert dataset.test_mode == (split != 'train')
            assert len(dataset.pipeline.transforms) >= 4


def draw(path: Path, boxes: list[tuple]) -> None:
    pixels = np.full((*SHAPE, 3), 40, np.uint8)
    for label, x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = (200, 60, 60) if label == 'cat' else (60, 200, 60)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def pictures(seed: int) -> dict[str, list[tuple]]:
    """Four pictures of two boxes: name -> (class, x1, y1, x2, y2)."""
    random = np.random.default_rng(seed)
    found = {}
    for number in range(4):
        boxes = []
        for label in ('cat', 'dog'):
            width, height = random.integers(16, 40, 2)
            x, y = random.integers(1, (SHAPE[1] - width, SHAPE[0] - height))
            boxes.append((label, *map(int, (x, y, x + width, y + height))))
        found[f'{seed}{number}'] = boxes
    return found


def write_coco(root: Path) -> None:
    for seed, split in enumerate(('train', 'val')):
        images, annotations = [], []
        for name, boxes in pictures(seed).items():
            draw(root / 'images' / f'{name}.jpg', boxes)
            size = dict(height=SHAPE[0], width=SHAPE[1])
            images.append(dict(id=len(images), file_name=f'{name}.jpg', **size))
            for label, x1, y1, x2, y2 in boxes:
                box = dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=0)
                box.update(id=len(annotations), image_id=images[-1]['id'])
                annotations.append(dict(box, category_id=1 + (label == 'dog')))
        categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f'{split}.json').write_text(json.dumps(content))


def write_csv(root: Path) -> None:
    for seed, split in enumerate(('train', 'val')):
        lines = []
        for name, boxes in pictures(seed).items():
            draw(root / 'images' / f'{name}.jpg', boxes)
            size = f'{name}.jpg,{SHAPE[1]},{SHAPE[0]}'
            lines += [f'{size},{",".join(map(str, box))}' for box in boxes]
        (root / f'{split}.csv').write_text('\n'.join(lines) + '\n')


def write_voc(root: Path) -> None:
    folder = root / 'VOC2007'
    for part in ('ImageSets/Main', 'Annotations'):
        (folder / part).mkdir(parents=True)
    for seed, split in enumerate(('trainval', 'test')):
        for name, boxes in pictures(seed).items():
            draw(folder / 'JPEGImages' / f'{name}.jpg', boxes)
            objects = ''.join(
                f'<object><name>{label}</name><difficult>0</difficult><bndbox>'
                f'<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2 + 1}</xmax>'
                f'<ymax>{y2 + 1}</ymax></bndbox></object>'
                for label, x1, y1, x2, y2 in boxes
            )
            size = f'<size><width>{SHAPE[1]}</width><height>{SHAPE[0]}</height></size>'
            text = f'<annotation>{size}{objects}</annotation>'
            (folder / 'Annotations' / f'{name}.xml').write_text(text)
        listed = '\n'.join(pictures(seed))
        (folder / 'ImageSets' / 'Main' / f'{split}.txt').write_text(listed + '\n')


def shrink(cfg: Config, root: Path, folder: Path) -> None:
    """The same config with a tiny model, small pictures, one epoch and no worker processes."""
    (folder / 'tiny.py').write_text(TINY_CONFIG)
    override(cfg, {'data_root': f'{root}/'})
    classes = cfg.model.bbox_head.num_classes
    cfg.model = Config(runpy.run_path(str(folder / 'tiny.py'))).model
    cfg.model.backbone.update(init_cfg=None, frozen_stages=-1)
    cfg.model.bbox_head.num_classes = classes
    for split in SPLITS:
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        for _, node in walk(loader.dataset, ''):
            if node.get('type') == 'Resize':
                node['scale'] = (SHAPE[1], SHAPE[0])
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir = str(folder / 'run')
    cfg.default_hooks.logger.interval = 1
    cfg.randomness = dict(seed=0)


@pytest.mark.parametrize(
    ('section', 'write', 'metric'),
    [
        ('COCO JSON', write_coco, 'coco/bbox_mAP'),
        ('Pascal VOC', write_voc, 'pascal_voc/mAP'),
        ('A format of your own', write_csv, 'pascal_voc/mAP'),
    ],
)
def test_data_of_each_kind_is_trained_on(section, write, metric, tmp_path):
    root = tmp_path / 'somewhere'
    root.mkdir()
    write(root)
    cfg = config_of(section, tmp_path)
    shrink(cfg, root, tmp_path)
    config_edits.log_assignment(cfg)
    preflight.check_training(cfg)
    runner = build_runner(cfg)
    runner.train()
    scalars: dict[str, Any] = runner.message_hub.log_scalars
    assert 0 < scalars['train/loss'].current() < np.inf
    assert scalars['train/truths_without_positive'].current() == 0
    assert 0 <= scalars[f'val/{metric}'].current() <= 1

    classes = runner.val_dataloader.dataset.metainfo['classes']
    found = runner.val_dataloader.dataset
    expected = pictures(1)
    assert len(found) == len(expected)
    for index in range(len(found)):
        info = found.get_data_info(index)
        boxes = [
            (classes[each['bbox_label']], *(round(value) for value in each['bbox']))
            for each in info['instances']
        ]
        assert sorted(boxes) == sorted(expected[Path(info['img_path']).stem])
