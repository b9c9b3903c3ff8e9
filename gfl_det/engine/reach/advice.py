"""Advice from measurements: the least change of a pyramid that covers a data set's boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gfl_det.engine.reach.measure import Measured, PriorPyramid, Progress, ResizedBoxes, measure
from gfl_det.engine.reach.settings import MOST
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.utils.choices import AdviceLimits

SCALES = (3, 4, 5, 6, 8, 10)  # anchor sides in strides; the paper of ATSS finds 5 to 8 equally good
FINEST = 4  # px; a level at stride 2 would cost more than the rest of most detectors
DEFAULT_LIMITS = AdviceLimits()


class TriedPyramid(NamedTuple):
    """A pyramid that was tried."""

    pyramid: PriorPyramid
    unassigned: float  # share of gt boxes without a positive
    reg_max: int  # the least within the limit of clipped positives
    cells: float  # of an image, relative to the pyramid there is


def variants(now: PriorPyramid) -> list[PriorPyramid]:
    """The pyramid itself, first, and its neighbours: a level more at either end, other scales."""
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
    """Measure a pyramid's neighbours on the same boxes.

    Args:
        boxes: A sample is enough.
        now: The pyramid there is.
        assigner: Of the config.
        limits: Of clipped positives, for ``reg_max``.
        progress: Called after each of them.
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
    """The least change within the limits.

    Of pyramids that leave few enough gt boxes without a positive (where none does: of those nearest
    to the fewest) it is the one that needs no finer level, which multiplies the cells, then no
    reg_max above 16, then no further level, whose anchor scale is nearest to that there is.

    Args:
        candidates: Of which the first is what there is.
        limits: Of gt boxes without a positive.
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
    """Gt boxes of one range of sizes."""

    low: float  # px, square root of the area
    high: float  # px
    truths: int
    unassigned: float  # share without a positive


def by_size(boxes: ResizedBoxes, measured: Measured) -> list[SizeRow]:
    """Shares of gt boxes without a positive by size, ranges without a gt box left out."""
    edges = [0.0, *(2.0**power for power in range(1, 10)), math.inf]
    place = np.digitize(boxes.size(), edges) - 1
    rows = []
    for index, (low, high) in enumerate(zip(edges, edges[1:])):
        mine = measured.unassigned[place == index]
        if len(mine):
            rows.append(SizeRow(low, high, len(mine), float(mine.mean())))
    return rows


Report = Callable[[str, int, int], None]  # what is done, done, in all


class Advice(NamedTuple):
    """All that is told."""

    boxes: ResizedBoxes
    limits: AdviceLimits
    reg_max: int  # that there is
    now: Measured
    sizes: list[SizeRow]
    candidates: list[TriedPyramid]
    chosen: TriedPyramid
    then: Measured  # the chosen pyramid on all boxes

    @property
    def suggested_reg_max(self) -> int:
        """The least reg_max within the limit, of the chosen pyramid on all boxes."""
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
    """Measure what there is on all boxes and its neighbours on a sample, and choose.

    Args:
        boxes: Of the data set.
        now: The pyramid there is.
        assigner: Of the config.
        reg_max: That there is.
        limits: Of the choice.
        sample: Boxes to try other pyramids on.
        seed: Of the sample.
        report: Called as the work goes on.
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
