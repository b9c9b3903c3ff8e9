"""Weights that a training starts from, and those of its teacher: whether they are there and fit."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from gfl_det.compat.pretrained import WEB, resolve
from gfl_det.datasets.annotations import listed
from gfl_det.engine.preflight.agreement import class_names
from gfl_det.errors import CheckpointError, ConfigError
from gfl_det.models.detectors import KnowledgeDistillationDetector
from gfl_det.models.detectors.distillation import build_teacher, check_pair, load_teacher
from gfl_det.utils.config import Node, datasets_of, is_remote, walk

CONNECT_SECONDS = 5  # for the connection
ANSWER_SECONDS = 8  # for all of it: a resolver without network may not keep the first limit
GONE = (404, 410)  # other refusals, of HEAD requests for instance, still come from a live host

HELP = """\
Fetch it on a machine with network and put it at that path (a proxy in https_proxy is used).
Or train from random weights: add --from-scratch (needs a schedule several times as long)
Without any download: `make demo` trains a small model from random weights."""
LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID')  # of torchrun, of srun


def check_weights(cfg: Config) -> None:
    """Check that each pretrained checkpoint is on disk, or that its host answers.

    Args:
        cfg: The config; ``init_cfg=dict(type='Pretrained')`` anywhere in the model, ``load_from``.

    Raises:
        CheckpointError: If a file is neither here nor to be had. The message says which, where it
            belongs, and how to do without.
    """
    wanted = [(path, init['checkpoint']) for path, init in pretrained_parts(cfg.model)]
    if cfg.get('load_from'):
        wanted.append(('load_from', cfg.load_from))
    problems = []
    for part, checkpoint in wanted:
        weights = resolve(checkpoint)
        if weights.cached:
            continue
        reason = unreachable(weights.url) if weights.url else 'there is no such file'
        if reason is None:
            continue
        lines = [f'the weights {checkpoint} of {part} are not on this machine: {reason}.']
        lines += [f'File: {os.path.basename(weights.path)}']
        lines += [f'From: {weights.url}'] if weights.url else []
        problems.append('\n'.join([*lines, f'Belongs at: {weights.path}']))
    if problems:
        raise CheckpointError('\n'.join([*problems, HELP]))


def unreachable_part(cfg: Config) -> str | None:
    """Say which pretrained weights of a model are neither here nor to be had; None where all are.

    Args:
        cfg: Of the model.
    """
    for _, init in pretrained_parts(cfg.model):
        weights = resolve(init['checkpoint'])
        if weights.cached:
            continue
        reason = unreachable(weights.url) if weights.url else 'there is no such file'
        if reason is not None:
            return f'{init["checkpoint"]} is not here: {reason}'
    return None


def pretrained_parts(model: Node) -> Iterator[tuple[str, Node]]:
    """Yield the dotted path of each model part with pretrained weights, and its ``init_cfg``."""
    for path, node in walk(model, 'model'):
        if path.startswith('model.teacher_config'):  # its checkpoint replaces what it starts from
            continue
        inits = node.get('init_cfg')
        for init in inits if isinstance(inits, (list, tuple)) else [inits]:
            if isinstance(init, dict) and init.get('type') in ('Pretrained', 'PretrainedInit'):
                yield path, init


def unreachable(url: str) -> str | None:
    """Say why a file cannot be fetched; None where its host answers. Proxies are used."""
    if not is_remote(url) or urlsplit(url).scheme not in ('http', 'https'):
        return None  # storage clients have their own ways
    host = urlsplit(url).hostname
    outcome: list[str | None] = []
    # A daemon: a resolver that hangs must not keep the program from ending.
    thread = threading.Thread(target=lambda: outcome.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    reason = outcome[0] if outcome else f'no answer in {ANSWER_SECONDS} seconds'
    return reason and f'{host} cannot be reached or does not have it ({reason})'


def _ask(url: str) -> str | None:
    request = urllib.request.Request(url, method='HEAD')
    try:
        with urllib.request.build_opener().open(request, timeout=CONNECT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f'HTTP status {error.code}' if error.code in GONE else None
    except (OSError, ValueError) as error:
        return str(getattr(error, 'reason', error))


def check_teacher(cfg: Config) -> None:
    """Check student and teacher of a ``KnowledgeDistillationDetector`` against each other.

    Args:
        cfg: The config; others than of that detector are left alone.

    Raises:
        ConfigError: If there is no such teacher, it has no checkpoint, or the two do not fit
            together.
        CheckpointError: If the checkpoint is not to be had, or is none of the teacher's config.
    """
    model = cfg.model
    kind = model.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(kind, type) and issubclass(kind, KnowledgeDistillationDetector)):
        return
    for part in ('teacher_config', 'bbox_head'):
        if not model.get(part):
            raise ConfigError(f'model.{part} is missing: a student is a detector with a teacher.')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):  # as in a runner
        teacher: Any = build_teacher(model.teacher_config)
        check_pair(_student(model), teacher)
    checkpoint = model.get('teacher_ckpt')
    if checkpoint is None:
        raise ConfigError(
            'model.teacher_ckpt is None, so the teacher would have random weights: name the '
            'checkpoint of model.teacher_config'
        )
    if _is_had(checkpoint):
        meta = load_teacher(teacher, checkpoint)
        if model.bbox_head.get('loss_kd'):
            _check_names(cfg, checkpoint, meta)


def _is_had(checkpoint: str) -> bool:
    """Whether a checkpoint can be read now: it is here, or this process may fetch it.

    The training needs the file anyway, and what it was trained on stands nowhere else. Of several
    processes of a machine the first fetches it; what storage clients fetch is left to the training.

    Raises:
        CheckpointError: If it is not to be had.
    """
    weights = resolve(checkpoint)
    if weights.cached:
        return True
    reason = unreachable(weights.url) if weights.url else 'there is no such file'
    if reason is not None:
        raise CheckpointError(
            f'The weights {checkpoint} of model.teacher_ckpt are not at {weights.path} ({reason}): '
            'train the teacher first, or name its checkpoint with --cfg-options '
            'model.teacher_ckpt=FILE.'
        )
    is_first = all(os.environ.get(name, '0') == '0' for name in LOCAL_RANKS)
    return is_first and weights.url is not None and weights.url.startswith(WEB)


def _student(model: Any) -> SimpleNamespace:
    """The parts of a student that meet the teacher's maps, without its backbone."""
    head = dict(model.bbox_head, train_cfg=model.get('train_cfg'), test_cfg=model.get('test_cfg'))
    preprocessor = model.get('data_preprocessor')
    return SimpleNamespace(
        bbox_head=MODELS.build(head),
        data_preprocessor=None if preprocessor is None else MODELS.build(preprocessor),
    )


def _check_names(cfg: Config, checkpoint: str, meta: dict[str, Any]) -> None:
    """Class by class the student compares scores, so the names must stand in the same order."""
    known = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    for dataset in datasets_of(cfg, 'train'):
        classes = class_names(dataset)
        if known is not None and classes is not None and list(known) != classes:
            raise ConfigError(
                f'The teacher of {checkpoint} was trained on the classes {listed(list(known))}, '
                f'the dataset of train_dataloader has {listed(classes)}: loss_kd needs the same in '
                'the same order.'
            )
