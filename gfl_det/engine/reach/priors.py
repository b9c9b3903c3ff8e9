"""Warnings about boxes without positive priors and edges beyond the regression range.

Image sizes follow the training pipeline, and the assigner is that of the training. For a remedy:
gfl-det suggest-reg-max.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.config import Config

from gfl_det.datasets.checks.boxes import Table
from gfl_det.datasets.checks.draft import Draft, Level
from gfl_det.engine.reach.measure import LARGEST, PriorPyramid, ResizedBoxes, measure
from gfl_det.engine.reach.settings import DEFAULTS, Resizing, assigner_of, head_of, resizing_of
from gfl_det.errors import ConfigError
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.ops.boxes import xywh_to_xyxy
from gfl_det.utils.config import Node

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
