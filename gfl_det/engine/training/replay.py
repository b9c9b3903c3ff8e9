"""A training step done again from a dump: the same losses, and where they went wrong."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from gfl_det.engine.training import random_state
from gfl_det.engine.training.dumps import Dump, each_branch, in_branches
from gfl_det.errors import CheckpointError, ConfigError
from gfl_det.utils.building import move
from gfl_det.utils.config import walk
from gfl_det.utils.console import few


class Replay(NamedTuple):
    """What a repeated step gave.

    Attributes:
        losses: each term, to compare with the dump's.
        gradient_norms: of each parameter, in order.
        first_bad: the first module whose output was not finite, or None.
        bad_weights: entries of the state dict that are not finite.
        bad_inputs: positions in the batch, or branch, of images with values that are not finite.
    """

    losses: dict[str, Tensor]
    gradient_norms: dict[str, float]
    first_bad: str | None
    bad_weights: list[str]
    bad_inputs: list[int] | list[str]


def find_config(dump: str, record: dict[str, Any]) -> str:
    """Return the copy of the config that mmengine left in the work dir of a dump.

    Raises:
        ConfigError: It is not there.
    """
    name = record.get('config')
    # A name in a data file chooses a file beside it, and no other.
    if isinstance(name, str) and name == Path(name).name:
        for folder in list(Path(dump).resolve().parents)[:2]:
            if (folder / name).is_file():
                return str(folder / name)
    raise ConfigError(f'The config {name} of {dump} is not in its work dir: name it by --config.')


def replay(dump: Dump, cfg: Config, device: str = 'cpu') -> Replay:
    """Do the forward and backward pass of a dump again.

    Args:
        dump: The step.
        cfg: The config of the training.
        device: Where to compute. Elsewhere than where the step was done, rounding differs.

    Raises:
        CheckpointError: The config's model is another than the dump's.
    """
    model: Any = move(_build(cfg, dump), device)
    step = dump.step
    first_bad: list[str] = []
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(_watch(name, first_bad))
    dtype = getattr(torch, step.autocast) if step.autocast else None
    kind = torch.device(device).type
    inputs = each_branch(lambda images: images.to(device), step.inputs)
    samples = each_branch(lambda part: [each.to(device) for each in part], step.given)
    random_state.restore(step.random)
    with torch.autocast(kind, dtype=dtype) if dtype else nullcontext():
        losses = model(inputs, samples, mode='loss')
    total, terms = model.parse_losses(losses)
    total.backward()
    norms = {
        name: float(torch.linalg.vector_norm(parameter.grad))
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Replay(
        losses={key: terms[key].detach().cpu() for key in step.losses},
        gradient_norms=norms,
        first_bad=first_bad[0] if first_bad else None,
        bad_weights=[key for key, value in dump.state_dict.items() if not _finite(value)],
        bad_inputs=in_branches(
            lambda images: [index for index, image in enumerate(images) if not _finite(image)],
            step.inputs,
        ),
    )


def same_losses(dump: Dump, result: Replay) -> bool:
    """Tell whether every loss is the one of the dump, to the last bit; NaN equals NaN."""
    return all(
        torch.equal(torch.nan_to_num(value.float()), torch.nan_to_num(result.losses[key].float()))
        and torch.equal(value.isnan(), result.losses[key].isnan())
        for key, value in dump.step.losses.items()
    )


def report(dump: Dump, result: Replay) -> list[str]:
    """Describe a repeated step, one fact per line."""
    lines = [f'images: {", ".join(map(str, dump.record["image_ids"]))}']
    lines += [
        f'{key}: {float(value):.9g} then, {float(result.losses[key]):.9g} now'
        for key, value in dump.step.losses.items()
    ]
    if not same_losses(dump, result):
        several = dump.record['world_size'] > 1
        lines.append(
            'not the same: losses are divided by sums over all processes, of which this is one'
            if several
            else 'not the same: another device, number of threads or version of torch?'
        )
    bad = [name for name, norm in result.gradient_norms.items() if not math.isfinite(norm)]
    finite = [norm for name, norm in result.gradient_norms.items() if name not in bad]
    lines += [
        f'gradients: {len(bad)} of {len(result.gradient_norms)} not finite {few(bad)}'.rstrip(),
        f'largest finite norm of a gradient: {max(finite, default=0.0):g}',
        f'weights that are not finite: {few(result.bad_weights) or "none"}',
        f'images with values that are not finite: {few(result.bad_inputs) or "none"}',
        f'first module with an output that is not finite: {result.first_bad or "none"}',
    ]
    return lines


def _build(cfg: Config, dump: Dump) -> Any:
    settings = copy.deepcopy(cfg.model)
    for _, part in walk(settings, 'model'):
        part.pop('init_cfg', None)  # the weights come from the dump
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        model = MODELS.build(settings)
    try:
        model.load_state_dict(dump.state_dict)
    except RuntimeError as error:
        raise CheckpointError(
            'The step was done with another model than the config has: name the config of the '
            'training by --config.'
        ) from error
    training = set(dump.record['training_modules'])
    for name, module in model.named_modules():
        module.training = name in training
    return model


def _watch(name: str, found: list[str]) -> Any:
    def look(module: nn.Module, args: Any, output: Any) -> None:
        if not found and not all(_finite(each) for each in _tensors(output)):
            found.append(name)

    return look


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return (
        [tensor for each in values for tensor in _tensors(each)]
        if isinstance(value, (dict, list, tuple))
        else []
    )


def _finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())
