"""Distribution calibrators as readable JSON, and the reader of calibrators of either kind."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from os import PathLike
from typing import Any, Union

from gfl_det.calibration.calibrators import DetectionCalibrator
from gfl_det.calibration.distribution import DistributionCalibrator, DistributionSettings
from gfl_det.calibration.files import calibrator_from_json, fitted_from_json, fitted_to_json
from gfl_det.calibration.logistic_model import LogisticModel
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.coco import read_json
from gfl_det.utils.files import write_text

FORMAT = 'gfl_det distribution calibrator'
VERSION = 1

AnyCalibrator = Union[DetectionCalibrator, DistributionCalibrator]


def save_distribution_calibrator(
    calibrator: DistributionCalibrator, path: str | PathLike[str]
) -> None:
    """Write a calibrator; numbers survive to the last digit. The file's folder is made.

    Raises:
        DataError: it cannot be written.
    """
    write_text(path, json.dumps(to_json(calibrator), indent=1, allow_nan=False) + '\n')


def load_any_calibrator(path: str | PathLike[str]) -> AnyCalibrator:
    """Read a calibrator of scores, whichever kind it is.

    Raises:
        DataError: the file is missing, or is no calibrator of a known version.
    """
    content = read_json(path)
    if isinstance(content, dict) and content.get('format') == FORMAT:
        return from_json(content, str(path))
    return calibrator_from_json(content, str(path))


def to_json(calibrator: DistributionCalibrator) -> dict[str, Any]:
    """A calibrator as plain JSON values; each weight stands beside what it weighs."""
    settings = calibrator.settings
    weights = dict(zip(settings.columns, calibrator.model.weights))
    return dict(
        format=FORMAT,
        version=VERSION,
        score_type=calibrator.score_type,
        settings={**asdict(settings), 'groups': list(settings.groups), 'cuts': list(settings.cuts)},
        num_bins=calibrator.num_bins,
        weights=weights,
        offsets=list(calibrator.model.offsets),
        **fitted_to_json(calibrator, with_maps=True),
    )


def from_json(content: dict[str, Any], source: str) -> DistributionCalibrator:
    """The calibrator that :func:`to_json` made.

    Args:
        content: parsed JSON.
        source: its file's name for messages.

    Raises:
        DataError: no calibrator of a known version.
    """
    if content.get('version') != VERSION:
        raise DataError(
            f'{source} is a distribution calibrator of version {content.get("version")!r:.60}, and '
            f'this gfl_det reads version {VERSION}: fit it again.'
        )
    try:
        raw = content['settings']
        settings = DistributionSettings(
            **{**raw, 'groups': tuple(raw['groups']), 'cuts': tuple(raw['cuts'])}
        )
        classes, fitted_on = fitted_from_json(content, None)
        model = LogisticModel(
            tuple(float(content['weights'][name]) for name in settings.columns),
            tuple(map(float, content['offsets'])),
        )
        if not all(map(math.isfinite, (*model.weights, *model.offsets))):
            raise ValueError('a weight is not finite')
        if len(model.offsets) != len(classes):
            raise ValueError('it has not one offset a class')
        score_type, bins = str(content['score_type']), int(content['num_bins'])
        return DistributionCalibrator(settings, score_type, bins, model, classes, fitted_on)
    except (AttributeError, ConfigError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            f'{source} is a damaged calibrator ({type(error).__name__}: {error!s:.200}): '
            'fit it again.'
        ) from error
