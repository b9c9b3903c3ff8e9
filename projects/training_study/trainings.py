"""Short trainings on a processor, several seeds each: weights, assigners, heads, losses, options.

    gfl-det weights convert nanodet-plus-m_416.param nanodet-plus-m_416.bin --out nanodet.pth
    OMP_NUM_THREADS=1 python -m projects.training_study.trainings STUDY [--weights nanodet.pth]
        --data bccd=FOLDER face_masks=FOLDER [--seeds 0 1 2] [--arms NAME ...]
    python -m projects.training_study.trainings STUDY --table

A run is a data set, an arm (:mod:`.arms`) and a seed. Its training is the one that ``gfl-det train
--data`` plans, with fewer epochs; the last checkpoint is judged. Each run writes one JSON file; a
run whose file is there is not repeated, and one that was cut goes on from its last epoch. Times are
those of the process, so that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from gfl_det.cli import main as cli
from gfl_det.cli import train
from gfl_det.cli.own_data import planned_config
from gfl_det.engine import config_edits
from gfl_det.engine.runner import build_runner
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.comparison import holm
from gfl_det.evaluation.evaluate import FLOOR_PARTS
from gfl_det.utils.config import load_config
from gfl_det.utils.files import write_json
from projects.calibration_study.detection import METHODS, VIEWS, calibrate
from projects.calibration_study.detection_command import read_pair
from projects.calibration_study.tables import fraction, markdown, paired, spread
from projects.provenance import commit_at_start, machine
from projects.training_study.arms import SEEDS, SHARED, Arm, TrainingRun, arm_of, studies

RESULTS = Path(__file__).parent / 'results'
CONFIGS = Path(__file__).parents[2] / 'configs'
METRICS = ('AP', 'AP50', 'AP75')
KEYS = {'AP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'AP75': 'coco/bbox_mAP_75'}
SPLITS = ('train', 'val', 'test')
FOUND = 'found'  # prefix of the file of detections in a split's folder
# Of `evaluate_detections`, written down for each view and method; each error with its floor.
ERRORS = ('LaECE_0', 'LaACE_0', 'D-ECE')
MEASURES = ('bias', 'AP', 'AP50', 'AP75', 'oLRP', 'LRP_0', 'LRP_0_FN')
DIGITS = 5


class TrainingClock(Hook):
    """Process seconds spent in training epochs, kept in checkpoints for runs that are resumed."""

    KEY = 'training_seconds'  # in checkpoints

    def __init__(self) -> None:
        self._before = 0.0
        self._begin: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds in all epochs so far, also those before the run was cut."""
        return self._before + (0 if self._begin is None else time.process_time() - self._begin)

    def before_train_epoch(self, runner: Runner) -> None:
        self._begin = time.process_time()

    def after_train_epoch(self, runner: Runner) -> None:
        self._before, self._begin = self.seconds, None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint[self.KEY] = self.seconds

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            self._before = checkpoint.get(self.KEY, 0.0)


def run_config(run: TrainingRun, folder: str, weights: str | None, base: Path) -> Config:
    """Return the planned config of a run with its schedule, its seed and what its arm changes."""
    arm, work_dir = run.arm, base / run.name
    model = arm.model
    if arm.published:
        if weights is None:
            raise SystemExit(f'{run.name} starts from published weights: give --weights.')
        model = weights
    words = ['--data', folder, '--model', model, '--work-dir', str(work_dir)]
    words += [] if arm.published else ['--from-scratch']
    cut = (work_dir / 'config.py').is_file()
    args = train.parse_arguments([*words, *(['--resume'] if cut else [])])
    args.model = None if cut else args.model  # the config that is there is gone on with
    cfg = load_config(planned_config(args, anew=not cut))
    set_schedule(cfg, arm.epochs[run.data])
    if arm.rate is not None:
        cfg.optim_wrapper.optimizer.lr = arm.rate
    for split in SPLITS:
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    if run.data in arm.scales:
        set_scale(cfg, arm.scales[run.data])
    cfg.merge_from_dict(arm.options)
    if arm.head is not None:
        take_head(cfg, CONFIGS / arm.head)
    if arm.teacher is not None:
        teacher, checkpoint = trained(*arm.teacher, run.data, 0, base)
        cfg.model.update(teacher_config=str(teacher), teacher_ckpt=str(checkpoint))
    cfg.randomness = dict(seed=run.seed)
    cfg.experiment_name = run.name
    cfg.default_hooks.checkpoint.update(save_best=None, max_keep_ckpts=1)
    cfg.work_dir = str(work_dir)
    return cfg


