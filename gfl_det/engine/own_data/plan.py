"""Settings derived from a data set: picture size, pyramid and schedule, each with its reason.

The rules are based on the shipped recipes, in which a ResNet-18 from random weights sees 5,000
pictures of blood cells (24 epochs of 205 photographs).
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config

from gfl_det.datasets.annotations import Entry
from gfl_det.datasets.formats.pictures import OwnData
from gfl_det.datasets.table import CocoTable, table_of
from gfl_det.engine.reach.advice import advise
from gfl_det.engine.reach.measure import (
    PriorPyramid,
    Resizing,
    assigner_of,
    head_of,
    read_boxes,
    resizing_of,
)
from gfl_det.errors import ConfigError, DataError
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.utils.choices import AdviceLimits
from gfl_det.utils.config import datasets_of

SMALL_SHARE = 0.1  # share of the boxes that may be smaller than WANTED_PX
WANTED_PX = 16  # size of a box in the resized picture: two cells of the finest level
STEP_PX = 32  # sides are rounded to a multiple of this, like the padding of batches
LEAST_LONG, MOST_LONG = 320, 640  # px, long side; a model's size may raise the limit
SCRATCH_SEEN, TUNED_SEEN = 5000, 2500  # pictures seen in a training, before the limits on epochs
LEAST_EPOCHS, MOST_EPOCHS = 12, 100
# Pairs of an upper limit on the pictures of the set and the pictures per step.
BATCHES = ((2000, 4), (20000, 8), (math.inf, 16))
# For NanoDet-Plus's published weights: the best of three on blood cells, 4 pictures per step.
TUNED_RATE = 0.002
MOST_ADAM = 2.0  # largest factor for Adam, whose steps depend less on the batch size than SGD's
WARM_SHARE, LEAST_WARM, MOST_WARM = 0.05, 10, 1000  # share of the steps, and limits in steps
VALIDATIONS = 6
MOST_UNASSIGNED = 0.05  # share of unassigned gt boxes above which a finer level is worth its cost
LEAST_BINS = 8  # a smaller reg_max has no measurable benefit


class StartingPoint(NamedTuple):
    """Model to train and its initial weights."""

    base: str  # entry of _base_
    name: str
    cfg: Config
    weights: str | None = None  # weights of a whole detector
    scratch: bool = False  # random weights even if the config names pretrained ones
    copied: bool = False  # the weights are a copy, to be adapted to the classes and pictures
    reason: str = ''


class PlannedSetting(NamedTuple):
    """Setting with its reason."""

    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f'{self.name:9} {self.value}{": " if self.reason else ""}{self.reason}'


class PyramidChoice(NamedTuple):
    """Levels, priors and bins; None keeps the model's value."""

    pyramid: PriorPyramid | None
    reg_max: int | None
    best_prior: bool  # assign the best prior to gt boxes that would get none
    settings: list[PlannedSetting]


class TrainingPlan(NamedTuple):
    """All settings of a config, with their reasons."""

    start: StartingPoint
    scale: tuple[int, int] | None  # long and short side, px; None: as in the model's config
    pyramid: PyramidChoice
    batch: int
    epochs: int
    val_interval: int
    rate: float
    warm_up: int
    settings: list[PlannedSetting]


