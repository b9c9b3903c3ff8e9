"""The weights of a training's checkpoint in a file of their own."""

from __future__ import annotations

import io
from typing import Any, Literal

import torch

from gfl_det.compat.checkpoint import load_file
from gfl_det.errors import CheckpointError
from gfl_det.utils.files import write_whole

Kind = Literal['averaged', 'trained']
AVERAGED = 'ema_state_dict'  # where mmengine's EMAHook keeps the trained ones: it swaps the two
WRAPPED = 'module.'


def extract_weights(checkpoint: str, out: str, kind: Kind | None = None) -> dict[str, Any]:
    """Write the weights of a checkpoint file, with a checksum beside them.

    Args:
        checkpoint: a checkpoint of a training.
        out: the file to write.
        kind: None for those that tests use.

    Returns:
        What is known of them: ``kind``, ``epoch``, ``iter``, and the classes and config if any.

    Raises:
        CheckpointError: There are no such weights in it, or the file cannot be written.
    """
    content = take_weights(load_file(checkpoint, 'cpu'), checkpoint, kind)
    with io.BytesIO() as file:
        torch.save(content, file)
        write_whole(out, file.getvalue(), checksum=True)
    return content['meta']


def take_weights(checkpoint: dict[str, Any], name: str, kind: Kind | None = None) -> dict[str, Any]:
    """Return a checkpoint of weights alone.

    Args:
        checkpoint: of a training.
        name: of its file, for the message of an error.
        kind: None for those that tests use.

    Raises:
        CheckpointError: There are no such weights in it.
    """
    if 'state_dict' not in checkpoint:
        raise CheckpointError(f'{name} is not a training checkpoint: it has no state_dict.')
    has_averages = AVERAGED in checkpoint
    if kind == 'averaged' and not has_averages:
        raise CheckpointError(
            f'{name} has no averaged weights: the training had no EMAHook; leave out --kind.'
        )
    weights = checkpoint['state_dict']
    if kind == 'trained' and has_averages:
        weights = {
            key.removeprefix(WRAPPED): value
            for key, value in checkpoint[AVERAGED].items()
            if key.startswith(WRAPPED)  # not how many steps were averaged
        }
    found = 'averaged' if has_averages and kind != 'trained' else 'trained'
    meta = checkpoint.get('meta', {})
    known = {key: meta.get(key) for key in ('epoch', 'iter', 'dataset_meta', 'cfg') if key in meta}
    return dict(meta=dict(dict(epoch=None, iter=None) | known, kind=found), state_dict=weights)
