"""Calibration of a detector that others trained: its scores against IoU, its edges against errors.

    python -m projects.calibration_study.published_weights FILE.json [--figure FILE.png]
    python -m projects.calibration_study.published_weights FILE.json --detector CONFIG CHECKPOINT
        [--split test] [--halves 5] [--cfg-options KEY=VALUE ...]

The detector runs once. Calibrators are fitted on a random half of the images and judged on the
other, over several halvings, in two views: all detections, and those above each class's least LRP.
Beside each calibration error stand its count, the mean and .95 quantile of its noise floor and the
debiased estimate. All is written to the file, of which the tables and the figure are made; it is
made anew only where a detector is given.
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
from gfl_det.cli.arguments import add_cfg_options, count
from gfl_det.evaluation.detections import GroundTruth, read_json
from gfl_det.evaluation.evaluate import evaluate_detections
from gfl_det.evaluation.functional import reliability
from gfl_det.evaluation.matching import TRUE, match
from gfl_det.utils.config import load_config
from gfl_det.utils.files import check_writable, file_sum, write_json
from gfl_det.visualization.charts import APART, GRID, figure, save_figure
from gfl_det.visualization.report.curves import rank_correlation
from projects.calibration_study.tables import fraction, markdown, spread
from projects.provenance import provenance

VIEWS: dict[str, tuple[Cut, Cut]] = {'all': (0.0, 0.0), 'kept': ('lrp', 'lrp')}
METHODS = ('identity', 'platt', 'isotonic')
ERRORS = ('LaECE_0', 'LaACE_0', 'D-ECE')
PARTS = ('', '_floor', '_floor_95', '_debiased', '_count')
MEASURED = [name + part for name in ERRORS for part in PARTS]
WORDS = {'identity': 'raw', 'platt': 'Platt'}  # of maps, in tables
BINS = np.linspace(0, 1, 11)
RESAMPLES = 2000
SPREAD, SIDE = 'edge std, edge error', 'box side, edge error'  # both of px


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
                plain = {key: float(metrics[key]) for key in MEASURED}
                yield HalfResult(seed, view, method, plain)


def table(results: Sequence[HalfResult]) -> str:
    """Means and standard deviations over the halves, as Markdown."""
    rows = []
    for view in VIEWS:
        for method in METHODS:
            metrics = [r.metrics for r in results if (r.view, r.method) == (view, method)]
            for name in ERRORS:
                columns = [name + part for part in PARTS[:-1]]
                cells = [[each[column] for each in metrics] for column in columns]
                count = round(np.mean([each[f'{name}_count'] for each in metrics]))
                rows.append(
                    [view, WORDS.get(method, method), name, str(count), *map(spread, cells)]
                )
    head = ['detections', 'map', 'error', 'count', 'value', 'floor', 'floor .95', 'debiased']
    return markdown(head, rows, words=3)


def reliability_bins(gts: GroundTruth, found: EdgeDetections) -> list[dict[str, float]]:
    """Count, mean score and mean IoU of each bin of the score that is not empty, of all classes."""
    (matches,) = match(found.detections, gts, [0.0])
    judged = matches.judged()
    bins = reliability(matches.scores[judged], matches.iou[judged], BINS)
    columns = (np.asarray(each)[0].tolist() for each in (bins.number, bins.score, bins.target))
    rows = [dict(count=count, score=score, iou=iou) for count, score, iou in zip(*columns)]
    return [row for row in rows if row['count']]


def rank_correlations(
    gts: GroundTruth, found: EdgeDetections, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """Spearman's rank correlations over detections that match a gt box at IoU .5.

    With .95 intervals of a bootstrap over images. The last row is the difference of the edges'
    spread and the boxes' side as ranks of the edges' errors. NaN where a value is constant.
    """
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
        SPREAD: (std, error),
        SIDE: (side, error),
        'edge std / side, edge error / side': (std / side, error / side),
    }
    image = found.detections.image[rows]
    order = np.argsort(image, kind='stable')
    of_images = np.split(order, np.flatnonzero(np.diff(image[order])) + 1)
    rng = np.random.default_rng(0)
    picks = [np.arange(len(image))]
    for _ in range(resamples):
        drawn = rng.integers(0, len(of_images), len(of_images))
        picks.append(np.concatenate([of_images[place] for place in drawn]))
    drawn_values = {
        name: np.array([rank_correlation(one[pick].ravel(), other[pick].ravel()) for pick in picks])
        for name, (one, other) in pairs.items()
    }
    drawn_values[f'{SPREAD}, less that of the side'] = drawn_values[SPREAD] - drawn_values[SIDE]
    counts = {name: int(np.size(one)) for name, (one, _) in pairs.items()}
    written = []
    for name, (value, *others) in drawn_values.items():
        low, high = np.quantile(others, [0.025, 0.975])
        count = counts.get(name, counts[SPREAD])
        written.append(dict(pair=name, count=count, correlation=value, low=low, high=high))
    return written


def _edges(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``(N, 4)`` xywh px as xyxy."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Tables of a file of results, as Markdown: halves, reliability, ranks."""
    bins = [
        [str(round(row['count'])), fraction(row['score']), fraction(row['iou'])]
        for row in content['reliability']
    ]
    ranks = []
    for row in content['ranks']:
        value, low, high = (fraction(_number(row[key])) for key in ('correlation', 'low', 'high'))
        ranks.append([row['pair'], str(row['count']), f'{value} [{low}, {high}]'])
    halves = [
        HalfResult(**dict(each, metrics={k: _number(v) for k, v in each['metrics'].items()}))
        for each in content['halves']
    ]
    return dict(
        halves=table(halves),
        reliability=markdown(['count', 'mean score', 'mean IoU'], bins, words=0),
        ranks=markdown(['pair', 'count', 'rank correlation [.95]'], ranks),
    )


