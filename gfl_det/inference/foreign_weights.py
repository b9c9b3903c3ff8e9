"""Published NanoDet-Plus weights, converted to self-describing checkpoints.

    gfl-det weights convert NAME.param NAME.bin --out NAME.pth
    gfl-det weights convert NAME.ckpt --out NAME.pth

An ncnn pair has no usable tensor names, but lists its convolutions in execution order, which
matches a forward pass here; the shapes of each pair are compared. The authors' checkpoints have
names, which a table of suffixes translates.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from gfl_det.compat.checkpoint import load_file
from gfl_det.compat.ncnn import NcnnConvolution, read_pair
from gfl_det.engine.preflight.agreement import class_counts, class_names
from gfl_det.errors import CheckpointError, ConfigError
from gfl_det.utils.config import config_names, datasets_of, load_config
from gfl_det.utils.files import write_whole

# PyTorch Lightning's prefixes: the trained model and its exponential moving average.
TRAINED, AVERAGED = 'model.', 'avg_model.'
# Used in training only, and buffers that follow from reg_max.
UNUSED = re.compile(r'aux_(fpn|head)\.|head\.project$|.*\.num_batches_tracked$')
# The authors' names and ours; names not listed here are the same.
RENAMED = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r'^fpn\.', 'neck.'),
        (r'^head\.', 'bbox_head.'),
        (r'^bbox_head\.distribution_project\.', 'bbox_head.integral.'),
        (r'\.extra_lvl_(in|out)_conv\.', r'.extra_\1.'),
        (r'_blocks\.(\d+)\.blocks\.0\.', r'_blocks.\1.'),
        (r'\.(primary_conv|cheap_operation)\.0\.', r'.\1.conv.'),
        (r'\.(primary_conv|cheap_operation)\.1\.', r'.\1.bn.'),
        (r'\.shortcut\.0\.', '.shortcut.depthwise_conv.conv.'),
        (r'\.shortcut\.1\.', '.shortcut.depthwise_conv.bn.'),
        (r'\.shortcut\.2\.', '.shortcut.pointwise_conv.conv.'),
        (r'\.shortcut\.3\.', '.shortcut.pointwise_conv.bn.'),
        (r'\.(depth|point)wise\.', r'.\1wise_conv.conv.'),
        (r'\.dwnorm\.', '.depthwise_conv.bn.'),
        (r'\.pwnorm\.', '.pointwise_conv.bn.'),
    )
)
TRACE_SIZE = 64  # px, one cell of the coarsest level


class Converted(NamedTuple):
    """The written checkpoint."""

    config: str
    kind: str  # 'folded' or 'averaged' or 'trained'
    classes: int


def convert(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    config: str | None = None,
) -> Converted:
    """Convert weights to a checkpoint that includes its config and class names.

    Args:
        files: ncnn pair ``.param`` and ``.bin``, or a checkpoint of the authors' trainer.
        out: Output file.
        config: Config of the network; None: the shipped one whose name the first file name begins
            with.

    Raises:
        CheckpointError: If a file is missing, damaged, or belongs to another network than the
            config.
        ConfigError: If no config was given and no shipped one matches the file name.
    """
    paths = [os.fspath(path) for path in files]
    missing = next((path for path in paths if not os.path.isfile(path)), None)
    if missing is not None:
        raise CheckpointError(f'{missing} is not a file: correct the path.')
    name = config or config_of(paths[0])
    cfg = load_config(name)
    classes = _classes(cfg, name)
    model = _build(cfg)
    if len(paths) == 2 and paths[0].endswith('.param'):
        state, kind = fold(model, read_pair(*paths), paths[0], name), 'folded'
    elif len(paths) == 1 and not paths[0].endswith(('.param', '.bin')):
        state, kind = take_authors(load_file(paths[0], 'cpu'), paths[0])
        check_state(model, state, paths[0], name)
    else:
        raise CheckpointError(
            f'{" ".join(paths)}: give the NAME.param and the NAME.bin of ncnn, in this order, or '
            'one checkpoint.'
        )
    meta = dict(
        cfg=cfg.pretty_text,
        config=name,
        dataset_meta=dict(classes=classes),
        kind=kind,
        epoch=None,
    )
    with io.BytesIO() as file:
        torch.save(dict(meta=meta, state_dict=state), file)
        write_whole(Path(out), file.getvalue())
    return Converted(name, kind, len(classes))


def config_of(path: str) -> str:
    """Find the shipped config that a file name begins with: ``nanodet-plus-m_416_coco``.

    Raises:
        ConfigError: If no config matches.
    """
    stem = Path(path).name
    names = [name for name in config_names() if name.startswith('nanodet')]
    fitting = [name for name in names if stem.startswith(name.removesuffix('_coco'))]
    if not fitting:
        raise ConfigError(
            f'{path} matches no shipped config ({", ".join(names)}): give its --config.'
        )
    return max(fitting, key=len)


def fold(
    model: BaseModel, found: Sequence[NcnnConvolution], path: str, config: str
) -> dict[str, Tensor]:
    """State dict of a model whose batch norms were folded into its convolutions.

    Each norm then only adds the bias: mean 0, variance 1, and a weight that cancels its epsilon.

    Args:
        model: Model of the config.
        found: Convolutions in execution order.
        path: Path of the ``.param`` file, for messages.
        config: Name of the config, for messages.

    Raises:
        CheckpointError: If the convolutions do not match the model.
    """
    expected = run_order(model)
    if len(found) != len(expected):
        raise CheckpointError(
            f'{path} has {len(found)} convolutions, but the model of {config} has {len(expected)}: '
            'give the .param file of that network, or another --config.'
        )
    with torch.no_grad():
        for theirs, ours in zip(found, expected):
            _check_geometry(theirs, ours, path, config)
            ours.conv.weight.copy_(torch.from_numpy(theirs.weight))
            bias = torch.from_numpy(theirs.bias)
            if ours.norm is None:
                assert ours.conv.bias is not None
                ours.conv.bias.copy_(bias)
                continue
            ours.norm.reset_running_stats()
            ours.norm.weight.fill_((1 + ours.norm.eps) ** 0.5)
            ours.norm.bias.copy_(bias)
    return model.state_dict()


class Layer(NamedTuple):
    """A convolution of a model and the layers that follow it directly."""

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    activation: nn.LeakyReLU | None


def run_order(model: BaseModel) -> list[Layer]:
    """A detector's convolutions in the execution order of a forward pass."""
    ran: list[tuple[str, nn.Module]] = []
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU)
    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, kinds):
                handle = module.register_forward_hook(
                    lambda each, *_, name=name: ran.append((name, each))
                )
                hooks.callback(handle.remove)
        weight = next(model.parameters())
        model.eval()
        model.bbox_head(model.neck(model.backbone(weight.new_zeros(1, 3, TRACE_SIZE, TRACE_SIZE))))
    layers: list[Layer] = []
    for name, module in ran:
        if isinstance(module, nn.Conv2d):
            layers.append(Layer(name, module, None, None))
        elif isinstance(module, nn.BatchNorm2d):
            layers[-1] = layers[-1]._replace(norm=module)
        elif isinstance(module, nn.LeakyReLU):
            layers[-1] = layers[-1]._replace(activation=module)
    return layers


