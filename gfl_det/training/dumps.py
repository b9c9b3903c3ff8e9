"""A training step in a file of tensors and JSON: what went in, what came out."""

from __future__ import annotations

import io
import json
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from gfl_det.compat.checkpoint import load_file
from gfl_det.errors import CheckpointError
from gfl_det.training.files import AnyPath, write_whole
from gfl_det.training.random_state import State

FORMAT = 'gfl_det step 1'
FIELDS = ('format', 'record', 'inputs', 'samples', 'losses', 'random', 'state_dict')


class Step(NamedTuple):
    """What one forward pass of a training was given and what it gave.

    Attributes:
        inputs: (B, C, H, W) images as the backbone gets them, normalised and padded.
        samples: the truths of each image.
        losses: each term of the loss.
        random: states of the random generators before the pass.
        autocast: the dtype of mixed precision, or None.
    """

    inputs: Tensor
    samples: list[DetDataSample] | None
    losses: dict[str, Tensor]
    random: State
    autocast: str | None

    def image_ids(self) -> list[Any]:
        """Ids of the images in the data set; their positions in the batch where it has none."""
        return [
            _plain(sample.metainfo.get('img_id', index))
            for index, sample in enumerate(self.samples or [])
        ]


class Dump(NamedTuple):
    """A step read back: what it was, and the weights it was computed with."""

    step: Step
    record: dict[str, Any]
    state_dict: dict[str, Tensor]


def write_dump(path: AnyPath, step: Step, record: dict[str, Any], model: nn.Module) -> None:
    """Write a step that went wrong, with the weights of the model.

    Args:
        path: The file.
        step: The step.
        record: What else is known of it, for people; plain values.
        model: Its weights are those of the step.
    """
    samples = [_pack(sample) for sample in step.samples or []]
    record = dict(
        record,
        image_ids=step.image_ids(),
        loss={key: float(value) for key, value in step.losses.items()},
        autocast=step.autocast,
        training_modules=[name for name, module in model.named_modules() if module.training],
        metainfo=[meta for _, meta in samples],
    )
    content = {
        'format': FORMAT,
        'record': json.dumps(record, default=str),
        'inputs': step.inputs.detach().cpu(),
        'samples': [tensors for tensors, _ in samples],
        'losses': {key: value.cpu() for key, value in step.losses.items()},
        'random': step.random,
        'state_dict': {key: value.cpu() for key, value in model.state_dict().items()},
    }
    with io.BytesIO() as file:
        torch.save(content, file)
        write_whole(path, file.getvalue())


def read_dump(path: AnyPath) -> Dump:
    """Read what :func:`write_dump` wrote; nothing in the file is run.

    Raises:
        CheckpointError: The file is missing, damaged or no such file.
    """
    content = load_file(str(path), 'cpu')
    if content.get('format') != FORMAT or set(FIELDS) - content.keys():
        raise CheckpointError(
            f'{path} is no step that the loss guard wrote: give a file from the folder non_finite '
            'of a work dir.'
        )
    try:
        record = json.loads(content['record'])
        samples = [
            _unpack(tensors, meta) for tensors, meta in zip(content['samples'], record['metainfo'])
        ]
        step = Step(
            content['inputs'], samples, content['losses'], content['random'], record['autocast']
        )
    except Exception as error:  # what another program wrote fails in any way at all
        raise CheckpointError(f'{path} is a damaged step of the loss guard: {error!r}.') from error
    return Dump(step, record, content['state_dict'])


def _pack(sample: DetDataSample) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Split a sample into the tensors of its truths and its metainfo in plain values."""
    truths = {}
    for name in ('gt_instances', 'ignored_instances'):
        if name in sample:
            items = sample.get(name).items()
            truths[name] = {key: _tensor(value) for key, value in items if _is_tensor(value)}
    return truths, {key: _plain(value) for key, value in sample.metainfo.items()}


def _unpack(tensors: dict[str, dict[str, Tensor]], meta: dict[str, Any]) -> DetDataSample:
    shapes = {
        key: tuple(value) if isinstance(value, list) else value for key, value in meta.items()
    }
    truths = {key: InstanceData(**values) for key, values in tensors.items()}
    return DetDataSample(metainfo=shapes, **truths)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or isinstance(getattr(value, 'tensor', None), Tensor)


def _tensor(value: Any) -> Tensor:
    """Return a tensor as it is, and that of mmdet's box structures."""
    return (value if isinstance(value, Tensor) else value.tensor).detach().cpu()


def _plain(value: Any) -> Any:
    """Return plain values of numpy's and tuples; others, of no use to a step, as text."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
