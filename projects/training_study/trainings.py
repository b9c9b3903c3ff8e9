"""Short trainings on a processor, several seeds each: published weights, and assigners.

    gfl-det weights convert nanodet-plus-m_416.param nanodet-plus-m_416.bin --out nanodet.pth
    OMP_NUM_THREADS=1 python -m projects.training_study.trainings STUDY [--weights nanodet.pth]
        --data bccd=FOLDER face_masks=FOLDER [--seeds 0 1 2]
    python -m projects.training_study.trainings STUDY --table

A run is a data set, an arm and a seed. Its training is the one that ``gfl-det train --data`` plans,
with fewer epochs; the last checkpoint is judged. Each run writes one JSON file; a run whose file is
there is not repeated, and one that was cut goes on from its last epoch. Times are those of the
process, so that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmdet
import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from scipy.stats import t as student

import gfl_det
from gfl_det.cli import main as cli
from gfl_det.cli import train
from gfl_det.cli.own_data import planned_config
from gfl_det.engine import config_edits
from gfl_det.engine.runner import build_runner
from gfl_det.utils.config import load_config
from gfl_det.utils.files import write_json
from projects.benchmark.processors import processor
from projects.calibration_study.tables import fraction, markdown, spread

RESULTS = Path(__file__).parent / 'results'
NANODET, R18 = 'nanodet-plus-m_416_coco', 'gfl_r18_fpn_bccd'
SEEDS = (0, 1, 2)
RATE = 2e-3  # of NanoDet-Plus at four pictures a step, chosen in `tuning`
METRICS = ('AP', 'AP50', 'AP75')
KEYS = {'AP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'AP75': 'coco/bbox_mAP_75'}
SMALL = {
    'model.backbone.stem_channels': 32,
    'model.backbone.base_channels': 32,
    'model.neck.in_channels': [64, 128, 256],
}


class Arm(NamedTuple):
    """What is trained, and how long."""

    name: str
    model: str
    epochs: dict[str, int]  # per data set
    published: bool = False  # weights; otherwise random ones
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed
    rate: float | None = None  # None: the planned one
    split: str = 'test'


class TrainingRun(NamedTuple):
    """One training."""

    study: str
    data: str
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Name of the work dir and of the result."""
        return f'{self.study}-{self.data}-{self.arm.name}-seed{self.seed}'


def studies() -> dict[str, list[Arm]]:
    """Arms of each study; the first is what the others are compared with."""
    both = {'bccd': 3, 'face_masks': 1}
    return {
        'tuning': [
            Arm(name, NANODET, {'bccd': epochs}, published=True, rate=rate, split='val')
            for name, rate, epochs in (
                ('rate0.0002', 2e-4, 2),
                ('rate0.001', 1e-3, 2),
                ('rate0.002', 2e-3, 2),
                ('rate0.001_long', 1e-3, 4),
                ('rate0.002_long', 2e-3, 4),
            )
        ],
        'weights': [
            Arm('r18_random', R18, both),
            Arm('nanodet_random', NANODET, both, rate=RATE),
            Arm('nanodet_published', NANODET, both, published=True, rate=RATE),
        ],
        'assigners': [
            Arm('atss', R18, {'bccd': 4}, options=SMALL),
            Arm(
                'task_aligned',
                R18,
                {'bccd': 4},
                options=SMALL
                | {
                    'model.train_cfg.assigner': dict(
                        _delete_=True, type='TaskAlignedAssigner', topk=13
                    )
                },
            ),
        ],
    }


class EpochClock(Hook):
    """Keeps the process's seconds of each epoch, for runs that were cut."""

    def __init__(self, path: Path) -> None:
        self.path, self.begin = path, 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        self.begin = time.process_time()

    def after_train_epoch(self, runner: Runner) -> None:
        times = json.loads(self.path.read_text()) if self.path.is_file() else {}
        times[str(runner.epoch)] = time.process_time() - self.begin
        write_json(self.path, times)


