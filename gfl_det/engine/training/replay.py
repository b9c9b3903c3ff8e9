"""Replay of a recorded training step: the same losses, and where they became non-finite."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from gfl_det.compat.checkpoint import load_file
from gfl_det.engine.training import random_state
from gfl_det.errors import CheckpointError, ConfigError
from gfl_det.utils.config import walk
from gfl_det.utils.console import few
from gfl_det.utils.faults import move
from gfl_det.utils.files import AnyPath, write_whole

FORMAT = 'gfl_det step 1'
FIELDS = ('format', 'record', 'inputs', 'samples', 'losses', 'random', 'state_dict')

# mmdet's semi-supervised detectors receive a dict of batches, one per branch.
Inputs = Union[Tensor, dict[str, Tensor]]
Samples = Union[list[DetDataSample], dict[str, list[DetDataSample]]]


class DumpedStep(NamedTuple):
    """Inputs and losses of one forward pass of a training.

    Attributes:
        inputs: (B, C, H, W) images as the backbone receives them, normalised and padded; a dict if
            the batch has branches.
        samples: Gt boxes of each image; a dict if the batch has branches.
        losses: Loss terms.
        random: States of the random generators before the pass.
        autocast: Dtype of mixed precision, or None.
    """

    inputs: Inputs
    samples: Samples | None
    losses: dict[str, Tensor]
    random: random_state.State
    autocast: str | None

    @property
    def given(self) -> Samples:
        """The samples, empty if None."""
        return [] if self.samples is None else self.samples

    def image_ids(self) -> list[Any]:
        """Image ids in the dataset, or positions in the batch without ids.

        In a batch with branches, ids are preceded by the name of the branch.
        """
        return in_branches(
            lambda samples: [
                _plain(getattr(sample, 'metainfo', {}).get('img_id', index))
                for index, sample in enumerate(samples)
            ],
            self.given,
        )


class Dump(NamedTuple):
    """A recorded step with the weights it was computed with."""

    step: DumpedStep
    record: dict[str, Any]
    state_dict: dict[str, Tensor]


def each_branch(function: Callable[[Any], Any], batch: Any) -> Any:
    """Apply a function to a batch, or to each branch of a dict."""
    if isinstance(batch, dict):
        return {name: function(part) for name, part in batch.items()}
    return function(batch)


def in_branches(function: Callable[[Any], list[Any]], batch: Any) -> list[Any]:
    """Apply a function that returns a list; entries of branches get the branch's name."""
    found = each_branch(function, batch)
    if isinstance(found, dict):
        return [f'{name} {item}' for name, items in found.items() for item in items]
    return found


def write_dump(path: AnyPath, step: DumpedStep, record: dict[str, Any], model: nn.Module) -> None:
    """Write a failed step with the weights of the model.

    Args:
        path: Output file.
        step: The step.
        record: Further information for people; plain values.
        model: Model with the weights of the step.

    Raises:
        CheckpointError: If the file cannot be written, or the batch holds unsupported types.
    """
    _check(step)
    samples = each_branch(lambda part: [_pack(sample) for sample in part], step.given)
    record = dict(
        record,
        image_ids=step.image_ids(),
        loss={key: float(value) for key, value in step.losses.items()},
        autocast=step.autocast,
        training_modules=[name for name, module in model.named_modules() if module.training],
        metainfo=each_branch(lambda part: [meta for _, meta in part], samples),
    )
    content = {
        'format': FORMAT,
        'record': json.dumps(record, default=str),
        'inputs': each_branch(lambda images: images.detach().cpu(), step.inputs),
        'samples': each_branch(lambda part: [tensors for tensors, _ in part], samples),
        'losses': {key: value.cpu() for key, value in step.losses.items()},
        'random': step.random,
        'state_dict': {key: value.cpu() for key, value in model.state_dict().items()},
    }
    with io.BytesIO() as file:
        torch.save(content, file)
        write_whole(path, file.getvalue())


def read_dump(path: AnyPath) -> Dump:
    """Read the output of :func:`write_dump`; nothing in the file is executed.

    Raises:
        CheckpointError: If the file is missing, damaged or of another kind.
    """
    content = load_file(str(path), 'cpu')
    if content.get('format') != FORMAT or set(FIELDS) - content.keys():
        raise CheckpointError(
            f'{path} was not written by the loss guard: give a file from the folder non_finite '
            'of a work dir.'
        )
    try:
        record = json.loads(content['record'])
        samples = _unpack_all(content['samples'], record['metainfo'])
        step = DumpedStep(
            content['inputs'], samples, content['losses'], content['random'], record['autocast']
        )
    except Exception as error:  # other programs' files may raise anything
        raise CheckpointError(f'{path} is a damaged dump of the loss guard: {error!r}.') from error
    return Dump(step, record, content['state_dict'])


def _check(step: DumpedStep) -> None:
    def parts(batch: Any) -> list[Any]:
        return list(batch.values()) if isinstance(batch, dict) else [batch]

    samples = [sample for part in parts(step.given) for sample in part]
    for expected, found in ((Tensor, parts(step.inputs)), (DetDataSample, samples)):
        for each in found:
            if not isinstance(each, expected):
                raise CheckpointError(
                    f'no file was written, because the batch holds a {type(each).__name__}; files '
                    'support image tensors and DetDataSample only, or a dict of such branches'
                )


