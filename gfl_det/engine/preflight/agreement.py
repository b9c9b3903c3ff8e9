"""Agreement of a config with its weights, and within itself: classes, calibrators, strides.

A head with wrong strides misplaces every prior, and levels without a stride are ignored: the
detector trains, but poorly. Pretrained weights and teacher checkpoints must be available and fit.
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from mmdet.models.dense_heads import ATSSHead
from mmdet.models.dense_heads import GFLHead as MMDetGFLHead
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from gfl_det.calibration.apply import (
    check_class_names,
    check_cut_class_names,
    check_interval_class_names,
)
from gfl_det.compat.pretrained import WEB, resolve
from gfl_det.datasets.annotations import listed
from gfl_det.errors import CheckpointError, ConfigError, GFLDetError
from gfl_det.models.detectors import KnowledgeDistillationDetector
from gfl_det.models.detectors.distillation import build_teacher, check_pair, load_teacher
from gfl_det.models.heads import GFLHead
from gfl_det.registry import DATASETS
from gfl_det.swap.pyramid import declared_strides, measure_strides
from gfl_det.utils.config import Node, datasets_of, is_remote, walk

# Modules whose num_classes does not count the detector's classes.
OTHER_COUNTS = ('backbone', 'rpn_head', 'semantic_head')
HEADS = (GFLHead, MMDetGFLHead, ATSSHead)  # other heads may use priors independent of the features


def check_classes(cfg: Config, splits: Sequence[str]) -> None:
    """Compare each ``num_classes`` in the model with the classes of each dataset.

    Args:
        cfg: The config.
        splits: Splits that the run uses: ``train``, ``val``, ``test``.

    Raises:
        ConfigError: If a count differs (labels would exceed the head's outputs, or outputs would
            not be trained), or two datasets list different classes.
    """
    lists = [
        (f'{split}_dataloader', classes)
        for split in splits
        for dataset in datasets_of(cfg, split)
        if (classes := class_names(dataset)) is not None
    ]
    for where, classes in lists:
        for path, number in class_counts(cfg.model):
            if number != len(classes):
                raise ConfigError(
                    f'{path}.num_classes is {number}, but the dataset of {where} has '
                    f'{len(classes)} classes {listed(classes)}: set num_classes={len(classes)}, or '
                    f'metainfo=dict(classes=(...)) of the dataset to the {number} intended classes.'
                )
    for where, classes in lists[1:]:
        first, expected = lists[0]
        if classes != expected:
            raise ConfigError(
                f'The dataset of {first} has the classes {listed(expected)}, that of {where} has '
                f'{listed(classes)}: give both the same metainfo=dict(classes=(...)).'
            )


def check_calibrator(cfg: Config, splits: Sequence[str]) -> None:
    """Compare the classes of the model's calibrators with those of each dataset.

    Raises:
        DataError: If the classes differ, or a file is not a calibrator.
    """
    checks = dict(
        calibrator=check_class_names,
        interval_calibrator=check_interval_class_names,
        operating_point=check_cut_class_names,
    )
    datasets = [dataset for split in splits for dataset in datasets_of(cfg, split)]
    for _, node in walk(cfg.model, 'model'):
        for key, check in checks.items():
            path = node.get(key)
            if not isinstance(path, str):
                continue
            for dataset in datasets:
                classes = class_names(dataset)
                if classes is not None:
                    check(path, classes)


def class_counts(model: Any) -> Iterator[tuple[str, int]]:
    """Yield the path and value of each ``num_classes`` that counts the detector's classes."""
    for path, node in walk(model, 'model'):
        if isinstance(node.get('num_classes'), int) and not set(path.split('.')) & set(
            OTHER_COUNTS
        ):
            yield path, node['num_classes']


def class_names(dataset: dict[str, Any]) -> list[str] | None:
    """Return the classes a dataset will have: from its metainfo, else its type's own.

    Returns None if only the built dataset knows them.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset.get('type')
        kind = DATASETS.get(kind) if isinstance(kind, str) else kind
        classes = getattr(kind, 'METAINFO', {}).get('classes')
    if isinstance(classes, str):  # mmengine reads a str as a file name
        path = Path(classes)
        return path.read_text().splitlines() if path.is_file() else None
    return None if classes is None else list(classes)


def check_pyramid(cfg: Config) -> None:
    """Compare the strides in a head's config with those of backbone and neck.

    Raises:
        ConfigError: If they differ in number or value.
    """
    head = cfg.model.get('bbox_head')
    if not isinstance(head, dict) or not _is_checked(head.get('type')):
        return
    declared = declared_strides(head)
    if not declared:
        return
    try:
        measured = measure_strides(cfg.model)
    except GFLDetError:  # building the model reports the error
        return
    if declared == measured:
        return
    raise ConfigError(
        f'The strides of model.bbox_head are {declared}, but backbone and neck have '
        f'{len(measured)} levels of strides {measured}: set strides={measured}, or give '
        f'{len(declared)} levels (out_indices of the backbone, start_level and num_outs of the '
        'neck).'
    )


def check_best_priors(cfg: Config) -> None:
    """Check that no gt is assigned to a prior outside it where the head has a centerness.

    Raises:
        ConfigError: If ``with_best_prior`` meets the loss of mmdet's ATSSHead.
    """
    head = cfg.model.get('bbox_head')
    settings = cfg.model.get('train_cfg') or (head or {}).get('train_cfg') or {}
    if not (settings.get('assigner') or {}).get('with_best_prior') or not isinstance(head, dict):
        return
    kind = head.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    losses = ('loss_by_feat', 'loss_by_feat_single')  # VFNetHead keeps the second alone
    if all(getattr(kind, name, None) is getattr(ATSSHead, name) for name in losses):
        raise ConfigError(
            f'model.train_cfg.assigner.with_best_prior=True gives boxes priors outside them, where '
            f'the centerness of {head["type"]} has no value: set it to False, or take GFLHead.'
        )


def _is_checked(kind: object) -> bool:
    known = MODELS.get(kind) if isinstance(kind, str) else kind
    return isinstance(known, type) and issubclass(known, HEADS)


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
