"""Optimization for inference: the same boxes from faster arithmetic.

Batch norms are folded into the preceding convolutions, tensors use channels-last memory, large 3x3
convolutions use fewer products, the weights of the others are packed for the kernels (both
:mod:`..ops.convolutions`), and everything optionally runs in half precision.
docs/results/benchmarks.md lists the gain of each step.
"""

from __future__ import annotations

import copy
import shutil
from collections import Counter

import torch
from mmengine.model import BaseModel, BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gfl_det.compat.environment import require_bfloat16
from gfl_det.engine.amp import CastInput
from gfl_det.errors import SetupError
from gfl_det.ops.convolutions import use_packed, use_winograd

HALF = (torch.bfloat16, torch.float16)


def optimize_for_inference(
    model: BaseModel, dtype: torch.dtype = torch.float32, compile: bool = False
) -> BaseModel:
    """Return a copy of a detector that predicts faster.

    Args:
        model: Detector with a backbone, already on its device; it is not modified.
        dtype: Float32, or bfloat16 or float16 where the device supports it; boxes and scores are
            float32 in any case.
        compile: Pass backbone, neck and head to ``torch.compile``; the first images of each size
            then take long. Needs a C++ compiler on a CPU.

    Returns:
        The copy in eval mode; it cannot be trained.

    Raises:
        SetupError: If the device does not support this dtype, or no compiler exists.
    """
    device = next(model.parameters()).device
    _check(device, dtype, compile)
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(fast)
    if device.type == 'cpu' and dtype == torch.float32:
        use_winograd(fast, frozen=True)
    fast.to(memory_format=torch.channels_last)
    network = [child for name, child in fast.named_children() if name != 'data_preprocessor']
    for child in network:
        child.to(dtype)
    fast.backbone.register_forward_pre_hook(CastInput(dtype))
    if compile:
        for child in network:
            child.compile()
    elif device.type == 'cpu':
        use_packed(fast)
    return fast


def _check(device: torch.device, dtype: torch.dtype, compile: bool) -> None:
    if dtype not in (torch.float32, *HALF):
        raise SetupError(f'dtype must be float32, bfloat16 or float16, not {dtype}.')
    if device.type == 'cpu' and dtype == torch.float16:
        raise SetupError('CPUs have no fast float16: use bfloat16 or float32.')
    if device.type == 'cpu' and dtype == torch.bfloat16:
        require_bfloat16('Inference in bfloat16', 'optimize for float32')
    if device.type == 'cuda' and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        raise SetupError('This GPU has no bfloat16: use float16.')
    if compile and device.type == 'cpu' and not any(map(shutil.which, ('g++', 'clang++', 'cl'))):
        raise SetupError('torch.compile needs a C++ compiler: install g++, or leave compile=False.')


def fold_batch_norms(model: nn.Module) -> None:
    """Fold each batch norm into the preceding convolution, in place, for inference.

    Skipped are convolutions that are used in several places, such as in heads shared between
    levels, and norms that do not directly follow their convolution.
    """
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in zip(children, children[1:]):
            if (
                type(conv) is nn.Conv2d
                and isinstance(norm, _BatchNorm)
                and norm.num_features == conv.out_channels
                and norm.running_mean is not None
                and uses[id(conv)] == uses[id(norm)] == 1
                and _follows(parent)
            ):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())


def _follows(parent: nn.Module) -> bool:
    """Whether the parent applies norm right after convolution; mmcv's ConvModule may not."""
    order = getattr(parent, 'order', ('conv', 'norm', 'act'))
    return 'norm' in order and order.index('norm') == order.index('conv') + 1


def optimize_model(runner: Runner, dtype: str) -> None:
    """Replace a runner's model by its copy from :func:`gfl_det.optimize_for_inference`.

    Args:
        runner: Runner for testing; its checkpoint is loaded.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """
    runner.load_or_resume()
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    kind = getattr(torch, dtype)
    if isinstance(model, BaseTTAModel):
        model.module = optimize_for_inference(model.module, kind)
    else:
        model = optimize_for_inference(model, kind)
    runner.model = model
