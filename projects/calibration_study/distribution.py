"""IoU predicted from a box's edges and neighbours beside its score, against isotonic regression.

Held-out images are cut in two at random, for several seeds: calibrators are fitted on one half and
judged on the other, in two views (see :mod:`.detection`): of all detections, and of those above
each class's least LRP, the published protocol.

Two further baselines change the suppression and read scores alone: isotonic regression after NMS at
the threshold that is best on the half to fit on, and after soft-NMS (Bodla et al., ICCV 2017, with
its Gaussian of sigma .5), which lowers the scores of boxes that overlap a better one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gfl_det.calibration.calibrators import Cut, Settings, fit_calibrator
from gfl_det.calibration.distribution import (
    DistributionSettings,
    EdgeDetections,
    Group,
    fit_distribution_calibrator,
)
from gfl_det.calibration.splits import split_images, take_edge_images
from gfl_det.evaluation.detections import GroundTruth
from gfl_det.evaluation.evaluate import evaluate_detections

VIEWS: dict[str, tuple[Cut, Cut]] = {'all': (0.0, 0.0), 'kept': ('lrp', 'lrp')}
# What each calibrator reads; None is the raw score, an empty tuple isotonic regression alone.
CALIBRATORS: dict[str, tuple[Group, ...] | None] = {
    'raw': None,
    'isotonic': (),
    'score': ('score',),
    'score, edges': ('score', 'distribution'),
    'score, overlap': ('score', 'overlap'),
    'score, edges, overlap': ('score', 'distribution', 'overlap'),
    'score, box': ('score', 'box'),
    'score, edges, overlap, box': ('score', 'distribution', 'overlap', 'box'),
}
TUNED, SOFT = 'isotonic, tuned NMS', 'isotonic, soft-NMS'
# Tests of suppression by the name of their detections.
SUPPRESSIONS: dict[str, dict[str, Any]] = {
    **{f'nms {t:g}': dict(type='nms', iou_threshold=t) for t in (0.4, 0.5, 0.6, 0.7, 0.8)},
    SOFT: dict(type='soft_nms', method='gaussian', sigma=0.5, min_score=0.05),
}
METRICS = ('LaECE_0', 'LaACE_0', 'LRP_0', 'AP')


class Outcome(NamedTuple):
    """What one calibrator made of one half."""

    name: str  # of the data and detector
    seed: int
    calibrator: str  # of CALIBRATORS, or TUNED or SOFT
    view: str  # of VIEWS
    metrics: dict[str, float]  # METRICS; AP is of all detections in either view


def pool(parts: Sequence[tuple[GroundTruth, EdgeDetections]]) -> tuple[GroundTruth, EdgeDetections]:
    """Several splits as one; images get the number of their split before their id.

    Args:
        parts: of the same classes in the same order, at least one.
    """
    gts, found = zip(*parts)
    begin = np.cumsum([0, *(len(each.image_ids) for each in gts)])
    image = [each.image + start for each, start in zip(gts, begin)]
    joined = gts[0]._replace(
        image_ids=[f'{n}/{i}' for n, each in enumerate(gts) for i in each.image_ids],
        image_keys=[key for each in gts for key in each.image_keys],
        image=np.concatenate(image),
        label=np.concatenate([each.label for each in gts]),
        boxes=np.concatenate([each.boxes for each in gts]),
        crowd=np.concatenate([each.crowd for each in gts]),
    )
    moved = [
        each.detections._replace(image=each.detections.image + start)
        for each, start in zip(found, begin)
    ]
    detections = type(moved[0])(*(np.concatenate(values) for values in zip(*moved)))
    logits = np.concatenate([each.logits for each in found])
    return joined, EdgeDetections(
        detections, logits, np.concatenate([each.bin_widths for each in found])
    )


def compare(
    name: str,
    gts: GroundTruth,
    found: EdgeDetections,
    seeds: int,
    suppressed: Mapping[str, EdgeDetections] | None = None,
) -> Iterator[Outcome]:
    """Every calibrator and view for each seed.

    Args:
        name: of the data and detector.
        gts: of the held-out images.
        found: their detections, raw.
        seeds: how many random cuts.
        suppressed: detections of the same images by the names of SUPPRESSIONS; adds TUNED and SOFT.

    Raises:
        DataError: nothing can be fitted.
    """
    suppressed = suppressed or {}
    for seed in range(seeds):
        first, second = split_images(gts, seed)
        fitting, judged = (take_edge_images(gts, found, part) for part in (first, second))
        for view, cuts in VIEWS.items():
            for calibrator, groups in CALIBRATORS.items():
                metrics = _judge(fitting, judged, groups, cuts)
                yield Outcome(name, seed, calibrator, view, metrics)
        for calibrator, kind in _baselines(gts, suppressed, first).items():
            fitting, judged = (
                take_edge_images(gts, suppressed[kind], part) for part in (first, second)
            )
            for view, cuts in VIEWS.items():
                yield Outcome(name, seed, calibrator, view, _judge(fitting, judged, (), cuts))


def _baselines(
    gts: GroundTruth, suppressed: Mapping[str, EdgeDetections], chosen: np.ndarray
) -> dict[str, str]:
    """Name the suppression of each baseline, tuned on the chosen images."""
    if not suppressed:
        return {}
    precision = {}
    for kind, found in suppressed.items():
        if kind != SOFT:
            part_gts, part = take_edge_images(gts, found, chosen)
            precision[kind] = evaluate_detections(part.detections, part_gts)['AP']
    return {TUNED: max(precision, key=precision.__getitem__), SOFT: SOFT}


def _judge(
    fitting: tuple[GroundTruth, EdgeDetections],
    judged: tuple[GroundTruth, EdgeDetections],
    groups: tuple[Group, ...] | None,
    cuts: tuple[Cut, Cut],
) -> dict[str, float]:
    (fit_gts, fit_found), (gts, found) = fitting, judged
    raw = found.detections
    if groups:
        settings = DistributionSettings(groups, cuts=cuts)
        fitted = fit_distribution_calibrator(fit_found, fit_gts, settings)
        every, kept = fitted.calibrate(found), fitted.apply(found)[0].detections
    else:
        method = Settings('identity' if groups is None else 'isotonic', cuts=cuts)
        plain = fit_calibrator(fit_found.detections, fit_gts, method)
        every, kept = plain.calibrate(raw.scores, raw.label), plain.apply(raw)[0]
    metrics = evaluate_detections(kept, gts)
    metrics['AP'] = evaluate_detections(raw._replace(scores=every), gts)['AP']
    return {metric: metrics[metric] for metric in METRICS}
