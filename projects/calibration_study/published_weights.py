"""Calibration of a detector that others trained: its scores against IoU, its edges against errors.

    python -m projects.calibration_study.published_weights CONFIG CHECKPOINT
        [--split test] [--halves 5] [--cfg-options KEY=VALUE ...] [--out DIR]

The detector runs once. Calibrators are fitted on a random half of the images and judged on the
other, over several halvings, in two views: all detections, and those above each class's least LRP.
Beside each calibration error stand its count, the mean and .95 quantile of its noise floor and the
debiased estimate. Writes ``halves.json`` and ``reliability.png``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfl_det.calibration.calibrators import Cut, Settings, fit_calibrator
from gfl_det.calibration.distribution import EdgeDetections
from gfl_det.calibration.splits import split_images, take_edge_images
from gfl_det.cli import main as cli
from gfl_det.cli.arguments import add_cfg_options
from gfl_det.evaluation.detections import GroundTruth
from gfl_det.evaluation.evaluate import evaluate_detections
from gfl_det.evaluation.functional import reliability
from gfl_det.evaluation.matching import TRUE, match
from gfl_det.utils.config import load_config
from gfl_det.utils.files import check_writable, write_json
from gfl_det.visualization.charts import figure, save_figure
from gfl_det.visualization.report.curves import rank_correlation
from projects.calibration_study.tables import fraction, markdown, spread

VIEWS: dict[str, tuple[Cut, Cut]] = {'all': (0.0, 0.0), 'kept': ('lrp', 'lrp')}
METHODS = ('identity', 'platt', 'isotonic')
ERRORS = ('LaECE_0', 'LaACE_0', 'D-ECE')
BINS = np.linspace(0, 1, 11)


class HalfResult(NamedTuple):
    """Metrics of one calibrator and view on the half that it was not fitted on."""

    seed: int
    view: str
    method: str
    metrics: dict[str, float]


def judge_halves(gts: GroundTruth, found: EdgeDetections, halves: int) -> Iterator[HalfResult]:
    """Fit every method on one half and judge it on the other, for each seed and view."""
    for seed in range(halves):
        first, second = split_images(gts, seed)
        fit_gts, fit_found = take_edge_images(gts, found, first)
        judged_gts, judged = take_edge_images(gts, found, second)
        for view, cuts in VIEWS.items():
            for method in METHODS:
                settings = Settings(method, cuts=cuts)
                calibrator = fit_calibrator(fit_found.detections, fit_gts, settings)
                kept = calibrator.apply(judged.detections)[0]
                metrics = evaluate_detections(kept, judged_gts)
                plain = {key: float(value) for key, value in metrics.items() if np.ndim(value) == 0}
                yield HalfResult(seed, view, method, plain)


def table(results: Sequence[HalfResult]) -> str:
    """Means and standard deviations over the halves, as Markdown."""
    rows = []
    for view in VIEWS:
        for method in METHODS:
            metrics = [r.metrics for r in results if (r.view, r.method) == (view, method)]
            for name in ERRORS:
                columns = (name, f'{name}_floor', f'{name}_floor_95', f'{name}_debiased')
                cells = [[each[column] for each in metrics] for column in columns]
                count = round(np.mean([each[f'{name}_count'] for each in metrics]))
                rows.append([view, method, name, str(count), *map(spread, cells)])
    head = ['detections', 'map', 'error', 'count', 'value', 'floor', 'floor .95', 'debiased']
    return markdown(head, rows, words=3)


def reliability_table(gts: GroundTruth, found: EdgeDetections) -> tuple[str, Any]:
    """Mean IoU per score bin over all classes, as Markdown and as a figure."""
    (matches,) = match(found.detections, gts, [0.0])
    judged = matches.judged()
    bins = reliability(matches.scores[judged], matches.iou[judged], BINS)
    number, score, iou = (np.asarray(each)[0] for each in (bins.number, bins.score, bins.target))
    filled = number > 0
    rows = [
        [str(count), fraction(mean), fraction(target)]
        for count, mean, target in zip(number[filled], score[filled], iou[filled])
    ]
    drawing = figure(5, 4)
    axes = drawing.subplots()
    axes.plot([0, 1], [0, 1], color='0.7', linewidth=1)
    axes.plot(score[filled], iou[filled], marker='o')
    for count, mean, target in zip(number[filled], score[filled], iou[filled]):
        place = dict(textcoords='offset points', xytext=(-2, 6), ha='right', rotation=-45)
        axes.annotate(f'{count:,}', (mean, target), **place)
    axes.set(xlabel='mean score', ylabel='mean IoU', xlim=(0, 1), ylim=(0, 1))
    return markdown(['count', 'mean score', 'mean IoU'], rows, words=0), drawing


def rank_correlations(gts: GroundTruth, found: EdgeDetections) -> str:
    """Spearman's rank correlations over detections that match a gt box at IoU .5, as Markdown."""
    (matches,) = match(found.detections, gts, [0.5])
    true = matches.state == TRUE
    rows, boxes = matches.row[true], gts.boxes[matches.gt[true]]
    detected = found.detections.boxes[rows]
    error = np.abs(_edges(detected) - _edges(boxes))
    logits = found.logits[rows].astype(float)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    places = np.arange(shares.shape[-1])
    mean = shares @ places
    std = np.sqrt((shares * (places - mean[..., None]) ** 2).sum(-1)) * found.bin_widths[rows]
    side = np.sqrt(detected[:, 2:].prod(1))[:, None].repeat(4, 1)
    pairs = {
        'score, IoU': (matches.scores[true], matches.iou[true]),
        'edge std, edge error': (std, error),
        'box side, edge error': (side, error),
        'edge std / side, edge error / side': (std / side, error / side),
    }
    lines = [
        [name, str(np.size(one)), fraction(rank_correlation(np.ravel(one), np.ravel(other)))]
        for name, (one, other) in pairs.items()
    ]
    return markdown(['pair', 'count', 'rank correlation'], lines)


def _edges(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``(N, 4)`` xywh px as xyxy."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('config', help='a file, or the name of a shipped config')
    parser.add_argument('checkpoint', help='weights of the detector')
    parser.add_argument('--split', choices=('val', 'test'), default='test', help='data (test)')
    parser.add_argument('--halves', type=int, default=5, help='random halvings (5)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/published_weights'))
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the study and print its tables."""
    from gfl_det.engine.runner import detect_edges  # loads mmdet

    args = parse_arguments()
    check_writable(args.out / 'halves.json')
    cfg = load_config(args.config, args.cfg_options)
    gts, found = detect_edges(cfg, args.checkpoint, args.split)
    results = []
    for result in judge_halves(gts, found, args.halves):
        results.append(result)
        if (result.view, result.method) == ('kept', METHODS[-1]):
            print(f'half {result.seed + 1} of {args.halves}', file=sys.stderr)
    write_json(args.out / 'halves.json', [each._asdict() for each in results], indent=1)
    lines, drawing = reliability_table(gts, found)
    save_figure(drawing, args.out / 'reliability.png')
    print(table(results), lines, rank_correlations(gts, found), sep='\n\n')


if __name__ == '__main__':
    cli.run(main)
