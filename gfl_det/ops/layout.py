"""Memory layout of maps ``(B, C, H, W)``, and fixed-length lists with masked slots.

The positives of a batch are kept in fixed-length lists, since reading their number from a device
would stall it; a mask marks the valid slots. Empty slots write **nowhere**: to spare memory behind
the part that is read (the end of a flat tensor, spare rows, a spare image). So each address that is
read is written at most once, in any order, without slow accumulation or branches. Other modules
refer to this as "nowhere".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Several spare places, since cores that write to one cache line wait for each other; few enough to
# stay in cache.
SPARE_PLACES = 32


def spare_places(slots: Tensor) -> Tensor:
    """Spare places ``(N,)`` int64 in 0..31 for N slots, mostly equal for neighbouring slots.

    Example:
        >>> spare_places(torch.arange(4))
        tensor([ 0,  8, 16, 24])
    """
    count = len(slots)
    return torch.arange(count, device=slots.device) * SPARE_PLACES // max(1, count)


def write_valid(memory: Tensor, address: Tensor, valid: Tensor, values: Tensor | float) -> None:
    """Write the valid values to flat memory in place; its last place is nowhere.

    Args:
        memory: ``(N + 1,)``.
        address: ``(M,)`` int64; distinct and below N for valid slots.
        valid: ``(M,)`` bool.
        values: ``(M,)`` or a scalar.

    Example:
        >>> memory = torch.zeros(4)  # the last place is nowhere
        >>> write_valid(memory, torch.tensor([0, 1]), torch.tensor([True, False]), torch.ones(2))
        >>> memory[:3]
        tensor([1., 0., 0.])
    """
    memory[address.masked_fill(~valid, len(memory) - 1)] = values


def with_values(flat: Tensor, address: Tensor, valid: Tensor, values: Tensor | float) -> Tensor:
    """Copy of a flat tensor ``(N,)`` with values written by :func:`write_valid`.

    >>> flat, address = torch.zeros(3), torch.tensor([2, 0])
    >>> with_values(flat, address, torch.tensor([True, False]), torch.tensor([5.0, 7.0]))
    tensor([0., 0., 5.])
    """
    memory = torch.cat([flat, flat.new_zeros(1)])
    write_valid(memory, address, valid, values)
    return memory[:-1]


class Layout(NamedTuple):
    """Shape and memory order of dense maps."""

    shape: torch.Size  # (B, C, H, W)
    channels_last: bool  # memory runs over B, H, W, C instead of B, C, H, W

    @classmethod
    def of(cls, maps: Tensor) -> Layout:
        """The layout of dense maps; NCHW for maps with gaps in memory."""
        last = maps.is_contiguous(memory_format=torch.channels_last)
        return cls(maps.shape, last and not maps.is_contiguous())

    def address(self, image: Tensor, channel: Tensor, cell: Tensor) -> Tensor:
        """Memory addresses of values; the arguments broadcast, cell = row * width + column."""
        _, channels, height, width = self.shape
        if self.channels_last:
            return (image * (height * width) + cell) * channels + channel
        return (image * channels + channel) * (height * width) + cell

    def view(self, memory: Tensor, images: int | None = None) -> Tensor:
        """View of the start of memory as maps; ``images`` overrides the batch size."""
        count, channels, height, width = self.shape
        count = count if images is None else images
        memory = memory[: count * channels * height * width]
        if not self.channels_last:
            return memory.view(count, channels, height, width)
        return memory.view(count, height, width, channels).permute(0, 3, 1, 2)
