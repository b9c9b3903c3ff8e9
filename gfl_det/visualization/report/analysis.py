"""Analysis for a report: all numbers as JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.evaluate import evaluate_detections, keep_above
from gfl_det.evaluation.functional import reliability
from gfl_det.evaluation.matching import Matches, match
from gfl_det.utils.console import Progress
from gfl_det.visualization import class_colours
from gfl_det.visualization.report.curves import (
    COCO_SIDES,
    GRID,
    SIZES,
    CocoSummary,
    F1Cuts,
    best_cuts,
    coco_table,
    edge_errors,
    rank_correlation,
    sample_points,
    spread,
)
from gfl_det.visualization.report.data import Curve, ReportData, read_curves
from gfl_det.visualization.report.errors import (
    KINDS,
    TAU,
    Confusions,
    Errors,
    ImageErrors,
    count_by_score,
    find_confusions,
    find_errors,
    judge_images,
    oracle_gains,
)

NUM_BINS = 20  # for reliability
METRICS = ('LaECE_0', 'LaACE_0', 'D-ECE', 'oLRP')
FLOOR_ENDS = ('_count', '_floor_95', '_debiased')
PRECISIONS = ('AP', 'AP50', 'AP75')
STEPS = 7
SECTIONS = (
    *('summary', 'precision', 'reliability', 'uncertainty'),
    *('errors', 'confusion', 'training', 'dataset', 'images'),
)
EDGES = ('left', 'top', 'right', 'bottom')


class Analysis(NamedTuple):
    """Numbers of the page, and the inputs for its pictures."""

    values: dict[str, Any]
    kept: np.ndarray  # (C,) rows of the detections above the common threshold
    errors: Errors  # errors of these detections
    confusions: Confusions  # of these detections
    judged: ImageErrors
    all_errors: Errors  # errors of all detections


def analyse(data: ReportData, show_progress: bool = False, resamples: int = 0) -> Analysis:
    """Compute all sections except the pictures.

    Args:
        data: Gt boxes and detections.
        show_progress: Show progress on standard error.
        resamples: Bootstrap resamples of the images for intervals of the metrics; 0 for none.
    """
    gts, found = data.gts, data.detections
    with Progress(STEPS, 'analyses', show_progress) as progress:
        table = coco_table(gts, data.area, found)
        progress.advance()
        (half,) = match(found, gts, [TAU])
        cuts = best_cuts(half)
        progress.advance()
        threshold = float(np.nan_to_num(cuts.threshold[0]))
        kept = np.flatnonzero(keep_above(found, threshold))
        errors = find_errors(found.take(kept), gts)
        judged = judge_images(errors, found.image[kept], gts)
        progress.advance()
        all_errors = find_errors(found, gts)
        error_values = _errors(all_errors, judged, gts)
        progress.advance()
        confusions = find_confusions(found.take(kept), gts, errors)
        matrix = confusions.matrix(errors, gts)
        progress.advance()
        sides = _sides(data, resamples)
        progress.advance()
        edges = None if data.edge_std is None else _uncertainty(data, half)
        progress.advance()
    colours = class_colours(len(gts.class_names)).tolist()
    values = dict(
        heading(data.title, data.facts, gts, len(found.scores)),
        sections=SECTIONS,
        colours=['#{:02x}{:02x}{:02x}'.format(*colour) for colour in colours],
        kinds=KINDS,
        tau=TAU,
        ap=_table(table.ap, table.recall),
        per_class=_per_class(gts, table, cuts),
        cut=dict(
            threshold=threshold,
            f1=cuts.f1[0],
            precision=cuts.precision[0],
            recall=cuts.recall[0],
            kept=len(kept),
        ),
        precision=table.precision,
        f1=cuts.curve,
        reliability=sides,
        uncertainty=edges,
        errors=error_values,
        confusion=[[int(i), int(j), int(matrix[i, j])] for i, j in np.argwhere(matrix)],
        by_score=count_by_score(all_errors, gts, GRID),
        training=_training(data),
        dataset=data_statistics(gts, data.area, data.image_wh),
        model=None if data.model is None else data.model._asdict(),
        images=_images(data.names, judged, gts, _cells(confusions, errors, found.image[kept], gts)),
    )
    return Analysis(values, kept, errors, confusions, judged, all_errors)


def heading(
    title: str, facts: Sequence[tuple[str, str]], gts: GroundTruth, detections: int
) -> dict[str, Any]:
    """Heading of a page: title and facts."""
    return dict(
        title=title,
        facts=facts,
        counts=[
            ['images', len(gts.image_ids)],
            ['gt boxes', int(gts.counts().sum())],
            ['crowds', int(gts.crowd.sum())],
            ['detections', detections],
            ['classes', len(gts.class_names)],
        ],
        classes=gts.class_names,
    )


def _table(ap: np.ndarray, recall: np.ndarray) -> list[list[Any]]:
    return [[size, *row, found] for size, row, found in zip(SIZES, ap, recall)]


def _per_class(gts: GroundTruth, table: CocoSummary, cuts: F1Cuts) -> list[list[Any]]:
    """Per class: gt boxes, AP, AP50, AP75, AP by size, and the best F1 with its threshold."""
    best = np.stack(cuts[:4], axis=1)[1:]
    rows = zip(gts.counts().tolist(), table.ap_by_class, table.ap_by_class_size, best)
    return [[number, *ap, *sizes, *cut] for number, ap, sizes, cut in rows]


def _errors(all_errors: Errors, judged: ImageErrors, gts: GroundTruth) -> dict[str, Any]:
    """AP gains for all detections, and counts per class for the kept ones."""
    classes = len(gts.category_ids)
    counts = np.zeros((classes + 1, len(KINDS)), np.int64)
    np.add.at(counts, (judged.counts[:, 2] + 1, judged.counts[:, 1]), judged.counts[:, 3])
    counts[0] = counts[1:].sum(0)
    everywhere = np.bincount(all_errors.kind[all_errors.kind >= 0], minlength=len(KINDS))
    everywhere[-1] = all_errors.missed.sum()
    gains = oracle_gains(all_errors, gts)
    return dict(gains=gains, kept=counts, all=everywhere)


def _sides(data: ReportData, resamples: int) -> list[dict[str, Any]]:
    """Reliability of the scores, before and after calibration if there was one."""
    found = data.detections
    sides = {'scores': found}
    if data.raw_scores is not None:
        sides = {'raw': found._replace(scores=data.raw_scores), 'calibrated': found}
    rows = []
    for name, each in sides.items():
        metrics = evaluate_detections(each, data.gts, resamples=resamples)
        rows.append(reliability_side(name, each, data.gts, metrics, METRICS))
    return rows


def reliability_side(
    name: str,
    found: Detections,
    gts: GroundTruth,
    metrics: dict[str, float],
    listed: Sequence[str],
) -> dict[str, Any]:
    """Reliability for one set of scores.

    Args:
        name: Name of the scores.
        found: Detections with these scores.
        gts: Ground truth of the same images.
        metrics: Metrics from :func:`.evaluate.evaluate_detections`.
        listed: Names of the metrics to list.

    Returns:
        Name, metrics, and ``number``, ``score`` and ``iou``: ``(1 + K, NUM_BINS)`` for all classes
        together and for each class.
    """
    (matches,) = match(found, gts, [0.0])
    judged = matches.judged()
    edges = np.linspace(0, 1, NUM_BINS + 1)
    scores, ious, label = (
        values[judged] for values in (matches.scores, matches.iou, matches.label)
    )
    pooled = reliability(scores, ious, edges)
    apart = reliability(scores, ious, edges, label, len(gts.category_ids))
    rows = [np.concatenate([one, each]) for one, each in zip(pooled[1:], apart[1:])]
    return dict(
        name=name,
        metrics={each: metrics[each] for each in listed},
        floors={
            each: [metrics[each + end] for end in FLOOR_ENDS]
            for each in listed
            if f'{each}_floor' in metrics
        },
        intervals={
            each: [metrics[f'{each}_low'], metrics[f'{each}_high']]
            for each in (*PRECISIONS, *listed)
            if f'{each}_low' in metrics
        },
        number=rows[0].astype(int),
        score=rows[1],
        iou=rows[2],
    )


def _uncertainty(data: ReportData, half: Matches) -> dict[str, Any]:
    assert data.edge_std is not None  # checked by the caller
    known = edge_errors(half, data.detections.boxes, data.gts, data.edge_std, data.intervals)

    def one(std: np.ndarray, error: np.ndarray) -> dict[str, Any]:
        bins = spread(std, error)
        return dict(
            edges=len(std),
            correlation=rank_correlation(std, error),
            rms_std=float(np.sqrt((std**2).mean())) if len(std) else None,
            rms_error=float(np.sqrt((error**2).mean())) if len(std) else None,
            bins=bins._asdict(),
            points=sample_points(std, error),
        )

    rows = {'all edges': one(known.std.reshape(-1), known.error.reshape(-1))}
    rows.update((side, one(known.std[:, i], known.error[:, i])) for i, side in enumerate(EDGES))
    judged = known.inside is not None and len(known.inside) > 0
    inside = known.inside if judged else None
    return dict(
        sides=rows,
        level=data.level,
        coverage=None if inside is None else [float(inside.mean()), *inside.mean(0).tolist()],
        boxes=None if inside is None else float(inside.all(1).mean()),
    )


def _training(data: ReportData) -> dict[str, Any] | None:
    if not data.scalars:
        return None
    curves = read_curves(data.scalars)

    def plain(each: Sequence[Curve]) -> list[dict[str, Any]]:
        return [curve._asdict() for curve in each]

    return dict(training=plain(curves.training), validation=plain(curves.validation))


def _cells(
    confusions: Confusions, errors: Errors, image: np.ndarray, gts: GroundTruth
) -> np.ndarray:
    """Cells of the confusion matrix per image ``(C, 4)``: image, row, column, number; sorted.

    ``image`` are the images of the detections of the errors.
    """
    classes = len(gts.category_ids)
    counted, lost = confusions.found >= 0, confusions.gt == classes
    rows = [
        (image[errors.found.row[counted]], confusions.found[counted], errors.found.label[counted]),
        (gts.image[lost], gts.label[lost], confusions.gt[lost]),
    ]
    cells, number = np.unique(np.hstack(rows), axis=1, return_counts=True)
    return np.vstack([cells, number]).T


def _images(
    names: Sequence[str], judged: ImageErrors, gts: GroundTruth, cells: np.ndarray
) -> list[list[Any]]:
    """Values of each image.

    They are its name, quality, gt boxes, true positives, errors by kind and class, gt classes, and
    cells of the confusion matrix.
    """
    counts, classes = judged.counts, len(gts.class_names)
    places = np.arange(len(names) + 1)
    starts, begins = (np.searchsorted(each[:, 0], places) for each in (counts, cells))
    there = np.unique(gts.image * classes + gts.label)
    place = np.searchsorted(there, places * classes)
    return [
        [
            name,
            judged.quality[index],
            int(judged.gts[index]),
            int(judged.right[index]),
            counts[starts[index] : starts[index + 1], 1:].reshape(-1),
            there[place[index] : place[index + 1]] % classes,
            cells[begins[index] : begins[index + 1], 1:].reshape(-1),
        ]
        for index, name in enumerate(names)
    ]


# --- Statistics of the data -----------------------------------------------------------------------

SIDES = 2.0 ** np.arange(1, 12.5, 0.5)  # px, borders of the bins of sqrt(width * height)
RATIOS = 2.0 ** np.arange(-3, 3.25, 0.5)  # borders of the bins of width / height
MOST = 30  # boxes per image; images with more share the last bin
LISTED = 10  # sizes of images


def data_statistics(gts: GroundTruth, area: np.ndarray, image_wh: np.ndarray) -> dict[str, Any]:
    """Count what is annotated; crowds are counted apart.

    Args:
        gts: Ground truth with I images, K classes and M boxes.
        area: ``(M,)`` px, as annotated.
        image_wh: ``(I, 2)`` px; NaN where unknown.

    Returns:
        ``classes``: per class the images with it, the crowds, the median side in px and the shares
        of small, medium and large boxes; ``per_image``: images by number of boxes; ``sides`` and
        ``ratios``: borders of bins, and counts of all classes and of each; ``sizes``: width,
        height and number of the most frequent image sizes; ``all_sizes``: how many there are.
    """
    classes = len(gts.class_names)
    kept = ~gts.crowd
    label, image = gts.label[kept], gts.image[kept]
    wide, tall = gts.boxes[kept, 2:].T
    side = np.sqrt(wide * tall)
    pairs = np.unique(image * classes + label) % max(classes, 1)
    images_with = np.bincount(pairs, minlength=classes)
    crowds = np.bincount(gts.label[gts.crowd], minlength=classes)
    of_size = np.zeros((classes, len(COCO_SIDES) + 1), np.int64)
    np.add.at(of_size, (label, np.searchsorted(np.square(COCO_SIDES), area[kept])), 1)
    with np.errstate(invalid='ignore', divide='ignore'):  # classes without boxes, flat boxes
        shares = of_size / of_size.sum(1, keepdims=True)
        ratio = wide / tall
    median = [
        float(np.median(side[label == each])) if images_with[each] else None
        for each in range(classes)
    ]
    number = np.bincount(image, minlength=len(gts.image_ids)).clip(max=MOST)
    sizes = Counter(map(tuple, image_wh[np.isfinite(image_wh).all(1)].astype(int).tolist()))
    return dict(
        classes=list(zip(images_with, crowds, median, *shares.T)),
        per_image=np.bincount(number),
        sides=_histogram(side, SIDES, label, classes),
        ratios=_histogram(ratio, RATIOS, label, classes),
        sizes=[[*size, count] for size, count in sizes.most_common(LISTED)],
        all_sizes=len(sizes),
    )


def _histogram(
    values: np.ndarray, borders: np.ndarray, label: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """Counts ``(1 + K, B)`` of all classes and of each; the outer bins take what lies beyond."""
    bins = len(borders) - 1
    place = (np.searchsorted(borders, values, side='right') - 1).clip(0, bins - 1)
    counts = np.zeros((classes, bins), np.int64)
    np.add.at(counts, (label, place), 1)
    return dict(borders=borders, counts=np.vstack([counts.sum(0), counts]))
