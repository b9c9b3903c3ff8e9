"""A training that takes a second and has everything that a resumed one may forget.

Averaged weights, momentum and second moments, a warm-up, a loss scaler, dropout (random numbers of
the main process), flips and colours (random numbers of a worker that lives on), validations, best
checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import socket
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from tests.helpers.paths import ROOT

TRAIN = ROOT / 'tools' / 'train.py'
IMAGES = 10
WIDTH, HEIGHT = 96, 64

CONFIG = """
default_scope = 'mmdet'
custom_imports = dict(imports=['gfl_det', 'dropping'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'), logger=dict(type='LoggerHook', interval=1),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='coco/bbox_mAP',
        rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'))
custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.01, gamma=4)]
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='gloo'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
data_root = 'data/'
dataset = dict(
    type='gfl_det.CocoDataset', data_root=data_root, ann_file='labels.json',
    data_prefix=dict(img='img/'), metainfo=dict(classes=('blue', 'green')))
load = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True)]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackDetInputs', meta_keys=keys)
train_dataloader = dict(
    batch_size=4, num_workers=1, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        pipeline=[
            *load, dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion'), pack],
        **dataset))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(test_mode=True, pipeline=[*load, pack], **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type='gfl_det.CocoMetric', ann_file=data_root + 'labels.json')
test_evaluator = val_evaluator
model = dict(
    type='GFL',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0] * 3, std=[255] * 3, pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, stem_channels=8, frozen_stages=-1,
        norm_eval=False, out_indices=(1, 2, 3)),
    neck=dict(
        type='DroppingFPN', in_channels=[16, 32, 64], out_channels=16, num_outs=3, start_level=0),
    bbox_head=dict(
        type='gfl_det.GFLHead', num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1,
        norm_cfg=dict(type='GN', num_groups=4),
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
            strides=[8, 16, 32]),
        loss_cls=dict(type='gfl_det.QualityFocalLoss'),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_dfl=dict(type='gfl_det.DistributionFocalLoss', loss_weight=0.25)),
    train_cfg=dict(
        assigner=dict(type='gfl_det.ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(
        nms_pre=100, min_bbox_size=0, score_thr=0.0, max_per_img=10,
        nms=dict(type='nms', iou_threshold=0.6)))
optim_wrapper = dict(
    type='gfl_det.CPUAmpOptimWrapper', loss_scale=dict(init_scale=1024.0, growth_interval=5),
    optimizer=dict(type='AdamW', lr=0.002), clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=6, T_max=6,
         convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=6, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
randomness = dict(seed=3)
auto_scale_lr = dict(enable=False, base_batch_size=4)
"""
DROPPING = """
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from torch.nn.functional import dropout


@MODELS.register_module()
class DroppingFPN(FPN):
    def forward(self, inputs):
        return tuple(dropout(level, 0.2, self.training) for level in super().forward(inputs))
"""


def make_project(folder: Path) -> Path:
    """Write images, labels and the config ``tiny.py`` into a folder."""
    rng = np.random.default_rng(0)
    (folder / 'data' / 'img').mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, IMAGES + 1):
        upright = number % 3 == 0  # two groups of shapes, so that batches are put together
        width, height = (HEIGHT, WIDTH) if upright else (WIDTH, HEIGHT)
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for _ in range(2):
            w, h = map(int, rng.integers(16, 40, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            label = int(rng.integers(0, 2))
            pixels[y : y + h, x : x + w] = (40, 220, 40) if label else (220, 40, 40)
            annotations.append(
                dict(id=len(annotations) + 1, image_id=number, category_id=10 + label)
                | dict(bbox=[x, y, w, h], area=w * h, iscrowd=0)
            )
        cv2.imwrite(str(folder / 'data' / 'img' / f'{number}.png'), pixels)
        images.append(dict(id=number, file_name=f'{number}.png', width=width, height=height))
    categories = [dict(id=10, name='blue'), dict(id=11, name='green')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'data' / 'labels.json').write_text(json.dumps(content))
    (folder / 'tiny.py').write_text(CONFIG)
    (folder / 'dropping.py').write_text(DROPPING)
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    keep = {key: value for key, value in os.environ.items() if not key.lower().endswith('_proxy')}
    paths = f'{ROOT}{os.pathsep}{folder}'
    return keep | dict(PYTHONPATH=paths, OMP_NUM_THREADS='1', PYTHON=sys.executable) | more


def fork_training(
    folder: Path, log: Path, *words: object, tool: Path = TRAIN, variables: dict | None = None
) -> int:
    """Run tools/train.py on the project in a fork of this process, which has imported it all.

    Args:
        folder: The project.
        log: Where its output goes.
        *words: Arguments after the config.
        tool: Another tool.
        variables: of the environment.

    Returns:
        The process id; the process leads its own group.
    """
    import torch._dynamo  # noqa: F401  (optimizers import it, for seconds: once is enough)

    log.write_text('')
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # whichever of the two comes first
            os.setpgid(pid, pid)
        return pid
    status = 70
    with contextlib.suppress(BaseException):
        os.setpgid(0, 0)
        sys.settrace(None)  # coverage's, whose counts the fork would not hand in
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')  # pytest has its own
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.argv = [str(tool), 'tiny.py', *map(str, words), '--verbose']
        os.environ.update(variables or {})
        try:
            runpy.run_path(str(tool), run_name='__main__')
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def fork_processes(folder: Path, name: str, *words: object, **settings: Any) -> list[int]:
    """Run a tool in two processes that work together; their logs are ``NAME 0.log`` and ``1``."""
    common = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    return [
        fork_training(
            *(folder, folder / f'{name} {rank}.log', *words, '--launcher', 'pytorch'),
            variables=common | dict(RANK=str(rank), LOCAL_RANK=str(rank)),
            **settings,
        )
        for rank in range(2)
    ]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def wait_for_text(log: Path, text: str, pid: int, seconds: float = 150) -> None:
    """Wait until a log has a text; the process must not end before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if log.exists() and text in log.read_text(errors='replace'):
            return
        assert wait_for(pid, 0) is None, log.read_text()[-2000:]
        time.sleep(0.01)
    raise AssertionError(f'{text!r} did not come:\n{log.read_text()[-2000:]}')


def wait_for(pid: int, seconds: float) -> int | None:
    """Wait for a process to end; return its exit status, negative a signal, None if it did not."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.005)


def differences(one: Any, other: Any, path: str = '') -> list[str]:
    """List where two training states differ in a bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype
        return [] if same and torch.equal(one, other) else [path]
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return [f'{path} (keys)']
        return [each for key in one for each in differences(one[key], other[key], f'{path}.{key}')]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f'{path} (length)']
        pairs = enumerate(zip(one, other))
        return [each for index, (a, b) in pairs for each in differences(a, b, f'{path}.{index}')]
    return [] if one == other else [path]


def training_state(path: Path) -> dict[str, Any]:
    """Return all of a checkpoint that decides how the training goes on, and the weights."""
    from gfl_det.compat.checkpoint import load_file

    checkpoint = load_file(str(path), 'cpu')
    state = {
        key: checkpoint[key]
        for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    }
    meta = checkpoint['meta']
    return state | {key: meta[key] for key in ('epoch', 'iter', 'seed', 'training_state')}
