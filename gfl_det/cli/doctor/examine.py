"""The whole examination: records of pip, imports in children, devices, folders, self-test."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gfl_det.cli.doctor.installed import Check, check_installed, check_places
from gfl_det.cli.doctor.steps import ROOT, StepOutcome, run_steps
from gfl_det.compat.imports import DOCTOR

# The package may lie beside the tools without being installed.
SELF_TEST = (
    'import sys; sys.path.append({root!r}); from gfl_det.cli.doctor import self_test; '
    'self_test.main(sys.argv[1], {with_test})'
)
CURE = re.compile(r':? run `([^`]+)`')
REINSTALL = 'pip install --force-reinstall --no-deps gfl_det'
CUDA_LINE = 'pip install --force-reinstall torch'


def examine(with_test: bool = True) -> list[Check]:
    """Look at everything.

    Args:
        with_test: Also build a detector, train it for a step, and predict.

    Returns:
        What was found, in the order to read it. Nothing is raised, whatever is broken.
    """
    code = SELF_TEST.format(root=str(ROOT), with_test=with_test)
    outcomes = run_steps(['-c', code])
    checks = check_installed()
    if not outcomes[0].ok:  # gfl_det itself did not import, or crashed: find out in what
        checks = merge(checks, run_steps(['-m', f'{DOCTOR}.installed']))
    found_cause = any(check.state == 'problem' for check in checks)
    for outcome in outcomes:
        checks += of_outcome(outcome, found_cause)
    return [*checks, *check_places()]


def merge(checks: Sequence[Check], outcomes: Sequence[StepOutcome]) -> list[Check]:
    """Let an import that failed replace what pip's record says of the package."""
    failed = {outcome.name: outcome for outcome in outcomes if not outcome.ok}
    merged = []
    for check in checks:
        outcome = failed.pop(check.name, None)
        if outcome is None or check.state == 'problem':
            merged.append(check)
            continue
        text, cure = split_cure(outcome.error)
        merged.append(Check(check.name, 'problem', f'{check.text}: {text}', cure))
    return [*merged, *(_failure(outcome) for outcome in failed.values())]


def of_outcome(outcome: StepOutcome, found_cause: bool) -> list[Check]:
    """Turn a step of the self-test into lines.

    Args:
        outcome: The step.
        found_cause: A package is known to be broken, so that a failure here tells nothing new.
    """
    if not outcome.ok:
        check = _failure(outcome)
        if outcome.name == 'python' and found_cause:
            return [Check('gfl_det', 'problem', 'does not import, for the reasons above', '')]
        return [check if check.cure or found_cause else check._replace(cure=REINSTALL)]
    facts = outcome.facts
    if outcome.name == 'versions':
        text = f'{facts["gfl_det"]}, imports' if 'gfl_det' in facts else 'imports'
        return [Check('gfl_det', 'ok', text), Check('nms', 'ok', facts['nms'])]
    if outcome.name == 'devices':
        unseen = facts.pop('unseen', None)
        checks = [Check(name, 'ok', text) for name, text in facts.items()]
        if unseen:
            text = f'this machine has an NVIDIA driver, but torch sees no card: {unseen}'
            checks.append(Check('cuda', 'problem', text, CUDA_LINE))
        return checks
    losses = ', '.join(f'{name} {value:.3f}' for name, value in facts['losses'].items())
    text = f'built, {losses}, {facts["detections"]} boxes predicted, {facts["seconds"]:.1f} s'
    return [Check(outcome.name, 'ok', text)]


def split_cure(message: str) -> tuple[str, str]:
    """Split one of our sentences into what is wrong and the line to type."""
    match = CURE.search(message)
    if match is None:
        return message, ''
    return message[: match.start()].rstrip('.'), match[1]


def _failure(outcome: StepOutcome) -> Check:
    text, cure = split_cure(outcome.error)
    return Check(outcome.name, 'problem', text, cure)
