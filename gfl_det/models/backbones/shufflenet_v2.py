"""ShuffleNet V2 (Ma et al., ECCV 2018) with leaky ReLU, the backbone of NanoDet-Plus.

Neither mmdet 3.3 nor timm has it. mmpretrain's version would add a framework with its own
registries and pinned versions for these hundred lines; torchvision's hard-codes plain ReLU, and its
wheel does not import on every machine that runs gfl_det. The state dict has torchvision's keys, so
its ImageNet weights load, from which NanoDet-Plus was trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from gfl_det.errors import ConfigError
from gfl_det.registry import MODELS

STEM_CHANNELS = 24
BLOCKS = (4, 8, 4)  # number per stage at strides 8, 16 and 32
WIDTHS = {0.5: (48, 96, 192), 1.0: (116, 232, 464), 1.5: (176, 352, 704), 2.0: (244, 488, 976)}


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of groups of equal size.

    Args:
        x: ``(B, C, H, W)``.
        groups: Number of groups, a divisor of C.

    Returns:
        ``(B, C, H, W)``: the first channel of each group, then the second of each, and so on.

    Example:
        >>> channel_shuffle(torch.arange(6).reshape(1, 6, 1, 1), 2).flatten().tolist()
        [0, 3, 1, 4, 2, 5]
    """
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleBlock(nn.Module):
    """Two branches with half the output channels each, concatenated and shuffled.

    At stride 1, the first branch passes half of the input through and the second transforms the
    other half; at stride 2, both transform the whole input.

    Args:
        in_channels: Input channels; equal to ``out_channels`` at stride 1.
        out_channels: Output channels.
        stride: 1 or 2.
        slope: Negative slope of the activations.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, slope: float) -> None:
        super().__init__()
        half = out_channels // 2
        seen = half if stride == 1 else in_channels
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                *_depthwise(in_channels, stride), *_pointwise(in_channels, half, slope)
            )
        self.branch2 = nn.Sequential(
            *_pointwise(seen, half, slope),
            *_depthwise(half, stride),
            *_pointwise(half, half, slope),
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = (x, x) if len(self.branch1) else x.chunk(2, dim=1)
        return channel_shuffle(torch.cat([self.branch1(first), self.branch2(second)], dim=1), 2)


def _pointwise(in_channels: int, out_channels: int, slope: float) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(slope, inplace=True)]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


@MODELS.register_module()
class ShuffleNetV2(BaseModule):
    """Stages 2 to 4 of ShuffleNet V2, at strides 8, 16 and 32.

    Args:
        width: 0.5, 1.0, 1.5 or 2.0.
        out_stages: Stages, from 2, 3 and 4, whose outputs are returned.
        negative_slope: Negative slope of the activations; 0 for the paper's ReLU.
        init_cfg: Initialisation config.

    Raises:
        ConfigError: If the width is unknown.
    """

    def __init__(
        self,
        width: float = 1.0,
        out_stages: Sequence[int] = (2, 3, 4),
        negative_slope: float = 0.1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if width not in WIDTHS:
            known = ', '.join(map(str, WIDTHS))
            raise ConfigError(f'ShuffleNetV2 has no width {width}: choose one of {known}.')
        self.out_stages = tuple(out_stages)
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(STEM_CHANNELS),
            nn.LeakyReLU(negative_slope, inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = STEM_CHANNELS
        for stage, (blocks, channels) in enumerate(zip(BLOCKS, WIDTHS[width]), start=2):
            layers = [ShuffleBlock(before, channels, 2, negative_slope)]
            layers += [
                ShuffleBlock(channels, channels, 1, negative_slope) for _ in range(blocks - 1)
            ]
            self.add_module(f'stage{stage}', nn.Sequential(*layers))
            before = channels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute features ``(B, C, H / s, W / s)`` of ``out_stages``; s is 8, 16 and 32."""
        x = self.maxpool(self.conv1(x))
        features = []
        for stage in range(2, max(self.out_stages) + 1):
            x = self.get_submodule(f'stage{stage}')(x)
            if stage in self.out_stages:
                features.append(x)
        return tuple(features)
