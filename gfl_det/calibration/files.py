"""Calibrators as readable JSON: no pickle, a format, a version, and their data's fingerprint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from os import PathLike
from typing import Any, Union

from gfl_det.calibration.calibrators import (
    ClassMap,
    DetectionCalibrator,
    FitSource,
    FittedCalibrator,
    Settings,
)
from gfl_det.calibration.distribution import DistributionCalibrator, DistributionSettings
from gfl_det.calibration.intervals import IntervalCalibrator
from gfl_det.calibration.logistic import LogisticModel
from gfl_det.calibration.maps import map_from_json, map_to_json
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import read_json
from gfl_det.utils.files import write_text

FORMAT = 'gfl_det detection calibrator'
VERSION = 1


def save_calibrator(calibrator: DetectionCalibrator, path: str | PathLike[str]) -> None:
    """Write a calibrator; numbers survive to the last digit.

    Args:
        calibrator: a fitted one.
        path: of the JSON file; its folder is made.

    Raises:
        DataError: it cannot be written.
    """
    content = json.dumps(calibrator_to_json(calibrator), indent=1, allow_nan=False)
    write_text(path, content + '\n')


def load_calibrator(path: str | PathLike[str]) -> DetectionCalibrator:
    """Read what :func:`save_calibrator` wrote.

    Raises:
        DataError: the file is missing, or is no calibrator of a known version.
    """
    return calibrator_from_json(read_json(path), str(path))


def calibrator_to_json(calibrator: DetectionCalibrator) -> dict[str, Any]:
    """A calibrator as plain JSON values; a threshold that keeps all is null."""
    agnostic = calibrator.settings.class_agnostic
    content: dict[str, Any] = dict(
        format=FORMAT,
        version=VERSION,
        score_type=calibrator.score_type,
        settings={**asdict(calibrator.settings), 'cuts': list(calibrator.settings.cuts)},
    )
    if agnostic:
        content['map'] = map_to_json(calibrator.classes[0].map)
    content.update(fitted_to_json(calibrator, with_maps=not agnostic))
    return content


def calibrator_from_json(content: Any, source: str) -> DetectionCalibrator:
    """The calibrator that :func:`calibrator_to_json` made.

    Args:
        content: parsed JSON.
        source: its file's name for messages.

    Raises:
        DataError: no calibrator of a known version.
    """
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise DataError(f'{source} is no calibrator: give a file that tools/calibrate.py wrote.')
    if content.get('version') != VERSION:
        raise DataError(
            f'{source} is a calibrator of version {content.get("version")!r:.60}, and this gfl_det '
            f'reads version {VERSION}: fit it again.'
        )
    try:
        settings = Settings(**{**content['settings'], 'cuts': tuple(content['settings']['cuts'])})
        pooled = content['map'] if settings.class_agnostic else None
        classes, fitted_on = fitted_from_json(content, pooled)
        return DetectionCalibrator(settings, str(content['score_type']), classes, fitted_on)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            f'{source} is a damaged calibrator ({type(error).__name__}: {error!s:.200}): '
            'fit it again.'
        ) from error


def fitted_to_json(calibrator: FittedCalibrator, with_maps: bool) -> dict[str, Any]:
    """Classes and source, which calibrators of every kind have."""
    source = {**calibrator.source._asdict(), 'images': list(calibrator.source.images)}
    return dict(
        classes=[_class_to_json(each, not with_maps) for each in calibrator.classes], source=source
    )


def fitted_from_json(
    content: dict[str, Any], pooled: dict[str, Any] | None
) -> tuple[tuple[ClassMap, ...], FitSource]:
    """What :func:`fitted_to_json` wrote.

    Args:
        content: with ``classes`` and ``source``.
        pooled: the map of all classes, where they have none of their own.

    Raises:
        KeyError, TypeError, ValueError: something is missing or damaged.
    """
    classes = tuple(_class_from_json(each, pooled) for each in content['classes'])
    if not classes:
        raise ValueError('it has no classes')
    data = content['source']
    return classes, FitSource(data['fingerprint'], tuple(data['images']), int(data['detections']))


def _class_to_json(each: ClassMap, agnostic: bool) -> dict[str, Any]:
    entry = each._asdict()
    score_map = entry.pop('map')
    for name in ('raw_threshold', 'threshold'):
        entry[name] = None if math.isnan(entry[name]) else entry[name]
    return entry if agnostic else {**entry, 'map': map_to_json(score_map)}


def _class_from_json(entry: dict[str, Any], pooled: dict[str, Any] | None) -> ClassMap:
    raw, cut = (
        math.nan if entry[name] is None else float(entry[name])
        for name in ('raw_threshold', 'threshold')
    )
    score_map = map_from_json(entry['map'] if pooled is None else pooled)
    number = int(entry['detections'])
    return ClassMap(str(entry['name']), score_map, str(entry['status']), raw, cut, number)


DISTRIBUTION_FORMAT = 'gfl_det distribution calibrator'
DISTRIBUTION_VERSION = 1

AnyCalibrator = Union[DetectionCalibrator, DistributionCalibrator]


def save_distribution_calibrator(
    calibrator: DistributionCalibrator, path: str | PathLike[str]
) -> None:
    """Write a calibrator; numbers survive to the last digit. The file's folder is made.

    Raises:
        DataError: it cannot be written.
    """
    write_text(path, json.dumps(distribution_to_json(calibrator), indent=1, allow_nan=False) + '\n')


def load_any_calibrator(path: str | PathLike[str]) -> AnyCalibrator:
    """Read a calibrator of scores, whichever kind it is.

    Raises:
        DataError: the file is missing, or is no calibrator of a known version.
    """
    content = read_json(path)
    if isinstance(content, dict) and content.get('format') == DISTRIBUTION_FORMAT:
        return distribution_from_json(content, str(path))
    return calibrator_from_json(content, str(path))


def distribution_to_json(calibrator: DistributionCalibrator) -> dict[str, Any]:
    """A calibrator as plain JSON values; each weight stands beside what it weighs."""
    settings = calibrator.settings
    weights = dict(zip(settings.columns, calibrator.model.weights))
    return dict(
        format=DISTRIBUTION_FORMAT,
        version=DISTRIBUTION_VERSION,
        score_type=calibrator.score_type,
        settings={**asdict(settings), 'groups': list(settings.groups), 'cuts': list(settings.cuts)},
        num_bins=calibrator.num_bins,
        weights=weights,
        offsets=list(calibrator.model.offsets),
        **fitted_to_json(calibrator, with_maps=True),
    )


def distribution_from_json(content: dict[str, Any], source: str) -> DistributionCalibrator:
    """The calibrator that :func:`to_json` made.

    Args:
        content: parsed JSON.
        source: its file's name for messages.

    Raises:
        DataError: no calibrator of a known version.
    """
    if content.get('version') != DISTRIBUTION_VERSION:
        raise DataError(
            f'{source} is a distribution calibrator of version {content.get("version")!r:.60}, and '
            f'this gfl_det reads version {DISTRIBUTION_VERSION}: fit it again.'
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


INTERVAL_FORMAT = 'gfl_det interval calibrator'
INTERVAL_VERSION = 1


def save_interval_calibrator(calibrator: IntervalCalibrator, path: str | PathLike[str]) -> None:
    """Write a calibrator; numbers survive to the last digit. The file's folder is made.

    Raises:
        DataError: it cannot be written.
    """
    write_text(path, json.dumps(interval_to_json(calibrator), indent=1, allow_nan=False) + '\n')


def load_interval_calibrator(path: str | PathLike[str]) -> IntervalCalibrator:
    """Read what :func:`save_interval_calibrator` wrote.

    Raises:
        DataError: the file is missing, or is no interval calibrator of a known version.
    """
    return interval_from_json(read_json(path), str(path))


def interval_to_json(calibrator: IntervalCalibrator) -> dict[str, Any]:
    """A calibrator as plain JSON values."""
    source = calibrator.source
    return dict(
        format=INTERVAL_FORMAT,
        version=INTERVAL_VERSION,
        score_type=calibrator.score_type,
        iou_threshold=calibrator.iou_threshold,
        classes=list(calibrator.class_names),
        levels=list(calibrator.levels),
        factors=[list(sides) for sides in calibrator.factors],
        source={**source._asdict(), 'images': list(source.images)},
    )


def interval_from_json(content: Any, source: str) -> IntervalCalibrator:
    """The calibrator that :func:`to_json` made.

    Args:
        content: parsed JSON.
        source: its file's name for messages.

    Raises:
        DataError: no interval calibrator of a known version.
    """
    if not isinstance(content, dict) or content.get('format') != INTERVAL_FORMAT:
        raise DataError(
            f'{source} is no calibrator of intervals: give what tools/intervals.py fit wrote.'
        )
    if content.get('version') != INTERVAL_VERSION:
        raise DataError(
            f'{source} is an interval calibrator of version {content.get("version")!r:.60}, and '
            f'this gfl_det reads version {INTERVAL_VERSION}: fit it again.'
        )
    try:
        data = content['source']
        return IntervalCalibrator(
            tuple(map(float, content['levels'])),
            tuple(tuple(map(float, sides)) for sides in content['factors']),
            str(content['score_type']),
            tuple(map(str, content['classes'])),
            float(content['iou_threshold']),
            FitSource(data['fingerprint'], tuple(data['images']), int(data['detections'])),
        )
    except (AttributeError, ConfigError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            f'{source} is a damaged interval calibrator ({type(error).__name__}: '
            f'{error!s:.200}): fit it again.'
        ) from error