def _pack(sample: DetDataSample) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Split a sample into the tensors of its gt boxes and its metainfo in plain values."""
    gts = {}
    for name in ('gt_instances', 'ignored_instances'):
        if name in sample:
            items = sample.get(name).items()
            gts[name] = {key: _tensor(value) for key, value in items if _is_tensor(value)}
    return gts, {key: _plain(value) for key, value in sample.metainfo.items()}


def _unpack_all(tensors: Any, metainfo: Any) -> Any:
    if isinstance(tensors, dict):
        return {name: _unpack_all(part, metainfo[name]) for name, part in tensors.items()}
    return [_unpack(*each) for each in zip(tensors, metainfo)]


def _unpack(tensors: dict[str, dict[str, Tensor]], meta: dict[str, Any]) -> DetDataSample:
    gts = {key: InstanceData(**values) for key, values in tensors.items()}
    return DetDataSample(metainfo={key: _value(each) for key, each in meta.items()}, **gts)


def _value(plain: Any) -> Any:
    """Invert :func:`_plain`: restore tuples of shapes and arrays of transforms."""
    if isinstance(plain, dict):
        return np.array(plain['array'], plain['dtype'])
    return tuple(map(_value, plain)) if isinstance(plain, list) else plain


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or isinstance(getattr(value, 'tensor', None), Tensor)


def _tensor(value: Any) -> Tensor:
    """Return a tensor unchanged, and unwrap mmdet's box structures."""
    return (value if isinstance(value, Tensor) else value.tensor).detach().cpu()


def _plain(value: Any) -> Any:
    """Convert NumPy values and tuples to plain values, and other types to text."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        return {'array': value.tolist(), 'dtype': value.dtype.name}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


class Replay(NamedTuple):
    """Results of a replayed step.

    Attributes:
        losses: Loss terms, to compare with the dump's.
        gradient_norms: Gradient norm per parameter, in order.
        first_bad: First module with a non-finite output, or None.
        bad_weights: Names of non-finite entries in the state dict.
        bad_inputs: Positions (batch or branch) of images with non-finite values.
    """

    losses: dict[str, Tensor]
    gradient_norms: dict[str, float]
    first_bad: str | None
    bad_weights: list[str]
    bad_inputs: list[int] | list[str]


def find_config(dump: str, record: dict[str, Any]) -> str:
    """Return the copy of the config that mmengine left in the work dir of a dump.

    Raises:
        ConfigError: If the copy does not exist.
    """
    name = record.get('config')
    # A name in a data file may only select a file beside it.
    if isinstance(name, str) and name == Path(name).name:
        for folder in list(Path(dump).resolve().parents)[:2]:
            if (folder / name).is_file():
                return str(folder / name)
    raise ConfigError(f'The config {name} of {dump} is not in its work dir: give it with --config.')


def replay(dump: Dump, cfg: Config, device: str = 'cpu') -> Replay:
    """Repeat the forward and backward pass of a dump.

    Args:
        dump: The recorded step.
        cfg: Config of the training.
        device: Device; another one than in training rounds differently.

    Raises:
        CheckpointError: If the config's model differs from the dump's.
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
    """Whether all losses equal those of the dump bit for bit; NaN equals NaN."""
    return all(
        torch.equal(torch.nan_to_num(value.float()), torch.nan_to_num(result.losses[key].float()))
        and torch.equal(value.isnan(), result.losses[key].isnan())
        for key, value in dump.step.losses.items()
    )


def report(dump: Dump, result: Replay) -> list[str]:
    """Describe a replayed step, one fact per line."""
    lines = [f'images: {", ".join(map(str, dump.record["image_ids"]))}']
    lines += [
        f'{key}: {float(value):.9g} then, {float(result.losses[key]):.9g} now'
        for key, value in dump.step.losses.items()
    ]
    if not same_losses(dump, result):
        several = dump.record['world_size'] > 1
        lines.append(
            'differs: losses are divided by sums over all processes, of which this is one'
            if several
            else 'differs: another device, number of threads or version of torch?'
        )
    bad = [name for name, norm in result.gradient_norms.items() if not math.isfinite(norm)]
    finite = [norm for name, norm in result.gradient_norms.items() if name not in bad]
    lines += [
        f'gradients: {len(bad)} of {len(result.gradient_norms)} not finite {few(bad)}'.rstrip(),
        f'largest finite norm of a gradient: {max(finite, default=0.0):g}',
        f'non-finite weights: {few(result.bad_weights) or "none"}',
        f'images with non-finite values: {few(result.bad_inputs) or "none"}',
        f'first module with a non-finite output: {result.first_bad or "none"}',
    ]
    return lines


def _build(cfg: Config, dump: Dump) -> Any:
    settings = copy.deepcopy(cfg.model)
    for _, part in walk(settings, 'model'):
        part.pop('init_cfg', None)  # the dump provides the weights
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        model = MODELS.build(settings)
    try:
        model.load_state_dict(dump.state_dict)
    except RuntimeError as error:
        raise CheckpointError(
            'The model of the config differs from that of the step: give the config of the '
            'training with --config.'
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
