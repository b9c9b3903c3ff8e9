"""Preflight checks of a config, before a model, a dataset or a folder is created.

Runs that would fail after minutes of loading, or after the first epoch, fail at once with a message
that says what is missing and how to get it.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.config import Config

from gfl_det.datasets.columns import CACHE_VARIABLE
from gfl_det.engine.preflight.agreement import (
    check_best_priors,
    check_calibrator,
    check_classes,
    check_pyramid,
    check_teacher,
    check_weights,
)
from gfl_det.engine.preflight.data import check_annotations, check_data, check_metrics, settle_best
from gfl_det.errors import CheckpointError, ConfigError, GFLDetError
from gfl_det.utils.config import check_model

__all__ = ['check_testing', 'check_training']

TRAINING = ('train', 'val')
TESTING = ('test',)


def check_training(cfg: Config) -> None:
    """Check a config before training: work dir, data, classes, weights, teacher.

    Raises:
        GFLDetError: If something is missing or contradictory; one message lists all faults.
    """
    check_model(cfg)
    check_work_dir(cfg.work_dir)
    keep_columns(cfg.work_dir)
    check_classes(cfg, TRAINING)
    check_calibrator(cfg, TRAINING)
    faults: list[GFLDetError] = []
    for check in (lambda: check_data(cfg, TRAINING), lambda: check_weights(cfg)):
        try:
            check()
        except GFLDetError as error:
            faults.append(error)
    if faults:
        raise type(faults[0])('\n\nAlso, '.join(map(str, faults)))
    check_pyramid(cfg)
    check_best_priors(cfg)
    check_teacher(cfg)
    check_annotations(cfg, TRAINING)
    check_metrics(cfg, TRAINING)
    settle_best(cfg)


def check_testing(cfg: Config) -> None:
    """Check a config before testing: checkpoint, work dir, class counts, data.

    Raises:
        GFLDetError: If something is missing or contradictory.
    """
    check_model(cfg)
    check_checkpoint(cfg.load_from)
    check_work_dir(cfg.work_dir)
    keep_columns(cfg.work_dir)
    check_classes(cfg, TESTING)
    check_calibrator(cfg, TESTING)
    check_data(cfg, TESTING)
    check_pyramid(cfg)
    check_annotations(cfg, TESTING)
    check_metrics(cfg, TESTING)


def keep_columns(work_dir: str) -> None:
    """Let large annotation files be read once for all runs: their columns lie beside the work dir.

    ``GFL_DET_CACHE`` names another folder. Other processes of the run inherit it.
    """
    os.environ.setdefault(CACHE_VARIABLE, str(Path(work_dir).absolute().parent / '.annotations'))


def check_checkpoint(checkpoint: str) -> None:
    """Check that a checkpoint file exists; URLs such as ``https://`` are not checked.

    Raises:
        CheckpointError: If the file does not exist; the message lists the files beside it.
    """
    path = Path(checkpoint)
    if '://' in checkpoint or path.is_file():
        return
    folder = path if path.is_dir() else path.parent
    files = sorted(other.name for other in folder.glob('*.pth'))
    there = f'that folder has {", ".join(files)}' if files else 'the folder has no .pth file'
    what = 'is a folder' if path.is_dir() else 'does not exist'
    raise CheckpointError(f'The checkpoint {checkpoint or "(an empty name)"} {what}; {there}.')


def check_work_dir(work_dir: str) -> None:
    """Check that logs and checkpoints can be written, without creating anything.

    Raises:
        ConfigError: If the folder, or its nearest existing parent, is not writable.
    """
    path = Path(work_dir).absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f'The work dir {work_dir} cannot be written because {existing} is not a folder with '
            'write permission: choose another with --work-dir.'
        )
