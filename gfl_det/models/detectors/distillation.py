"""A one-stage detector that trains with the maps of a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Union

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.structures import SampleList
from mmengine.config import Config
from torch import Tensor, nn

from gfl_det.errors import ConfigError
from gfl_det.models.detectors.teacher import build_teacher, check_pair, load_teacher
from gfl_det.registry import MODELS

TeacherConfig = Union[dict, Config, str, Path]


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
            fit together (:func:`.teacher.check_pair`).
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
            batch_data_samples: the truths.

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
