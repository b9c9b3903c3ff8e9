"""An ncnn pair made from a model of ours, with its batch norms folded by the textbook formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import gfl_det
from gfl_det.inference.foreign_weights import Layer, run_order
from tests.helpers.paths import ROOT

# Published weights and pictures, where a checkout has them beside it.
DATA = ROOT.parent / 'shared' / 'data'
PAIR = [DATA / 'nanodet_plus' / f'nanodet-plus-m_416.{end}' for end in ('param', 'bin')]
COCO = DATA / 'coco_val_part'
FLOAT16_TAG = 0x01306B47


def random_detector(cfg: Config | None = None):
    """NanoDet-Plus-m with weights and statistics that differ from each other everywhere."""
    cfg = cfg or gfl_det.get_config('nanodet-plus-m_416_coco')
    settings = Config(dict(model=cfg.model.to_dict())).model
    settings.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(settings)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return detector.eval()


def folded(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a convolution that does its norm's work too."""
    weight = layer.conv.weight.detach().double()
    if layer.norm is None:
        return weight.numpy(), layer.conv.bias.detach().double().numpy()
    norm = layer.norm
    factor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.detach().double() - norm.running_mean.double() * factor
    return (weight * factor[:, None, None, None]).numpy(), bias.numpy()


def param_line(layer: Layer) -> str:
    conv = layer.conv
    kind = 'ConvolutionDepthWise' if conv.groups > 1 else 'Convolution'
    settings = {
        0: conv.out_channels,
        1: conv.kernel_size[0],
        3: conv.stride[0],
        4: conv.padding[0],
        5: 1,
        6: conv.weight.numel(),
        7: conv.groups,
    }
    words = [f'{key}={value}' for key, value in settings.items()]
    if layer.activation is not None:
        words += ['9=2', f'-23310=1,{layer.activation.negative_slope:e}']
    return f'{kind} {layer.name} 1 1 a b {" ".join(words)}'


def write_pair(detector, folder: Path, name: str, half: bool = False) -> tuple[Path, Path]:
    """Write NAME.param and NAME.bin, in float16 or float32."""
    layers = run_order(detector)
    lines = ['Input data 0 1 data', *(param_line(layer) for layer in layers)]
    param, weights = folder / f'{name}.param', folder / f'{name}.bin'
    param.write_text('\n'.join(['7767517', f'{len(lines)} {len(lines)}', *lines]) + '\n')
    content = b''
    for layer in layers:
        weight, bias = folded(layer)
        stored = weight.astype(np.float16 if half else np.float32).tobytes()
        tag = FLOAT16_TAG if half else 0
        content += tag.to_bytes(4, 'little') + stored + bytes(-len(stored) % 4)
        content += bias.astype(np.float32).tobytes()
    weights.write_bytes(content)
    return param, weights