def run_config(run: TrainingRun, folder: str, weights: str | None, work_dir: Path) -> Config:
    """Return the planned config of a run, with its schedule, rate and seed."""
    model = run.arm.model
    if run.arm.published:
        if weights is None:
            raise SystemExit(f'{run.name} starts from published weights: give --weights.')
        model = weights
    words = ['--data', folder, '--model', model, '--work-dir', str(work_dir)]
    words += [] if run.arm.published else ['--from-scratch']
    cut = (work_dir / 'config.py').is_file()
    args = train.parse_arguments([*words, *(['--resume'] if cut else [])])
    args.model = None if cut else args.model  # the config that is there is gone on with
    cfg = load_config(planned_config(args, anew=not cut))
    epochs = run.arm.epochs[run.data]
    cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    warm_up, cosine = cfg.param_scheduler
    steps = epochs * (_images(cfg) // cfg.train_dataloader.batch_size)
    warm_up.end = min(warm_up.end, steps // 10)
    cosine.update(end=epochs, T_max=epochs)
    if run.arm.rate is not None:
        cfg.optim_wrapper.optimizer.lr = run.arm.rate
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.merge_from_dict(run.arm.options)
    cfg.randomness = dict(seed=run.seed)
    cfg.experiment_name = run.name
    cfg.default_hooks.checkpoint.update(save_best=None, max_keep_ckpts=1)
    cfg.work_dir = str(work_dir)
    return cfg


def _images(cfg: Config) -> int:
    data = cfg.train_dataloader.dataset
    path = Path(data.get('data_root') or '', data.ann_file)
    return len(json.loads(path.read_text())['images'])


def do_run(run: TrainingRun, folder: str, weights: str | None, base: Path) -> dict[str, Any]:
    """Train, judge the last checkpoint, and return what is written down."""
    work_dir = base / run.name
    cfg = run_config(run, folder, weights, work_dir)
    facts = dict(
        model=run.arm.model,
        published=run.arm.published,
        epochs=run.arm.epochs[run.data],
        batch=cfg.train_dataloader.batch_size,
        images=_images(cfg),
        rate=cfg.optim_wrapper.optimizer.lr,
        scale=_scale(cfg),
        assigner=cfg.model.train_cfg.assigner.type,
    )
    test_cfg = Config(cfg.to_dict())
    config_edits.protect(cfg)
    config_edits.resume(cfg, 'auto')
    clock = work_dir / 'seconds.json'
    begin = time.monotonic()
    runner = build_runner(cfg, quiet='train')
    runner.register_hook(EpochClock(clock))
    runner.train()
    seconds = sum(json.loads(clock.read_text()).values())
    facts.update(minutes=seconds / 60, wall_minutes=(time.monotonic() - begin) / 60)
    checkpoint = work_dir / f'epoch_{facts["epochs"]}.pth'
    found = {split: judge(test_cfg, checkpoint, split) for split in _splits(run)}
    return dict(
        run=dict(study=run.study, data=run.data, arm=run.arm.name, seed=run.seed),
        **facts,
        metrics=found,
    )


def _splits(run: TrainingRun) -> list[str]:
    return ['val'] if run.arm.split == 'val' else ['val', 'test']


def judge(cfg: Config, checkpoint: Path, split: str) -> dict[str, float]:
    """COCO metrics of a checkpoint on a split."""
    cfg = Config(cfg.to_dict())
    for key in ('dataloader', 'evaluator'):
        cfg[f'test_{key}'] = cfg[f'{split}_{key}']
    cfg.load_from, cfg.resume = str(checkpoint), False
    cfg.experiment_name = f'{cfg.experiment_name}-{split}'
    cfg.work_dir = os.path.join(cfg.work_dir, split)
    return {key: float(value) for key, value in build_runner(cfg, quiet='test').test().items()}


def _scale(cfg: Config) -> list[int]:
    steps = cfg.train_dataloader.dataset.pipeline
    return list(next(step.scale for step in steps if step.type == 'Resize'))


def machine() -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    return dict(
        processor=processor(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        mmdet=mmdet.__version__,
        gfl_det=gfl_det.__version__,
        python=sys.version.split()[0],
    )


def commit() -> str:
    """The checkout's commit, with a plus where code differs from it."""
    folder = Path(__file__).parent
    words = ['git', '-C', str(folder)]
    name = subprocess.run(
        [*words, 'rev-parse', '--short=12', 'HEAD'], capture_output=True, text=True
    )
    changed = subprocess.run(
        [*words, 'status', '--porcelain', '-uno', '--', '../../gfl_det', '../../configs', '.'],
        capture_output=True,
        text=True,
    )
    return name.stdout.strip() + ('+' if changed.stdout.strip() else '')


def runs_of(study: str, data: Sequence[str], seeds: Sequence[int]) -> Iterator[TrainingRun]:
    """Runs of a study: every arm with a seed before the next seed."""
    for name in data:
        for seed in seeds:
            for arm in studies()[study]:
                if name in arm.epochs:
                    yield TrainingRun(study, name, arm, seed)


def read_results(study: str) -> list[dict[str, Any]]:
    """The runs of a study that are finished."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f'{study}-*.json'))]


def table(study: str) -> str:
    """Means, standard deviations and paired differences over seeds, as Markdown."""
    arms, found = studies()[study], read_results(study)
    rows = []
    for data in dict.fromkeys(each['run']['data'] for each in found):
        by_arm = {
            arm.name: {
                each['run']['seed']: each
                for each in found
                if (each['run']['data'], each['run']['arm']) == (data, arm.name)
            }
            for arm in arms
        }
        base = by_arm[arms[0].name]
        for arm in arms:
            runs = by_arm[arm.name]
            if not runs:
                continue
            cells = [[_metric(each, arm, name) for each in runs.values()] for name in METRICS]
            pairs = sorted(set(base) & set(runs))
            gains = [_metric(runs[s], arm, 'AP') - _metric(base[s], arms[0], 'AP') for s in pairs]
            gain = '' if arm is arms[0] or not pairs else interval(gains)
            first = next(iter(runs.values()))
            minutes = [each['minutes'] for each in runs.values()]
            rows.append(
                [
                    data,
                    arm.name,
                    f'{" x ".join(map(str, first["scale"]))}',
                    f'{first["rate"]:g}',
                    f'{first["epochs"]}',
                    f'{np.mean(minutes):.1f}',
                    str(len(runs)),
                    *map(spread, cells),
                    gain,
                ]
            )
    head = ['data', 'arm', 'px', 'rate', 'epochs', 'minutes', 'seeds', *METRICS, 'AP gained']
    return markdown(head, rows, words=2)


def _metric(result: dict[str, Any], arm: Arm, name: str) -> float:
    # mmdet's metric gives no number where there is no detection at all.
    return result['metrics'][arm.split].get(KEYS[name], 0.0)


def interval(gains: Sequence[float]) -> str:
    """Mean of paired differences with its .95 interval by Student's t."""
    mean = float(np.mean(gains))
    if len(gains) < 2:
        return f'{mean:+.3f}'
    half = student.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5
    return f'{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]'


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('study', choices=studies())
    parser.add_argument('--data', nargs='+', default=[], metavar='NAME=FOLDER')
    parser.add_argument('--weights', metavar='FILE', help='of gfl-det weights convert')
    parser.add_argument('--seeds', nargs='+', type=int, default=list(SEEDS))
    parser.add_argument('--base', type=Path, default=Path('work_dirs/training_study'))
    parser.add_argument('--table', action='store_true', help='print the table of what is finished')
    return parser.parse_args(argv)


def main() -> None:
    """Do what is missing of a study, or print its table."""
    args = parse_arguments()
    if args.table:
        print(table(args.study))
        return
    folders = dict(each.split('=', 1) for each in args.data)
    for run in runs_of(args.study, list(folders), args.seeds):
        path = RESULTS / f'{run.name}.json'
        if path.is_file():
            continue
        code = commit()
        result = do_run(run, folders[run.data], args.weights, args.base)
        write_json(path, dict(result, commit=code, machine=machine()), indent=1)
        found = _metric(result, run.arm, 'AP')
        print(f'{run.name}: AP {fraction(found)}, {result["minutes"]:.1f} minutes', flush=True)


if __name__ == '__main__':
    cli.run(main)
