"""Measure against mmdet: head, inference, training step, data loading, COCO evaluation.

    python tools/benchmark.py [--parts PART ...] [--sweep] [--device cpu|cuda] [--out DIR]
                              [--against JSON] [--repeats N] [--seconds S]

Both sides get the same weights and inputs and run in turns in this process; figures are medians,
and the floor is the least that any implementation can take on this machine: bytes that must move at
a copy's speed, or the convolutions alone. --sweep adds image sizes, 1 to 2,000 gt boxes, 1 to
1,203 classes and batches of 1 to 4. Writes benchmark.json and benchmark.png; --against compares
with an earlier JSON and exits with 1 where a ratio fell. Run it on an otherwise idle machine.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # projects/ lies beside tools/

from gfl_det.cli import main as cli
from gfl_det.utils.timing import Runs
from projects.benchmark import report, suite


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--parts', nargs='+', choices=suite.PARTS, default=list(suite.PARTS))
    parser.add_argument('--sweep', action='store_true', help='sizes, gt boxes, classes and batches')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'), metavar='DIR')
    parser.add_argument('--against', type=Path, metavar='JSON', help='an earlier benchmark.json')
    parser.add_argument('--tolerance', type=float, default=0.2, help='share a ratio may fall by')
    parser.add_argument('--repeats', type=int, default=15, help='timed runs of each')
    parser.add_argument('--seconds', type=float, default=30, help='of a row, at most')
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    earlier = report.read_json(args.against) if args.against else []
    runs = Runs(args.device, args.repeats, args.seconds)
    print(report.machine(args.device))
    rows = suite.run(args.parts, runs, args.sweep)
    args.out.mkdir(parents=True, exist_ok=True)
    report.write_json(rows, args.out / 'benchmark.json', args.device)
    report.draw(rows, args.out / 'benchmark.png', args.device)
    print(report.format_table(rows))
    print(f'written: {args.out / "benchmark.json"}, {args.out / "benchmark.png"}')
    slower = report.slower_rows(rows, earlier, args.tolerance)
    if slower:
        raise SystemExit('slower than before:\n' + '\n'.join(slower))


if __name__ == '__main__':
    cli.run(main)
