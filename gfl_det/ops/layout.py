"""Maps ``(B, C, H, W)`` as they lie in memory: pure functions, torch alone.

Gradients that are written cell by cell go into memory with a spare end: an address that stands for
"nowhere" points there, so that every address that matters is written once, in any order, without
slow accumulation and without asking the device how many there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
