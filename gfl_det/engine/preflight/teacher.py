"""The teacher of a distillation: whether it fits the student, and its weights are there."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from gfl_det.compat.pretrained import WEB, resolve
from gfl_det.datasets.annotations import listed
from gfl_det.engine.preflight.classes import class_names
from gfl_det.engine.preflight.starting_weights import unreachable
from gfl_det.errors import CheckpointError, ConfigError
from gfl_det.models.detectors import KnowledgeDistillationDetector
from gfl_det.models.detectors.distillation import build_teacher, check_pair, load_teacher
from gfl_det.utils.config import datasets_of

LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID')  # of torchrun, of srun


def check_teacher(cfg: Config) -> None:
    """Check student and teacher of a ``KnowledgeDistillationDetector`` against each other.

    Args:
        cfg: The config; others than of that detector are left alone.

    Raises:
        ConfigError: There is no such teacher, it has no checkpoint, or the two do not fit together.
        CheckpointError: The checkpoint is not to be had, or is none of the teacher's config.
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
        CheckpointError: It is not to be had.
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
