"""Two processes that work together, and batches that they share."""

from __future__ import annotations

from collections.abc import Callable

from torch import multiprocessing

import tests.helpers.commands  # noqa: F401  (its server has imported what takes seconds)

# Gt boxes of the four images, and how many of the images the first process has.
CASES = {
    'all': ((5, 2, 0, 7), 2),
    'one process without gt boxes': ((0, 0, 4, 3), 2),
    'unequal batches': ((5, 2, 3, 7), 3),
    'unequal batches, one without gt boxes': ((4, 1, 3, 0), 3),
}
SIZE = (96, 128)


def run_in_two(function: Callable, *arguments: object) -> None:
    """Call ``function(rank, *arguments)`` in two processes, and wait for both."""
    multiprocessing.start_processes(function, arguments, nprocs=2, start_method='forkserver')
