"""Shipped configs on small data: validation AP, and processor time.

    python tools/build_digits.py
    OMP_NUM_THREADS=1 python -m projects.training_study.recipes [--recipes digits_short digits]
        [--seeds 0 1 2]
    OMP_NUM_THREADS=1 python -m projects.training_study.recipes --recipes bccd --data bccd=FOLDER
    python -m projects.training_study.recipes --table

The process itself loads the pictures, so that its time is all of it; else the configs are as they
are shipped. Each training writes ``results/recipes/NAME-seedN.json``. A training whose file is
there is not repeated, and one that was cut goes on.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from gfl_det.cli import main as cli
from gfl_det.engine import config_edits
from gfl_det.engine.runner import build_runner
from gfl_det.errors import ConfigError
from gfl_det.utils.config import load_config
from gfl_det.utils.files import write_json
from projects.calibration_study.tables import fraction, markdown, paired, spread
from projects.provenance import commit_at_start, machine
from projects.training_study.trainings import KEYS, SPLITS, TrainingClock, folders_of

RESULTS = Path(__file__).parent / 'results' / 'recipes'
# The same losses and assigner by mmdet's own classes.
MMDET = {
    'model.bbox_head.type': 'GFLHead',
    'model.bbox_head.loss_cls.type': 'QualityFocalLoss',
    'model.bbox_head.loss_dfl.type': 'DistributionFocalLoss',
    'model.train_cfg.assigner.type': 'ATSSAssigner',
}


class Recipe(NamedTuple):
    """A shipped config, and what is changed in it."""

    config: str
    data: str | None = None  # name of a folder that is given; None: the embedded digits
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed
    beside: str | None = None  # name of the recipe that it is compared with


RECIPES = {
    'digits_short': Recipe('gfl_r18-w16_fpn_digits_short'),
    'digits': Recipe('gfl_r18_fpn_digits'),
    'bccd_mmdet': Recipe('gfl_r18_fpn_bccd', 'bccd', MMDET),
    'bccd': Recipe('gfl_r18_fpn_bccd', 'bccd', beside='bccd_mmdet'),
}


class Validations(Hook):
    """Keeps the metrics of each validation, for trainings that were cut."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, dict[str, float]]:
        """Metrics by epoch."""
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        # mmdet's metric gives no number where there is no detection at all.
        found = {name: float((metrics or {}).get(key, 0)) for name, key in KEYS.items()}
        write_json(self.path, {**self.read(), str(runner.epoch): found})


def train(recipe: Recipe, seed: int, folder: str | None, work_dir: Path) -> dict[str, Any]:
    """Train, or go on, and return what is written down."""
    cfg = load_config(recipe.config, recipe.options)
    if folder is not None:
        _take_data(cfg, folder)
    for split in SPLITS:
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = str(work_dir)
    config_edits.protect(cfg)
    config_edits.resume(cfg, 'auto')
    clock, found = TrainingClock(), Validations(work_dir / 'validations.json')
    runner = build_runner(cfg, quiet='train')
    runner.register_hook(clock)
    runner.register_hook(found)
    runner.train()
    return dict(
        config=recipe.config,
        epochs=cfg.train_cfg.max_epochs,
        validations=found.read(),
        minutes=clock.seconds / 60,
    )


def _take_data(cfg: Config, folder: str) -> None:
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.data_root = folder
        if split != 'train':
            evaluator = cfg[f'{split}_evaluator']
            evaluator.ann_file = str(Path(folder, Path(evaluator.ann_file).name))


def table(names: Iterable[str] | None = None) -> str:
    """Validation AP of recipes, or of all, by epoch, over seeds, as Markdown."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(RESULTS.glob('*.json')):
        result = json.loads(path.read_text())
        found[result['recipe']][result['seed']] = result
    rows = []
    for name in names or RECIPES:
        runs, other = found.get(name, {}), found.get(RECIPES[name].beside or '', {})
        for epoch in next(iter(runs.values()))['validations'] if runs else ():
            of = {seed: run['validations'][epoch] for seed, run in runs.items()}
            last = all(int(epoch) == run['epochs'] for run in runs.values())
            minutes = f'{np.mean([run["minutes"] for run in runs.values()]):.1f}' if last else ''
            cells = [spread([each[key] for each in of.values()]) for key in KEYS]
            both = sorted(runs.keys() & other.keys())
            gained = [of[seed]['AP'] - other[seed]['validations'][epoch]['AP'] for seed in both]
            beside = RECIPES[name].beside if both else ''
            change = str(paired(gained)) if both else ''
            rows.append([name, str(len(runs)), epoch, *cells, minutes, beside or '', change])
    head = ['recipe', 'seeds', 'epoch', *KEYS, 'minutes', 'beside', 'AP gained']
    kept = len(head) if any(row[-1] for row in rows) else len(head) - 2
    return markdown(head[:kept], [row[:kept] for row in rows])


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument(
        '--recipes', nargs='+', choices=RECIPES, default=['digits_short', 'digits'], help='(digits)'
    )
    parser.add_argument(
        '--data',
        nargs='+',
        default=[],
        metavar='NAME=FOLDER',
        help='of recipes that are not digits',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='(0 1 2)')
    parser.add_argument(
        '--base', type=Path, default=Path('work_dirs/training_study'), help='work dirs'
    )
    parser.add_argument('--table', action='store_true', help='print the table of what is finished')
    return parser.parse_args(argv)


def main() -> None:
    """Train what is missing, or print the table."""
    args = parse_arguments()
    if args.table:
        print(table())
        return
    folders, wanted = folders_of(args.data), {RECIPES[name].data for name in args.recipes} - {None}
    for name in wanted - folders.keys():
        raise ConfigError(f'A recipe of --recipes needs the data: --data {name}=FOLDER.')
    for name in folders.keys() - wanted:
        raise ConfigError(f'--data {name}: no recipe of --recipes trains on it.')
    for seed in args.seeds:
        for name in args.recipes:
            recipe, run = RECIPES[name], f'{name}-seed{seed}'
            path, work_dir = RESULTS / f'{run}.json', args.base / f'recipes-{run}'
            if path.is_file():
                continue
            code = commit_at_start(work_dir)
            result = train(recipe, seed, folders.get(recipe.data or ''), work_dir)
            provenance = dict(commit=code, machine=machine())
            write_json(path, dict(recipe=name, seed=seed, **result, **provenance), indent=1)
            last = result['validations'][str(result['epochs'])]['AP']
            print(f'{run}: AP {fraction(last)}, {result["minutes"]:.1f} minutes', flush=True)


if __name__ == '__main__':
    cli.run(main)
