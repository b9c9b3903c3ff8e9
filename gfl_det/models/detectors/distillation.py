"""One-stage detector distilled from the maps of a teacher.

In order: building, checking and loading the teacher; then the detector.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Union

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS as MMDET_MODELS  # unscoped names are mmdet's
from mmdet.structures import SampleList
from mmengine.config import Config, ConfigDict
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from gfl_det.errors import CheckpointError, ConfigError
from gfl_det.registry import MODELS
from gfl_det.utils.config import read_config

TeacherConfig = Union[dict, Config, str, Path]


def build_teacher(config: TeacherConfig) -> nn.Module:
    """Build a teacher with random weights.

    Args:
        config: Config with ``model``, a model dict, or an argument of :func:`..config.read_config`.

    Raises:
        ConfigError: If the config does not exist or has no detector with a dense head.
    """
    read = read_config(str(config)) if isinstance(config, (str, Path)) else config
    settings = ConfigDict(read.get('model', read))
    if 'bbox_head' not in settings:
        raise ConfigError(
            f'model.teacher_config {_name(config)} has no model with a bbox_head: use the config '
            'of a GFL detector'
        )
    return MMDET_MODELS.build(settings)


def _name(config: TeacherConfig) -> str:
    return str(config) if isinstance(config, (str, Path)) else 'as given'


def check_pair(student: Any, teacher: Any) -> None:
    """Check that student and teacher interpret the teacher's maps identically.

    Args:
        student: Detector, or any object with ``bbox_head`` and ``data_preprocessor``.
        teacher: Detector.

    Raises:
        ConfigError: If the teacher predicts no edge distributions, or its classes, levels, strides,
            priors or image preprocessing differ. ``reg_max`` may differ.
    """
    ours, theirs = student.bbox_head, teacher.bbox_head
    if not hasattr(theirs, 'reg_max') or not hasattr(theirs, 'integral'):
        raise ConfigError(
            f'model.teacher_config has the head {type(theirs).__name__}, which predicts no '
            'edge distributions to learn from: use a GFL detector as the teacher'
        )
    if not hasattr(ours, 'loss_ld'):
        raise ConfigError(
            f'model.bbox_head is {type(ours).__name__}, which cannot learn from a teacher: write '
            "type='gfl_det.LDHead'"
        )
    if ours.num_classes != theirs.num_classes:
        raise ConfigError(
            f'model.bbox_head has num_classes={ours.num_classes}, the teacher of '
            f'model.teacher_config {theirs.num_classes}: train the teacher on the same classes'
        )
    if _strides(ours) != _strides(theirs):
        raise ConfigError(
            f'model.bbox_head has {len(_strides(ours))} levels of strides {_strides(ours)}, the '
            f'teacher of model.teacher_config {len(_strides(theirs))} of {_strides(theirs)}: '
            'distances are counted in strides, so give both the same neck and anchor_generator'
        )
    if _centres(ours) != _centres(theirs):
        raise ConfigError(
            'the priors of model.bbox_head and of the teacher have different centre offsets '
            f'({_centres(ours)[0]} and {_centres(theirs)[0]} px on the first level): '
            'give both the same anchor_generator.center_offset'
        )
    _check_images(student.data_preprocessor, teacher.data_preprocessor)


def _strides(head: Any) -> list[tuple[int, int]]:
    return [tuple(stride) for stride in head.prior_generator.strides]


def _centres(head: Any) -> list[tuple[float, float]]:
    boxes = [level[0].tolist() for level in head.prior_generator.base_anchors]
    return [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes]


def _check_images(ours: Any, theirs: Any) -> None:
    for key in ('mean', 'std', '_channel_conversion'):
        mine, other = getattr(ours, key, None), getattr(theirs, key, None)
        if isinstance(mine, Tensor) and isinstance(other, Tensor):
            mine, other = ([round(x, 3) for x in each.flatten().tolist()] for each in (mine, other))
        if mine != other:
            name = 'bgr_to_rgb' if key == '_channel_conversion' else key
            raise ConfigError(
                f'model.data_preprocessor has {name} {mine}, but the teacher was '
                f'trained with {other}: use the data_preprocessor of the teacher'
            )


def load_teacher(teacher: nn.Module, checkpoint: str) -> dict[str, Any]:
    """Load all weights of a teacher.

    Args:
        teacher: Model built from the weights' config.
        checkpoint: File, URL or model name; only tensors and plain values are loaded.

    Returns:
        The checkpoint's ``meta``.

    Raises:
        CheckpointError: If the checkpoint is missing or unsafe, or its keys or shapes differ.
    """
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state = content.get('state_dict', content)
    # Some checkpoints contain the multi-GPU wrapper around the model.
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    try:
        lacking, spare = teacher.load_state_dict(state, strict=False)
        faults = [*_listed('has no', lacking), *_listed('has beside them', spare)]
    except RuntimeError as error:
        expected = teacher.state_dict()
        keys = re.findall(r'size mismatch for ([^:]+):', str(error))
        shapes = [f'{k} ({tuple(state[k].shape)}, not {tuple(expected[k].shape)})' for k in keys]
        faults = _listed('has another shape for', shapes) or [f'fails: {error!s:.200}']
    if faults:
        raise CheckpointError(
            f'The checkpoint {checkpoint} of model.teacher_ckpt does not fit model.teacher_config: '
            f'it {" and ".join(faults)}; use the config that it was trained with.'
        )
    return content.get('meta', {})


def _listed(what: str, keys: Sequence[str]) -> list[str]:
    more = f' and {len(keys) - 1} more' if len(keys) > 1 else ''
    return [f'{what} {keys[0]}{more}'] if keys else []


# Also under mmdet's name, so that its configs only need the prefix.
@MODELS.register_module(
    name=['KnowledgeDistillationDetector', 'KnowledgeDistillationSingleStageDetector']
)
class KnowledgeDistillationDetector(SingleStageDetector):
    """Student that learns from a teacher, with the constructor of mmdet's counterpart.

    The teacher is built when training begins; testing and export need neither its config nor its
    checkpoint. It follows the student's device and dtype but is not a submodule, so state dict and
    optimizer exclude it.

    Args:
        backbone: Config of the student's backbone.
        neck: Config of the student's neck.
        bbox_head: Config of the student's head, an ``LDHead``.
        teacher_config: Teacher config: a dict, a file, the name of a shipped config, or
            ``PACKAGE::FOLDER/NAME.py``.
        teacher_ckpt: Teacher weights; None leaves them random.
        eval_teacher: Keep the teacher in eval mode.
        output_feature: Must be False; accepted for the configs of the authors' release.
        train_cfg: Training config of the head.
        test_cfg: Test config of the head.
        data_preprocessor: Config of the preprocessor, shared by student and teacher.
        init_cfg: Initialisation config of the student.

    Raises:
        ConfigError: If ``output_feature`` is set, or, when training begins, student and teacher do
            not match (:func:`check_pair`).
        CheckpointError: If, when training begins, the teacher's weights do not fit its config.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        bbox_head: dict,
        teacher_config: TeacherConfig,
        teacher_ckpt: str | None = None,
        eval_teacher: bool = True,
        output_feature: bool = False,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if output_feature:
            raise ConfigError(
                'output_feature requests feature imitation, which has no loss here: remove it'
            )
        super().__init__(
            backbone=backbone,
            neck=neck,
            bbox_head=bbox_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.teacher_config = teacher_config
        self.teacher_ckpt = teacher_ckpt
        self.eval_teacher = eval_teacher
        self._teacher: list[nn.Module] = []  # the list keeps torch from registering a submodule

    @property
    def teacher_model(self) -> nn.Module:
        """Return the teacher, built and loaded at first use."""
        if not self._teacher:
            teacher = build_teacher(self.teacher_config)
            check_pair(self, teacher)
            if self.teacher_ckpt is not None:
                load_teacher(teacher, self.teacher_ckpt)
            teacher.requires_grad_(False).train(self.training and not self.eval_teacher)
            self._teacher.append(teacher.to(next(self.parameters()).device))
        return self._teacher[0]

    def init_weights(self) -> None:
        """Initialise the student and build the teacher; runners call it only before training."""
        super().init_weights()
        _ = self.teacher_model

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute all losses of a batch.

        Args:
            batch_inputs: ``(B, 3, H, W)``, preprocessed.
            batch_data_samples: Data samples with gts.

        Returns:
            Losses of the head.
        """
        teacher: Any = self.teacher_model
        with torch.no_grad():
            out_teacher = teacher.bbox_head(teacher.extract_feat(batch_inputs))
        features = self.extract_feat(batch_inputs)
        return self.bbox_head.loss(features, out_teacher, batch_data_samples)

    def train(self, mode: bool = True) -> KnowledgeDistillationDetector:
        """Set the mode of the student, and of the teacher unless ``eval_teacher``."""
        super().train(mode)
        for teacher in self._teacher:
            teacher.train(mode and not self.eval_teacher)
        return self

    def _apply(
        self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any
    ) -> KnowledgeDistillationDetector:
        # to(), cuda(), half() and similar methods all call this.
        for teacher in self._teacher:
            teacher._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)
