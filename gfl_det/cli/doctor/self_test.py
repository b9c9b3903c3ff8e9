"""Self-test: build a detector, compute a loss and predict, on the CPU and each other device.

It runs in a separate process, which imports the whole package.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from functools import partial
from typing import Any

import torch

from gfl_det.cli.doctor.installed import Steps
from gfl_det.compat import environment
from gfl_det.compat.environment import computes_bfloat16, processor_kind
from gfl_det.swap.swap import check_config
from gfl_det.utils.config import get_config
from gfl_det.version import __version__

CONFIG = 'gfl_r18_fpn_digits'
SIDE = 128  # px


def devices() -> dict[str, Any]:
    """Return the devices that torch can use, and a GPU that it cannot see."""
    found: dict[str, Any] = {
        'processor': f'{platform.machine()}, {os.cpu_count()} cores, '
        f'{torch.get_num_threads()} threads, {processor_kind()}, '
        + ('computes in bfloat16' if computes_bfloat16() else 'no bfloat16: use float32')
    }
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        memory = card.total_memory / 2**30
        found[f'cuda:{index}'] = f'{card.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}'
    if torch.backends.mps.is_available():
        found['mps'] = 'Apple GPU'
    # A GPU that torch does not see is the usual reason for slow training.
    if not torch.cuda.is_available() and shutil.which('nvidia-smi'):
        found['unseen'] = (
            'built without CUDA' if torch.version.cuda is None else 'the driver is too old or busy'
        )
    return found


def try_device(device: str) -> dict[str, Any]:
    """Build a detector, train it for one step, and predict.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        GFLDetError: If a loss or gradient is not finite, or a component is missing.
    """
    begin = time.perf_counter()
    outcome = check_config(get_config(CONFIG), SIDE, device)
    return {
        'losses': outcome.losses,
        'detections': outcome.detections,
        'seconds': round(time.perf_counter() - begin, 1),
    }


def main(path: str, with_test: bool = True) -> None:
    """Run the steps and record them.

    Args:
        path: Output file.
        with_test: Also build, train and predict.
    """
    with Steps(path) as steps:
        steps.take('versions', lambda: {**environment.report(), 'gfl_det': __version__})
        steps.take('devices', devices)
        if with_test:
            kinds = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
            for kind in kinds:
                steps.take(f'self-test on {kind}', partial(try_device, kind))
