"""Diagnosis of an overfit check: losses, AP and the data point to the part that looks wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from gfl_det.engine.sanity.evidence import CHANCE
from gfl_det.engine.sanity.overfit import GOAL_AP, GOAL_FALL, OverfitCurve

Part = Literal['boxes', 'labels', 'learning rate', 'model']
BOX_TERMS = ('bbox', 'dfl', 'iou', 'centerness', 'reg')
STILL = 1e-3  # weights that went less far than this share of their length have not been trained
MUCH = 0.5  # of the remaining loss: another rate that leaves less is the better one


class Suspect(NamedTuple):
    """A part that looks wrong, and why."""

    part: Part
    reason: str


def suspects_of_data(
    format_fault: str | None, box_chance: float | None, label_chance: float | None
) -> list[Suspect]:
    """Return what looks wrong in the data itself, whatever a model makes of it.

    Args:
        format_fault: What the check of the annotation file says about the boxes.
        box_chance: See :func:`.evidence.box_chance`.
        label_chance: See :func:`.evidence.label_chance`.
    """
    found = []
    if format_fault:
        found.append(Suspect('boxes', format_fault))
    if box_chance is not None and box_chance > CHANCE:
        reason = (
            f'in {box_chance:.0%} of random exchanges of pictures the boxes lie along edges as '
            'well as in their own: they may be of other pictures, another size, or shifted'
        )
        found.append(Suspect('boxes', reason))
    if label_chance is not None and label_chance > CHANCE:
        reason = (
            f'in {label_chance:.0%} of random exchanges of labels boxes that look alike share a '
            'class as often: labels may be shuffled, or size, shape, colour and a thumbnail tell '
            'these classes apart no better'
        )
        found.append(Suspect('labels', reason))
    return found


def suspects_of_curve(
    curve: OverfitCurve, slower: OverfitCurve | None, faster: OverfitCurve | None
) -> list[Suspect]:
    """Return what looks wrong in a training that did not reach its goal.

    Args:
        curve: With the config's learning rate.
        slower: The same with a tenth of it, for fewer steps; None if it was not tried.
        faster: The same with ten times as much.
    """
    if curve.reached:
        return []
    if not all(map(math.isfinite, curve.losses[0].values())):
        return [_first_step(curve.losses[0])]
    rate = _suspect_rate(curve, slower, faster)
    if rate is not None:
        return [rate]
    if curve.scores is None:
        return [Suspect('model', 'the losses are NaN or infinite, whatever the learning rate')]
    ap, any_class = curve.scores
    if any_class >= GOAL_AP > ap:
        reason = f'boxes are found (AP {any_class:.2f} whatever the class) but classes are not'
        return [Suspect('labels', f'{reason} (AP {ap:.2f}): do labels contradict each other?')]
    worst = _worst_term(curve)
    if any_class < GOAL_AP:
        reason = f'AP {any_class:.2f} whatever the class; most is left of {worst}'
        return [Suspect('boxes', reason)]
    part: Part = 'boxes' if any(term in worst for term in BOX_TERMS) else 'labels'
    return [Suspect(part, f'the loss fell by {curve.fall:.0%} only; most is left of {worst}')]


def _first_step(losses: dict[str, float]) -> Suspect:
    wrong = [name for name, value in losses.items() if not math.isfinite(value) and name != 'loss']
    name = wrong[0] if wrong else 'loss'
    part: Part = 'boxes' if any(term in name for term in BOX_TERMS) else 'labels'
    return Suspect(part, f'{name} is NaN or infinite in the first step already')


def _suspect_rate(
    curve: OverfitCurve, slower: OverfitCurve | None, faster: OverfitCurve | None
) -> Suspect | None:
    if curve.rate == 0:
        return Suspect('learning rate', 'it is 0')
    told = f'it is {curve.rate:g}'
    steps = f'{len(curve.losses)} steps'
    if slower is not None and slower.finite and _left(slower, curve) < MUCH:
        outcome = (
            f'a tenth of it takes {slower.fall:.0%} off the loss in {len(slower.losses)} steps'
        )
        return Suspect('learning rate', f'{told}, too high: {outcome}')
    if faster is not None and faster.finite and _left(faster, curve) < MUCH:
        outcome = f'ten times as much takes {faster.fall:.0%} off in {len(faster.losses)} steps'
        return Suspect('learning rate', f'{told}, too low: {outcome}')
    if curve.moved < STILL:
        reason = f'in {steps} the weights moved by {curve.moved:.1e} of their length'
        return Suspect('learning rate', f'{told}, too low: {reason}')
    if not curve.finite or curve.fall < 0:
        return Suspect(
            'learning rate', f'{told}, too high: the loss rose or became NaN or infinite'
        )
    return None


def _left(trial: OverfitCurve, curve: OverfitCurve) -> float:
    """Loss of a trial over that of the training after as many steps."""
    same = curve._replace(losses=curve.losses[: len(trial.losses)])
    if not same.finite or not curve.finite:
        return 0.0 if trial.fall > 0 else math.inf
    return (1 - trial.fall) / max(1 - same.fall, 1e-12)


def _worst_term(curve: OverfitCurve) -> str:
    """Name the term of which most is left, of its highest value, and how much."""
    left = {}
    for name, last in curve.losses[-1].items():
        highest = max(step[name] for step in curve.losses)
        # Cross entropy with two bins ends at the entropy of the two and not at 0.
        if name != 'loss' and 'loss' in name and 'dfl' not in name and highest > 0:
            left[name] = (last / highest, last, highest)
    if not left:
        return 'the loss'
    name = max(left, key=lambda key: left[key][0])
    _, last, highest = left[name]
    return f'{name} ({last:.3f} of {highest:.3f})'


def verdict(curve: OverfitCurve, suspects: Sequence[Suspect]) -> str:
    """Say in one sentence how it went."""
    ap = 'no AP' if curve.scores is None else f'AP {curve.scores.ap:.3f}'
    outcome = f'the loss fell by {curve.fall:.1%} in {len(curve.losses)} steps, {ap}'
    goal = f'(asked: {GOAL_FALL:.0%}, AP {GOAL_AP:g})'
    if not curve.reached:
        parts = ', '.join(dict.fromkeys(suspect.part for suspect in suspects)) or 'nothing'
        return f'NOT LEARNT: {outcome} {goal}; looks wrong: {parts}'
    if suspects:
        parts = ', '.join(dict.fromkeys(suspect.part for suspect in suspects))
        return f'LEARNT BY HEART, BUT LOOK AGAIN: {outcome} {goal}; looks wrong: {parts}'
    return f'SANE: {outcome} {goal}'
