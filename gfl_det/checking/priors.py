"""Boxes that no prior will be trained for, and edges beyond the reach of the head's distributions.

The images are as large as the training pipeline makes them, and the assigner is the one that
trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmengine.config import Config
from torch import Tensor

from gfl_det.assigners import ATSSAssigner
from gfl_det.assigners.batch import PriorLevels
from gfl_det.assigners.lattice import make_lattice, valid_rectangle
from gfl_det.boxes import boxes_to_distances
from gfl_det.checking.boxes import Table
from gfl_det.checking.draft import Draft
from gfl_det.preflight.walk import Node, walk
from gfl_det.registry import TASK_UTILS

IMAGES = 64  # assigned together: more would only take memory
SAMPLE = 5_000  # images looked at; of 118,000 they tell a share of .01 to within .001
TARGET_MARGIN = 0.1  # an edge is trained up to reg_max less this many strides
TOO_MANY = 0.05  # share of boxes from which on a remark becomes a warning


class Scale(NamedTuple):
    """How a training pipeline resizes pictures."""

    sides: tuple[float, float]  # px, in either order
    keep_ratio: bool


class Head(NamedTuple):
    """What decides which priors train a box."""

    priors: PriorLevels
    assigner: ATSSAssigner
    allowed_border: int  # px
    reg_max: int


def check_priors(draft: Draft, table: Table, cfg: Config, pipeline: Sequence[Node]) -> None:
    """Tell boxes that nothing will be trained for, and those whose edges are out of reach.

    Args:
        draft: Findings are added to it.
        table: Its boxes.
        cfg: A config; one without our head and assigner is left unchecked, and so told.
        pipeline: The data set's.
    """
    head, scale = head_of(cfg), scale_of(pipeline)
    if head is None or scale is None:
        lacking = 'a GFL head with ATSS' if head is None else 'a Resize in the pipeline'
        draft.tell('note', 'priors.unchecked', f'priors are not checked: without {lacking}')
        return
    rows = _sample(len(draft.images))
    trained = table.take(np.isin(table.image, rows) & ~table.crowd)
    if not len(trained.boxes):
        return
    positives, clipped = assign(head, trained, scale)
    ids = np.flatnonzero(np.isin(table.image, rows) & ~table.crowd)
    of = f'of {len(ids)} boxes' + (
        f' (in {len(rows)} images drawn at random)' if len(rows) < len(draft.images) else ''
    )
    for mask, code, text in (
        (positives == 0, 'priors.none', 'boxes that no prior is trained for, mostly too small'),
        (clipped > 0, 'priors.reach', f'boxes beyond the reach of reg_max={head.reg_max}'),
    ):
        number = int(mask.sum())
        if number:
            found = [draft.annotations[i]['id'] for i in ids[mask]]
            text = f'{text}, {number / len(ids):.2%} {of}'
            if number > TOO_MANY * len(ids):
                draft.tell('warning', code, text, found)
            else:
                draft.tell('note', code, text, found)


def assign(head: Head, table: Table, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Assign priors as training does, each image by itself.

    Args:
        head: What assigns.
        table: N boxes.
        scale: Of the training pictures.

    Returns:
        How many priors are trained for each box ``(N,)``, and how many of these have an edge that
        is further than the last bin ``(N,)``.
    """
    positives, clipped = np.zeros(len(table.boxes), int), np.zeros(len(table.boxes), int)
    order = np.argsort(table.image, kind='stable')
    rows, first = np.unique(table.image[order], return_index=True)
    ends = np.append(first[1:], len(order))
    # Images of one size together: they share their maps.
    by_size = np.lexsort(table.image_wh[order[first]].T)
    for begin in range(0, len(rows), IMAGES):
        chosen = by_size[begin : begin + IMAGES]
        members = np.concatenate([order[first[i] : ends[i]] for i in chosen])
        image = np.repeat(np.arange(len(chosen)), ends[chosen] - first[chosen])
        wh = table.image_wh[order[first[chosen]]]
        found = _assign_batch(head, table.boxes[members], image, wh, scale)
        positives[members], clipped[members] = found
    return positives, clipped


