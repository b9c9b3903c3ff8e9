"""Timing and memory measurements, with lower bounds of this machine.

Timings on a shared machine drift, so each figure is a median of alternating runs of both functions,
and only their ratio counts.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Callable, NamedTuple

import torch
from torch import Tensor

MEBI = 2**20
COPY_BYTES = 64 * MEBI  # larger than the caches
MIN_RUNS = 3


class Row(NamedTuple):
    """Row of the table: mmdet's figure and ours, in ``unit``.

    ``ours`` is None if this machine cannot run the measured function; the ratio is then NaN.
    """

    name: str
    theirs: float
    ours: float | None
    unit: str = 'ms'
    target: float | None = None  # smallest acceptable ratio
    floor: float | None = None  # lower bound of any implementation on this machine, in ``unit``

    @property
    def ratio(self) -> float:
        """Ratio of mmdet's figure to ours."""
        return math.nan if self.ours is None else self.theirs / max(self.ours, 1e-9)


class Runs(NamedTuple):
    """Device, number and duration of timed runs."""

    device: str = 'cpu'
    repeats: int = 15
    seconds: float = 30.0  # no new run starts later than this, except for the first three

    def in_turns(self, *functions: Callable[[], object]) -> list[float]:
        """Median milliseconds of functions run in turns, after a warm-up of each."""
        times: list[list[float]] = [[] for _ in functions]
        begin = time.perf_counter()
        for repeat in range(1 + max(self.repeats, MIN_RUNS)):
            if repeat > MIN_RUNS and time.perf_counter() - begin > self.seconds:
                break
            for function, record in zip(functions, times):
                start = self.now()
                function()
                if repeat > 0:
                    record.append((self.now() - start) * 1e3)
        return [statistics.median(record) for record in times]

    def now(self) -> float:
        """Time in seconds after all work on the device is done."""
        if self.device.startswith('cuda'):
            torch.cuda.synchronize()
        return time.perf_counter()

    def bandwidth(self) -> float:
        """Bytes per millisecond that a copy reads and writes."""
        source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        (median,) = self.in_turns(lambda: target.copy_(source))
        return 2 * COPY_BYTES / median


def kept_for_backward(function: Callable[[], object]) -> float:
    """MiB of distinct memory that autograd keeps for a function's graph."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = function()
    del graph
    return sum(storages.values()) / MEBI


def peak_memory(function: Callable[[], object], device: str = 'cpu') -> float:
    """Peak MiB of a function's tensors, beyond the memory in use before."""
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / MEBI
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    steps = sorted(
        (event.time_range.end, event.self_cpu_memory_usage) for event in profile.events() or []
    )
    current = peak = 0
    for _, change in steps:
        current += change
        peak = max(peak, current)
    return peak / MEBI


def num_bytes(*tensors: Tensor) -> int:
    """Total bytes of tensors."""
    return sum(each.numel() * each.element_size() for each in tensors)
