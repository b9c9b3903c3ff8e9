"""From a config and a checkpoint to a detector that can be exported, or one sentence why not."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader

from ..calibration.calibrators import DetectionCalibrator
from ..calibration.files import load_calibrator
from ..datasets.annotations import listed
from ..errors import CheckpointError, ConfigError, DataError
from ..heads import GFLHead
from ..preflight import check_checkpoint
from ..preflight.classes import class_names
from ..preflight.walk import datasets_of, walk


def load_detector(cfg: Config, name: str, checkpoint: str | None) -> BaseModel:
    """Build a detector with a GFL head in eval mode, with ``dataset_meta['classes']`` and ``cfg``.

    Args:
        cfg: the config; its pretrained backbone is not fetched.
        name: of the config, for messages.
        checkpoint: weights, file or address; None: random ones.

    Raises:
        ConfigError: the config cannot be exported.
        CheckpointError: the weights are not those of this config.
    """
    refuse_deformable(cfg, name)
    cfg.model.backbone.init_cfg = None
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    detector = MODELS.build(cfg.model)
    head = getattr(detector, 'bbox_head', None)
    if not isinstance(detector, SingleStageDetector) or not isinstance(head, GFLHead):
        raise ConfigError(
            f'{name} has no GFL head to export ({type(head or detector).__name__}): give a config '
            'of gfl_det, or put its head in with tools/swap_head.py.'
        )
    detector = revert_sync_batchnorm(detector).eval().requires_grad_(False)
    meta = _load_weights(detector, name, checkpoint) if checkpoint else {}
    detector.cfg = cfg
    detector.dataset_meta = dict(classes=_classes(cfg, meta, head.num_classes))
    return detector


def refuse_deformable(cfg: Config, name: str) -> None:
    """Refuse deformable convolutions before anything is built.

    Raises:
        ConfigError: the model has some.
    """
    for path, node in walk(cfg.model, 'model'):
        kinds = [str(node.get('type')), *(str(node[key]) for key in ('dcn',) if node.get(key))]
        if any('DCN' in kind or 'DeformConv' in kind for kind in kinds):
            raise ConfigError(
                f'{name} has deformable convolutions ({path}), which ONNX Runtime and OpenVINO '
                'cannot run on processors: export a config without them, such as '
                'gfl_r101_fpn_ms-2x_coco.'
            )


def calibrator_of(detector: BaseModel, path: str | None) -> DetectionCalibrator | None:
    """The calibrator of a file or of the config's ``test_cfg``, if it is for this detector.

    Raises:
        DataError: it was fitted for another head or other classes.
    """
    head = detector.bbox_head
    path = path or (head.test_cfg or {}).get('calibrator')
    if not path:
        return None
    calibrator = load_calibrator(path)
    calibrator.check_score_type(type(head).__name__)
    classes = detector.dataset_meta['classes']
    if calibrator.class_names != classes:
        raise DataError(
            f'{path} was fitted for the classes {listed(calibrator.class_names)}, and this '
            f'detector has {listed(classes)}: fit one for it.'
        )
    return calibrator


def _load_weights(detector: BaseModel, name: str, checkpoint: str) -> dict[str, Any]:
    check_checkpoint(checkpoint)
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    try:
        missing, unknown = detector.load_state_dict(
            content.get('state_dict', content), strict=False
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f'{checkpoint} does not fit {name}: {reason}') from error
    for keys, what in ((missing, 'lacks'), (unknown, 'has besides')):
        if keys:
            raise CheckpointError(
                f'{checkpoint} does not fit {name}: it {what} {listed(list(keys))}; give the '
                'config it was trained with.'
            )
    return dict(content.get('meta') or {})


def _classes(cfg: Config, meta: dict[str, Any], number: int) -> list[str]:
    """Names of the classes: those of the training, else of the config's data set."""
    names = (meta.get('dataset_meta') or {}).get('classes')
    for dataset in datasets_of(cfg, 'test'):
        names = names or class_names(dataset)
    if names is None or len(names) != number:
        raise ConfigError(
            f'The head has {number} classes, and neither checkpoint nor data set names as many: '
            'set metainfo=dict(classes=(...)) of the data set of test_dataloader.'
        )
    return list(names)
