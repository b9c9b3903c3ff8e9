"""Speed and agreement of COCO metrics: mmdet's, and ours with each backend."""

from __future__ import annotations

import contextlib
import io
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from pycocotools.cocoeval import COCOeval

from gfl_det.compat.environment import has_faster_coco_eval
from gfl_det.errors import SetupError
from gfl_det.evaluation.coco_metric import CocoMetric
from gfl_det.utils.timing import Row, Runs
from projects.benchmark.detections import CocoSet, make_set

NUM_DETECTIONS, NUM_CLASSES = 100, 80
DETECTION_BYTES = 4 * 4 + 4 + 8  # box, score and label


def evaluation_rows(num_images: int, runs: Runs) -> list[Row]:
    """Processor milliseconds of COCO evaluation, from raw detections to numbers, run once each.

    Args:
        num_images: with 100 detections each, of 80 classes.
        runs: for the floor, reading all detections once. The counts themselves run once: they take
            long and repeat well.

    Raises:
        SetupError: the two backends do not give the same numbers.
    """
    found = compare(make_set(num_images, NUM_DETECTIONS, NUM_CLASSES), has_faster_coco_eval())
    if not found.agrees:
        raise SetupError('The evaluators disagree: report it with their versions.')
    name = f'COCO evaluation, {num_images} images'
    counts = {'pycocotools': found.pycocotools, 'faster_coco_eval': found.faster}
    read = num_images * NUM_DETECTIONS * DETECTION_BYTES
    return [
        Row(f'{name}, {backend}', found.mmdet * 1e3, seconds * 1e3, floor=read / runs.bandwidth())
        for backend, seconds in counts.items()
        if seconds is not None
    ]


class Recorder(CocoMetric):
    """Keeps the evaluator of its last count, whose numbers are not rounded."""

    evaluator: COCOeval

    def _evaluate(self, *args: Any) -> COCOeval:
        self.evaluator = super()._evaluate(*args)
        return self.evaluator


class Comparison(NamedTuple):
    """What `compare` found."""

    mmdet: float  # processor seconds of mmdet's metric
    pycocotools: float  # of ours with pycocotools
    faster: float | None  # of ours with faster_coco_eval
    difference: float  # the largest of any statistic, precision, recall or score
    agrees: bool  # whether the three metrics gave the same numbers


def compare(coco_set: CocoSet, with_faster: bool = True, **options: Any) -> Comparison:
    """Let the three count the same detections, one after the other.

    Args:
        coco_set: What to count.
        with_faster: Count with faster_coco_eval too.
        **options: Of the metrics.

    Returns:
        Times of ``compute_metrics`` alone, in processor seconds (all threads of this process),
        which pauses and other programs leave alone, and how the numbers compare.
    """
    theirs = build_metric(MMDetCocoMetric, coco_set, **options)
    reference = build_metric(Recorder, coco_set, backend='pycocotools', **options)
    (mmdet, expected), (slow, found) = map(_count, (theirs, reference))
    agrees = same_numbers(expected, found)
    if not with_faster:
        return Comparison(mmdet, slow, None, 0.0, agrees)
    fast = build_metric(Recorder, coco_set, backend='faster_coco_eval', **options)
    quick, fast_found = _count(fast)
    difference = largest_difference(reference.evaluator, fast.evaluator)
    return Comparison(mmdet, slow, quick, difference, agrees and same_numbers(expected, fast_found))


def build_metric(kind: type, coco_set: CocoSet, **options: Any) -> Any:
    """Build a metric on the set's gt boxes that has seen the set's detections."""
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder, 'gts.json')
        path.write_text(json.dumps(coco_set.dataset))
        metric = kind(ann_file=str(path), **options)
    metric.dataset_meta = dict(classes=coco_set.classes)
    metric.process({}, coco_set.samples)
    return metric


def largest_difference(one: COCOeval, other: COCOeval) -> float:
    """Largest difference of the twelve statistics and of any entry of the arrays below them."""
    pairs = [(one.stats, other.stats)]
    pairs += [(one.eval[key], other.eval[key]) for key in ('precision', 'recall', 'scores')]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def same_numbers(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two metrics gave the same names and values; classes without a gt box have nan."""
    values = list(one.values()), list(other.values())
    return list(one) == list(other) and np.array_equal(*values, equal_nan=True)


def _count(metric: Any) -> tuple[float, dict[str, float]]:
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        numbers = metric.compute_metrics(metric.results)
        return time.process_time() - start, numbers
