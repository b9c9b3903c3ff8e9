"""Diagnosis of an overfit check: losses, AP and the data point to the part that looks wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from gfl_det.engine.sanity.evidence import CHANCE
from gfl_det.engine.sanity.overfit import GOAL_AP, GOAL_FALL, OverfitCurve

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
