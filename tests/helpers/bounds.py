"""Bounds on time and memory for tests that feed hostile files."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

SECONDS = 60  # of one case, which needs milliseconds; a hang takes for ever
MEMORY = 3 * 2**30  # bytes of address space beyond what the process has; a bomb wants far more


@pytest.fixture
def bounds() -> Iterator[None]:
    """End a case that hangs or takes memory without bounds, instead of the machine."""

    def hang(*_: object) -> None:
        raise AssertionError(f'no end after {SECONDS} s')

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    handler = signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    signal.alarm(SECONDS)
    try:
        with DefaultScope.overwrite_default_scope('mmdet'):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)
