"""Overfitting of a single fixed batch: its loss curve, and what looks wrong.

Losses, AP and the data point to the part to look at first.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from gfl_det.engine.sanity.evidence import CHANCE, Batch, gts_of
from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.functional import COCO_TAUS, average_precision
from gfl_det.evaluation.matching import match
from gfl_det.ops.boxes import xyxy_to_xywh
from gfl_det.registry import MODELS
from gfl_det.utils.faults import move

WARM_UP = 20  # steps; a config's own warm-up may be longer than the whole check
FALL_SHARE = 0.4  # share of the steps with a decreasing rate, for the loss to settle
GOAL_FALL = 0.9  # of the initial loss
GOAL_AP = 0.9


class Scores(NamedTuple):
    """AP (0.50:0.95) on the training batch."""

    ap: float
    ap_any_class: float  # with all classes merged, to assess boxes only


class OverfitCurve(NamedTuple):
    """Result of a training on one batch."""

    losses: list[dict[str, float]]  # per step, before its update; `loss` is their sum
    scores: Scores | None  # None if a loss was not finite
    moved: float  # distance that the weights moved, relative to their norm
    rate: float  # maximum learning rate

    @property
    def fall(self) -> float:
        """Relative decrease of the loss; negative if it rose."""
        return _fall(self.losses)

    @property
    def finite(self) -> bool:
        """Whether all losses were finite."""
        return all(math.isfinite(value) for step in self.losses for value in step.values())

    @property
    def reached(self) -> bool:
        """Whether the batch was overfitted."""
        return (
            self.finite
            and self.fall >= GOAL_FALL
            and self.scores is not None
            and self.scores.ap >= GOAL_AP
        )


def overfit(
    cfg: Config,
    batch: Batch,
    steps: int,
    device: str,
    rate_factor: float | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> OverfitCurve:
    """Train a fresh model on one batch, with the config's optimizer.

    The rate warms up, and decreases in the last part. Training stops early once the batch is
    overfitted.

    Args:
        cfg: Config; call this in its default scope.
        batch: Batch to train on.
        steps: Maximum number of steps.
        device: Device to train on.
        rate_factor: Factor of the config's learning rate for a trial, which then does not decrease.
        progress: Called with step and losses at intervals.
    """
    model, wrapper = _build(cfg, device)
    factor = 1.0 if rate_factor is None else rate_factor
    rates = [group['lr'] * factor for group in wrapper.optimizer.param_groups]
    settled = steps if rate_factor is None else None
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    losses: list[dict[str, float]] = []
    scores = None
    for step in range(steps):
        for group, rate in zip(wrapper.optimizer.param_groups, rates):
            group['lr'] = rate * _share_of_rate(step, settled)
        with wrapper.optim_context(model):
            total, terms = model.train().parse_losses(model(**data, mode='loss'))
        losses.append({name: float(value.detach()) for name, value in terms.items()})
        if progress is not None and (step % 20 == 0 or step == steps - 1):
            progress(step, losses[-1])
        if not math.isfinite(losses[-1]['loss']):
            break
        wrapper.update_params(total)
        is_last = step == steps - 1
        if is_last or ((step + 1) % 50 == 0 and _fall(losses) >= GOAL_FALL):
            scores = score(model, batch)
            if scores.ap >= GOAL_AP:
                break
    way = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - start
    moved = float(way.norm() / start.norm().clamp(min=1e-12))
    return OverfitCurve(losses, scores, moved, max(rates, default=0.0))


def _build(cfg: Config, device: str) -> tuple[Any, Any]:
    """Return a fresh model and its optimizer, identical on every call."""
    torch.manual_seed(0)
    with _quiet():
        model: Any = MODELS.build(copy.deepcopy(cfg.model))
        model.init_weights()
        move(model, device)
        return model, build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))


def _share_of_rate(step: int, steps: int | None) -> float:
    """Rate schedule: warm-up; with a number of steps, a decrease over the last two fifths."""
    share = min(1.0, (step + 1) / WARM_UP)
    return share if steps is None else min(share, max(0.02, (steps - step) / (FALL_SHARE * steps)))


def score(model: Any, batch: Batch) -> Scores:
    """Evaluate detections on the pictures as the pipeline made them.

    Args:
        model: A detector with mmdet's ``predict``.
        batch: Batch with the pictures.
    """
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), training=False)
        samples = model.predict(data['inputs'], data['data_samples'], rescale=False)
    model.train()
    gts, found = [], []
    for sample in samples:
        boxes, labels = gts_of(sample)
        gts.append((boxes, labels, np.ones(len(labels))))
        result = sample.pred_instances
        found.append(
            tuple(
                each.detach().cpu().double().numpy()
                for each in (result.bboxes, result.labels, result.scores)
            )
        )
    return Scores(*(_average_precision(gts, found, classes) for classes in (True, False)))


def _average_precision(gts: list, found: list, with_classes: bool) -> float:
    """AP for boxes, labels and scores per image; 0 if undefined."""

    def flat(parts: list) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        image = np.concatenate([np.full(len(part[1]), i) for i, part in enumerate(parts)])
        boxes, labels, scores = (np.concatenate(each) for each in zip(*parts))
        return image, labels.astype(np.int64) * with_classes, xyxy_to_xywh(boxes), scores

    image, label, boxes, _ = flat(gts)
    detections = Detections(*flat(found))
    number = int(max(label.max(initial=0), detections.label.max(initial=0))) + 1
    keys = [str(i) for i in range(len(gts))]
    names = [str(i) for i in range(number)]
    crowd = np.zeros(len(label), bool)
    known = GroundTruth(list(range(len(gts))), keys, names, names, image, label, boxes, crowd)
    value = average_precision(match(detections, known, COCO_TAUS.tolist())).mean
    return 0.0 if math.isnan(value) else value


def _fall(losses: list[dict[str, float]]) -> float:
    last = float(np.mean([step['loss'] for step in losses[-3:]]))
    return 1 - last / max(losses[0]['loss'], 1e-12)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress mmengine's lines about every initialised weight and optimizer group."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


# --- Diagnosis ------------------------------------------------------------------------------------

Part = Literal['boxes', 'labels', 'learning rate', 'model']
BOX_TERMS = ('bbox', 'dfl', 'iou', 'centerness', 'reg')
STILL = 1e-3  # weights that moved less than this share of their norm were not trained
MUCH = 0.5  # share of the remaining loss: a rate that leaves less is better


class Suspect(NamedTuple):
    """A part that looks wrong, with the reason."""

    part: Part
    reason: str


def suspects_of_data(
    format_fault: str | None, box_chance: float | None, label_chance: float | None
) -> list[Suspect]:
    """Return what looks wrong in the data, independent of a model.

    Args:
        format_fault: Finding of the annotation check about the boxes.
        box_chance: See :func:`.evidence.box_chance`.
        label_chance: See :func:`.evidence.label_chance`.
    """
    found = []
    if format_fault:
        found.append(Suspect('boxes', format_fault))
    if box_chance is not None and box_chance > CHANCE:
        reason = (
            f'in {box_chance:.0%} of random swaps of pictures the boxes follow edges as well '
            'as in their own: they may belong to other pictures or sizes, or be shifted'
        )
        found.append(Suspect('boxes', reason))
    if label_chance is not None and label_chance > CHANCE:
        reason = (
            f'in {label_chance:.0%} of random label permutations similar boxes share a class as '
            'often: labels may be shuffled, or size, shape, colour and a thumbnail do not '
            'separate these classes'
        )
        found.append(Suspect('labels', reason))
    return found


def suspects_of_curve(
    curve: OverfitCurve, slower: OverfitCurve | None, faster: OverfitCurve | None
) -> list[Suspect]:
    """Return what looks wrong in a training that missed its goal.

    Args:
        curve: Training with the config's learning rate.
        slower: Training with a tenth of the rate and fewer steps; None if not tried.
        faster: Training with ten times the rate; None if not tried.
    """
    if curve.reached:
        return []
    if not all(map(math.isfinite, curve.losses[0].values())):
        return [_first_step(curve.losses[0])]
    rate = _suspect_rate(curve, slower, faster)
    if rate is not None:
        return [rate]
    if curve.scores is None:
        return [Suspect('model', 'the losses are NaN or infinite at every learning rate')]
    ap, any_class = curve.scores
    if any_class >= GOAL_AP > ap:
        reason = f'boxes are found (AP {any_class:.2f} regardless of class) but classes are not'
        return [Suspect('labels', f'{reason} (AP {ap:.2f}): check for contradictory labels')]
    worst = _worst_term(curve)
    if any_class < GOAL_AP:
        reason = f'AP {any_class:.2f} regardless of class; the largest remaining loss is {worst}'
        return [Suspect('boxes', reason)]
    part: Part = 'boxes' if any(term in worst for term in BOX_TERMS) else 'labels'
    return [Suspect(part, f'the loss fell by only {curve.fall:.0%}; the largest rest is {worst}')]


def _first_step(losses: dict[str, float]) -> Suspect:
    wrong = [name for name, value in losses.items() if not math.isfinite(value) and name != 'loss']
    name = wrong[0] if wrong else 'loss'
    part: Part = 'boxes' if any(term in name for term in BOX_TERMS) else 'labels'
    return Suspect(part, f'{name} is NaN or infinite in the first step')


def _suspect_rate(
    curve: OverfitCurve, slower: OverfitCurve | None, faster: OverfitCurve | None
) -> Suspect | None:
    if curve.rate == 0:
        return Suspect('learning rate', 'it is 0')
    told = f'it is {curve.rate:g}'
    steps = f'{len(curve.losses)} steps'
    if slower is not None and slower.finite and _left(slower, curve) < MUCH:
        outcome = (
            f'a tenth of it reduces the loss by {slower.fall:.0%} in {len(slower.losses)} steps'
        )
        return Suspect('learning rate', f'{told}, too high: {outcome}')
    if faster is not None and faster.finite and _left(faster, curve) < MUCH:
        outcome = (
            f'ten times it reduces the loss by {faster.fall:.0%} in {len(faster.losses)} steps'
        )
        return Suspect('learning rate', f'{told}, too low: {outcome}')
    if curve.moved < STILL:
        reason = f'in {steps} the weights moved by {curve.moved:.1e} of their norm'
        return Suspect('learning rate', f'{told}, too low: {reason}')
    if not curve.finite or curve.fall < 0:
        return Suspect(
            'learning rate', f'{told}, too high: the loss rose or became NaN or infinite'
        )
    return None


def _left(trial: OverfitCurve, curve: OverfitCurve) -> float:
    """Loss of a trial relative to that of the training after as many steps."""
    same = curve._replace(losses=curve.losses[: len(trial.losses)])
    if not same.finite or not curve.finite:
        return 0.0 if trial.fall > 0 else math.inf
    return (1 - trial.fall) / max(1 - same.fall, 1e-12)


def _worst_term(curve: OverfitCurve) -> str:
    """Name the loss with the largest remaining share of its maximum, and its values."""
    left = {}
    for name, last in curve.losses[-1].items():
        highest = max(step[name] for step in curve.losses)
        # The minimum of cross entropy with two bins is their entropy, not 0.
        if name != 'loss' and 'loss' in name and 'dfl' not in name and highest > 0:
            left[name] = (last / highest, last, highest)
    if not left:
        return 'the loss'
    name = max(left, key=lambda key: left[key][0])
    _, last, highest = left[name]
    return f'{name} ({last:.3f} of {highest:.3f})'


def verdict(curve: OverfitCurve, suspects: Sequence[Suspect]) -> str:
    """Summarise the outcome in one sentence."""
    ap = 'no AP' if curve.scores is None else f'AP {curve.scores.ap:.3f}'
    outcome = f'the loss fell by {curve.fall:.1%} in {len(curve.losses)} steps, {ap}'
    goal = f'(goal: {GOAL_FALL:.0%}, AP {GOAL_AP:g})'
    if not curve.reached:
        parts = ', '.join(dict.fromkeys(suspect.part for suspect in suspects)) or 'nothing'
        return f'NOT OVERFITTED: {outcome} {goal}; looks wrong: {parts}'
    if suspects:
        parts = ', '.join(dict.fromkeys(suspect.part for suspect in suspects))
        return f'OVERFITTED, WITH FINDINGS: {outcome} {goal}; looks wrong: {parts}'
    return f'OVERFITTED: {outcome} {goal}'
