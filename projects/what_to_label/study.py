"""Do the pictures that ``gfl-det what-to-label`` chooses teach more than random ones?

    gfl-det weights convert nanodet-plus-m_416.param nanodet-plus-m_416.bin --out nanodet.pth
    OMP_NUM_THREADS=1 python -m projects.what_to_label.study --data FOLDER --weights nanodet.pth
        [--seeds 0 1 2 3 4] [--arms random chosen]
    python -m projects.what_to_label.study --table

Each seed draws 20 of the training pictures, on which NanoDet-Plus's published weights are
fine-tuned. Every arm goes on from there: the detector chooses 20 more pictures, the published
weights are fine-tuned on all 40, that detector chooses 40 more. All trainings have the same number
of steps. The last checkpoint is judged on the test split. Each training writes one JSON file; one
whose file is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config

from gfl_det.cli import main as cli
from gfl_det.engine import config_edits
from gfl_det.engine.runner import build_runner
from gfl_det.evaluation.comparison import holm
from gfl_det.evaluation.label_choice import choose_pictures, expected_errors, standardised
from gfl_det.inference.survey import SurveyInferencer, survey
from gfl_det.utils.files import write_json
from projects.calibration_study.tables import fraction, markdown, paired, spread
from projects.provenance import commit, machine
from projects.training_study.arms import NANODET, RATE, Arm, TrainingRun
from projects.training_study.trainings import KEYS, judge, run_config

RESULTS = Path(__file__).parent / 'results'
BUDGETS = (20, 40, 80)  # labelled pictures
START = 'start'  # the budget that all arms share
ARMS = ('random', 'chosen', 'uncertain')  # the last: by expected error alone
SEEDS = (0, 1, 2, 3, 4)
STEPS, BATCH, SIDE_PX = 80, 4, 256


class LabelRun(NamedTuple):
    """One training."""

    seed: int
    arm: str
    budget: int

    @property
    def name(self) -> str:
        """Name of the work dir and of the result."""
        return f'bccd-seed{self.seed}-{self.arm}-{self.budget}'

    def before(self) -> LabelRun:
        """The run whose detector chooses, and whose pictures are kept."""
        budget = BUDGETS[BUDGETS.index(self.budget) - 1]
        return self._replace(budget=budget, arm=START if budget == BUDGETS[0] else self.arm)


def runs_of(seeds: Sequence[int], arms: Sequence[str] = ARMS) -> Iterator[LabelRun]:
    """Runs in an order in which each follows the one that it builds on."""
    for seed in seeds:
        yield LabelRun(seed, START, BUDGETS[0])
        for budget in BUDGETS[1:]:
            for arm in arms:
                yield LabelRun(seed, arm, budget)


class LabelStudy:
    """Trainings of one data set.

    Args:
        data: Folder with ``train.json``, ``val.json``, ``test.json`` and ``images/``.
        weights: Converted weights of NanoDet-Plus.
        base: Folder of the work dirs.
    """

    def __init__(self, data: Path, weights: str, base: Path) -> None:
        self.data, self.weights, self.base = data.absolute(), weights, base
        self.train = json.loads((data / 'train.json').read_text())
        self.names = sorted(each['file_name'] for each in self.train['images'])

    def pictures(self, run: LabelRun) -> list[str]:
        """File names of the labelled pictures of a run, in the order of their choice."""
        if run.arm in (START, 'random'):  # a prefix of one order
            order = np.random.default_rng(run.seed).permutation(len(self.names))
            return [self.names[index] for index in order[: run.budget]]
        before = run.before()
        kept = json.loads((RESULTS / f'{before.name}.json').read_text())['pictures']
        return kept + self.choose(before, kept, run.budget - len(kept), run.arm)

    def choose(self, before: LabelRun, kept: Sequence[str], number: int, arm: str) -> list[str]:
        """Choose further pictures with the detector of an earlier run."""
        checkpoint = self.base / before.name / 'last.pth'
        if not checkpoint.is_file():
            self.fit(before, list(kept))
        free = [name for name in self.names if name not in set(kept)]
        detector = SurveyInferencer(checkpoint, device='cpu', level=None)
        files = [str(self.data / 'images' / name) for name in [*free, *kept]]
        found = survey(detector, detector.find(files), show_progress=False)
        unlabelled = found.found.take(found.found.image < len(free))
        value = expected_errors(unlabelled, len(free)).value
        if arm == 'uncertain':
            order = np.argsort(-value, kind='stable')[:number]
        else:
            features = standardised(found.features)
            order = choose_pictures(
                value, features[: len(free)], number, features[len(free) :]
            ).chosen
        return [free[index] for index in order]

    def fit(self, run: LabelRun, pictures: Sequence[str]) -> tuple[Config, dict[str, Any]]:
        """Train on some pictures; returns the config to test with, and facts."""
        work_dir = self.base / run.name
        shutil.rmtree(work_dir, ignore_errors=True)
        folder = work_dir / 'data'
        folder.mkdir(parents=True)
        part = self.part(pictures)
        write_json(folder / 'train.json', part)
        for name in ('val.json', 'test.json', 'images'):
            (folder / name).symlink_to(self.data / name)
        epochs = STEPS * BATCH // run.budget
        arm = Arm(run.arm, NANODET, {'bccd': epochs}, published=True, rate=RATE)
        training = TrainingRun('labels', 'bccd', arm, run.seed)
        cfg = run_config(training, str(folder), self.weights, work_dir)
        for split in ('train', 'val', 'test'):
            for step in cfg[f'{split}_dataloader'].dataset.pipeline:
                if step.type == 'Resize':
                    step.scale = (SIDE_PX, SIDE_PX)
        cfg.default_hooks.checkpoint.interval = epochs
        test_cfg = Config(cfg.to_dict())
        cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None  # the last checkpoint is taken
        config_edits.protect(cfg)
        begin = time.process_time()
        build_runner(cfg, quiet='train').train()
        seconds = time.process_time() - begin
        shutil.move(Path(cfg.work_dir) / f'epoch_{epochs}.pth', work_dir / 'last.pth')
        counts = {
            each['name']: sum(a['category_id'] == each['id'] for a in part['annotations'])
            for each in part['categories']
        }
        facts = dict(steps=STEPS, batch=BATCH, rate=RATE, side=SIDE_PX, boxes=counts)
        return test_cfg, dict(facts, seconds=seconds)

    def part(self, pictures: Sequence[str]) -> dict[str, Any]:
        """Annotations of some of the training pictures."""
        chosen = set(pictures)
        images = [each for each in self.train['images'] if each['file_name'] in chosen]
        ids = {each['id'] for each in images}
        labels = [each for each in self.train['annotations'] if each['image_id'] in ids]
        return dict(self.train, images=images, annotations=labels)

    def do_run(self, run: LabelRun) -> dict[str, Any]:
        """Choose, train and judge; returns what is written down."""
        begin = time.process_time()
        pictures = self.pictures(run)
        choosing = time.process_time() - begin
        cfg, facts = self.fit(run, pictures)
        metrics = judge(cfg, self.base / run.name / 'last.pth', 'test')
        return dict(
            run=run._asdict(),
            **facts,
            choosing_seconds=choosing,
            metrics=metrics,
            pictures=pictures,
        )


def read_results() -> dict[LabelRun, dict[str, Any]]:
    """Finished runs."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob('*.json'))]
    return {LabelRun(**each['run']): each for each in found}


