"""The command line of the zoo's trial.

    python tools/swap_head.py --zoo [--head GFLHead|GFLv2Head] [--out FILE]

An interrupted run goes on from FILE; a finished one writes ``results/HEAD.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gfl_det.compat import ops
from gfl_det.utils.choices import SWAP_HEADS
from gfl_det.utils.files import write_json
from projects.provenance import provenance
from projects.zoo import zoo

RESULTS = Path(__file__).parent / 'results'
ROW = '{:>4} {:20} {:5.1f} s  {}'


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Try a GFL head in every single-stage config of MMDetection's zoo."
    )
    parser.add_argument('--zoo', action='store_true', help='what tools/swap_head.py is asked by')
    parser.add_argument('--head', choices=SWAP_HEADS, default='GFLHead', help='the new head')
    parser.add_argument('--out', type=Path, metavar='FILE', help='outcomes line by line')
    return parser.parse_args(argv)


def try_zoo(args: argparse.Namespace) -> None:
    """Try the whole zoo, write the outcomes, and print the table."""
    out = args.out or Path('work_dirs') / f'zoo_{args.head.lower()}.jsonl'
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0

    def show(row: zoo.Row) -> None:
        nonlocal count
        count += 1
        print(ROW.format(count, row.outcome, row.seconds, row.config), file=sys.stderr, flush=True)

    origin = provenance()
    rows = zoo.run_zoo(out, args.head, progress=show)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f'{args.head}.json'
    content = dict(head=args.head, compiled_mmcv=not ops.stand_in_is_used())
    entries = [row._asdict() for row in rows]
    write_json(path, {**content, 'rows': entries, **origin}, indent=1)
    out.unlink()  # the next run begins anew, with the code of its day
    print(zoo.table(rows))
    print(zoo.sentences(rows))
    print(f'outcomes: {path}')
