"""A one-stage detector that trains with the maps of a teacher.

First the teacher: built, checked against its student, loaded; then the detector with both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Union

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS as MMDET_MODELS  # a bare name is mmdet's, as in a runner
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
        config: a config with ``model``, the model's dict, or what :func:`..config.read_config`
            takes.

    Raises:
        ConfigError: there is no such config, or it describes no detector with a dense head.
    """
    read = read_config(str(config)) if isinstance(config, (str, Path)) else config
    settings = ConfigDict(read.get('model', read))
    if 'bbox_head' not in settings:
        raise ConfigError(
            f'model.teacher_config {_name(config)} has no model with a bbox_head: name the config '
            'of a GFL detector'
        )
    return MMDET_MODELS.build(settings)


def _name(config: TeacherConfig) -> str:
    return str(config) if isinstance(config, (str, Path)) else 'as given'


def check_pair(student: Any, teacher: Any) -> None:
    """Check that the maps of a teacher mean to its student what they mean to itself.

    Args:
        student: a detector, or anything with ``bbox_head`` and ``data_preprocessor``.
        teacher: a detector.

    Raises:
        ConfigError: the teacher predicts no edge distributions, or its classes, levels, strides,
            priors or the preparation of its images differ. ``reg_max`` may.
    """
    ours, theirs = student.bbox_head, teacher.bbox_head
    if not hasattr(theirs, 'reg_max') or not hasattr(theirs, 'integral'):
        raise ConfigError(
            f'model.teacher_config has the head {type(theirs).__name__}, which predicts no '
            'distributions of edges to learn from: take a GFL detector as the teacher'
        )
    if not hasattr(ours, 'loss_ld'):
        raise ConfigError(
            f'model.bbox_head is {type(ours).__name__}, which does not learn from a teacher: write '
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
            'the priors of model.bbox_head and of the teacher have their centres at other places '
            f'of a cell ({_centres(ours)[0]} and {_centres(theirs)[0]} px on the first level): '
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
                f'model.data_preprocessor gives images with {name} {mine}, but the teacher was '
                f'made for {other}: give the student the data_preprocessor of the teacher'
            )


def load_teacher(teacher: nn.Module, checkpoint: str) -> dict[str, Any]:
    """Load the weights of a teacher, all of them.

    Args:
        teacher: of the weights' config.
        checkpoint: a file, an address or a name; loaded as tensors and plain values alone.

    Returns:
        The checkpoint's ``meta``.

    Raises:
        CheckpointError: the checkpoint is missing or unsafe, or keys or shapes differ.
    """
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state = content.get('state_dict', content)
    # Some writers saved the wrapper of several GPUs around the model.
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
            f'it {" and ".join(faults)}; name the config that it was trained with.'
        )
    return content.get('meta', {})


def _listed(what: str, keys: Sequence[str]) -> list[str]:
    more = f' and {len(keys) - 1} more' if len(keys) > 1 else ''
    return [f'{what} {keys[0]}{more}'] if keys else []


# mmdet's name as well, so that its configs need nothing but the prefix.
@MODELS.register_module(
    name=['KnowledgeDistillationDetector', 'KnowledgeDistillationSingleStageDetector']
)
class KnowledgeDistillationDetector(SingleStageDetector):
    """A student that learns from a teacher, with the constructor of mmdet's counterpart.

    The teacher is built when training begins; testing and export need neither its config nor its
    checkpoint. It moves and changes type with the student, but is none of its modules: neither the
    state dict nor an optimizer sees it.

    Args:
        backbone: config of the student's backbone.
        neck: config of its neck.
        bbox_head: config of its head, an ``LDHead``.
        teacher_config: the teacher's config: a dict, a file, the name of a shipped config, or
            ``PACKAGE::FOLDER/NAME.py``.
        teacher_ckpt: the teacher's weights; None leaves them random.
        eval_teacher: keep the teacher in eval mode.
        output_feature: must be False; kept so that the configs of the authors' release fit.
        train_cfg: of the head.
        test_cfg: of the head.
        data_preprocessor: config of the student's; the teacher sees what it gives.
        init_cfg: initialisation of the student.

    Raises:
        ConfigError: ``output_feature`` is set; when training begins, student and teacher do not
            fit together (:func:`check_pair`).
        CheckpointError: when training begins, the teacher's weights do not fit its config.
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
                'output_feature asks for imitation of features, which there is no loss for here: '
                'remove it'
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
        self._teacher: list[nn.Module] = []  # in a list torch takes it for no submodule

    @property
    def teacher_model(self) -> nn.Module:
        """The teacher; built and loaded when it is first asked for."""
        if not self._teacher:
            teacher = build_teacher(self.teacher_config)
            check_pair(self, teacher)
            if self.teacher_ckpt is not None:
                load_teacher(teacher, self.teacher_ckpt)
            teacher.requires_grad_(False).train(self.training and not self.eval_teacher)
            self._teacher.append(teacher.to(next(self.parameters()).device))
        return self._teacher[0]

    def init_weights(self) -> None:
        """Initialise the student; a runner does so before training alone, so build the teacher."""
        super().init_weights()
        _ = self.teacher_model

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """All losses of a batch.

        Args:
            batch_inputs: ``(B, 3, H, W)``, preprocessed.
            batch_data_samples: the gts.

        Returns:
            The losses of the head.
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
        # What to(), cuda(), half() and their kin come down to.
        for teacher in self._teacher:
            teacher._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)