def table() -> str:
    """AP by budget and arm, with paired differences from random pictures, as Markdown."""
    found = read_results()
    gains = {
        (arm, budget): [
            _ap(each) - _ap(found[run._replace(arm=ARMS[0])])
            for run, each in found.items()
            if run[1:] == (arm, budget) and run._replace(arm=ARMS[0]) in found
        ]
        for arm in ARMS[1:]
        for budget in BUDGETS[1:]
    }
    tests = {key: paired(each) for key, each in gains.items() if each}
    adjusted: dict[tuple[str, int], float] = {}
    for arm in ARMS[1:]:  # the family: the budgets of an arm
        own = {str(key[1]): test.p for key, test in tests.items() if key[0] == arm}
        adjusted |= {(arm, int(budget)): p for budget, p in holm(own).items()}
    rows = []
    for budget in BUDGETS:
        for arm in (START, *ARMS):
            runs = [each for run, each in found.items() if run[1:] == (arm, budget)]
            if not runs:
                continue
            boxes = [sum(each['boxes'].values()) for each in runs]
            scores = [[_ap(each, key) for each in runs] for key in ('AP', 'AP50')]
            key = (arm, budget)
            tested = [str(tests[key]), fraction(adjusted[key])] if key in adjusted else ['', '']
            cells = [*map(spread, scores), *tested]
            rows.append([str(budget), arm, str(len(runs)), f'{np.mean(boxes):.0f}', *cells])
    head = ['pictures', 'arm', 'seeds', 'boxes', 'AP', 'AP50', 'AP gained over random', 'p (Holm)']
    return markdown(head, rows, words=2)


def _ap(result: dict[str, Any], name: str = 'AP') -> float:
    return result['metrics'].get(KEYS[name], 0.0)  # absent where nothing is detected at all


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--data', type=Path, metavar='FOLDER')
    parser.add_argument('--weights', metavar='FILE', help='of gfl-det weights convert')
    parser.add_argument('--seeds', nargs='+', type=int, default=list(SEEDS))
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS[:2]))
    parser.add_argument('--base', type=Path, default=Path('work_dirs/what_to_label'))
    parser.add_argument('--table', action='store_true', help='print the table of what is finished')
    args = parser.parse_args(argv)
    if not args.table and not (args.data and args.weights):
        parser.error('give --data and --weights, or --table')
    return args


def main() -> None:
    """Do the runs that are missing, or print the table."""
    args = parse_arguments()
    if args.table:
        print(table())
        return
    study = LabelStudy(args.data, args.weights, args.base)
    for run in runs_of(args.seeds, args.arms):
        path = RESULTS / f'{run.name}.json'
        if path.is_file():
            continue
        code = commit()
        result = study.do_run(run)
        write_json(path, dict(result, commit=code, machine=machine()), indent=1)
        print(f'{run.name}: AP {fraction(_ap(result))}, {result["seconds"]:.0f} s', flush=True)


if __name__ == '__main__':
    cli.run(main)
