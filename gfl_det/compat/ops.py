"""Stand-in for ``mmcv._ext``, so that mmdet works without mmcv's compiled operators; NMS.

Greedy and soft non-maximum suppression are identical to the CPU operators of compiled mmcv. The
arithmetic is float32 in mmcv's order of operations, so a box whose IoU equals the threshold is
decided in the same way (OpenCV and torchvision compare in double precision). The deformable
convolutions are in :mod:`.deform`.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gfl_det.compat import deform
from gfl_det.compat.imports import BUILD_LINE, LITE_LINE
from gfl_det.errors import MissingOpError, SetupError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]

FIRST_BLOCK = 128  # a few objects decide most boxes, so the first block can be small
BLOCK = 256  # candidates per block
CHUNK = 512  # kept boxes per comparison: chunk times block fits a core's cache

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2  # mmcv's codes of the decay methods


class _Boxes(NamedTuple):
    corners: Floats  # (4, N) x1, y1, x2, y2
    areas: Floats  # (N,)

    def take(self, index: slice | list[int] | Bools) -> _Boxes:
        return _Boxes(self.corners[:, index], self.areas[index])


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Keep boxes in order of score and drop boxes that overlap a kept box above the threshold.

    Args:
        boxes: (N, 4) float32, xyxy; any values, empty and inverted boxes included.
        scores: (N,) of any real type and sign.
        iou_threshold: IoU with a kept box above which a box is dropped; two boxes without area have
            IoU 0/0 and are both kept.
        offset: 0, or 1 if a box from x1 to x2 is x2 - x1 + 1 pixels wide.

    Returns:
        (K,) int64, the kept indices, best score first. Equal scores are in the order of
        ``torch.sort``, as in compiled mmcv: lower index first for up to 16 boxes, otherwise
        unspecified but deterministic.

    Raises:
        TypeError: If boxes are not float32, as in compiled mmcv.
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    _require_float32('nms', boxes=boxes)
    if boxes.is_cuda and offset == 0:
        on_device = _torchvision_nms(boxes, scores, iou_threshold)
        if on_device is not None:
            return on_device
    order = scores.detach().cpu().sort(dim=0, descending=True).indices.numpy()
    in_order = boxes.detach().cpu().numpy()[order]
    kept = order[greedy_nms(in_order, iou_threshold, offset)]
    return torch.from_numpy(kept).to(boxes.device)


def greedy_nms(boxes: Floats, iou_threshold: float, offset: int) -> Indices:
    """Suppress among boxes (N, 4) in descending order of score; return ascending kept indices."""
    count = len(boxes)
    kept = _Boxes(np.empty((4, count), np.float32), np.empty(count, np.float32))
    positions = np.empty(count, np.int64)
    num_kept, start, size = 0, 0, FIRST_BLOCK
    scratch = np.empty((3, min(BLOCK, count) * min(CHUNK, count)), np.float32)
    overlaps = _Overlaps(np.float32(iou_threshold), offset, scratch)
    with np.errstate(all='ignore'):  # 0/0 and infinite sides are meaningful here
        candidates = _with_areas(boxes, offset)
        while start < count:
            where = np.arange(start, min(start + size, count))
            start, size = start + size, BLOCK
            block = candidates.take(slice(where[0], where[-1] + 1))
            for first in range(0, num_kept, CHUNK):
                chunk = kept.take(slice(first, min(first + CHUNK, num_kept)))
                free = np.logical_not(overlaps(chunk, block).any(axis=0))
                if not free.all():
                    where, block = where[free], block.take(free)
            chosen = _decide(overlaps(block, block))
            end = num_kept + len(chosen)
            kept.corners[:, num_kept:end], kept.areas[num_kept:end] = block.take(chosen)
            positions[num_kept:end] = where[chosen]
            num_kept = end
    return positions[:num_kept]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft NMS (Bodla et al. 2017, equations 1 to 3), which lowers scores of overlapping boxes.

    Args:
        boxes: (N, 4) float32, xyxy, on the CPU.
        scores: (N,) float32.
        dets: (N, 5) float32, overwritten in place: its first K rows become the boxes and their
            lowered scores, best first.
        iou_threshold: For methods 0 and 1, the IoU from which a score is lowered.
        sigma: For method 2, the width of the Gaussian.
        min_score: Score below which boxes are dropped.
        method: 0 sets the score to zero, 1 multiplies by 1 - IoU, 2 by exp(-IoU^2 / sigma).
        offset: As in :func:`nms`.

    Returns:
        (K,) int64, the index in ``boxes`` of each row of ``dets``. As in mmcv, the first of equal
        scores wins, and the last box takes the place of a dropped one.

    Raises:
        TypeError: If a tensor is not float32, as in compiled mmcv.
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    _require_float32('softnms', boxes=boxes, scores=scores, dets=dets)
    kept_dets, kept = soft_nms(
        boxes.detach().numpy(),
        scores.detach().numpy(),
        _Decay(np.float32(iou_threshold), np.float32(sigma), method),
        min_score,
        offset,
    )
    dets[: len(kept)] = torch.from_numpy(kept_dets)
    return torch.from_numpy(kept)


def soft_nms(
    boxes: Floats, scores: Floats, decay: _Decay, min_score: float, offset: int
) -> tuple[Floats, Indices]:
    """Return rows (K, 5) of boxes and lowered scores, and their indices (K,)."""
    floor = np.float32(min_score)
    with np.errstate(all='ignore'):
        areas = _with_areas(boxes, offset).areas
        rows = np.column_stack((boxes, scores, areas))  # x1, y1, x2, y2, score, area
        index = np.arange(len(rows))
        place = 0
        while place < len(rows):
            best = place + _first_largest(rows[place:, 4])
            rows[[place, best]] = rows[[best, place]]
            index[[place, best]] = index[[best, place]]
            rest = rows[place + 1 :]
            rest[:, 4] *= decay(_iou(rows[place], rest, offset))
            order = _close_gaps(rest[:, 4] < floor)
            end = place + 1 + len(order)
            rows[place + 1 : end], index[place + 1 : end] = rest[order], index[place + 1 :][order]
            rows, index = rows[:end], index[:end]
            place += 1
    return rows[:, :5], index


class _Overlaps(NamedTuple):
    threshold: np.float32
    offset: int
    scratch: Floats  # (3, cells) workspace: new memory per block costs more than the sums

    def __call__(self, first: _Boxes, second: _Boxes) -> Bools:
        """Return a mask (M, N) of pairs whose IoU exceeds the threshold."""
        shape = (first.areas.size, second.areas.size)
        width, height, low = (row[: shape[0] * shape[1]].reshape(shape) for row in self.scratch)
        for side, near, far in ((width, 0, 2), (height, 1, 3)):
            np.minimum(first.corners[far][:, None], second.corners[far], out=side)
            np.maximum(first.corners[near][:, None], second.corners[near], out=low)
            side -= low
            if self.offset:
                side += self.offset
            np.maximum(side, 0, out=side)
        intersection = np.multiply(width, height, out=width)
        union = np.add(first.areas[:, None], second.areas, out=height)
        union -= intersection
        return np.divide(intersection, union, out=width) > self.threshold


class _Decay(NamedTuple):
    iou_threshold: np.float32
    sigma: np.float32
    method: int

    def __call__(self, iou: Floats) -> Floats | np.float32:
        """Return score factors (N,) for boxes that overlap the best one by ``iou``."""
        if self.method == GAUSSIAN:
            # Rounding a double gives the float32 result of the C library's expf; numpy's float32
            # exponential is sometimes off by one unit in the last place.
            return np.exp((-(iou * iou) / self.sigma).astype(np.float64)).astype(np.float32)
        lowered = np.float32(0) if self.method == NAIVE else np.float32(1) - iou
        if self.method in (NAIVE, LINEAR):
            return np.where(iou >= self.iou_threshold, lowered, np.float32(1))
        return np.float32(1)


def _with_areas(boxes: Floats, offset: int) -> _Boxes:
    corners = np.ascontiguousarray(boxes.T)
    areas = (corners[2] - corners[0] + offset) * (corners[3] - corners[1] + offset)
    return _Boxes(corners, areas)


def _decide(overlapping: Bools) -> list[int]:
    """Greedy pass over (N, N) with bit sets: each row of the matrix is an integer."""
    width = (overlapping.shape[1] + 7) // 8
    rows = np.packbits(overlapping, axis=1, bitorder='little').tobytes()
    dropped, kept = 0, []
    for i in range(len(overlapping)):
        if not dropped >> i & 1:
            kept.append(i)
            dropped |= int.from_bytes(rows[i * width : (i + 1) * width], 'little')
    return kept


def _iou(box: Floats, others: Floats, offset: int) -> Floats:
    """IoU (N,) of a row (x1, y1, x2, y2, score, area) with rows (N, 6)."""
    sides = np.minimum(box[2:4], others[:, 2:4]) - np.maximum(box[:2], others[:, :2]) + offset
    sides = np.maximum(sides, 0)
    intersection = sides[:, 0] * sides[:, 1]
    return intersection / (box[5] + others[:, 5] - intersection)


def _first_largest(scores: Floats) -> int:
    """Index of the first largest score; NaN wins only in first place, where it always does."""
    if np.isnan(scores[0]):
        return 0
    return int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))


def _close_gaps(dropped: Bools) -> Indices:
    """Order that fills each dropped place with the last remaining box."""
    alive = np.flatnonzero(~dropped)
    order = np.arange(len(alive))
    order[dropped[: len(alive)]] = alive[alive >= len(alive)][::-1]
    return order


def _torchvision_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor | None:
    """Return torchvision's result; None if it is missing, broken or built without CUDA."""
    try:
        from torchvision.ops import nms as torchvision_nms

        # torchvision compares in double precision: pass the float32 value of the threshold
        return torchvision_nms(boxes, scores.to(boxes.dtype), float(np.float32(iou_threshold)))
    except (ImportError, NotImplementedError, OSError, RuntimeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        return None


def _require_float32(op: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(
                f'{op} computes in float32, as compiled mmcv does, but {name} are {tensor.dtype}: '
                f'pass {name}.float()'
            )


EXTENSION = 'mmcv._ext'


@dataclass(frozen=True)
class MissingOp:
    """Operator missing in the stand-in: layers that use it can be built but not run."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error.

        Raises:
            MissingOpError: Always; the message names the operator and the command that builds it.
        """
        raise MissingOpError(
            f'The operator {self.name} exists only in compiled mmcv, and this mmcv has no '
            f'compiled operators: build it by `{BUILD_LINE}` (needs a C++ compiler and about '
            '15 minutes on two cores).'
        )


class StandInOps(ModuleType):
    """Module ``mmcv._ext`` with NMS and deformable convolution only."""

    nms = staticmethod(nms)
    softnms = staticmethod(softnms)
    deform_conv_forward = staticmethod(deform.deform_conv_forward)
    deform_conv_backward_input = staticmethod(deform.deform_conv_backward_input)
    deform_conv_backward_parameters = staticmethod(deform.deform_conv_backward_parameters)
    modulated_deform_conv_forward = staticmethod(deform.modulated_deform_conv_forward)
    modulated_deform_conv_backward = staticmethod(deform.modulated_deform_conv_backward)

    def __init__(self) -> None:
        super().__init__(EXTENSION, 'Operators of gfl_det that replace compiled ones.')
        self.__spec__ = ModuleSpec(EXTENSION, loader=None, origin=__file__)

    def __getattr__(self, name: str) -> MissingOp:
        if name.startswith('_'):  # not an operator: Python queries __path__ and similar names
            raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')
        return MissingOp(name)


def install() -> None:
    """Install the stand-in unless there are compiled operators, which must then load.

    Raises:
        SetupError: If mmcv is missing or its compiled operators fail to load.
    """
    if EXTENSION in sys.modules:
        return
    if find_spec('mmcv') is None:
        raise SetupError(
            f'gfl_det needs mmcv: run `{LITE_LINE}` (wheels only), or build mmcv with its '
            f'operators by `{BUILD_LINE}`.'
        )
    spec = find_spec(EXTENSION)
    if spec is not None:
        _load_compiled(spec)
        return
    stand_in = StandInOps()
    sys.modules[EXTENSION] = stand_in
    sys.modules['mmcv']._ext = stand_in  # type: ignore[attr-defined]  # as an import would do


def stand_in_is_used() -> bool:
    """Whether ``mmcv._ext`` is the stand-in instead of the compiled module."""
    return isinstance(sys.modules.get(EXTENSION), StandInOps)


def _load_compiled(spec: ModuleSpec) -> None:
    try:
        importlib.import_module(EXTENSION)
    except (ImportError, OSError) as error:
        reason = str(error).partition('\n')[0]
        raise SetupError(
            f'The compiled operators of mmcv in {spec.origin} do not load under torch '
            f'{torch.__version__} ({reason}): rebuild them by `{BUILD_LINE}`, or replace them by '
            f'`pip uninstall -y mmcv; {LITE_LINE}`.'
        ) from error
