"""Work on numbers in which some end or stall their process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

DEADLY, STALLING = 13, 30


def work(numbers: Sequence[int]) -> list[int]:
    """Squares."""
    for number in numbers:
        if number == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == STALLING:
            time.sleep(60)
    return [number**2 for number in numbers]


def make_work() -> Callable[[Sequence[int]], list[int]]:
    """The function, as a process apart makes it."""
    return work
