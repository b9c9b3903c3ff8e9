"""What is said of a processor is what torch, or else the kernel, says of it."""

from __future__ import annotations

import platform

import pytest
import torch

from gfl_det.cli.doctor import self_test
from gfl_det.compat import environment
from gfl_det.errors import SetupError

GROUPS = (environment.AVX2, environment.AVX512, environment.AVX512_BF16, environment.AMX)
# A kind by the number of groups there are, from the oldest.
KINDS = [
    (0, 'no AVX2', False),
    (1, 'AVX2', False),
    (2, 'AVX-512', False),
    (3, 'AVX-512 + BF16', True),
    (4, 'AVX-512 + AMX', True),
]


@pytest.fixture(autouse=True)
def x86(monkeypatch) -> None:
    monkeypatch.setattr(platform, 'machine', lambda: 'x86_64')
    monkeypatch.delenv(environment.LIMIT_VARIABLE, raising=False)


@pytest.mark.parametrize(('count', 'kind', 'fast'), KINDS)
def test_torch_is_asked(monkeypatch, count: int, kind: str, fast: bool) -> None:
    for index, group in enumerate(GROUPS):
        monkeypatch.setattr(torch.cpu, group.query, lambda has=index < count: has, raising=False)
    assert environment.processor_kind() == kind
    assert environment.computes_bfloat16() is fast


@pytest.mark.parametrize(('count', 'kind', 'fast'), KINDS)
def test_the_kernel_is_asked_where_torch_does_not_know(
    monkeypatch, tmp_path, count: int, kind: str, fast: bool
) -> None:
    for group in GROUPS:
        monkeypatch.delattr(torch.cpu, group.query, raising=False)
    flags = ' '.join(['fpu', *(group.flag for group in GROUPS[:count])])
    path = tmp_path / 'cpuinfo'
    path.write_text(f'model name\t: Some Processor\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n')
    monkeypatch.setattr(environment, 'CPUINFO', path)
    assert environment.processor_kind() == kind
    assert environment.computes_bfloat16() is fast


def test_an_unknown_processor_is_given_the_benefit_of_the_doubt(monkeypatch, tmp_path) -> None:
    for group in GROUPS:
        monkeypatch.delattr(torch.cpu, group.query, raising=False)
    monkeypatch.setattr(environment, 'CPUINFO', tmp_path / 'missing')
    assert environment.computes_bfloat16()


def test_torch_and_kernel_agree_about_this_processor(monkeypatch) -> None:
    if not environment.CPUINFO.is_file():
        pytest.skip('no /proc/cpuinfo')
    asked = environment.processor_kind(), environment.computes_bfloat16()
    for group in GROUPS:
        monkeypatch.delattr(torch.cpu, group.query, raising=False)
    assert (environment.processor_kind(), environment.computes_bfloat16()) == asked


def test_instructions_disabled_in_onednn_do_not_count(monkeypatch) -> None:
    monkeypatch.setenv(environment.LIMIT_VARIABLE, 'avx2')
    assert not environment.computes_bfloat16()
    with pytest.raises(SetupError, match=r'Inference.*ONEDNN_MAX_CPU_ISA=avx2.*use float32'):
        environment.require_bfloat16('Inference', 'use float32')


def test_another_architecture_is_named(monkeypatch) -> None:
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')
    assert environment.processor_kind() == 'aarch64'
    assert isinstance(environment.computes_bfloat16(), bool)


def test_the_doctor_says_it(monkeypatch) -> None:
    monkeypatch.setenv(environment.LIMIT_VARIABLE, 'AVX2')
    assert 'no bfloat16: use float32' in self_test.devices()['processor']