def _number(value: float | None) -> float:
    return float('nan') if value is None else value  # JSON has null for NaN


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw mean IoU over mean score, with the counts of the bins."""
    drawing = figure(5, 4)
    axes = drawing.subplots()
    score, iou = ([row[key] for row in content['reliability']] for key in ('score', 'iou'))
    axes.plot([0, 1], [0, 1], color=GRID)
    axes.plot(score, iou, marker='o', color=APART)
    for row in content['reliability']:
        place = dict(textcoords='offset points', xytext=(-1, 8), ha='center', rotation=90)
        axes.annotate(f'{round(row["count"]):,}', (row['score'], row['iou']), **place)
    axes.set(xlabel='mean score', ylabel='mean IoU', xlim=(0, 1), ylim=(0, 1.1))
    save_figure(drawing, path)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('file', type=Path, metavar='FILE.json', help='what was measured')
    parser.add_argument('--figure', type=Path, metavar='FILE.png', help='draw mean IoU over score')
    parser.add_argument(
        '--detector',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='measure this one first; CONFIG is a file or the name of a shipped config',
    )
    parser.add_argument('--split', choices=('val', 'test'), help='data (test)')
    parser.add_argument('--halves', type=count, help='random halvings (5)')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    for name in ('split', 'halves', 'cfg_options'):
        if getattr(args, name) is not None and not args.detector:
            parser.error(f'--{name.replace("_", "-")} needs a detector: give --detector')
    args.split, args.halves = args.split or 'test', args.halves or 5
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the detector and judge it."""
    from gfl_det.engine.runner import detect_edges  # loads mmdet

    config, checkpoint = args.detector
    gts, found = detect_edges(load_config(config, args.cfg_options), checkpoint, args.split)
    results = []
    for result in judge_halves(gts, found, args.halves):
        results.append(result._asdict())
        if (result.view, result.method) == ('kept', METHODS[-1]):
            print(f'half {result.seed + 1} of {args.halves}', file=sys.stderr)
    return dict(
        config=Path(config).stem,
        checkpoint=file_sum(checkpoint),
        split=args.split,
        images=len(gts.image_ids),
        halves=results,
        reliability=reliability_bins(gts, found),
        ranks=rank_correlations(gts, found),
    )


def main() -> None:
    """Run the study if a detector is given; print its tables, and draw."""
    args = parse_arguments()
    if args.figure:
        check_writable(args.figure)
    if args.detector:
        check_writable(args.file)
        code = provenance()
        write_json(args.file, measure(args) | code, indent=1)
    content = read_json(args.file)
    if args.figure:
        draw(content, args.figure)
    print(*tables(content).values(), sep='\n\n')


if __name__ == '__main__':
    cli.run(main)
