"""NanoDet-Plus neck, a path aggregation network fused by Ghost bottlenecks.

Path aggregation: Liu et al., CVPR 2018. Ghost modules: Han et al., CVPR 2020. The layers are mmcv's
ConvModule and DepthwiseSeparableConvModule. timm's Ghost modules need torchvision, and its
bottleneck at stride 1 differs from NanoDet's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from gfl_det.errors import ConfigError
from gfl_det.registry import MODELS

DEFAULT_NORM = dict(type='BN')
DEFAULT_ACTIVATION = dict(type='LeakyReLU', negative_slope=0.1)
CHEAP_KERNEL = 3  # kernel size of the depthwise half of a Ghost module


class GhostModule(nn.Module):
    """Pointwise convolution to half the channels, and a depthwise one of its output for the rest.

    Args:
        in_channels: Input channels.
        out_channels: Output channels, even.
        norm_cfg: Config of the norms.
        act_cfg: Config of the activations; None disables them.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm_cfg: dict, act_cfg: dict | None
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.primary_conv = ConvModule(in_channels, half, 1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.cheap_operation = ConvModule(
            half,
            half,
            CHEAP_KERNEL,
            padding=CHEAP_KERNEL // 2,
            groups=half,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)


class GhostBottleneck(nn.Module):
    """Sum of two Ghost modules and a parallel depthwise separable convolution.

    Args:
        in_channels: Input channels.
        out_channels: Output channels, even.
        kernel_size: Kernel size of the depthwise convolution.
        norm_cfg: Config of the norms.
        act_cfg: Config of the activation between the modules.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, norm_cfg: dict, act_cfg: dict
    ) -> None:
        super().__init__()
        self.ghost1 = GhostModule(in_channels, out_channels, norm_cfg, act_cfg)
        self.ghost2 = GhostModule(out_channels, out_channels, norm_cfg, None)
        self.shortcut = DepthwiseSeparableConvModule(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            norm_cfg=norm_cfg,
            act_cfg=None,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.ghost2(self.ghost1(x)) + self.shortcut(x)


@MODELS.register_module()
class GhostPAN(BaseModule):
    """Path aggregation over a backbone's levels and additional coarser levels.

    Args:
        in_channels: Channels of the backbone's features, finest first.
        out_channels: Channels of every output, even.
        num_outs: Number of outputs; each one beyond the backbone's levels halves the size.
        kernel_size: Kernel size of the depthwise convolutions.
        norm_cfg: Config of the norms.
        act_cfg: Config of the activations.
        init_cfg: Initialisation config; by default each layer's own.

    Raises:
        ConfigError: If there are fewer outputs than inputs, or ``out_channels`` is odd.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int = 4,
        kernel_size: int = 5,
        norm_cfg: dict = DEFAULT_NORM,
        act_cfg: dict = DEFAULT_ACTIVATION,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_outs < len(in_channels) or out_channels % 2:
            raise ConfigError(
                f'GhostPAN needs an output for each of its {len(in_channels)} inputs and '
                f'an even number of channels, not num_outs={num_outs}, out_channels={out_channels}.'
            )
        layers = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        steps, extra = range(len(in_channels) - 1), range(num_outs - len(in_channels))

        def fusion() -> GhostBottleneck:
            return GhostBottleneck(2 * out_channels, out_channels, kernel_size, **layers)

        def halving() -> DepthwiseSeparableConvModule:
            return DepthwiseSeparableConvModule(
                out_channels,
                out_channels,
                kernel_size,
                stride=2,
                padding=kernel_size // 2,
                **layers,
            )

        self.reduce_layers = nn.ModuleList(
            ConvModule(channels, out_channels, 1, **layers) for channels in in_channels
        )
        self.top_down_blocks = nn.ModuleList(fusion() for _ in steps)
        self.downsamples = nn.ModuleList(halving() for _ in steps)
        self.bottom_up_blocks = nn.ModuleList(fusion() for _ in steps)
        self.extra_in = nn.ModuleList(halving() for _ in extra)
        self.extra_out = nn.ModuleList(halving() for _ in extra)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute features with equal channels.

        Args:
            inputs: Features of the backbone, finest first.

        Returns:
            Per level ``(B, out_channels, H, W)``.
        """
        reduced = [reduce(level) for reduce, level in zip(self.reduce_layers, inputs)]
        inner = [reduced[-1]]
        for finer, block in zip(reduced[-2::-1], self.top_down_blocks):
            upsampled = F.interpolate(
                inner[0], finer.shape[-2:], mode='bilinear', align_corners=False
            )
            inner.insert(0, block(torch.cat([upsampled, finer], dim=1)))
        outputs = [inner[0]]
        steps = zip(inner[1:], self.downsamples, self.bottom_up_blocks)
        for coarser, downsample, block in steps:
            outputs.append(block(torch.cat([downsample(outputs[-1]), coarser], dim=1)))
        coarsest = reduced[-1]
        for of_input, of_output in zip(self.extra_in, self.extra_out):
            coarsest = of_input(coarsest)
            outputs.append(coarsest + of_output(outputs[-1]))
        return tuple(outputs)
