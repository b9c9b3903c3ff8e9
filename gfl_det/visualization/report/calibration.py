"""The calibration part of a report: reliability diagrams, histograms, metrics, thresholds."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfl_det.calibration.calibrators import FittedCalibrator
from gfl_det.evaluation.detections import Detections, Truths
from gfl_det.evaluation.functional import OptimalLRP, lrp, nan_mean, optimal_lrp, reliability
from gfl_det.evaluation.matching import Matches, match
from gfl_det.utils.files import make_folder, writing
from gfl_det.visualization.charts import figure
from gfl_det.visualization.report.analysis import NUM_BINS

PAGE = 'report.html'  # the file of the page
# Classes with a diagram of their own, those with the most detections; the page lists all.
MAX_DIAGRAMS = 20
METRICS = ('LaECE_0', 'LaACE_0', 'D-ECE', 'LRP_0.5', 'oLRP', 'AP', 'AP50', 'AP75')
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
img { max-width: 100% } .wide { overflow-x: auto }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f3f3f3 }
"""


class Side(NamedTuple):
    """Detections with raw or calibrated scores, measured and matched."""

    name: str
    colour: str
    metrics: dict[str, float]
    found: Matches  # at tau 0


class CalibratorCuts(NamedTuple):
    """Least scores of the K classes, and the LRP of what they keep, at the calibrator's tau."""

    fitted: np.ndarray  # (K,) LRP above the cuts that the calibrator was fitted with
    raw: OptimalLRP  # the best of these very images, by raw scores
    calibrated: OptimalLRP  # and by calibrated ones


def judge_cuts(
    calibrator: FittedCalibrator, detections: Detections, calibrated: Detections, truths: Truths
) -> CalibratorCuts:
    """Judge the cuts of a calibrator, beside the best ones, for which gt boxes must be known.

    Args:
        calibrator: with the classes of the gt boxes, in their order.
        detections: with raw scores.
        calibrated: the same with calibrated ones.
        truths: of the same images.
    """
    kept = calibrator.kept(detections, calibrated)
    settings = calibrator.settings
    fitted, raw, mapped = (
        match(each, truths, [settings.tau], settings.zero_overlap)[0]
        for each in (calibrated.take(kept), detections, calibrated)
    )
    return CalibratorCuts(lrp(fitted).total, optimal_lrp(raw), optimal_lrp(mapped))


def write_report(
    calibrator: FittedCalibrator,
    detections: Detections,
    calibrated: np.ndarray,
    truths: Truths,
    metrics: tuple[dict[str, float], dict[str, float]],
    folder: Path,
) -> list[Path]:
    """Write ``reliability.png``, ``classes.png`` and ``report.html``, which holds both.

    Args:
        calibrator: with the classes of the gt boxes, in their order.
        detections: with raw scores.
        calibrated: ``(N,)`` their calibrated scores.
        truths: of the same images, which the calibrator has not seen.
        metrics: of raw and of calibrated scores, of :func:`.evaluation.evaluate_detections`.
        folder: is made.

    Returns:
        The files.

    Raises:
        DataError: one cannot be written.
    """
    make_folder(folder)
    mapped = detections._replace(scores=calibrated)
    raw_found, mapped_found = (match(each, truths, [0.0])[0] for each in (detections, mapped))
    sides = (
        Side('raw', '#8d99ae', metrics[0], raw_found),
        Side('calibrated', '#2b7a78', metrics[1], mapped_found),
    )
    pooled, classes, page = (folder / name for name in ('reliability.png', 'classes.png', PAGE))
    with writing(pooled):
        _figure([('all classes', None)], sides).savefig(pooled, dpi=130)
    number = np.bincount(detections.label, minlength=len(truths.class_names))
    order = np.argsort(-number, kind='stable')[:MAX_DIAGRAMS]
    panels: list[tuple[str, int | None]] = [
        (truths.class_names[label], int(label)) for label in order
    ]
    with writing(classes):
        _figure(panels, sides).savefig(classes, dpi=110)
    cuts = _cuts(calibrator, judge_cuts(calibrator, detections, mapped, truths), number)
    content = _page(sides, truths, len(calibrated), cuts, (pooled, classes))
    with writing(page):
        page.write_text(content, encoding='utf-8')
    return [pooled, classes, page]


