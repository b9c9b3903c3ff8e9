"""Detection of the CPU type and its bfloat16 instructions.

Without them, oneDNN and torch silently run bfloat16 several times slower than float32: convolutions
of ResNet-50 seven times on a CPU with AVX2 only.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import NamedTuple

import torch

from gfl_det.errors import SetupError

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