def _check_geometry(theirs: NcnnConvolution, ours: Layer, path: str, config: str) -> None:
    conv, activation = ours.conv, ours.activation
    slope = None if activation is None else activation.negative_slope
    inputs = theirs.weight.size // theirs.weight.shape[0] // theirs.weight.shape[2] ** 2
    shape = (len(theirs.weight), inputs * theirs.groups, *theirs.weight.shape[2:])
    pairs = {
        'output channels': (shape[0], conv.out_channels),
        'input channels': (shape[1], conv.in_channels),
        'kernel': (shape[2], conv.kernel_size[0]),
        'stride': (theirs.stride, conv.stride[0]),
        'padding': (theirs.padding, conv.padding[0]),
        'groups': (theirs.groups, conv.groups),
        'slope of its rectifier': (theirs.slope, slope),
    }
    for what, (has, needs) in pairs.items():
        if has is None or needs is None or abs(has - needs) > 1e-6:
            if has is needs:
                continue
            raise CheckpointError(
                f'{path} does not match {config}: {what} of {theirs.name} is {has}, '
                f'but {ours.name} needs {needs}; give another --config (width, number of '
                'classes or reg_max may differ).'
            )


def take_authors(checkpoint: Mapping[str, Any], path: str) -> tuple[dict[str, Tensor], str]:
    """Translate a checkpoint of the authors' trainer to our names, preferring averaged weights.

    Args:
        checkpoint: Loaded content.
        path: Path of the file, for messages.

    Returns:
        The state dict and 'averaged' or 'trained'.

    Raises:
        CheckpointError: If it holds no weights of NanoDet-Plus.
    """
    stored = checkpoint.get('state_dict', checkpoint)
    if not isinstance(stored, Mapping):
        raise CheckpointError(f'The checkpoint {path} holds no weights: give one that does.')
    tensors = {key: value for key, value in stored.items() if isinstance(value, Tensor)}
    averaged = {
        key.removeprefix(AVERAGED): value
        for key, value in tensors.items()
        if key.startswith(AVERAGED)
    }
    trained = {
        key.removeprefix('module.').removeprefix(TRAINED): value
        for key, value in tensors.items()
        if not key.startswith(AVERAGED)
    }
    chosen = averaged or trained
    state = {
        _our_name(key): value.float() if value.is_floating_point() else value
        for key, value in chosen.items()
        if not UNUSED.match(key)
    }
    if not any(key.startswith('bbox_head.') for key in state):
        raise CheckpointError(
            f'The checkpoint {path} holds no weights named head.*: give one of NanoDet-Plus.'
        )
    return state, 'averaged' if averaged else 'trained'


