"""How much work is repeated when nodes fail: python -m projects.scale.repeated_work --help.

A node works on one shard per worker at a time; a failure costs what was done of them, and the time
until a new node has loaded the detector. Failures are independent, with a mean time between them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

SHARDS = 20_000  # that are drawn for each row


def repeated_share(shard_s: float, mtbf_s: float) -> float:
    """Expected time lost per time of useful work.

    Attempts at a shard of length s end early with the rate 1/m, so its expected time is
    m (exp(s/m) - 1), of which s is useful; about s / 2m for short shards.

    >>> round(repeated_share(60, 6000), 5)
    0.00502
    """
    ratio = shard_s / mtbf_s
    return float(np.expm1(ratio) / ratio - 1)


def simulated_share(shard_s: float, mtbf_s: float, seed: int = 0) -> float:
    """The same, drawn: each shard is tried until no failure comes before its end."""
    rng = np.random.default_rng(seed)
    spent, left = 0.0, SHARDS
    while left:
        failure = rng.exponential(mtbf_s, left)
        done = failure >= shard_s
        spent += float(np.minimum(failure, shard_s).sum())
        left -= int(done.sum())
    return spent / (SHARDS * shard_s) - 1


def make_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(description='Work repeated because of failures of nodes.')
    parser.add_argument('--rate', type=float, default=100.0, help='images a second per worker')
    parser.add_argument('--sizes', type=int, nargs='+', default=[256, 1000, 10_000, 100_000])
    parser.add_argument('--mtbf-hours', type=float, nargs='+', default=[1.0, 24.0, 720.0])
    parser.add_argument('--restart', type=float, default=60.0, help='seconds until work goes on')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each size of shards and each mean time between failures."""
    args = make_parser().parse_args(argv)
    print('images a shard   MTBF     shard   repeated  simulated  with restarts')
    for size in args.sizes:
        for hours in args.mtbf_hours:
            shard, mtbf = size / args.rate, 3600 * hours
            exact, drawn = repeated_share(shard, mtbf), simulated_share(shard, mtbf)
            lost = exact + (1 + exact) * args.restart / mtbf
            print(f'{size:14,} {hours:6g} h {shard:7.1f} s {exact:9.4%} {drawn:9.4%} {lost:13.4%}')


if __name__ == '__main__':
    main()
