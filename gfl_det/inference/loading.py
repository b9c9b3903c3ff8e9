"""Loading of detectors for inference, from a checkpoint with or without a config file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import CheckpointLoader

from gfl_det.calibration.apply import (
    check_class_names,
    check_cut_class_names,
    check_interval_class_names,
)
from gfl_det.compat.checkpoint import load_file
from gfl_det.compat.published import NANODET, config_of, fetch, find_published, refuse_unpublished
from gfl_det.datasets.annotations import listed
from gfl_det.engine.preflight import check_checkpoint
from gfl_det.engine.preflight.agreement import class_counts, class_names
from gfl_det.engine.training.checkpoints import best_checkpoint
from gfl_det.errors import CheckpointError, ConfigError, GFLDetError
from gfl_det.inference.foreign_weights import take_authors
from gfl_det.inference.stored_config import stored_config
from gfl_det.utils.config import datasets_of, is_remote, load_config
from gfl_det.utils.faults import move

EXPORTED = ('.onnx', '.xml')  # endings of what gfl-det export writes
NAME = re.compile(r'(?:gfl|ld)_[\w-]+|nanodet-plus-[\w.-]+_coco')  # resembles no path in use
MISMATCH = re.compile(
    r'size mismatch for (\S+): copying a param with shape torch\.Size\((.*?)\) from checkpoint, '
    r'the shape in current model is torch\.Size\((.*?)\)'
)


class Loaded(NamedTuple):
    """A detector in eval mode on its device, with its class names and test pipeline."""

    model: BaseModel
    classes: tuple[str, ...]
    pipeline: list[dict[str, Any]]  # of the test dataset
    level: float | None  # of the intervals


def load_detector(
    checkpoint: str | Path, config: str | Path | Config | None, device: str, settings: dict
) -> Loaded:
    """Build a detector and load its weights.

    Args:
        checkpoint: File, URL, work dir (its best checkpoint is used) or name of published weights
            (``gfl-det models``).
        config: File, name of a shipped config, or a config; None: the one in the checkpoint, or the
            one that belongs to the name.
        device: 'cpu', 'cuda', 'cuda:1' ...
        settings: Values merged into the model's ``test_cfg``; None values are skipped. For
            two-stage detectors ``score_thr`` goes to the second stage, which gives the boxes.

    Raises:
        CheckpointError: If the checkpoint is missing, unsafe, damaged, or does not fit the config.
        ConfigError: If the config cannot be read or built.
        DataError: If a calibrator in the settings is invalid or was fitted for other classes.
        SetupError: If the device does not exist.
    """
    path, foreign = str(checkpoint), False
    if os.path.isdir(path):
        path = str(best_checkpoint(path))
    if not os.path.exists(path) and not is_remote(path) and NAME.fullmatch(path):
        model_of_name = find_published(path)
        if model_of_name is None:
            refuse_unpublished(path)
        else:
            path, foreign = str(fetch(model_of_name)), model_of_name.folder == NANODET
            config = config_of(model_of_name) if config is None else config
    if Path(path).suffix in EXPORTED:
        raise CheckpointError(
            f'{path} is an exported detector: run it with gfl-det infer-many, or in Python as '
            'docs/howto/export.md shows.'
        )
    content = _read(path)
    if foreign:
        content = dict(state_dict=take_authors(content, path)[0])
    meta = content.get('meta') or {}
    if not isinstance(meta, Mapping):
        raise CheckpointError(f'"meta" in {path} is not a dict: give a checkpoint of mmengine.')
    if config is None:
        cfg, name = stored_config(meta, path), 'the config in it'
    elif isinstance(config, Config):
        cfg, name = Config(config.to_dict()), 'the config'
    else:
        cfg, name = load_config(str(config)), str(config)
    model = _build(cfg, settings, name)
    _load_weights(model, content, path, name)
    classes = _classes(meta, cfg)
    test_cfg = cfg.model.get('test_cfg') or {}
    _check_calibrators(test_cfg, classes)
    move(model, device).eval()
    datasets = datasets_of(cfg, 'test')
    if not datasets or 'pipeline' not in datasets[0]:
        raise ConfigError(f'{name} has no test_dataloader with a pipeline: add one.')
    level = test_cfg.get('interval_level')
    return Loaded(model, classes, list(datasets[0]['pipeline']), level)


def build(config: str | Path | Config) -> BaseModel:
    """Build a config's model with random weights or those named by its ``init_cfg``.

    Modules are looked up in the config's own ``default_scope``, regardless of earlier builds.

    Args:
        config: Name of a shipped config, file, ``mmdet::FOLDER/NAME.py``, or config.

    Raises:
        ConfigError: If the config cannot be read or built.

    Example:
        >>> type(build('gfl_r18_fpn_digits').bbox_head).__module__
        'gfl_det.models.heads.gfl_head'
    """
    if isinstance(config, (str, Path)):
        name, cfg = str(config), load_config(str(config))
    else:
        name, cfg = 'the config', Config(config.to_dict())
    if not cfg.get('model'):
        raise ConfigError(f'{name} has no model: add one.')
    return _build_model(cfg, name)


def _build_model(cfg: Config, name: str) -> BaseModel:
    register_all_modules(init_default_scope=False)
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'):
            return MODELS.build(cfg.model)
    except GFLDetError:
        raise
    except Exception as error:  # any constructor in the detector may fail
        reason = str(error).partition('\n')[0]
        raise ConfigError(f'The model of {name} cannot be built: {reason}') from error


def _read(path: str) -> dict[str, Any]:
    if not is_remote(path):
        check_checkpoint(path)
        return load_file(path, 'cpu')
    try:
        return CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    except GFLDetError:
        raise
    except Exception as error:  # each storage backend raises its own types
        raise CheckpointError(f'The checkpoint {path} cannot be fetched: {error}.') from error


def _build(cfg: Config, settings: dict, name: str) -> BaseModel:
    register_all_modules(init_default_scope=False)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    if not cfg.get('model'):
        raise ConfigError(f'{name} has no model: add one.')
    head = cfg.model.get('bbox_head') or {}
    if head.get('type') in ('GFLHead', 'mmdet.GFLHead'):
        head['type'] = 'gfl_det.GFLHead'  # the same boxes, plus edge uncertainty
    test_cfg = dict(cfg.model.get('test_cfg') or {})
    test_cfg.update((key, value) for key, value in settings.items() if value is not None)
    if 'rcnn' in test_cfg and settings.get('score_thr') is not None:
        test_cfg['rcnn'] = {**test_cfg['rcnn'], 'score_thr': settings['score_thr']}
    cfg.model['test_cfg'] = test_cfg
    return revert_sync_batchnorm(_build_model(cfg, name))


def _load_weights(model: BaseModel, content: Mapping[str, Any], path: str, name: str) -> None:
    """Load weights strictly, and report which ones do not fit.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    state = content.get('state_dict', content)
    if not isinstance(state, Mapping) or not any(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise CheckpointError(f'The checkpoint {path} holds no weights: give one that does.')
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        shapes = MISMATCH.findall(str(error))
        if not shapes:
            raise
        key, stored, built = shapes[0]
        raise CheckpointError(
            f'The checkpoint {path} does not fit {name}: {len(shapes)} of its tensors have another '
            f'shape, the first is {key} with {stored} in place of {built}; give the config that it '
            'was trained with.'
        ) from error
    # Batch norms in old checkpoints lack num_batches_tracked, which inference does not need.
    missing = [key for key in found.missing_keys if not key.endswith('num_batches_tracked')]
    if missing or found.unexpected_keys:
        parts = [
            f'{len(keys)} tensors {what} ({listed(keys)})'
            for keys, what in ((missing, 'are missing'), (found.unexpected_keys, 'have no place'))
            if keys
        ]
        raise CheckpointError(
            f'The checkpoint {path} does not fit {name}: {" and ".join(parts)}; give the config '
            'that it was trained with.'
        )


def _classes(meta: Mapping[str, Any], cfg: Config) -> tuple[str, ...]:
    """Class names from the checkpoint, else from the test dataset, else numbered."""
    stored = meta.get('dataset_meta') or {}
    names: Sequence[str] | None = stored.get('classes') or stored.get('CLASSES')
    names = names or meta.get('CLASSES')
    datasets = datasets_of(cfg, 'test')
    if names is None and datasets:
        names = class_names(datasets[0])
    counts = [number for _, number in class_counts(cfg.model)]
    if names is None or (counts and len(names) != counts[-1]):
        names = [f'class {label}' for label in range(counts[-1] if counts else 0)]
    return tuple(map(str, names))


def _check_calibrators(test_cfg: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Refuse calibrators fitted for other classes before anything is predicted.

    Raises:
        DataError: If a file is not a calibrator, or was fitted for other classes.
    """
    if test_cfg.get('calibrator'):
        check_class_names(test_cfg['calibrator'], classes, 'the detector')
    if test_cfg.get('interval_calibrator'):
        check_interval_class_names(test_cfg['interval_calibrator'], classes, 'the detector')
    if test_cfg.get('operating_point'):
        check_cut_class_names(test_cfg['operating_point'], classes, 'the detector')
