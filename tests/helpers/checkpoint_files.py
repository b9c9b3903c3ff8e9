"""Malformed and malicious checkpoints, as bytes."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

CANARY = (
    'GFL_DET_CANARY'  # a variable with the path of a file that code in a checkpoint would write
)


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def programs() -> dict[str, Any]:
    """Objects whose loading runs a program that writes the canary."""
    line = f'echo x > "${CANARY}"'
    python = f'open(__import__("os").environ["{CANARY}"], "w").write("x")'
    return {
        'os.system': Calls(os.system, line),
        'subprocess.run': Calls(subprocess.run, ['sh', '-c', line]),
        'eval': Calls(eval, python),
        'exec': Calls(exec, python),
        'an import': Calls(__import__, 'antigravity'),
        'getattr': Calls(getattr, Calls(__import__, 'os'), 'system'),
        'a pickle in a pickle': Calls(pickle.loads, pickle.dumps(Calls(os.system, line))),
        'torch.load': Calls(torch.load, io.BytesIO()),
        'a partial call': Calls(Calls, os.system, line),
        'a mapped array': Calls(np.memmap, '/etc/passwd'),
        'an open file': Calls(open, '/etc/passwd'),
    }


def malicious() -> Iterator[tuple[str, bytes]]:
    """Yield files that run a program where a checkpoint is loaded without care."""
    for name, program in programs().items():
        for place, content in (
            ('alone', program),
            ('as a weight', dict(state_dict=dict(weight=program))),
            ('in meta', dict(state_dict=dict(weight=torch.zeros(1)), meta=dict(cfg=program))),
        ):
            for legacy in (False, True):
                file = io.BytesIO()
                torch.save(content, file, _use_new_zipfile_serialization=not legacy)
                kind = 'legacy' if legacy else 'zip'
                yield f'{name}, {place}, {kind}', file.getvalue()
        yield f'{name}, a bare pickle', pickle.dumps(program)
        yield f'{name}, a bare pickle of protocol 2', pickle.dumps(dict(state_dict=program), 2)
        yield f'{name}, tar', _tar(pickle.dumps(program, 2))


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield small files that would take many gigabytes."""
    for module in ('builtins', '__builtin__'):
        name = f'{module}.bytearray of 100 GB'
        yield name, b'\x80\x02c%s\nbytearray\n\x8a\x06%s\x85R.' % (module.encode(), _number(10**11))
    yield 'a zip of zeros', _zip(data=bytes(2**27))
    yield 'a zip with a pickle of zeros', _zip(pickled=b'\x80\x02U\x01' + bytes(2**27))
    yield 'a tensor of a petabyte', _edited(300, 10**15)
    yield 'a tensor of 100 GB', _edited(300, 10**11 // 4)
    yield 'a legacy storage of a petabyte', _legacy_with_numel(10**15)
    yield 'deep tuples', b'\x80\x02' + b'N' + b'\x85' * 50_000 + b'.'
    yield 'deep lists', b'\x80\x02' + b']' * 30_000 + b'a' * 29_999 + b'.'


def damaged() -> Iterator[tuple[str, bytes]]:
    """Yield torn files and files with other bytes; some may load by chance, with other numbers."""
    for legacy in (False, True):
        whole = checkpoint(legacy=legacy)
        kind = 'legacy' if legacy else 'zip'
        for share in (0.001, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.999):
            yield f'{kind} torn at {share}', whole[: int(share * len(whole))]
        for seed in range(12):
            rng = np.random.default_rng(seed)
            content = np.frombuffer(whole, np.uint8).copy()
            places = rng.integers(0, len(content), 12)
            content[places] = rng.integers(0, 256, 12)
            yield f'{kind} with other bytes, {seed}', content.tobytes()


def others() -> Iterator[tuple[str, bytes]]:
    """Yield sound files of odd content."""
    odd = {
        'a list': [1],
        'a number': 3,
        'a tensor': torch.zeros(3),
        'nothing': None,
        'no weights': dict(state_dict={}),
        'weights that are numbers': dict(state_dict=dict(weight=1.0)),
        'weights that are a list': dict(state_dict=[torch.zeros(1)]),
        'weights by numbers': dict(state_dict={1: torch.zeros(1)}),
        'meta that is a list': dict(state_dict=dict(a=torch.zeros(1)), meta=[1]),
        'meta that is a text': dict(state_dict=dict(a=torch.zeros(1)), meta='x'),
        'a config that is a number': dict(state_dict=dict(a=torch.zeros(1)), meta=dict(cfg=5)),
        'a state that is odd': dict(
            state_dict=dict(a=torch.zeros(1)), optimizer=3, meta=dict(epoch='x', iter=None)
        ),
        'a step that is none': dict(format='gfl_det step 1', record='{', inputs=1),
        'a step with odd parts': dict(
            format='gfl_det step 1', record='[]', inputs=1, samples=3, losses=0, random=0,
            state_dict=0,
        ),
        'complex weights': dict(state_dict=dict(a=torch.zeros(2, dtype=torch.complex64))),
        'weights on another device': dict(state_dict=dict(a=torch.zeros(2, device='meta'))),
        'a weight of no element': dict(state_dict=dict(a=torch.zeros(0))),
        'strided weights': dict(state_dict=dict(a=torch.zeros(1).expand(10**9))),
    }  # fmt: skip
    for name, value in odd.items():
        file = io.BytesIO()
        torch.save(value, file)
        yield name, file.getvalue()
    for name, content in {
        'an empty file': b'', 'zeros': bytes(999), 'text': b'hello\n', 'a picture': b'\x89PNG\r\n',
        'JSON': b'{"state_dict": {}}', 'an empty zip': b'PK\x05\x06' + bytes(18),
        'a zip of texts': _plain_zip(), 'a pickle that ends at once': b'\x80\x02.',
        'safetensors': struct.pack('<Q', 2) + b'{}', 'HDF5': b'\x89HDF\r\n\x1a\n' + bytes(99),
    }.items():  # fmt: skip
        yield name, content


def checkpoint(legacy: bool = False) -> bytes:
    file = io.BytesIO()
    content = dict(state_dict=dict(weight=torch.arange(300.0)), meta=dict(epoch=1, iter=9))
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _number(value: int) -> bytes:
    return value.to_bytes(6, 'little')


def _tar(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _zip(data: bytes | None = None, pickled: bytes | None = None) -> bytes:
    """A checkpoint written again with compression, with other content in it."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(checkpoint())) as source,
        zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.namelist():
            content = source.read(member)
            if member.endswith('/data/0') and data is not None:
                content = data
            if member.endswith('data.pkl') and pickled is not None:
                content = pickled
            target.writestr(member, content)
    return file.getvalue()


def _plain_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('a.txt', 'text')
    return file.getvalue()


def _pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith('data.pkl'))


def _edited(old: int, new: int) -> bytes:
    """Replace a number in the pickle of a checkpoint."""
    return _zip(pickled=_replaced(_pickle_of(checkpoint()), old, new))


def _legacy_with_numel(number: int) -> bytes:
    return _replaced(checkpoint(legacy=True), 300, number)


def _replaced(content: bytes, old: int, new: int) -> bytes:
    small = b'M' + struct.pack('<H', old)
    assert small in content
    return content.replace(small, b'\x8a\x08' + struct.pack('<q', new))
