"""Advice from measurements: the smallest change of a pyramid that covers a dataset's boxes.

:func:`check_priors` warns of boxes without positive priors and of edges beyond the regression
range: image sizes follow the training pipeline, and the assigner is that of the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from mmengine.config import Config

from gfl_det.datasets.checks.boxes import Table
from gfl_det.datasets.checks.draft import Draft, Level
from gfl_det.engine.reach.measure import (
    LARGEST,
    Measured,
    PriorPyramid,
    Progress,
    ResizedBoxes,
    measure,
)
from gfl_det.engine.reach.settings import (
    DEFAULTS,
    MOST,
    Resizing,
    assigner_of,
    head_of,
    resizing_of,
)
from gfl_det.errors import ConfigError
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.ops.boxes import xywh_to_xyxy
from gfl_det.utils.choices import AdviceLimits
from gfl_det.utils.config import Node

SCALES = (3, 4, 5, 6, 8, 10)  # anchor sides in strides; the ATSS paper finds 5 to 8 equally good
FINEST = 4  # px; a level at stride 2 would cost more than most detectors altogether
DEFAULT_LIMITS = AdviceLimits()


class TriedPyramid(NamedTuple):
    """Measurements of a candidate pyramid."""

    pyramid: PriorPyramid
    unassigned: float  # share of gt boxes without a positive
    reg_max: int  # smallest one within the limit of clipped positives
    cells: float  # per image, relative to the current pyramid


def variants(now: PriorPyramid) -> list[PriorPyramid]:
    """The pyramid, followed by variants: a level more at either end, other scales."""
    finer = (now.strides[0] // 2,) if now.strides[0] // 2 >= FINEST else ()
    coarser = (now.strides[-1] * 2,)
    levels = [now.strides, (*now.strides, *coarser)]
    if finer:
        levels += [(*finer, *now.strides), (*finer, *now.strides, *coarser)]
    scales = [now.scale, *(scale for scale in SCALES if scale != now.scale)]
    return [now._replace(strides=strides, scale=scale) for strides in levels for scale in scales]


def try_variants(
    boxes: ResizedBoxes,
    now: PriorPyramid,
    assigner: ATSSAssigner,
    limits: AdviceLimits,
    progress: Progress | None = None,
) -> list[TriedPyramid]:
    """Measure a pyramid and its variants on the same boxes.

    Args:
        boxes: Boxes; a sample suffices.
        now: Current pyramid.
        assigner: Assigner of the config.
        limits: Limits, of which clipped positives determine ``reg_max``.
        progress: Called after each candidate.
    """
    tried, cells = variants(now), now.cells(boxes.image_wh)
    found = []
    for number, pyramid in enumerate(tried, start=1):
        measured = measure(boxes, pyramid, assigner)
        relative = pyramid.cells(boxes.image_wh) / cells
        least = measured.least_reg_max(limits.clipped)
        found.append(TriedPyramid(pyramid, float(measured.unassigned.mean()), least, relative))
        if progress:
            progress(number, len(tried))
    return found


def choose(candidates: Sequence[TriedPyramid], limits: AdviceLimits) -> TriedPyramid:
    """Select the smallest change within the limits.

    Among the pyramids with few enough gt boxes without a positive (if there are none, those closest
    to the minimum), it prefers no finer level, which multiplies the cells, then a reg_max of at
    most 16, then no additional level, then the anchor scale nearest to the current one.

    Args:
        candidates: Candidates; the first is the current pyramid.
        limits: Limits, including the share of gt boxes without a positive.
    """
    now = candidates[0].pyramid
    fewest = min(each.unassigned for each in candidates)
    most = max(limits.unassigned, 1.1 * fewest)

    def change(each: TriedPyramid) -> tuple[float, ...]:
        return (
            each.pyramid.strides[0] < now.strides[0],
            each.reg_max > MOST,
            len(each.pyramid.strides),
            abs(math.log(each.pyramid.scale / now.scale)),
            each.reg_max,
        )

    return min((each for each in candidates if each.unassigned <= most), key=change)


class SizeRow(NamedTuple):
    """Gt boxes in one range of sizes."""

    low: float  # px, square root of the area
    high: float  # px
    gts: int
    unassigned: float  # share without a positive


def by_size(boxes: ResizedBoxes, measured: Measured) -> list[SizeRow]:
    """Shares of gt boxes without a positive by size; empty ranges are omitted."""
    edges = [0.0, *(2.0**power for power in range(1, 10)), math.inf]
    place = np.digitize(boxes.size(), edges) - 1
    rows = []
    for index, (low, high) in enumerate(zip(edges, edges[1:])):
        mine = measured.unassigned[place == index]
        if len(mine):
            rows.append(SizeRow(low, high, len(mine), float(mine.mean())))
    return rows


Report = Callable[[str, int, int], None]  # task, done, total


class Advice(NamedTuple):
    """Measurements and the suggested change."""

    boxes: ResizedBoxes
    limits: AdviceLimits
    reg_max: int  # current value
    now: Measured
    sizes: list[SizeRow]
    candidates: list[TriedPyramid]
    chosen: TriedPyramid
    then: Measured  # the chosen pyramid on all boxes

    @property
    def suggested_reg_max(self) -> int:
        """Smallest reg_max within the limit for the chosen pyramid, on all boxes."""
        return self.then.least_reg_max(self.limits.clipped)


def advise(
    boxes: ResizedBoxes,
    now: PriorPyramid,
    assigner: ATSSAssigner,
    *,
    reg_max: int = MOST,
    limits: AdviceLimits = DEFAULT_LIMITS,
    sample: int = 20000,
    seed: int = 0,
    report: Report | None = None,
) -> Advice:
    """Measure the current pyramid on all boxes, its variants on a sample, and choose.

    Args:
        boxes: Boxes of the dataset.
        now: Current pyramid.
        assigner: Assigner of the config.
        reg_max: Current value.
        limits: Limits of the choice.
        sample: Number of boxes for trying other pyramids.
        seed: Seed of the sample.
        report: Called with the progress.
    """

    def told(what: str) -> Progress | None:
        return None if report is None else lambda done, total: report(what, done, total)

    measured = measure(boxes, now, assigner, told('boxes assigned'))
    part = boxes.sample(sample, np.random.default_rng(seed))
    candidates = try_variants(part, now, assigner, limits, told('pyramids tried'))
    chosen = choose(candidates, limits)
    then = measured
    if chosen.pyramid != now:
        then = measure(boxes, chosen.pyramid, assigner, told('boxes assigned to the suggested'))
    sizes = by_size(boxes, measured)
    return Advice(boxes, limits, reg_max, measured, sizes, candidates, chosen, then)


# --- Warnings of the check of annotation files ----------------------------------------------------

SAMPLE = 5_000  # images to measure; for 118,000 images a share of .01 is known to within .001
TOO_MANY = 0.05  # shares above it give a warning instead of a note
CURE = 'see gfl-det suggest-reg-max'


def check_priors(draft: Draft, table: Table, cfg: Config, pipeline: Sequence[Node]) -> None:
    """Report boxes without positive priors, and the share of edges out of range.

    Args:
        draft: Report that findings are added to.
        table: Annotations with the boxes.
        cfg: Config; without square priors and ATSS a note says that nothing was checked.
        pipeline: Pipeline of the dataset.
    """
    model = cfg.get('model') or {}
    try:
        head = head_of(model, draft.source)
        options = assigner_of(model)
        resizing, _ = resizing_of(list(pipeline))
    except ConfigError as refusal:
        draft.tell('note', 'priors.unchecked', f'priors are not checked: {refusal}')
        return
    rows = _sample(len(draft.images))
    chosen = np.flatnonzero(np.isin(table.image, rows) & ~table.crowd)
    chosen = chosen[np.argsort(table.image[chosen], kind='stable')]
    if not len(chosen):
        return
    pyramid = PriorPyramid(tuple(head['strides']), head['anchor_scale'], head['pad'])
    assigner = ATSSAssigner(**{'topk': DEFAULTS['topk'], **options})
    measured = measure(resized(table, chosen, resizing), pyramid, assigner)
    of = f'of {len(chosen)} boxes' + (
        f', in {len(rows)} images drawn at random' if len(rows) < len(draft.images) else ''
    )
    unassigned = [draft.annotations[i]['id'] for i in chosen[measured.unassigned]]
    if unassigned:
        share = len(unassigned) / len(chosen)
        text = f'boxes that no prior is trained for, {share:.2%} {of} ({CURE})'
        draft.tell(_level(share), 'priors.none', text, unassigned)
    reg_max = head['reg_max']
    clipped = measured.clipped_of_all(reg_max) if reg_max < LARGEST else 0.0
    if clipped:
        text = f'{clipped:.2%} of the positives have an edge beyond reg_max={reg_max} ({CURE})'
        draft.tell(_level(clipped), 'priors.reach', text)


def resized(table: Table, chosen: np.ndarray, resizing: Resizing) -> ResizedBoxes:
    """Return the boxes as used in training.

    Args:
        table: Annotations with all boxes.
        chosen: Rows ``(N,)`` of the table, grouped by image.
        resizing: Resizing of the pipeline.
    """
    _, first, image = np.unique(table.image[chosen], return_index=True, return_inverse=True)
    before = table.image_wh[chosen][first]
    after = resizing.sizes(before, np.random.default_rng(0))
    xyxy = xywh_to_xyxy(table.boxes[chosen])
    factor = (after / before)[image][:, [0, 1, 0, 1]]
    return ResizedBoxes(after, image.astype(np.int64), (xyxy * factor).astype(np.float32), 0, None)


def _level(share: float) -> Level:
    return 'warning' if share > TOO_MANY else 'note'


def _sample(number: int) -> np.ndarray:
    """Rows of the images to measure: all, or a fixed random sample."""
    if number <= SAMPLE:
        return np.arange(number)
    return np.sort(np.random.default_rng(0).choice(number, SAMPLE, replace=False))
