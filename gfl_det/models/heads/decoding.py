"""From candidates to boxes: only the edges of those that are asked for are read and integrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.config import ConfigDict
from torch import Tensor

from gfl_det.models.assigners.batch import PriorLevels
from gfl_det.models.heads.candidates import Candidates
from gfl_det.ops import distribution
from gfl_det.ops.boxes import distances_to_boxes


class Frames(NamedTuple):
    """The images that boxes are cut at and refer to."""

    limit: Tensor | None  # (B, 4) px: width, height twice of the network's input; None: no cut
    scale: Tensor  # (B, 4) along x, y twice, from there to the image that boxes refer to
    smallest: float  # boxes with a side not above it are dropped, px; negative: none are

    @classmethod
    def of(
        cls,
        metas: Sequence[dict],
        config: ConfigDict,
        rescale: bool,
        clip: bool,
        device: torch.device,
    ) -> Frames:
        """Read the images' meta information and the test config.

        Args:
            metas: per image ``img_shape`` and, to rescale, ``scale_factor`` (w, h).
            config: with ``min_bbox_size``.
            rescale: boxes refer to the original image.
            clip: boxes are cut at the image's border.
            device: of the tensors.
        """
        limits, scales = [], []
        for meta in metas:
            height, width = meta['img_shape'][:2]
            limits.append((width, height) * 2)
            x, y = meta['scale_factor'][:2] if rescale else (1, 1)
            scales.append((1 / x, 1 / y) * 2)
        limit, scale = (
            torch.tensor(each, dtype=torch.float32).reshape(-1, 4).to(device)
            for each in (limits, scales)
        )
        return cls(limit if clip else None, scale, config.get('min_bbox_size', -1))


class Decoder(NamedTuple):
    """What turns a candidate's edge logits into a box."""

    edges: Sequence[Tensor]  # per level (B, 4 * num_bins, H, W) logits
    base: Tensor  # (L, 4) xyxy px, the prior of cell (0, 0)
    stride: Tensor  # (L, 1) px
    width: Tensor  # (L,) int64, cells of a row
    frames: Frames

    @classmethod
    def of(cls, edges: Sequence[Tensor], priors: PriorLevels, frames: Frames) -> Decoder:
        """A decoder of maps whose priors are these."""
        base = torch.tensor(priors.base)
        stride = torch.tensor([[float(x)] for x, _ in priors.strides])
        width = torch.tensor([level.shape[-1] for level in edges])
        base, stride, width = (each.to(edges[0].device) for each in (base, stride, width))
        return cls(edges, base, stride, width, frames)

    @property
    def num_bins(self) -> int:
        """Bins of an edge's distribution."""
        return self.edges[0].shape[1] // 4

    def logits(self, candidates: Candidates) -> Tensor:
        """Edge logits ``(N, 4, num_bins)``."""
        rows = self.edges[0].new_empty(len(candidates.cell), 4 * self.num_bins)
        for level, edges in enumerate(self.edges):
            where = (candidates.level == level).nonzero().squeeze(1)
            if len(where) > 0:
                place = candidates.image[where], slice(None), candidates.cell[where]
                rows[where] = edges.flatten(2)[place]
        return rows.unflatten(1, (4, -1))

    def centres(self, candidates: Candidates) -> Tensor:
        """Centres ``(N, 2)`` of the candidates' priors, px, rounded as an anchor generator does."""
        width = self.width[candidates.level]
        row = candidates.cell.div(width, rounding_mode='floor')
        cell = torch.stack([candidates.cell - row * width, row], dim=1)
        shift = cell * self.stride[candidates.level]
        low, high = self.base[candidates.level].split(2, dim=1)
        return ((low + shift) + (high + shift)) / 2

    def boxes(self, candidates: Candidates) -> Tensor:
        """Boxes ``(N, 4)`` xyxy, clipped and rescaled."""
        distances = distribution.mean(self.logits(candidates)) * self.stride[candidates.level]
        boxes = distances_to_boxes(self.centres(candidates), distances)
        if self.frames.limit is not None:
            boxes = torch.minimum(boxes.clamp(min=0), self.frames.limit[candidates.image])
        return boxes * self.frames.scale[candidates.image]

    def edge_std(self, candidates: Candidates) -> Tensor:
        """Standard deviations ``(N, 4)`` of the edges, ltrb, rescaled."""
        return distribution.std(self.logits(candidates)) * self.bin_widths(candidates)

    def bin_widths(self, candidates: Candidates) -> Tensor:
        """What a bin stands for ``(N, 4)``, ltrb: px of the image that boxes refer to."""
        return self.stride[candidates.level] * self.frames.scale[candidates.image]

    def original_centres(self, candidates: Candidates) -> Tensor:
        """Centres ``(N, 2)`` of the candidates' priors, px of the image that boxes refer to."""
        return self.centres(candidates) * self.frames.scale[candidates.image, :2]

    def limits(self, candidates: Candidates) -> Tensor | None:
        """Width and height twice ``(N, 4)`` of the images that boxes refer to; None: no cut."""
        if self.frames.limit is None:
            return None
        return (self.frames.limit * self.frames.scale)[candidates.image]

    def is_large(self, boxes: Tensor) -> Tensor:
        """Which boxes ``(N,)`` have both sides above the smallest."""
        if self.frames.smallest < 0:
            return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        return (boxes[:, 2:] - boxes[:, :2] > self.frames.smallest).all(1)

    def largest(self, boxes: Tensor, image: Tensor, top: Tensor) -> Tensor:
        """The largest coordinate of each image ``(B,)``: of its large boxes, or ``top``."""
        values = boxes.amax(1).masked_fill(~self.is_large(boxes), -math.inf)
        return top.scatter_reduce(0, image, values, 'amax')

    def farthest(self, candidates: Candidates) -> Tensor:
        """Coordinates ``(N,)`` that no box of a candidate exceeds, known without decoding it."""
        reach = self.centres(candidates) + (self.num_bins - 1) * self.stride[candidates.level]
        if self.frames.limit is not None:
            reach = torch.minimum(reach, self.frames.limit[candidates.image][:, :2])
        return (reach * self.frames.scale[candidates.image][:, :2]).amax(1)
