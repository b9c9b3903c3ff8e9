"""Pretrained weights and teacher checkpoints: whether they are available and fit."""

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

CONNECT_SECONDS = 5  # to connect
ANSWER_SECONDS = 8  # in total: without network, name resolution may exceed the first limit
GONE = (404, 410)  # other codes, for instance for HEAD requests, still come from a live host

HELP = """\
Download it on a machine with network and put it at that path (a proxy in https_proxy is used).
Or train from random weights: add --from-scratch (needs a schedule several times as long)
Without any download: `make demo` trains a small model from random weights."""
LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID')  # set by torchrun, by srun


def check_weights(cfg: Config) -> None:
    """Check that each pretrained checkpoint is on disk or its host responds.

    Args:
        cfg: Config; ``init_cfg=dict(type='Pretrained')`` anywhere in the model, and ``load_from``,
            are checked.

    Raises:
        CheckpointError: If a file is neither on disk nor available. The message names it, its path,
            and ways to train without it.
    """
    wanted = [(path, init['checkpoint']) for path, init in pretrained_parts(cfg.model)]
    if cfg.get('load_from'):
        wanted.append(('load_from', cfg.load_from))
    problems = []
    for part, checkpoint in wanted:
        weights = resolve(checkpoint)
        if weights.cached:
            continue
        reason = unreachable(weights.url) if weights.url else 'the file does not exist'
        if reason is None:
            continue
        lines = [f'the weights {checkpoint} of {part} are not on this machine: {reason}.']
        lines += [f'File: {os.path.basename(weights.path)}']
        lines += [f'From: {weights.url}'] if weights.url else []
        problems.append('\n'.join([*lines, f'Belongs at: {weights.path}']))
    if problems:
        raise CheckpointError('\n'.join([*problems, HELP]))


def unreachable_part(cfg: Config) -> str | None:
    """Report the first pretrained weights of a model that are not available; None if all are.

    Args:
        cfg: Config of the model.
    """
    for _, init in pretrained_parts(cfg.model):
        weights = resolve(init['checkpoint'])
        if weights.cached:
            continue
        reason = unreachable(weights.url) if weights.url else 'the file does not exist'
        if reason is not None:
            return f'{init["checkpoint"]} is not available: {reason}'
    return None


def pretrained_parts(model: Node) -> Iterator[tuple[str, Node]]:
    """Yield the dotted path of each module with pretrained weights, and its ``init_cfg``."""
    for path, node in walk(model, 'model'):
        if path.startswith('model.teacher_config'):  # its checkpoint overrides them
            continue
        inits = node.get('init_cfg')
        for init in inits if isinstance(inits, (list, tuple)) else [inits]:
            if isinstance(init, dict) and init.get('type') in ('Pretrained', 'PretrainedInit'):
                yield path, init


def unreachable(url: str) -> str | None:
    """Return why a file cannot be downloaded; None if its host responds. Proxies are used."""
    if not is_remote(url) or urlsplit(url).scheme not in ('http', 'https'):
        return None  # storage clients have their own protocols
    host = urlsplit(url).hostname
    outcome: list[str | None] = []
    # A daemon thread, because hanging name resolution must not keep the program alive.
    thread = threading.Thread(target=lambda: outcome.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    reason = outcome[0] if outcome else f'no answer in {ANSWER_SECONDS} seconds'
    return reason and f'{host} is unreachable or does not have it ({reason})'


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
    """Check that student and teacher of a ``KnowledgeDistillationDetector`` fit each other.

    Args:
        cfg: Config; other detectors are not checked.

    Raises:
        ConfigError: If the teacher does not exist or has no checkpoint, or the two do not fit
            together.
        CheckpointError: If the checkpoint is not available, or belongs to another config.
    """
    model = cfg.model
    kind = model.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(kind, type) and issubclass(kind, KnowledgeDistillationDetector)):
        return
    for part in ('teacher_config', 'bbox_head'):
        if not model.get(part):
            raise ConfigError(f'model.{part} is missing: add it, as a student needs both.')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):  # as in a runner
        teacher: Any = build_teacher(model.teacher_config)
        check_pair(_student(model), teacher)
    checkpoint = model.get('teacher_ckpt')
    if checkpoint is None:
        raise ConfigError(
            'model.teacher_ckpt is None, so the teacher would have random weights: set it to the '
            'checkpoint of model.teacher_config'
        )
    if _is_had(checkpoint):
        meta = load_teacher(teacher, checkpoint)
        if model.bbox_head.get('loss_kd'):
            _check_names(cfg, checkpoint, meta)


def _is_had(checkpoint: str) -> bool:
    """Whether a checkpoint can be read now: it is on disk, or this process may download it.

    Training needs the file anyway, and only it records the teacher's classes. Of several processes
    on a machine the first one downloads; storage clients are left to training.

    Raises:
        CheckpointError: If the checkpoint is not available.
    """
    weights = resolve(checkpoint)
    if weights.cached:
        return True
    reason = unreachable(weights.url) if weights.url else 'the file does not exist'
    if reason is not None:
        raise CheckpointError(
            f'The weights {checkpoint} of model.teacher_ckpt are not at {weights.path} ({reason}): '
            'train the teacher first, or set its checkpoint with --cfg-options '
            'model.teacher_ckpt=FILE.'
        )
    is_first = all(os.environ.get(name, '0') == '0' for name in LOCAL_RANKS)
    return is_first and weights.url is not None and weights.url.startswith(WEB)


def _student(model: Any) -> SimpleNamespace:
    """The student's neck, head and losses, which use the teacher's outputs; no backbone."""
    head = dict(model.bbox_head, train_cfg=model.get('train_cfg'), test_cfg=model.get('test_cfg'))
    preprocessor = model.get('data_preprocessor')
    return SimpleNamespace(
        bbox_head=MODELS.build(head),
        data_preprocessor=None if preprocessor is None else MODELS.build(preprocessor),
    )


def _check_names(cfg: Config, checkpoint: str, meta: dict[str, Any]) -> None:
    """Check class names: class scores are compared by index, so the order must agree."""
    known = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    for dataset in datasets_of(cfg, 'train'):
        classes = class_names(dataset)
        if known is not None and classes is not None and list(known) != classes:
            raise ConfigError(
                f'The teacher of {checkpoint} was trained on {listed(list(known))}, but the '
                f'dataset of train_dataloader has {listed(classes)}: loss_kd needs the '
                'same classes in the same order.'
            )
