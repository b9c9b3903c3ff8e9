"""Calibrators as readable JSON: no pickle, a format, a version, and their data's fingerprint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from os import PathLike
from typing import Any

from gfl_det.calibration.calibrators import DetectionCalibrator, Settings
from gfl_det.calibration.fitted import ClassMap, FittedCalibrator, Source
from gfl_det.calibration.maps import map_from_json, map_to_json
from gfl_det.errors import DataError
from gfl_det.evaluation.coco import read_json
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
) -> tuple[tuple[ClassMap, ...], Source]:
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
    return classes, Source(data['fingerprint'], tuple(data['images']), int(data['detections']))


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
