"""What this machine has: versions of packages, and the processor's bfloat16 instructions.

With workarounds for packages that are too new or too old. Without the instructions, oneDNN and
torch silently run bfloat16 several times slower than float32: convolutions of ResNet-50 seven times
on a CPU with AVX2 only.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.utils import digit_version

from gfl_det.compat import ops
from gfl_det.errors import SetupError
from gfl_det.utils.faults import importing_module

# Versions whose results were compared with pycocotools; setup.py requires the same.
FASTER_COCO_EVAL = 'faster-coco-eval>=1.6.5,<1.9'
PACKAGES = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet')


class MissingPackageError(SetupError, ModuleNotFoundError):
    """Missing package that mmengine needs; also the error type that its import expects."""


class PkgResourcesGuard:
    """Last import finder, which explains a missing ``pkg_resources`` to users of mmengine.

    mmengine 0.10 needs it to resolve ``mmdet::`` in configs, and setuptools 81 dropped it. Other
    importers get the usual error.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find nothing, and explain a missing ``pkg_resources``.

        Raises:
            MissingPackageError: If mmengine imports ``pkg_resources``.
        """
        if name == 'pkg_resources' and importing_module(__name__).split('.')[0] == 'mmengine':
            raise MissingPackageError(
                'mmengine needs pkg_resources to find configs of another package, such as those '
                'of "mmdet::", and this setuptools lacks it: run `pip install "setuptools<81"`.',
                name=name,
            )
        return None


def install() -> None:
    """Explain a missing ``pkg_resources`` if, and only if, mmengine imports it."""
    if PkgResourcesGuard not in sys.meta_path:
        sys.meta_path.append(PkgResourcesGuard)


def report() -> dict[str, str]:
    """Return versions by package, the kind of mmcv's operators, and the NMS in use."""
    versions = {'python': platform.python_version()}
    for name in PACKAGES:
        versions[name] = str(importlib.import_module(name).__version__)
    if ops.stand_in_is_used():
        versions['mmcv'] += ' (lite, with stand-in operators)'
        versions['nms'] = 'gfl_det, with the results of compiled mmcv'
    else:
        versions['mmcv'] += ' (compiled)'
        versions['nms'] = 'compiled mmcv'
    return versions


def has_faster_coco_eval() -> bool:
    """Whether faster_coco_eval is installed in a compared version."""
    name, oldest, newer = re.split('>=|,<', FASTER_COCO_EVAL)
    try:
        installed = digit_version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
    return digit_version(oldest) <= installed < digit_version(newer)


def graph_is_kept() -> bool:
    """Whether another backward pass may follow the current one (``retain_graph``)."""
    ask = getattr(torch._C._autograd, '_get_current_graph_task_keep_graph', None)
    return True if ask is None else ask()  # torch before 2.6 cannot tell


# --- The processor and its bfloat16 instructions --------------------------------------------------

CPUINFO = Path('/proc/cpuinfo')
# oneDNN, which runs torch's convolutions, can be limited to fewer instructions.
LIMIT_VARIABLE = 'ONEDNN_MAX_CPU_ISA'
LIMITS_WITHOUT_BFLOAT16 = ('SSE41', 'AVX', 'AVX2', 'AVX2_VNNI', 'AVX512_CORE', 'AVX512_CORE_VNNI')


class Instructions(NamedTuple):
    """Detection of an instruction set."""

    query: str  # function of torch.cpu, if this torch has it
    flag: str  # in /proc/cpuinfo


AVX2 = Instructions('_is_avx2_supported', 'avx2')
AVX512 = Instructions('_is_avx512_supported', 'avx512f')
AVX512_BF16 = Instructions('_is_avx512_bf16_supported', 'avx512_bf16')
AMX = Instructions('_is_amx_tile_supported', 'amx_bf16')


def computes_bfloat16() -> bool:
    """Whether bfloat16 convolutions are fast: with AVX512-BF16, AMX, or ARM's instructions.

    Unknown CPUs count as fast.
    """
    if os.environ.get(LIMIT_VARIABLE, '').upper() in LIMITS_WITHOUT_BFLOAT16:
        return False
    if not is_x86():
        query = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', None)
        return query is None or bool(query())
    known = hasattr(torch.cpu, AVX512_BF16.query) or bool(_flags())
    return not known or _has(AVX512_BF16) or _has(AMX)


def require_bfloat16(what: str, cure: str) -> None:
    """Reject bfloat16 on a CPU without its instructions.

    Args:
        what: Subject of the message: what would run in bfloat16.
        cure: Advice in the message.

    Raises:
        SetupError: If the CPU lacks the instructions.
    """
    if not computes_bfloat16():
        raise SetupError(
            f'{what} would be several times slower than float32: this processor '
            f'({processor_kind()}) has no instructions for bfloat16; {cure}.'
        )


def processor_kind() -> str:
    """Widest instruction set, such as ``AVX-512 + BF16``; the architecture if not x86."""
    if not is_x86():
        return platform.machine()
    if _has(AMX):
        kind = 'AVX-512 + AMX'
    elif _has(AVX512_BF16):
        kind = 'AVX-512 + BF16'
    elif _has(AVX512):
        kind = 'AVX-512'
    else:
        kind = 'AVX2' if _has(AVX2) else 'no AVX2'
    limit = os.environ.get(LIMIT_VARIABLE)
    return f'{kind}, limited by {LIMIT_VARIABLE}={limit}' if limit else kind


def is_x86() -> bool:
    """Whether the CPU is from Intel or AMD."""
    return platform.machine().lower() in ('x86_64', 'amd64', 'i386', 'i686')


def _has(group: Instructions) -> bool:
    query = getattr(torch.cpu, group.query, None)
    return bool(query()) if query is not None else group.flag in _flags()


def _flags() -> frozenset[str]:
    try:
        lines = CPUINFO.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((line.partition(':')[2] for line in lines if line.startswith('flags')), '').split()
    )
