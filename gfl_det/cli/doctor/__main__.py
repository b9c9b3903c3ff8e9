"""The whole examination and its command line.

Looked at in this order: records of pip, imports in children, devices and the self-test, folders.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

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
    """Examine, print, and return the exit status: 0 where all is well, 1 where not."""
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
    """Print the table, then each line to type once."""
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