def set_schedule(cfg: Config, epochs: int) -> None:
    """Fit the planned schedule into fewer epochs."""
    cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    warm_up, cosine = cfg.param_scheduler
    steps = epochs * (_images(cfg) // cfg.train_dataloader.batch_size)
    warm_up.end = max(1, min(warm_up.end, steps // 10))
    cosine.update(end=epochs, T_max=epochs)


def set_scale(cfg: Config, scale: tuple[int, int]) -> None:
    """Resize the pictures of all splits to another size in px."""
    for split in SPLITS:
        for step in cfg[f'{split}_dataloader'].dataset.pipeline:
            if step.type == 'Resize':
                step.scale = scale


def take_head(cfg: Config, path: Path) -> None:
    """Take detector, head, assigner and NMS of another config; classes and strides stay.

    Raises:
        SystemExit: the planned priors are not those that the other config's are made for.
    """
    head, other = cfg.model.bbox_head, load_config(str(path)).model
    ours, theirs = head.anchor_generator, other.bbox_head.anchor_generator
    if list(ours.strides) != list(theirs.strides) or ours.octave_base_scale != 8:
        raise SystemExit(f'{path.name} has priors on {theirs.strides}, the plan on {ours.strides}.')
    other.bbox_head.num_classes = head.num_classes
    same = other.train_cfg.assigner.type == cfg.model.train_cfg.assigner.type
    for key in ('type', 'bbox_head', 'test_cfg', *(() if same else ('train_cfg',))):
        cfg.model[key] = other[key]  # an assigner of the same kind keeps its planned options


def trained(study: str, arm: str, data: str, seed: int, base: Path) -> tuple[Path, Path]:
    """Config and last checkpoint of a finished run.

    Raises:
        SystemExit: it is not there.
    """
    run = TrainingRun(study, data, arm_of(study, arm), seed)
    folder = base / run.name
    config, checkpoint = folder / 'config.py', folder / f'epoch_{run.arm.epochs[data]}.pth'
    if not checkpoint.is_file():
        raise SystemExit(f'{checkpoint} is missing: run the arm {arm} of {study} first.')
    return config, checkpoint


def _images(cfg: Config) -> int:
    data = cfg.train_dataloader.dataset
    path = Path(data.get('data_root') or '', data.ann_file)
    return len(json.loads(path.read_text())['images'])


def do_run(run: TrainingRun, folder: str, weights: str | None, base: Path) -> dict[str, Any]:
    """Train, judge the last checkpoint, and return what is written down."""
    work_dir = base / run.name
    cfg = run_config(run, folder, weights, base)
    facts = dict(
        model=run.arm.model,
        published=run.arm.published,
        epochs=run.arm.epochs[run.data],
        batch=cfg.train_dataloader.batch_size,
        images=_images(cfg),
        rate=cfg.optim_wrapper.optimizer.lr,
        scale=_scale(cfg),
        assigner=cfg.model.train_cfg.assigner.type,
        head=cfg.model.bbox_head.type,
        parameters=_parameters(cfg),
    )
    test_cfg = Config(cfg.to_dict())
    if run.arm.views:
        checkpoint = trained(*SHARED, run.data, run.seed, base)[1]
        test_cfg.tta_pipeline = views_pipeline(cfg, run.arm.views)
        test_cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(cfg.model.test_cfg))
        facts.update(minutes=0.0)
    else:
        facts.update(minutes=_train(cfg))
        checkpoint = work_dir / f'epoch_{facts["epochs"]}.pth'
    found = {split: judge(test_cfg, checkpoint, split) for split in _splits(run)}
    result = dict(
        run=dict(study=run.study, data=run.data, arm=run.arm.name, seed=run.seed),
        **facts,
        metrics=found,
    )
    if run.arm.calibrated:
        result['calibration'] = calibration(cfg, work_dir)
    return result


def _train(cfg: Config) -> float:
    """Train, or go on; return the minutes of the process."""
    config_edits.protect(cfg)
    config_edits.resume(cfg, 'auto')
    runner, clock = build_runner(cfg, quiet='train'), TrainingClock()
    runner.register_hook(clock)
    runner.train()
    return clock.seconds / 60


def _splits(run: TrainingRun) -> list[str]:
    return ['val'] if run.arm.split == 'val' else ['val', 'test']


def judge(cfg: Config, checkpoint: Path, split: str) -> dict[str, float]:
    """COCO metrics of a checkpoint on a split, whose detections are kept in a file."""
    cfg = Config(cfg.to_dict())
    for key in ('dataloader', 'evaluator'):
        cfg[f'test_{key}'] = cfg[f'{split}_{key}']
    cfg.load_from, cfg.resume = str(checkpoint), False
    cfg.experiment_name = f'{cfg.experiment_name}-{split}'
    cfg.work_dir = os.path.join(cfg.work_dir, split)
    cfg.test_evaluator.outfile_prefix = os.path.join(cfg.work_dir, FOUND)
    if 'tta_model' in cfg:
        config_edits.use_test_time_augmentation(cfg)
    os.makedirs(cfg.work_dir, exist_ok=True)
    return {key: float(value) for key, value in build_runner(cfg, quiet='test').test().items()}


def views_pipeline(cfg: Config, scales: Sequence[float]) -> list[dict[str, Any]]:
    """Steps of test-time augmentation: every scale of the picture, as it is and mirrored."""
    load, resize, labels, pack = cfg.test_dataloader.dataset.pipeline
    sizes = [tuple(round(scale * side) for side in resize.scale) for scale in scales]
    keys = (*pack.meta_keys, 'flip', 'flip_direction')
    views = [
        [dict(type='Resize', scale=size, keep_ratio=True) for size in sizes],
        [dict(type='RandomFlip', prob=chance) for chance in (1.0, 0.0)],
        [dict(labels)],
        [dict(type=pack.type, meta_keys=keys)],
    ]
    return [dict(load), dict(type='TestTimeAug', transforms=views)]


def calibration(cfg: Config, work_dir: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Calibrators fitted on the kept detections of val, judged on those of test.

    Returns:
        By view, method and metric; each error with its count, floors and debiased value.
    """
    fitting, judged = (
        read_pair(cfg[f'{split}_evaluator'].ann_file, str(work_dir / split / f'{FOUND}.bbox.json'))
        for split in ('val', 'test')
    )
    names = [*MEASURES, *(f'{name}{end}' for name in ERRORS for end in FLOOR_PARTS)]
    found: dict[str, dict[str, dict[str, float]]] = {view: {} for view in VIEWS}
    for view, method in product(VIEWS, METHODS):
        try:
            metrics = calibrate(work_dir.name, fitting, judged, method, view).metrics
        except DataError as error:  # no detection to fit on
            print(f'{work_dir.name}, {view}, {method}: {error}', flush=True)
            continue
        found[view][method] = {
            name: round(metrics[name], DIGITS) for name in names if name in metrics
        }
    return found


def _parameters(cfg: Config) -> int:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return sum(each.numel() for each in MODELS.build(deepcopy(cfg.model)).parameters())


def _scale(cfg: Config) -> list[int]:
    steps = cfg.train_dataloader.dataset.pipeline
    return list(next(step.scale for step in steps if step.type == 'Resize'))


def runs_of(
    study: str, data: Sequence[str], seeds: Sequence[int], arms: Sequence[str] = ()
) -> Iterator[TrainingRun]:
    """Runs of a study: every arm with a seed before the next seed; all arms without names."""
    for name in data:
        for seed in seeds:
            for arm in studies()[study]:
                if name in arm.epochs and (not arms or arm.name in arms):
                    yield TrainingRun(study, name, arm, seed)


def read_results(study: str, arms: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The runs of a study that are finished, of all arms without names."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f'{study}-*.json'))]
    return [each for each in found if not arms or each['run']['arm'] in arms]


def by_seed(study: str, arm: str, data: str) -> dict[int, dict[str, Any]]:
    """The finished runs of an arm on a data set, by their seeds."""
    found = read_results(study, [arm])
    return {each['run']['seed']: each for each in found if each['run']['data'] == data}


def table(study: str) -> str:
    """Means, standard deviations and paired differences over seeds, as Markdown.

    The p values of a data set are adjusted together by Holm's procedure.
    """
    arms, rows = studies()[study], []
    bases = dict.fromkeys(arm.base for arm in arms if arm.base and arm.base[0] != study)
    shown = [*bases, *((study, arm.name) for arm in arms)]
    for data in dict.fromkeys(each['run']['data'] for each in read_results(study)):
        gains = {
            pair: paired(_gains(arm_of(*pair), pair, data))
            for pair in shown
            if arm_of(*pair).base and pair not in bases
        }
        adjusted = holm({'/'.join(pair): gain.p for pair, gain in gains.items()})
        for pair in shown:
            runs = by_seed(*pair, data)
            if not runs:
                continue
            arm, first = arm_of(*pair), next(iter(runs.values()))
            cells = [[_metric(each, arm, name) for each in runs.values()] for name in METRICS]
            rows.append(
                [
                    data,
                    arm.name,
                    f'{" x ".join(map(str, first["scale"]))}',
                    f'{first["rate"]:g}',
                    f'{first["epochs"]}',
                    f'{np.mean([each["minutes"] for each in runs.values()]):.1f}',
                    str(len(runs)),
                    *map(spread, cells),
                    arm.base[1] if pair in gains and arm.base else '',
                    str(gains[pair]) if pair in gains else '',
                    fraction(adjusted['/'.join(pair)]) if pair in gains else '',
                ]
            )
    head = ['data', 'arm', 'px', 'rate', 'epochs', 'minutes', 'seeds', *METRICS]
    return markdown([*head, 'beside', 'AP gained', 'p of all'], rows, words=2)


def _gains(arm: Arm, pair: tuple[str, str], data: str) -> list[float]:
    """AP less that of the arm it is compared with, seed by seed."""
    assert arm.base is not None
    base, runs, plain = by_seed(*arm.base, data), by_seed(*pair, data), arm_of(*arm.base)
    seeds = sorted(set(base) & set(runs))
    return [_metric(runs[s], arm, 'AP') - _metric(base[s], plain, 'AP') for s in seeds]


def _metric(result: dict[str, Any], arm: Arm, name: str) -> float:
    # mmdet's metric gives no number where there is no detection at all.
    return result['metrics'][arm.split].get(KEYS[name], 0.0)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('study', choices=studies())
    parser.add_argument('--data', nargs='+', default=[], metavar='NAME=FOLDER')
    parser.add_argument('--weights', metavar='FILE', help='of gfl-det weights convert')
    parser.add_argument('--seeds', nargs='+', type=int, default=list(SEEDS))
    parser.add_argument('--arms', nargs='+', default=[], metavar='NAME', help='of the study; all')
    parser.add_argument('--base', type=Path, default=Path('work_dirs/training_study'))
    parser.add_argument('--table', action='store_true', help='print the table of what is finished')
    return parser.parse_args(argv)


def folders_of(words: Sequence[str]) -> dict[str, str]:
    """Folders by their names, given as NAME=FOLDER.

    Raises:
        ConfigError: If a word has no name or no folder.
    """
    pairs = [word.partition('=') for word in words]
    for word, (name, _, folder) in zip(words, pairs):
        if not (name and folder):
            raise ConfigError(f'--data {word}: write NAME=FOLDER, such as bccd=data/bccd.')
    return {name: folder for name, _, folder in pairs}


def main() -> None:
    """Do what is missing of a study, or print its table."""
    args = parse_arguments()
    if args.table:
        print(table(args.study))
        return
    folders = folders_of(args.data)
    for run in runs_of(args.study, list(folders), args.seeds, args.arms):
        path = RESULTS / f'{run.name}.json'
        if path.is_file():
            continue
        code = commit_at_start(args.base / run.name)
        result = do_run(run, folders[run.data], args.weights, args.base)
        write_json(path, dict(result, commit=code, machine=machine()), indent=1)
        found = _metric(result, run.arm, 'AP')
        print(f'{run.name}: AP {fraction(found)}, {result["minutes"]:.1f} minutes', flush=True)


if __name__ == '__main__':
    cli.run(main)
