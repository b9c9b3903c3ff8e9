"""Measure the head against mmdet's: assignment, losses, memory, post-processing.

    python tools/benchmark_head.py [--size H W] [--batch N] [--repeats N] [--threads N]
                                   [--device cpu|cuda] [--v2]

Both heads get the same weights and inputs and run in turns; the table gives medians and their
ratio (how many times faster, or smaller). Run it on an otherwise idle machine.
With --v2 GFLv2's head is compared with GFL's instead, from the features on.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # projects/ lies beside tools/

from gfl_det.utils.timing import Runs
from projects.benchmark import parts, report, v2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1344), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=2, help='images per batch')
    parser.add_argument('--repeats', type=int, default=15, help='timed runs of each')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--v2', action='store_true', help='what GFLv2 costs over GFL')
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    print(report.machine(args.device))
    case = parts.Case(size=tuple(args.size), batch=args.batch)
    runs = Runs(args.device, args.repeats)
    if args.v2:
        print(v2.format_cost(case, runs))
    else:
        print(report.format_table(parts.contract_rows(case, runs)))


if __name__ == '__main__':
    main()
