"""Curves of a training from what mmengine writes to ``vis_data/scalars.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MAX_POINTS = 400  # a curve; of more, neighbours are averaged
NOT_CURVES = ('step', 'epoch', 'iter', 'time', 'data_time', 'memory', 'base_lr')


class Curve(NamedTuple):
    """One scalar over a training."""

    name: str
    steps: list[float]  # of training scalars iterations, of validation scalars epochs
    values: list[float]


class Curves(NamedTuple):
    """Scalars of training steps and of validations."""

    training: list[Curve]
    validation: list[Curve]


def scalar_files(work_dir: Path) -> list[Path]:
    """Those of every run in a work dir, the oldest first: a resumed run writes another."""
    return sorted(work_dir.glob('*/vis_data/scalars.json')) or sorted(work_dir.glob('scalars.json'))


def read_curves(files: Sequence[Path]) -> Curves:
    """Read the scalars of one training; of a step that was done twice the last counts.

    Lines that are not JSON, as the last one of a run that was killed, are left out.
    """
    training: dict[str, dict[float, float]] = {}
    validation: dict[str, dict[float, float]] = {}
    for path in files:
        for line in path.read_text(errors='replace').splitlines():
            entry = _entry(line)
            step = entry.get('step')
            if not isinstance(step, (int, float)):
                continue
            # mmengine writes an epoch's number beside training scalars alone.
            kind = training if 'iter' in entry or 'epoch' in entry else validation
            for name, value in entry.items():
                if name not in NOT_CURVES and isinstance(value, (int, float)):
                    kind.setdefault(name, {})[step] = float(value)
    return Curves(_curves(training), _curves(validation))


def _entry(line: str) -> dict:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _curves(scalars: dict[str, dict[float, float]]) -> list[Curve]:
    curves = []
    for name, points in scalars.items():
        steps = sorted(points)
        width = -(-len(steps) // MAX_POINTS)
        groups = [steps[start : start + width] for start in range(0, len(steps), width or 1)]
        values = [[points[step] for step in group] for group in groups]
        curves.append(
            Curve(name, [group[-1] for group in groups], [_mean(each) for each in values])
        )
    return curves


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