def make_plan(data: OwnData, start: StartingPoint) -> TrainingPlan:
    """Derive the settings from the training split.

    Args:
        data: Data set whose splits are in files.
        start: Model to train and its initial weights.

    Raises:
        DataError: If the annotations cannot be used or contain no box.
    """
    part = data.parts['train']
    table = table_of(part.dataset, str(part.file))
    number = len(table.image_ids)
    settings = [
        _data_setting(data),
        _class_setting(data, table),
        PlannedSetting('model', start.name, start.reason),
    ]
    scale, setting = choose_scale(table, start.cfg)
    settings.append(setting)
    pyramid = _choose_pyramid(data, start, scale)
    settings += pyramid.settings
    batch = next(size for most, size in BATCHES if number < most)
    epochs, seen = choose_epochs(number, start)
    steps = epochs * math.ceil(number / batch)
    rate, before = choose_rate(start.cfg, batch, start.copied)
    warm_up = min(MOST_WARM, max(LEAST_WARM, round(WARM_SHARE * steps)), steps // 2)
    interval = max(1, round(epochs / VALIDATIONS))
    settings += [
        PlannedSetting('batch', f'{batch} pictures', f'{number} to train on give {steps} steps'),
        PlannedSetting('epochs', f'{epochs}, validated every {interval}', seen),
        PlannedSetting('rate', f'{rate:g}, warm-up {warm_up} steps', before),
    ]
    return TrainingPlan(start, scale, pyramid, batch, epochs, interval, rate, warm_up, settings)


def _data_setting(data: OwnData) -> PlannedSetting:
    counts = [f'{split} {len(part.dataset["images"])}' for split, part in data.parts.items()]
    return PlannedSetting('data', f'{data.kind}, {data.source}', f'pictures: {", ".join(counts)}')


def _class_setting(data: OwnData, table: CocoTable) -> PlannedSetting:
    counts = Counter(table.class_names[label] for label in table.label.tolist())
    named = sorted(data.classes, key=lambda name: -counts[name])
    shown = ', '.join(f'{name} {counts[name]:,}' for name in named[:5])
    more = f', ... {named[-1]} {counts[named[-1]]:,}' if len(named) > 5 else ''
    return PlannedSetting('classes', str(len(named)), f'boxes: {shown}{more}')


def choose_scale(table: CocoTable, cfg: Config) -> tuple[tuple[int, int] | None, PlannedSetting]:
    """Choose the smallest picture size that the boxes allow; the aspect ratio is kept.

    Args:
        table: Table of the training split.
        cfg: Config of the model. Its size is kept if its resizing does not keep the aspect ratio;
            otherwise the upper limit is its size, or `MOST_LONG` if that is larger.
    """
    given = _own_resizing(cfg)
    if given is not None and not given.keep_ratio:
        return None, PlannedSetting('scale', str(given), 'the size of the model')
    sides = table.image_wh[np.isfinite(table.image_wh).all(1)]
    if not len(sides):
        raise DataError(f'{table.source}: no picture has a width and height: add them.')
    long, ratio = (
        float(np.median(sides.max(1))),
        float(np.quantile(sides.min(1) / sides.max(1), 0.9)),
    )
    box_px = np.sqrt(table.boxes[:, 2:].clip(min=0).prod(1))
    relative = box_px / table.image_wh[table.image].max(1)
    usable = relative[relative > 0]  # drops NaN
    if not len(usable):
        raise DataError(f'{table.source} has no box to train on: give annotations of objects.')
    small = float(np.quantile(usable, SMALL_SHARE))
    most = max(MOST_LONG, *(max(each) for each in given.scales)) if given else MOST_LONG
    chosen = min(max(WANTED_PX / small, LEAST_LONG), most, long)
    width = _rounded(chosen)
    scale = (width, _rounded(chosen * ratio))
    size = small * chosen
    reason = f'half of the pictures have {long:.0f} px or more; 9 of 10 boxes keep {size:.0f} px'
    return scale, PlannedSetting('scale', f'{scale[0]} x {scale[1]}', reason)


def _own_resizing(cfg: Config) -> Resizing | None:
    datasets = datasets_of(cfg, 'train')
    try:
        return resizing_of(datasets[0].get('pipeline') or [])[0] if datasets else None
    except ConfigError:
        return None


def _rounded(side: float) -> int:
    return max(STEP_PX, math.ceil(side / STEP_PX - 1e-6) * STEP_PX)


def _choose_pyramid(
    data: OwnData, start: StartingPoint, scale: tuple[int, int] | None
) -> PyramidChoice:
    """Take strides, anchor scale and reg_max from the advice; a pretrained detector keeps its own.

    A finer level multiplies the number of cells: if few gt boxes lack a positive, each of them is
    assigned its best prior instead.
    """
    model: Entry = start.cfg.model
    try:
        head, options = head_of(model, start.name), assigner_of(model)
    except ConfigError:
        reason = 'the advice on strides and reg_max holds for ATSS with square priors alone'
        setting = PlannedSetting('pyramid', "the model's", reason)
        return PyramidChoice(None, None, False, [setting])
    now = PriorPyramid(tuple(head['strides']), head['anchor_scale'], head['pad'])
    resizing = Resizing((scale,)) if scale else _own_resizing(start.cfg) or Resizing()
    random = np.random.default_rng(0)
    boxes = read_boxes(str(data.parts['train'].file), resizing, random, data.classes)
    limits = AdviceLimits(unassigned=MOST_UNASSIGNED)
    advice = advise(boxes, now, ATSSAssigner(**options), reg_max=head['reg_max'], limits=limits)
    kept = start.weights is not None or edit_pyramid(model, now, advice.chosen.pyramid) is None
    measured = advice.now if kept else advice.then
    pyramid, share = measured.pyramid, measured.unassigned.mean()
    reg_max = head['reg_max'] if kept else max(LEAST_BINS, advice.suggested_reg_max)
    reason = f'{share:.1%} of boxes without a positive'
    if pyramid != now:
        reason += f' ({advice.now.unassigned.mean():.1%} with {_pyramid_text(now)})'
    elif advice.chosen.pyramid != now:
        reason += f' ({_pyramid_text(advice.chosen.pyramid)} would leave fewer)'
    best_prior = bool(share > AdviceLimits().unassigned)
    if best_prior:
        reason += ', which get their best prior'
    clipped = f'{measured.clipped_of_all(reg_max):.1%} of positives are clipped'
    settings = [
        PlannedSetting('strides', _pyramid_text(pyramid), reason),
        PlannedSetting('reg_max', str(reg_max), clipped),
    ]
    if kept:
        return PyramidChoice(None, None, best_prior, settings)
    return PyramidChoice(pyramid, reg_max, best_prior, settings)


def _pyramid_text(pyramid: PriorPyramid) -> str:
    return f'{" ".join(map(str, pyramid.strides))}, anchor scale {pyramid.scale:g}'


def edit_pyramid(model: Entry, now: PriorPyramid, new: PriorPyramid) -> dict[str, Any] | None:
    """Return the changes of backbone and neck for other levels; None if they are not possible.

    Args:
        model: Model of the config, with an FPN.
        now: Pyramid of the model.
        new: The same levels with one more at either end.
    """
    if new.strides == now.strides:
        return {}
    backbone, neck = model.get('backbone') or {}, model.get('neck') or {}
    if neck.get('type') != 'FPN' or 'out_indices' not in backbone:
        return None
    edits: dict[str, Any] = dict(neck=dict(num_outs=len(new.strides)))
    if new.strides[0] < now.strides[0]:
        first, start = backbone['out_indices'][0], neck.get('start_level', 0)
        if start > 0:
            edits['neck']['start_level'] = start - 1
        elif first > 0 and backbone.get('type') == 'ResNet':
            channels = neck['in_channels']
            edits['backbone'] = dict(out_indices=(first - 1, *backbone['out_indices']))
            edits['neck']['in_channels'] = [channels[0] // 2, *channels]
        else:
            return None
    return edits


def choose_epochs(number: int, start: StartingPoint) -> tuple[int, str]:
    """Choose the number of epochs from the number of training pictures; also return the reason."""
    seen = SCRATCH_SEEN if start.weights is None else TUNED_SEEN
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, round(seen / number)))
    if epochs == LEAST_EPOCHS:
        return epochs, f'the least; {epochs * number:,} pictures seen'
    what = 'from random weights' if start.weights is None else 'of a trained detector'
    return epochs, f'{epochs * number:,} pictures seen ({what} about {seen:,})'


def choose_rate(cfg: Config, batch: int, fitted: bool = False) -> tuple[float, str]:
    """Scale the model's learning rate to a batch size; also return the reason.

    Args:
        cfg: Config of the model.
        batch: Pictures per step.
        fitted: Published weights are fine-tuned, with a fixed rate for any batch size.

    Raises:
        ConfigError: If the config has no learning rate.
    """
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    rate, kind = optimizer.get('lr'), str(optimizer.get('type'))
    if not isinstance(rate, (int, float)):
        raise ConfigError(f'{cfg.filename} has no optim_wrapper.optimizer.lr: set one.')
    if fitted:
        return TUNED_RATE, f'{kind}, for published weights'
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size') or batch
    factor = batch / base
    if kind.startswith('Adam'):
        factor = min(factor, MOST_ADAM) if factor > 1 else math.sqrt(factor)
    return rate * factor, f'{kind}, {rate:g} for batches of {base}'


def name_of(path: str | Path) -> str:
    """Return the name of a data set, from its folder or JSON file."""
    full = Path(path).absolute()
    if full.suffix in ('.yaml', '.yml'):
        full = full.parent
    return full.stem if full.suffix == '.json' else full.name
