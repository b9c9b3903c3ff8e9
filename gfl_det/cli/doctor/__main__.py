"""The doctor's command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gfl_det.cli.doctor.installed import Check


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
    from gfl_det.cli.doctor.examine import examine

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
