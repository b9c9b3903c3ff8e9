"""Calibrators of intervals as readable JSON, like those of scores (:mod:`.files`)."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

from gfl_det.calibration.fitted import Source
from gfl_det.calibration.intervals import IntervalCalibrator
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.coco import read_json
from gfl_det.utils.files import write_text

FORMAT = 'gfl_det interval calibrator'
VERSION = 1


def save_interval_calibrator(calibrator: IntervalCalibrator, path: str | PathLike[str]) -> None:
    """Write a calibrator; numbers survive to the last digit. The file's folder is made.

    Raises:
        DataError: it cannot be written.
    """
    write_text(path, json.dumps(to_json(calibrator), indent=1, allow_nan=False) + '\n')


def load_interval_calibrator(path: str | PathLike[str]) -> IntervalCalibrator:
    """Read what :func:`save_interval_calibrator` wrote.

    Raises:
        DataError: the file is missing, or is no interval calibrator of a known version.
    """
    return from_json(read_json(path), str(path))


def to_json(calibrator: IntervalCalibrator) -> dict[str, Any]:
    """A calibrator as plain JSON values."""
    source = calibrator.source
    return dict(
        format=FORMAT,
        version=VERSION,
        score_type=calibrator.score_type,
        iou_threshold=calibrator.iou_threshold,
        classes=list(calibrator.class_names),
        levels=list(calibrator.levels),
        factors=[list(sides) for sides in calibrator.factors],
        source={**source._asdict(), 'images': list(source.images)},
    )


def from_json(content: Any, source: str) -> IntervalCalibrator:
    """The calibrator that :func:`to_json` made.

    Args:
        content: parsed JSON.
        source: its file's name for messages.

    Raises:
        DataError: no interval calibrator of a known version.
    """
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise DataError(
            f'{source} is no calibrator of intervals: give what tools/intervals.py fit wrote.'
        )
    if content.get('version') != VERSION:
        raise DataError(
            f'{source} is an interval calibrator of version {content.get("version")!r:.60}, and '
            f'this gfl_det reads version {VERSION}: fit it again.'
        )
    try:
        data = content['source']
        return IntervalCalibrator(
            tuple(map(float, content['levels'])),
            tuple(tuple(map(float, sides)) for sides in content['factors']),
            str(content['score_type']),
            tuple(map(str, content['classes'])),
            float(content['iou_threshold']),
            Source(data['fingerprint'], tuple(data['images']), int(data['detections'])),
        )
    except (AttributeError, ConfigError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            f'{source} is a damaged interval calibrator ({type(error).__name__}: '
            f'{error!s:.200}): fit it again.'
        ) from error
