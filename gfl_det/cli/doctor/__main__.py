"""Complete diagnosis of the installation, and its command line.

The order of checks: pip's records, imports in child processes, devices and self-test, folders.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gfl_det.cli.doctor.installed import (
    ROOT,
    Check,
    StepOutcome,
    check_installed,
    check_places,
    run_steps,
)
from gfl_det.compat.imports import DOCTOR

# The package may be in a checkout without being installed.
SELF_TEST = (
    'import sys; sys.path.append({root!r}); from gfl_det.cli.doctor import self_test; '
    'self_test.main(sys.argv[1], {with_test})'
)
CURE = re.compile(r':? run `([^`]+)`')
REINSTALL = 'pip install --force-reinstall --no-deps gfl_det'
CUDA_LINE = 'pip install --force-reinstall torch'


def examine(with_test: bool = True) -> list[Check]:
    """Run all checks.

    Args:
        with_test: Also build a detector, train it for one step, and predict.

    Returns:
        Results in reading order. No exceptions are raised, even for a broken installation.
    """
    code = SELF_TEST.format(root=str(ROOT), with_test=with_test)
    outcomes = run_steps(['-c', code])
    checks = check_installed()
    if not outcomes[0].ok:  # gfl_det did not import, or crashed: find the cause
        checks = merge(checks, run_steps(['-m', f'{DOCTOR}.installed']))
    found_cause = any(check.state == 'problem' for check in checks)
    for outcome in outcomes:
        checks += of_outcome(outcome, found_cause)
    return [*checks, *check_places()]


def merge(checks: Sequence[Check], outcomes: Sequence[StepOutcome]) -> list[Check]:
    """Merge failed imports into the checks of pip's records, package by package."""
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
    """Convert the outcome of a self-test step into checks.

    Args:
        outcome: Outcome of the step.
        found_cause: Whether a package is known to be broken, which explains a failure here.
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
    """Split an error message of this package into the problem and the command to run."""
    match = CURE.search(message)
    if match is None:
        return message, ''
    return message[: match.start()].rstrip('.'), match[1]


def _failure(outcome: StepOutcome) -> Check:
    text, cure = split_cure(outcome.error)
    return Check(outcome.name, 'problem', text, cure)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog or 'python -m gfl_det.doctor',
        description='What is installed, whether it fits together, and the line that cures what '
        'does not. Exit status 1 if there is a problem.',
    )
    parser.add_argument('--json', metavar='FILE', help='also write the findings; - prints them')
    parser.add_argument(
        '--no-self-test', action='store_true', help='leave out building, training and predicting'
    )
    return parser


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Parse the command line."""
    return make_parser(prog).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m gfl_det.doctor``; return the exit status."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Run all checks, print them, and return the exit status: 0 without problems, else 1."""
    checks = examine(with_test=not args.no_self_test)
    text = json.dumps([check._asdict() for check in checks], indent=2)
    if args.json == '-':
        print(text)
    else:
        report(checks)
        if args.json:
            try:
                Path(args.json).write_text(text + '\n')
            except OSError as error:
                print(f'error: {args.json} cannot be used: {error.strerror}.', file=sys.stderr)
                return 1
    return int(any(check.state == 'problem' for check in checks))


def report(checks: Sequence[Check]) -> None:
    """Print the table, then each distinct command to run."""
    from gfl_det.utils.console import print_table

    print_table('', ('what', 'state', 'found'), [check[:3] for check in checks])
    problems = [check for check in checks if check.state == 'problem']
    if not problems:
        print('All is well.')
        return
    print(f'\n{len(problems)} problem{"s" if len(problems) > 1 else ""}. To cure:')
    lines: dict[str, list[str]] = {}
    for check in problems:
        if check.cure:
            lines.setdefault(check.cure, []).append(check.name)
    for line, names in lines.items():
        print(f'  {line}    # {", ".join(names)}')


if __name__ == '__main__':
    sys.exit(main())