def _figure(panels: list[tuple[str, int | None]], sides: tuple[Side, ...]) -> Any:
    """A reliability diagram above a histogram of scores for each panel: a title and a label."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    width = 6 if len(panels) == 1 else 3
    drawing = figure(width * columns, 1.3 * width * rows)
    grid = drawing.subplots(
        2 * rows, columns, squeeze=False, sharex=True, height_ratios=[3, 1] * rows
    )
    for axes in grid.flat:
        axes.set_visible(False)
    for index, (title, label) in enumerate(panels):
        row, column = divmod(index, columns)
        _panel(grid[2 * row, column], grid[2 * row + 1, column], title, label, sides)
    return drawing


def _panel(
    diagram: Any, histogram: Any, title: str, label: int | None, sides: tuple[Side, ...]
) -> None:
    edges = np.linspace(0, 1, NUM_BINS + 1)
    diagram.plot([0, 1], [0, 1], color='black', linewidth=0.8, linestyle=':')
    for side in sides:
        judged = side.found.judged()
        if label is not None:
            judged = judged & (side.found.label == label)
        scores, targets = side.found.scores[judged], side.found.iou[judged]
        table = reliability(scores, targets, edges)
        diagram.plot(
            table.score[0], table.target[0], 'o-', color=side.colour, label=side.name, markersize=3
        )
        histogram.stairs(table.number[0], edges, color=side.colour)
    diagram.set_title(title, fontsize=9)
    diagram.set_ylabel('mean IoU', fontsize=8)
    histogram.set_xlabel('score', fontsize=8)
    histogram.set_yscale('symlog')
    diagram.legend(fontsize=7, frameon=False)
    for axes in (diagram, histogram):
        axes.set_visible(True)
        axes.tick_params(labelsize=7)
        axes.spines[['top', 'right']].set_visible(False)


def _page(
    sides: tuple[Side, ...], truths: Truths, number: int, cuts: str, pictures: tuple[Path, ...]
) -> str:
    """One HTML file with the pictures in it; it opens without a network."""
    metrics = [[name, *(f'{side.metrics[name]:.4f}' for side in sides)] for name in METRICS]
    images = [
        f'<img alt="{path.stem}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}">'
        for path in pictures
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Calibration</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{STYLE}</style><h1>Calibration</h1>'
        f'<p>{len(truths.image_ids)} images, {len(truths.label)} gt boxes, '
        f'{number} detections. Scores are compared with the IoU of their boxes; '
        'a false one has 0.</p>'
        f'{_table(["", *(side.name for side in sides)], metrics)}'
        f'<h2>All classes</h2>{images[0]}'
        f'<h2>Classes with the most detections</h2>{images[1]}{cuts}</html>\n'
    )


def _cuts(calibrator: FittedCalibrator, cuts: CalibratorCuts, number: np.ndarray) -> str:
    """The section on least scores; ``number`` of detections of each class, ``(K,)``."""
    at_best = (cuts.raw, cuts.calibrated)
    rows = [
        [
            each.name,
            str(number[label]),
            *map(_number, (each.raw_threshold, each.threshold, cuts.fitted[label])),
            *(
                _number(value[label])
                for best in at_best
                for value in (best.thresholds, best.lrp[0])
            ),
        ]
        for label, each in enumerate(calibrator.classes)
    ]
    means = [
        _number(nan_mean(values)) for values in (cuts.fitted, *(best.lrp[0] for best in at_best))
    ]
    rows.append(['mean', '', '', '', means[0], '', means[1], '', means[2]])
    best_of = [
        f'best on these images, {name}' for name in ('raw', 'its LRP', 'calibrated', 'its LRP')
    ]
    head = ['class', 'detections', 'raw cut', 'calibrated cut', 'LRP', *best_of]
    tau = calibrator.settings.tau
    return (
        '<h2>Where to cut each class</h2><p>The cuts that the calibrator was fitted with, on other '
        'images: keep what reaches both; an empty one keeps all. Beside them the scores with the '
        'least LRP on these images, which nobody knows beforehand: what the cuts could have '
        f'reached at most. LRP is at IoU {tau:g}, for which the cuts were fitted; 0 is '
        f'perfect.</p>{_table(head, rows)}'
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return '<tr>' + ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells) + '</tr>'

    body = ''.join(line(row, 'td') for row in rows)
    return f'<div class="wide"><table>{line(head, "th")}{body}</table></div>'


def _number(value: float) -> str:
    return '' if np.isnan(value) else f'{value:.3f}'
