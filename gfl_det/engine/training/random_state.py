"""Random generator states of a training: Python, NumPy and torch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def capture() -> State:
    """Return the states of all generators of this process as tensors and numbers."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        'python': torch.tensor(words, dtype=torch.int64),
        'python_rest': [version, gauss],
        'numpy': torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        'numpy_rest': [int(position), int(has_gauss), float(cached)],
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def restore(state: State) -> None:
    """Restore the generators of this process from the output of :func:`capture`."""
    version, gauss = state['python_rest']
    random.setstate((version, tuple(state['python'].tolist()), gauss))
    keys = state['numpy'].cpu().numpy().astype(np.uint32)
    np.random.set_state(('MT19937', keys, *state['numpy_rest']))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generators within a context, and restore their states afterwards.

    Args:
        seed: Seed below 2**32.
    """
    # Only the generators that datasets use, once per sample: capture() costs ten times as much.
    outer = random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs as well
    try:
        yield
    finally:
        random.setstate(outer[0])
        np.random.set_state(outer[1])
        torch.set_rng_state(outer[2])


def derive(*parts: int) -> int:
    """Return a hash below 2**32 of the numbers, as a seed."""
    text = ' '.join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), 'big')
