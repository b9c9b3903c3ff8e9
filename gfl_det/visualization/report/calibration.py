"""Report page of ``gfl-det calibrate report``: reliability before and after, and thresholds.

It uses the page of a detector report with two sections; the diagrams are also written as pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfl_det.calibration.calibrators import FittedCalibrator
from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.functional import OptimalLRP, lrp, nan_mean, optimal_lrp
from gfl_det.evaluation.matching import match
from gfl_det.utils.files import make_folder, writing
from gfl_det.visualization.charts import figure
from gfl_det.visualization.report.analysis import NUM_BINS, heading, reliability_side
from gfl_det.visualization.report.page import render

PAGE = 'report.html'  # file name of the page
# Classes with their own diagram: those with the most detections; the page has all.
MAX_DIAGRAMS = 20
METRICS = ('LaECE_0', 'LaACE_0', 'D-ECE', 'LRP_0.5', 'oLRP', 'AP', 'AP50', 'AP75')
MAX_TITLE = 24  # characters of a class name
FEW = 10  # detections; dots of bins with fewer are faint
COLOURS = ('#8d99ae', '#2b7a78')  # raw scores, calibrated scores


class CalibratorCuts(NamedTuple):
    """Minimum scores of the K classes, with their LRP at the calibrator's tau."""

    fitted: np.ndarray  # (K,) LRP at the fitted thresholds
    raw: OptimalLRP  # optimum on these images for raw scores
    calibrated: OptimalLRP  # and for calibrated scores


def judge_cuts(
    calibrator: FittedCalibrator, detections: Detections, calibrated: Detections, gts: GroundTruth
) -> CalibratorCuts:
    """Compare the thresholds of a calibrator with the optimal ones on these images.

    Args:
        calibrator: Calibrator with the classes of the gt boxes, in the same order.
        detections: Detections with raw scores.
        calibrated: The same detections with calibrated scores.
        gts: Ground truth of the same images.
    """
    kept = calibrator.kept(detections, calibrated)
    settings = calibrator.settings
    fitted, raw, mapped = (
        match(each, gts, [settings.tau], settings.zero_overlap)[0]
        for each in (calibrated.take(kept), detections, calibrated)
    )
    return CalibratorCuts(lrp(fitted).total, optimal_lrp(raw), optimal_lrp(mapped))


def write_report(
    calibrator: FittedCalibrator,
    detections: Detections,
    calibrated: np.ndarray,
    gts: GroundTruth,
    metrics: tuple[dict[str, float], dict[str, float]],
    folder: Path,
) -> list[Path]:
    """Write ``report.html``, which is self-contained, ``reliability.png`` and ``classes.png``.

    Args:
        calibrator: Calibrator with the classes of the gt boxes, in the same order.
        detections: Detections with raw scores.
        calibrated: ``(N,)`` calibrated scores.
        gts: Ground truth of the same images, which the calibrator was not fitted on.
        metrics: Metrics of raw and of calibrated scores from
            :func:`.evaluation.evaluate_detections`.
        folder: Output folder, created if missing.

    Returns:
        Paths of the files.

    Raises:
        DataError: If a file cannot be written.
    """
    make_folder(folder)
    mapped = detections._replace(scores=calibrated)
    sides = [
        reliability_side(name, found, gts, measured, METRICS)
        for name, found, measured in zip(('raw', 'calibrated'), (detections, mapped), metrics)
    ]
    number = np.bincount(detections.label, minlength=len(gts.class_names))
    order = np.argsort(-number, kind='stable')[:MAX_DIAGRAMS].tolist()
    panels = dict(
        reliability=[('all classes', 0)],
        classes=[(gts.class_names[label], label + 1) for label in order],
    )
    files = []
    for name, chosen in panels.items():
        files.append(folder / f'{name}.png')
        with writing(files[-1]):
            _figure(chosen, sides).savefig(files[-1], dpi=130)
    values = dict(
        heading('Calibration', [('calibrator', _facts(calibrator))], gts, len(calibrated)),
        sections=['reliability', 'cuts'],
        reliability=sides,
        cuts=_cuts(calibrator, judge_cuts(calibrator, detections, mapped, gts), number),
    )
    page = folder / PAGE
    with writing(page):
        page.write_text(render(values), encoding='utf-8')
    return [*files, page]


def _facts(calibrator: FittedCalibrator) -> str:
    source = calibrator.source
    return (
        f'of the scores of {calibrator.score_type}, fitted on {source.detections:,} detections in '
        f'{len(source.images):,} other images'
    )


def _figure(panels: list[tuple[str, int]], sides: list[dict[str, Any]]) -> Any:
    """Draw small multiples: reliability diagrams above histograms, with one legend for all."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    width = 6 if len(panels) == 1 else 3
    drawing = figure(width * columns, 1.3 * width * rows)
    grid = drawing.subplots(
        2 * rows, columns, squeeze=False, sharex=True, sharey='row', height_ratios=[3, 1] * rows
    )
    for axes in grid.flat:
        axes.set_visible(False)
    for index, (title, panel) in enumerate(panels):
        row, column = divmod(index, columns)
        diagram, histogram = grid[2 * row : 2 * row + 2, column]
        _panel(diagram, histogram, panel, sides)
        number = int(sides[0]['number'][panel].sum())
        name = title if len(title) <= MAX_TITLE else f'{title[: MAX_TITLE - 1]}…'
        diagram.set_title(f'{name}, {number:,} detections', fontsize=9)
        if column == 0:
            diagram.set_ylabel('mean IoU', fontsize=9)
            histogram.set_ylabel('detections', fontsize=9)
        if index + columns >= len(panels):  # nothing below
            histogram.set_xlabel('score', fontsize=9)
    drawing.legend(
        *grid[0, 0].get_legend_handles_labels(), loc='outside upper left', ncols=2, frameon=False
    )
    return drawing


def _panel(diagram: Any, histogram: Any, row: int, sides: list[dict[str, Any]]) -> None:
    edges = np.linspace(0, 1, NUM_BINS + 1)
    diagram.plot([0, 1], [0, 1], color='black', linewidth=0.8, linestyle=':')
    for side, colour in zip(sides, COLOURS):
        score, iou, number = (side[key][row] for key in ('score', 'iou', 'number'))
        there = number > 0  # joined over empty bins
        diagram.plot(score[there], iou[there], color=colour, linewidth=1.2, label=side['name'])
        opacity = np.where(number < FEW, 0.25, 1.0)
        diagram.scatter(score, iou, color=colour, s=16, alpha=opacity, zorder=3)
        histogram.stairs(number, edges, color=colour, linewidth=1.2)
    histogram.set_yscale('symlog')
    diagram.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for axes in (diagram, histogram):
        axes.set_visible(True)
        axes.tick_params(labelsize=8, labelbottom=axes is histogram)
        axes.spines[['top', 'right']].set_visible(False)


def _cuts(calibrator: FittedCalibrator, cuts: CalibratorCuts, number: np.ndarray) -> dict[str, Any]:
    """Section on minimum scores; ``number`` is the detections per class, ``(K,)``."""
    best = (cuts.raw, cuts.calibrated)
    columns = [cuts.fitted, *(values for each in best for values in (each.thresholds, each.lrp[0]))]
    rows = [
        [each.name, number[label], each.raw_threshold, each.threshold, *(c[label] for c in columns)]
        for label, each in enumerate(calibrator.classes)
    ]
    means = [nan_mean(values) for values in (cuts.fitted, *(each.lrp[0] for each in best))]
    return dict(tau=calibrator.settings.tau, rows=rows, means=means)
