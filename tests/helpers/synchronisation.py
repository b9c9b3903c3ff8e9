"""What a GPU could answer only by waiting, as an error."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoSynchronisation(TorchDispatchMode):
    """Fails on operators that a GPU could answer only by waiting."""

    FORBIDDEN = ('_local_scalar_dense', 'nonzero', 'masked_select', 'is_nonzero', 'unique')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, name
        if name in ('index', 'index_put', 'index_put_'):
            kinds = {each.dtype for each in args[1] if isinstance(each, torch.Tensor)}
            assert torch.bool not in kinds, f'{name} by a mask'
        return func(*args, **(kwargs or {}))
