"""The command line of ``tools/prove_classification.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gfl_det.errors import ConfigError
from gfl_det.utils.files import check_writable, write_json
from projects.calibration_study.claims import (
    CLAIMS,
    Finding,
    finding_to_json,
    judge_all,
    published,
)
from projects.calibration_study.classification import (
    LOSSES,
    MEASURES,
    SCANS,
    Recipe,
    Run,
    run_all,
)
from projects.calibration_study.tables import fraction, markdown, spread
from projects.provenance import provenance


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(
        description='Train a small network with each loss on handwritten digits, some of them '
        'labelled wrong; judge its probabilities before and after temperature scaling.'
    )
    parser.add_argument('--seeds', type=int, default=5, help='runs of each loss, at least 2')
    parser.add_argument(
        '--noise', type=float, default=recipe.noise, help='chance that a label is drawn anew'
    )
    parser.add_argument('--epochs', type=int, default=recipe.epochs, help='of each training')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/proof/classification.json'),
        help='file for all values',
    )
    return parser.parse_args(argv)


def prove(args: argparse.Namespace) -> None:
    """Run, print both tables, write the JSON file.

    Raises:
        ConfigError: an argument is out of range.
    """
    if args.seeds < 2:
        raise ConfigError(f'--seeds is at least 2, as seeds are compared, not {args.seeds}')
    check_writable(args.out)
    recipe = Recipe(noise=args.noise, epochs=args.epochs)
    torch.set_num_threads(1)  # the network is too small for more, and one gives the same digits
    runs = list(run_all(recipe, args.seeds, _Progress(args.seeds * len(LOSSES))))
    findings = _judge(recipe, runs)
    content = dict(
        recipe=asdict(recipe),
        runs=[run._asdict() for run in runs],
        claims=[finding_to_json(finding) for finding in findings],
        **provenance(),
    )
    write_json(args.out, content, indent=1)
    print(result_table(runs), claim_table(findings), f'values: {args.out}', sep='\n\n')


def from_json(content: dict[str, Any]) -> tuple[list[Run], list[Finding]]:
    """The runs of a file that this command wrote, and what they say of each claim."""
    runs = [Run(**each) for each in content['runs']]
    return runs, _judge(Recipe(**content['recipe']), runs)


def _judge(recipe: Recipe, runs: Sequence[Run]) -> list[Finding]:
    # Every seed cuts the same scans anew.
    judged = SCANS - recipe.train - recipe.held_out
    return judge_all(CLAIMS, runs, judged / recipe.train)


def result_table(runs: Sequence[Run]) -> str:
    """Means and standard deviations over the seeds as Markdown, one loss per row."""
    head = ['loss', 'error', 'T', *(f'{name}{end}' for name in MEASURES for end in ('', ', T'))]
    rows = []
    for loss in LOSSES:
        mine = [run for run in runs if run.loss == loss]
        cells = [[run.error for run in mine], [run.temperature for run in mine]]
        for name in MEASURES:
            cells += [[run.before[name] for run in mine], [run.after[name] for run in mine]]
        rows.append([loss, *map(spread, cells)])
    return markdown(head, rows)


def claim_table(findings: Sequence[Finding]) -> str:
    """What became of each claim as Markdown."""
    rows = [
        [
            finding.claim.source,
            str(finding.claim),
            published(finding.claim),
            str(finding.difference),
            f'{finding.seeds_for} of {finding.seeds}',
            fraction(finding.difference.p),
            fraction(finding.p_holm),
            finding.verdict,
        ]
        for finding in findings
    ]
    head = ['source', 'claim', 'published', 'difference [.95]', 'seeds for it', 'p', 'p of all', '']
    return markdown(head, rows, words=2)


class _Progress:
    """One line per run on stderr."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def __call__(self, run: Run) -> None:
        self.done += 1
        print(
            f'[{self.done}/{self.total}] seed {run.seed} {run.loss}: error {run.error:.3f}, '
            f'ECE {run.before["ECE"]:.3f}, {run.after["ECE"]:.3f} at T {run.temperature:.2f}',
            file=sys.stderr,
            flush=True,
        )