def _our_name(key: str) -> str:
    for theirs, ours in RENAMED:
        key = theirs.sub(ours, key)
    return key


def check_state(model: BaseModel, state: Mapping[str, Tensor], path: str, config: str) -> None:
    """Refuse weights whose names or shapes differ from the model's.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    needed = {
        key: value.shape
        for key, value in model.state_dict().items()
        if not key.endswith('num_batches_tracked')
    }
    cure = 'give the --config that it was trained with'
    for what, keys in (
        ('lacks', needed.keys() - state),
        ('has in addition', state - needed.keys()),
    ):
        if keys:
            raise CheckpointError(
                f'The checkpoint {path} does not fit {config}: it {what} {len(keys)} tensors, such '
                f'as {min(keys)}; {cure}.'
            )
    for key, shape in needed.items():
        if state[key].shape != shape:
            raise CheckpointError(
                f'The checkpoint {path} does not fit {config}: {key} has the shape '
                f'{tuple(state[key].shape)} in place of {tuple(shape)}; {cure}.'
            )


def _build(cfg: Config) -> BaseModel:
    register_all_modules(init_default_scope=False)
    settings = Config(dict(model=cfg.model.to_dict())).model
    settings.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'):
        return MODELS.build(settings)


def _classes(cfg: Config, name: str) -> list[str]:
    """Class names of the config.

    Raises:
        ConfigError: If the number of names in the test dataset differs from the head's classes.
    """
    datasets = datasets_of(cfg, 'test')
    names = class_names(datasets[0]) if datasets else None
    counts = [number for _, number in class_counts(cfg.model)]
    if not names or [len(names)] != counts:
        raise ConfigError(
            f'{name} has a head with {counts} classes, but its test dataset names '
            f'{len(names or ())}: set the classes in dataset.metainfo.'
        )
    return list(map(str, names))
