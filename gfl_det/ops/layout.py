"""Maps ``(B, C, H, W)`` as they lie in memory, and lists whose length only the device knows.

The positives of a batch are kept in lists of a fixed length, as asking a device how many there are
would stall it; a mask tells which slots hold one. What an empty slot has to write goes **nowhere**:
to spare memory behind the part that is read (a spare end of a flat tensor, spare rows, a spare
image). So every address that matters is written once, in any order, without slow accumulation and
without a branch. This is the only place that explains it; elsewhere it is called "nowhere".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Nowhere is a few places and not one, as cores that write to one line of memory wait for each
# other; and not many, so that they stay in cache.
SPARE_PLACES = 32


def spare_places(slots: Tensor) -> Tensor:
    """A spare place, 0 to 31, for each of N slots, the same for most neighbours: ``(N,)`` int64.

    Example:
        >>> spare_places(torch.arange(4))
        tensor([ 0,  8, 16, 24])
    """
    count = len(slots)
    return torch.arange(count, device=slots.device) * SPARE_PLACES // max(1, count)


def write_valid(memory: Tensor, address: Tensor, valid: Tensor, values: Tensor | float) -> None:
    """Write values to flat memory in place; its last place is nowhere.

    Args:
        memory: ``(N + 1,)``.
        address: ``(M,)`` int64; those of valid slots are different and below N.
        valid: ``(M,)`` bool.
        values: ``(M,)``, or a scalar for all.

    Example:
        >>> memory = torch.zeros(4)  # the last place is nowhere
        >>> write_valid(memory, torch.tensor([0, 1]), torch.tensor([True, False]), torch.ones(2))
        >>> memory[:3]
        tensor([1., 0., 0.])
    """
    memory[address.masked_fill(~valid, len(memory) - 1)] = values


def with_values(flat: Tensor, address: Tensor, valid: Tensor, values: Tensor | float) -> Tensor:
    """A copy of a flat tensor ``(N,)`` with :func:`write_valid` done to it.

    >>> flat, address = torch.zeros(3), torch.tensor([2, 0])
    >>> with_values(flat, address, torch.tensor([True, False]), torch.tensor([5.0, 7.0]))
    tensor([0., 0., 5.])
    """
    memory = torch.cat([flat, flat.new_zeros(1)])
    write_valid(memory, address, valid, values)
    return memory[:-1]


class Layout(NamedTuple):
    """Shape of dense maps and the order of their memory."""

    shape: torch.Size  # (B, C, H, W)
    channels_last: bool  # memory runs over B, H, W, C instead of B, C, H, W

    @classmethod
    def of(cls, maps: Tensor) -> Layout:
        """The layout of dense maps, or NCHW for maps that have gaps in memory."""
        last = maps.is_contiguous(memory_format=torch.channels_last)
        return cls(maps.shape, last and not maps.is_contiguous())

    def address(self, image: Tensor, channel: Tensor, cell: Tensor) -> Tensor:
        """Places in memory of values; the arguments broadcast, cell = row * width + column."""
        _, channels, height, width = self.shape
        if self.channels_last:
            return (image * (height * width) + cell) * channels + channel
        return (image * channels + channel) * (height * width) + cell

    def view(self, memory: Tensor, images: int | None = None) -> Tensor:
        """The maps at the beginning of memory, without a copy; of more images on request."""
        count, channels, height, width = self.shape
        count = count if images is None else images
        memory = memory[: count * channels * height * width]
        if not self.channels_last:
            return memory.view(count, channels, height, width)
        return memory.view(count, height, width, channels).permute(0, 3, 1, 2)
