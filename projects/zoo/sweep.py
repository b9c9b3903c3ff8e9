"""The command line of the zoo's trial.

python tools/swap_head.py --zoo [--head GFLHead|GFLv2Head] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gfl_det.swap.head_config import HEADS
from projects.zoo import zoo

ROW = '{:>4} {:20} {:5.1f} s  {}'


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Try a GFL head in every single-stage config of MMDetection's zoo."
    )
    parser.add_argument('--zoo', action='store_true', help='what tools/swap_head.py is asked by')
    parser.add_argument('--head', choices=HEADS, default='GFLHead', help='the new head')
    parser.add_argument('--out', type=Path, metavar='FILE', help='outcomes line by line')
    return parser.parse_args(argv)


def try_zoo(args: argparse.Namespace) -> None:
    """Try the whole zoo and print the table."""
    out = args.out or Path('work_dirs') / f'zoo_{args.head.lower()}.jsonl'
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0

    def show(row: zoo.Row) -> None:
        nonlocal count
        count += 1
        print(ROW.format(count, row.outcome, row.seconds, row.config), file=sys.stderr, flush=True)

    rows = zoo.run_zoo(out, args.head, progress=show)
    print(zoo.format_table(rows))
    print(f'outcomes: {out}')