def _assign_batch(
    head: Head, boxes: np.ndarray, image: np.ndarray, image_wh: np.ndarray, scale: Scale
) -> tuple[np.ndarray, np.ndarray]:
    factors = resize_factors(image_wh, scale)
    xyxy = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    truths = torch.from_numpy(xyxy * factors[image][:, [0, 1, 0, 1]]).float()
    shapes = np.rint(image_wh * factors)[:, ::-1].astype(int).tolist()  # rows, columns
    sizes = [
        tuple(-(-max(side) // step) for side, step in zip(zip(*shapes), reversed(stride)))
        for stride in head.priors.strides
    ]
    rectangles = [
        [
            valid_rectangle(*level, dict(pad_shape=shape, img_shape=shape), head.allowed_border)
            for level in zip(head.priors.base, head.priors.strides, sizes)
        ]
        for shape in shapes
    ]
    lattice = make_lattice(
        head.priors.base, head.priors.strides, sizes, rectangles, torch.device('cpu')
    )
    found = head.assigner.assign_batch(lattice, truths, torch.from_numpy(image))
    truth, valid = found.truth[found.valid], found.valid
    stride = lattice.stride[found.level[valid]][:, :1]
    distances = boxes_to_distances(found.centre[valid] / stride, truths[truth] / stride)
    beyond = (distances > head.reg_max - TARGET_MARGIN).any(1)
    return _count(truth, len(truths)), _count(truth[beyond], len(truths))


def _count(truth: Tensor, number: int) -> np.ndarray:
    return torch.bincount(truth, minlength=number).numpy()


def resize_factors(image_wh: np.ndarray, scale: Scale) -> np.ndarray:
    """Return by how much ``(I, 2)`` pictures of width and height ``(I, 2)`` px are scaled."""
    if not scale.keep_ratio:
        return np.array(scale.sides) / image_wh
    long, short = max(scale.sides), min(scale.sides)
    factor = np.minimum(long / image_wh.max(1), short / image_wh.min(1))
    return np.repeat(factor[:, None], 2, 1)


def scale_of(pipeline: Sequence[Node]) -> Scale | None:
    """Return the scale of the first step that resizes; of several scales the middle one."""
    for _, step in walk(list(pipeline), ''):
        kind = str(step.get('type', '')).rpartition('.')[2]
        if kind in ('Resize', 'RandomResize') and step.get('scale'):
            scale = step['scale']
        elif kind in ('RandomChoiceResize',) and step.get('scales'):
            scale = sorted(step['scales'], key=min)[len(step['scales']) // 2]
        else:
            continue
        settings = step.get('resize_cfg') or step
        if isinstance(scale[0], (list, tuple)):  # a range
            scale = [(low + high) / 2 for low, high in zip(*scale)]
        return Scale((float(scale[0]), float(scale[1])), bool(settings.get('keep_ratio', False)))
    return None


def head_of(cfg: Config) -> Head | None:
    """Return the parts of a config's GFL head; None where it has another or another assigner."""
    model: Any = cfg.get('model') or {}
    head = model.get('bbox_head') or {}
    train = model.get('train_cfg') or {}
    assigner = train.get('assigner') or {}
    if (
        not str(head.get('type', '')).endswith(('GFLHead', 'GFLv2Head'))
        or str(assigner.get('type', '')).rpartition('.')[2] != 'ATSSAssigner'
        or 'anchor_generator' not in head
    ):
        return None
    generator = TASK_UTILS.build({**head['anchor_generator']})
    if not isinstance(generator, AnchorGenerator) or set(generator.num_base_priors) != {1}:
        return None
    ours = ATSSAssigner(topk=assigner.get('topk', 9))
    border = train.get('allowed_border', -1)
    return Head(PriorLevels.of(generator), ours, border, head.get('reg_max', 16))


def _sample(number: int) -> np.ndarray:
    """Rows of the images to look at: all, or the same random ones each time."""
    if number <= SAMPLE:
        return np.arange(number)
    return np.sort(np.random.default_rng(0).choice(number, SAMPLE, replace=False))
