"""Advice from measurements: the smallest change of a pyramid that covers a dataset's boxes.

:func:`check_priors` warns of boxes without positive priors and of edges beyond the regression
range: image sizes follow the training pipeline, and the assigner is that of the training. The
report is a table, JSON and a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config

from gfl_det.datasets.checks.boxes import Table
from gfl_det.datasets.checks.draft import Draft, Level
from gfl_det.engine.reach.measure import (
    DEFAULTS,
    LARGEST,
    MOST,
    Measured,
    PriorPyramid,
    Progress,
    ResizedBoxes,
    Resizing,
    assigner_of,
    head_of,
    measure,
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


COLUMNS = (4, 7, 8, 10, 12, 14, 16, 20, 24, 32)  # values of reg_max in the table


def as_dict(advice: Advice) -> dict[str, Any]:
    """All numbers as JSON values."""
    chosen = advice.chosen.pyramid
    return dict(
        images=len(advice.boxes.image_wh),
        boxes=len(advice.boxes.xyxy),
        classes=advice.boxes.num_classes,
        limits=_stored(advice.limits),
        now=_measured(advice.now, advice.reg_max),
        by_size=[
            {**_stored(row), 'high': None if math.isinf(row.high) else row.high}
            for row in advice.sizes
        ],
        tried=[
            dict(
                _pyramid(each.pyramid), bare=each.unassigned, reg_max=each.reg_max, cells=each.cells
            )
            for each in advice.candidates
        ],
        suggested=dict(
            _pyramid(chosen),
            **_measured(advice.then, advice.suggested_reg_max),
        ),
    )


def _stored(values: AdviceLimits | SizeRow) -> dict[str, Any]:
    """The fields under their names in the file, where two are called as in earlier releases."""
    names = {'unassigned': 'bare', 'gts': 'truths'}
    return {names.get(k, k): v for k, v in values._asdict().items()}


def _pyramid(pyramid: PriorPyramid) -> dict[str, Any]:
    return dict(strides=list(pyramid.strides), octave_base_scale=pyramid.scale)


def _measured(measured: Measured, reg_max: int) -> dict[str, Any]:
    positives = measured.needed.sum(1)
    levels = [
        dict(
            stride=stride,
            reach_px=stride * reg_max,
            positives=int(positives[level]),
            clipped=[float(measured.clipped(n)[level]) for n in range(2, 65)],
        )
        for level, stride in enumerate(measured.pyramid.strides)
    ]
    return dict(
        _pyramid(measured.pyramid),
        reg_max=reg_max,
        clipped=measured.clipped_of_all(reg_max),
        without_positive=float(measured.unassigned.mean()),
        clipped_starts_at_reg_max=2,
        levels=levels,
    )


def format_text(advice: Advice) -> str:
    """Tables and advice as text."""
    now = advice.now
    parts = [
        f'{_named(now.pyramid)}, reg_max {advice.reg_max}',
        _level_table(now, advice.reg_max),
        _size_table(advice.sizes),
        f'gt boxes without a positive: {_percent(now.unassigned.mean())}; positives clipped at '
        f'reg_max {advice.reg_max}: {_percent(now.clipped_of_all(advice.reg_max))}',
        _variant_table(advice.candidates, advice.chosen),
    ]
    return '\n\n'.join([*parts, _suggestion(advice)])


def _suggestion(advice: Advice) -> str:
    chosen, reg_max = advice.chosen.pyramid, advice.suggested_reg_max
    anchors = f'strides={list(chosen.strides)}, octave_base_scale={chosen.scale:g}'
    unassigned = float(advice.then.unassigned.mean())
    lines = [
        f'suggested: {_named(chosen)}, reg_max {reg_max}',
        f'  leaves {_percent(unassigned)} of the gt boxes without a positive and clips '
        f'{_percent(advice.then.clipped_of_all(reg_max))} of the positives',
        f'  bbox_head=dict(reg_max={reg_max}, anchor_generator=dict({anchors}))',
    ]
    if chosen.strides != advice.now.pyramid.strides:
        lines.append('  the neck must provide these levels: start_level, num_outs, in_channels')
    if unassigned > advice.limits.unassigned:
        lines.append(
            '  train_cfg.assigner.with_best_prior=True gives gt boxes that are still without a '
            'positive their best prior; larger images help too'
        )
    idle = [str(s) for s, n in zip(chosen.strides, advice.then.needed.sum(1)) if not n]
    if idle:
        lines.append(f'  no positives on stride {", ".join(idle)}: these levels can be removed')
    return '\n'.join(lines)


def _named(pyramid: PriorPyramid) -> str:
    strides = ' '.join(map(str, pyramid.strides))
    return f'strides {strides}, anchor scale {pyramid.scale:g}'


def _percent(share: float) -> str:
    share = float(share)
    if share == 0:
        return '0'
    return f'{100 * share:.2f} %' if share >= 1e-4 else '< 0.01 %'


def _level_table(measured: Measured, reg_max: int) -> str:
    head = ['stride', 'reach px', 'positives', *(f'n={n}' for n in COLUMNS)]
    rows = []
    for level, stride in enumerate(measured.pyramid.strides):
        shares = [_percent(measured.clipped(n)[level]) for n in COLUMNS]
        number = int(measured.needed[level].sum())
        rows.append([str(stride), str(stride * reg_max), f'{number:,}', *shares])
    shares = [_percent(measured.clipped_of_all(n)) for n in COLUMNS]
    rows.append(['all', '', f'{int(measured.needed.sum()):,}', *shares])
    note = 'reach: distance from a prior to an edge; n=: positives with an edge beyond that reg_max'
    return f'{_table(head, rows)}\n{note}'


def _size_table(sizes: Sequence[SizeRow]) -> str:
    rows = [[_range(row), f'{row.gts:,}', _percent(row.unassigned)] for row in sizes]
    return _table(['size px', 'gt boxes', 'without a positive'], rows)


def _range(row: SizeRow) -> str:
    return f'{row.low:g} up' if math.isinf(row.high) else f'{row.low:g} to {row.high:g}'


def _variant_table(candidates: Sequence[TriedPyramid], chosen: TriedPyramid) -> str:
    rows = [
        [
            ' '.join(map(str, each.pyramid.strides)),
            f'{each.pyramid.scale:g}',
            _percent(each.unassigned),
            str(each.reg_max),
            f'{each.cells:.2f}',
            '<- suggested' if each == chosen else '',
        ]
        for each in sorted(candidates, key=lambda each: (each.cells, each.pyramid.scale))
    ]
    head = ['tried on a sample', 'anchor scale', 'without a positive', 'reg_max', 'cells', '']
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format columns, right-aligned except for the first and an unnamed last one."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if index == 0 or not head[index] else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)
