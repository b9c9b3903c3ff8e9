"""The project of the docs' tutorial at its end, on a few pictures and with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from gfl_det import GFLInferencer
from gfl_det.datasets.digits.build import DigitsRecipe, build_digits
from tests.helpers.doc_pages import read_blocks, run_block
from tests.helpers.inferring import write_checkpoint, write_images

TRAIN, VAL = 2, 6
WORK_DIR = Path('work_dirs/mine')
CHECKPOINT = WORK_DIR / 'epoch_6.pth'
BEST = WORK_DIR / 'best_coco_bbox_mAP_epoch_6.pth'
ANNOTATIONS = Path('data/mine/annotations/val.json')


def write_project(root: Path) -> None:
    """Write config, data, pictures and a checkpoint as the tutorial leaves them."""
    build_digits(root / 'data' / 'mine', DigitsRecipe(train=TRAIN, val=VAL), workers=0)
    config = next(block for block in read_blocks('docs/tutorial.md') if block.title == 'mine.py')
    run_block(config, root, {})
    (root / WORK_DIR).mkdir(parents=True)
    shutil.copy(root / 'mine.py', root / WORK_DIR)
    write_checkpoint(root / WORK_DIR).rename(root / CHECKPOINT)
    shutil.copy(root / CHECKPOINT, root / BEST)
    logs = root / WORK_DIR / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    (logs / 'scalars.json').write_text('{"loss": 1.0, "epoch": 1, "step": 1}\n')
    write_images(root / 'pictures', 2)
    annotate_own_detections(root)


def annotate_own_detections(root: Path) -> None:
    """Let the validation boxes be the random detector's own, moved by noise of half a pixel.

    Calibrators then find matches, which random weights would not give them.
    """
    content = json.loads((root / ANNOTATIONS).read_text())
    detect = GFLInferencer(root / CHECKPOINT, device='cpu', score_thr=0.4)
    files = [root / 'data' / 'mine' / 'val' / each['file_name'] for each in content['images']]
    rng = np.random.default_rng(0)
    content['annotations'] = []
    for image, result in zip(content['images'], detect(files, progress=False)):
        limits = [image['width'], image['height']] * 2
        for box, label in zip(result.instances.bboxes.numpy(), result.instances.labels.tolist()):
            edges = np.clip(box + rng.normal(0, 0.5, 4), 0, limits)
            left, top, right, bottom = edges.tolist()
            if min(right - left, bottom - top) < 2:
                continue
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=image['id'],
                    category_id=content['categories'][label]['id'],
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=0,
                )
            )
    (root / ANNOTATIONS).write_text(json.dumps(content))
