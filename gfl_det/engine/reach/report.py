"""Reports of advice: a table, JSON and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gfl_det.engine.reach.advice import Advice, SizeRow, TriedPyramid
from gfl_det.engine.reach.measure import Measured, PriorPyramid
from gfl_det.utils.choices import AdviceLimits

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
