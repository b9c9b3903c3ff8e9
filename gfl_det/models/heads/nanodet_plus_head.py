"""NanoDet-Plus head, a GFL head with a depthwise tower per level.

Classes and edges share a tower and its last convolution; levels share no weights. Everything before
and after the two maps of logits is inherited from :class:`.gfl_head.GFLHead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import DepthwiseSeparableConvModule
from torch import Tensor, nn

from gfl_det.models.heads.gfl_head import GFLHead
from gfl_det.registry import MODELS

DEFAULT_NORM = dict(type='BN', requires_grad=True)
DEFAULT_ACTIVATION = dict(type='LeakyReLU', negative_slope=0.1)
DEFAULT_ANCHORS = dict(
    type='AnchorGenerator',
    ratios=[1.0],
    octave_base_scale=5,
    scales_per_octave=1,
    strides=[8, 16, 32, 64],
)


@MODELS.register_module()
class NanoDetPlusHead(GFLHead):
    """GFL head for CPUs with a tower of depthwise separable convolutions per level.

    Args:
        num_classes: Number of classes without background.
        in_channels: Channels of the features.
        stacked_convs: Convolutions per tower.
        kernel_size: Kernel size of the depthwise convolutions.
        norm_cfg: Config of the towers' norms.
        act_cfg: Config of the towers' activations.
        reg_max: Last bin of an edge's distribution.
        anchor_generator: Config of the priors, one per cell, with a stride per level.
        **kwargs: Keyword arguments of :class:`GFLHead`.

    Raises:
        ConfigError: As in :class:`GFLHead`.
    """

    cls_convs: nn.ModuleList  # per level, a tower
    # One convolution in mmdet's head; here per level, for classes and edges.
    gfl_cls: nn.ModuleList  # type: ignore[assignment]

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 2,
        *,
        kernel_size: int = 5,
        norm_cfg: dict | None = DEFAULT_NORM,
        act_cfg: dict = DEFAULT_ACTIVATION,
        reg_max: int = 7,
        anchor_generator: dict = DEFAULT_ANCHORS,
        **kwargs: Any,
    ) -> None:
        self.kernel_size = kernel_size
        self.act_cfg = act_cfg
        super().__init__(
            num_classes,
            in_channels,
            stacked_convs,
            norm_cfg=norm_cfg,
            reg_max=reg_max,
            anchor_generator=anchor_generator,
            **kwargs,
        )

    def _init_layers(self) -> None:
        super()._init_layers()
        # Unlike this head, GFLHead shares towers and outputs across levels and scales the edges.
        del self.reg_convs, self.gfl_reg, self.scales
        levels = self.prior_generator.strides
        outputs = self.cls_out_channels + 4 * (self.reg_max + 1)
        self.cls_convs = nn.ModuleList(self._tower() for _ in levels)
        self.gfl_cls = nn.ModuleList(nn.Conv2d(self.feat_channels, outputs, 1) for _ in levels)

    def _tower(self) -> nn.ModuleList:
        channels = [self.in_channels] + [self.feat_channels] * self.stacked_convs
        return nn.ModuleList(
            DepthwiseSeparableConvModule(
                ins,
                outs,
                self.kernel_size,
                padding=self.kernel_size // 2,
                norm_cfg=self.norm_cfg,
                act_cfg=self.act_cfg,
                conv_cfg=self.conv_cfg,
            )
            for ins, outs in zip(channels, channels[1:])
        )

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        levels = [self._level(level, index) for index, level in enumerate(x)]
        return [cls for cls, _ in levels], [edges for _, edges in levels]

    def _level(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        for conv in self.cls_convs[index].children():
            x = conv(x)
        bins = 4 * (self.reg_max + 1)
        classes, edges = self.gfl_cls[index](x).split([self.cls_out_channels, bins], dim=1)
        return classes, edges.float()
