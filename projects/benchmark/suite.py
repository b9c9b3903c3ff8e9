"""The rows that tools/benchmark.py runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from gfl_det.utils.timing import Row, Runs
from projects.benchmark.evaluation import evaluation_rows
from projects.benchmark.loading import loading_rows
from projects.benchmark.parts import (
    Case,
    assignment_rows,
    contract_rows,
    loss_rows,
    prediction_rows,
)
from projects.benchmark.whole import inference_rows, training_rows

PARTS = ('head', 'inference', 'training', 'loading', 'evaluation')

# At 480x640 on a processor, against mmdet in float32.
INFERENCE_TARGETS = {'optimized, float32': 1.25, 'optimized, bfloat16': 2.2}
TRAINING_TARGETS = {'--channels-last': 1.15, '--amp': 1.6, '--amp --channels-last': 1.6}

SIZES = ((480, 640), (1600, 2688))
GTS = (1, 30, 1000, 2000)
CLASSES = (1, 1203)
BATCHES = (1, 4)
EVALUATED = (1000, 5000)  # images; the larger in a sweep

Measurement = Callable[[Runs], list[Row]]


def run(parts: Sequence[str], runs: Runs, sweep: bool) -> list[Row]:
    """Measure parts one after the other, saying on stderr which one is at work."""
    rows: list[Row] = []
    for name, measure in _measurements(parts, sweep):
        print(f'measuring {name} ...', file=sys.stderr, flush=True)
        rows += measure(runs)
    return rows


def _measurements(parts: Sequence[str], sweep: bool) -> Iterator[tuple[str, Measurement]]:
    small = Case(size=(480, 640), batch=1)
    if 'head' in parts:
        yield 'the head', partial(contract_rows, Case())
        if sweep:
            yield from _sweep()
    if 'inference' in parts:
        yield 'inference', partial(inference_rows, small, targets=INFERENCE_TARGETS)
    if 'training' in parts:
        yield 'a training step', partial(training_rows, small, targets=TRAINING_TARGETS)
    if 'loading' in parts:
        yield 'data loading', loading_rows
    if 'evaluation' in parts:
        images = EVALUATED[1 if sweep else 0]
        yield 'COCO evaluation', partial(evaluation_rows, images)


def _sweep() -> Iterator[tuple[str, Measurement]]:
    """The head over one quantity at a time."""
    cases = [Case(size=size) for size in SIZES]
    cases += [Case(gts=gts, batch=1) for gts in GTS]
    cases += [Case(classes=classes, batch=1) for classes in CLASSES]
    cases += [Case(batch=batch) for batch in BATCHES]
    assigned = set()
    for case in cases:
        plain = case._replace(classes=1)  # classes do not matter to the assignment
        if plain not in assigned:
            assigned.add(plain)
            yield f'assignment, {plain.without_classes()}', partial(assignment_rows, plain)
        yield f'losses, {case}', partial(loss_rows, case)
        if case.gts == Case().gts:
            yield (
                f'post-processing, {case}',
                partial(prediction_rows, case, scores='dense'),
            )
