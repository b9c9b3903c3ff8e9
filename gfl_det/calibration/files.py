"""Calibrator files: readable JSON with a format name, a version and a data fingerprint.

The ``format`` distinguishes four kinds: score maps, models of edge distributions, interval factors,
and the cuts of operating points. One writer and one reader serve all; :data:`KINDS` lists the
conversions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from typing import Any, NamedTuple, Union

from gfl_det.calibration.calibrators import (
    ClassMap,
    DetectionCalibrator,
    FitSource,
    FittedCalibrator,
    Settings,
)
from gfl_det.calibration.distribution import DistributionCalibrator, DistributionSettings
from gfl_det.calibration.intervals import IntervalCalibrator
from gfl_det.calibration.joint import JointFactors
from gfl_det.calibration.logistic import LogisticModel
from gfl_det.calibration.maps import map_from_json, map_to_json
from gfl_det.calibration.operating_point import ClassCut, OperatingPoint, Promise
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import read_json
from gfl_det.ops.intervals import SIZES
from gfl_det.utils.files import write_text

VERSION = 1
AnyCalibrator = Union[DetectionCalibrator, DistributionCalibrator]
Path = Union[str, 'PathLike[str]']


def save_calibrator(
    calibrator: AnyCalibrator | IntervalCalibrator | OperatingPoint, path: Path
) -> None:
    """Write a calibrator of any kind, with all digits of its numbers.

    Args:
        calibrator: Fitted calibrator.
        path: Path of the JSON file; its folder is created if missing.

    Raises:
        DataError: If the file cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gfl_det.calibration.calibrators import FitSource
        >>> source = FitSource('', (), 9)
        >>> intervals = IntervalCalibrator((0.9,), ((1.0,) * 4,), 'GFLHead', ('cat',), 0.5, source)
        >>> folder = TemporaryDirectory()
        >>> path = Path(folder.name) / 'calibrator.json'
        >>> save_calibrator(intervals, path)
        >>> load_interval_calibrator(path) == intervals
        True
    """
    content = json.dumps(calibrator_to_json(calibrator), indent=1, allow_nan=False)
    write_text(path, content + '\n')


save_distribution_calibrator = save_interval_calibrator = save_calibrator
save_operating_point = save_calibrator


def load_calibrator(path: Path) -> DetectionCalibrator:
    """Read a calibrator of score maps.

    Raises:
        DataError: If the file is missing or is not such a calibrator of a known version.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gfl_det.calibration.calibrators import FitSource, Settings
        >>> from gfl_det.calibration.maps import Platt
        >>> classes = (ClassMap('cat', Platt(2.0, 0.5), 'fitted', 0.1, 0.2, 9),)
        >>> calibrator = DetectionCalibrator(Settings(), 'GFLHead', classes, FitSource('', (), 9))
        >>> folder = TemporaryDirectory()
        >>> path = Path(folder.name) / 'calibrator.json'
        >>> save_calibrator(calibrator, path)
        >>> load_calibrator(path).classes[0].map
        Platt(slope=2.0, offset=0.5)
    """
    return calibrator_from_json(read_json(path), str(path))


def load_any_calibrator(path: Path) -> AnyCalibrator:
    """Read a score calibrator of either kind.

    Raises:
        DataError: If the file is missing or is not such a calibrator of a known version.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gfl_det.calibration.calibrators import FitSource, Settings
        >>> from gfl_det.calibration.maps import Platt
        >>> classes = (ClassMap('cat', Platt(2.0, 0.5), 'fitted', 0.1, 0.2, 9),)
        >>> calibrator = DetectionCalibrator(Settings(), 'GFLHead', classes, FitSource('', (), 9))
        >>> folder = TemporaryDirectory()
        >>> path = Path(folder.name) / 'calibrator.json'
        >>> save_calibrator(calibrator, path)
        >>> type(load_any_calibrator(path)).__name__
        'DetectionCalibrator'
    """
    return calibrator_from_json(
        read_json(path), str(path), (DetectionCalibrator, DistributionCalibrator)
    )


def load_interval_calibrator(path: Path) -> IntervalCalibrator:
    """Read an interval calibrator.

    Raises:
        DataError: If the file is missing or is not such a calibrator of a known version.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gfl_det.calibration.calibrators import FitSource
        >>> source = FitSource('', (), 9)
        >>> intervals = IntervalCalibrator((0.9,), ((1.0,) * 4,), 'GFLHead', ('cat',), 0.5, source)
        >>> folder = TemporaryDirectory()
        >>> path = Path(folder.name) / 'calibrator.json'
        >>> save_calibrator(intervals, path)
        >>> load_interval_calibrator(path).factors_at(0.9)
        (1.0, 1.0, 1.0, 1.0)
    """
    return calibrator_from_json(read_json(path), str(path), (IntervalCalibrator,))


def load_operating_point(path: Path) -> OperatingPoint:
    """Read the cuts of an operating point.

    Raises:
        DataError: If the file is missing or is not such a file of a known version.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gfl_det.calibration.calibrators import FitSource
        >>> cuts = (ClassCut('cat', 0.4, kept=20, right=19, gts=25, more=0),)
        >>> source = FitSource('', (), 9)
        >>> point = OperatingPoint(Promise('precision', 0.9), 'GFLHead', None, cuts, source)
        >>> folder = TemporaryDirectory()
        >>> path = Path(folder.name) / 'cuts.json'
        >>> save_operating_point(point, path)
        >>> load_operating_point(path).thresholds()
        [0.4]
    """
    return calibrator_from_json(read_json(path), str(path), (OperatingPoint,))


def file_digest(path: Path) -> str:
    """Digest of a calibrator file's content, by which cuts know the calibrator of their scores.

    Raises:
        DataError: If the file cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> path = Path(folder.name) / 'calibrator.json'
        >>> _ = path.write_text('{}')
        >>> len(file_digest(path))
        64
    """
    content = json.dumps(read_json(path), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def calibrator_to_json(
    calibrator: AnyCalibrator | IntervalCalibrator | OperatingPoint,
) -> dict[str, Any]:
    """Convert a calibrator to plain JSON values; thresholds of NaN become null.

    Example:
        >>> from gfl_det.calibration.calibrators import FitSource
        >>> source = FitSource('', (), 9)
        >>> intervals = IntervalCalibrator((0.9,), ((1.0,) * 4,), 'GFLHead', ('cat',), 0.5, source)
        >>> calibrator_to_json(intervals)['format']
        'gfl_det interval calibrator'
    """
    kind = KINDS[type(calibrator)]
    head = dict(format=kind.format, version=VERSION, score_type=calibrator.score_type)
    return {**head, **kind.to_json(calibrator)}


def calibrator_from_json(
    content: Any, source: str, wanted: tuple[type[Any], ...] = (DetectionCalibrator,)
) -> Any:
    """Restore a calibrator from the output of :func:`calibrator_to_json`.

    Args:
        content: Parsed JSON.
        source: File name, for messages.
        wanted: Accepted calibrator classes.

    Raises:
        DataError: If the content is not such a calibrator of a known version.

    Example:
        >>> from gfl_det.calibration.calibrators import FitSource
        >>> source = FitSource('', (), 9)
        >>> intervals = IntervalCalibrator((0.9,), ((1.0,) * 4,), 'GFLHead', ('cat',), 0.5, source)
        >>> content = calibrator_to_json(intervals)
        >>> calibrator_from_json(content, 'a.json', (IntervalCalibrator,)) == intervals
        True
    """
    formats = {KINDS[each].format: KINDS[each] for each in wanted}
    found = content.get('format') if isinstance(content, dict) else None
    if not isinstance(found, str) or found not in formats:
        kind = KINDS[wanted[0]]
        raise DataError(f'{source} is not a {kind.name}: give a file that {kind.tool} wrote.')
    kind = formats[found]
    if content.get('version') != VERSION:
        raise DataError(
            f'{source} is a {kind.name} of version {content.get("version")!r:.60}, but this '
            f'gfl_det reads version {VERSION}: fit it again.'
        )
    try:
        return kind.from_json(content)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            f'{source} is a damaged {kind.name} ({type(error).__name__}: {error!s:.200}): '
            'fit it again.'
        ) from error


def _maps_to_json(calibrator: DetectionCalibrator) -> dict[str, Any]:
    content: dict[str, Any] = dict(settings=_listed(asdict(calibrator.settings)))
    pooled = calibrator.settings.class_agnostic
    if pooled:
        content['map'] = map_to_json(calibrator.classes[0].map)
    return {**content, **_fitted_to_json(calibrator, with_maps=not pooled)}


def _maps_from_json(content: dict[str, Any]) -> DetectionCalibrator:
    settings = Settings(**{**content['settings'], 'cuts': tuple(content['settings']['cuts'])})
    pooled = content['map'] if settings.class_agnostic else None
    classes = _classes_from_json(content, pooled)
    return DetectionCalibrator(settings, str(content['score_type']), classes, _source_of(content))


def _distribution_to_json(calibrator: DistributionCalibrator) -> dict[str, Any]:
    """Convert to JSON with each weight beside its column name."""
    return dict(
        settings=_listed(asdict(calibrator.settings)),
        num_bins=calibrator.num_bins,
        weights=dict(zip(calibrator.settings.columns, calibrator.model.weights)),
        offsets=list(calibrator.model.offsets),
        **_fitted_to_json(calibrator),
    )


def _distribution_from_json(content: dict[str, Any]) -> DistributionCalibrator:
    raw = content['settings']
    settings = DistributionSettings(
        **{**raw, 'groups': tuple(raw['groups']), 'cuts': tuple(raw['cuts'])}
    )
    classes = _classes_from_json(content)
    model = LogisticModel(
        tuple(float(content['weights'][name]) for name in settings.columns),
        tuple(map(float, content['offsets'])),
    )
    if not all(map(math.isfinite, (*model.weights, *model.offsets))):
        raise ValueError('a weight is not finite')
    if len(model.offsets) != len(classes):
        raise ValueError('the number of offsets differs from that of the classes')
    score_type, bins = str(content['score_type']), int(content['num_bins'])
    return DistributionCalibrator(settings, score_type, bins, model, classes, _source_of(content))


def _intervals_to_json(calibrator: IntervalCalibrator) -> dict[str, Any]:
    return dict(
        iou_threshold=calibrator.iou_threshold,
        classes=list(calibrator.class_names),
        levels=list(calibrator.levels),
        factors=[list(sides) for sides in calibrator.factors],
        **({} if calibrator.joint is None else dict(joint=_joint_to_json(calibrator.joint))),
        source=_listed(calibrator.source._asdict()),
    )


def _intervals_from_json(content: dict[str, Any]) -> IntervalCalibrator:
    return IntervalCalibrator(
        tuple(map(float, content['levels'])),
        tuple(tuple(map(float, sides)) for sides in content['factors']),
        str(content['score_type']),
        tuple(map(str, content['classes'])),
        float(content['iou_threshold']),
        _source_of(content),
        _joint_from_json(content['joint']) if 'joint' in content else None,
    )


def _joint_to_json(joint: JointFactors) -> dict[str, Any]:
    groups = [
        dict(name=name, boxes=number, factors=list(factors))
        for name, number, factors in zip(joint.names, joint.counts, joint.factors)
    ]
    cells = [list(row) for row in joint.cells]
    return dict(levels=list(joint.levels), sizes=list(SIZES), groups=groups, cells=cells)


def _joint_from_json(content: dict[str, Any]) -> JointFactors:
    groups = content['groups']
    return JointFactors(
        tuple(map(float, content['levels'])),
        tuple(str(each['name']) for each in groups),
        tuple(int(each['boxes']) for each in groups),
        tuple(tuple(map(float, each['factors'])) for each in groups),
        tuple(tuple(map(int, row)) for row in content['cells']),
    )


def _cuts_to_json(point: OperatingPoint) -> dict[str, Any]:
    return dict(
        promise=asdict(point.promise),
        calibrator=point.calibrator,
        classes=[each._asdict() for each in point.classes],
        source=_listed(point.source._asdict()),
    )


def _cuts_from_json(content: dict[str, Any]) -> OperatingPoint:
    classes = []
    for entry in content['classes']:
        cut, more = entry['cut'], entry['more']
        if cut is not None and not 0 <= float(cut) <= 1:
            raise ValueError('a cut lies outside [0, 1]')
        kept, right, gts = (int(entry[name]) for name in ('kept', 'right', 'gts'))
        more = None if more is None else int(more)
        classes.append(ClassCut(str(entry['name']), cut, kept, right, gts, more))
    if not classes:
        raise ValueError('it has no classes')
    digest = content['calibrator']
    return OperatingPoint(
        Promise(**content['promise']),
        str(content['score_type']),
        None if digest is None else str(digest),
        tuple(classes),
        _source_of(content),
    )


def _listed(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(each) if isinstance(each, tuple) else each for name, each in fields.items()}


def _fitted_to_json(calibrator: FittedCalibrator, with_maps: bool = True) -> dict[str, Any]:
    """Classes and source, common to both kinds of score calibrators."""
    classes = []
    for each in calibrator.classes:
        entry: dict[str, Any] = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in each._asdict().items()
        }
        score_map = entry.pop('map')
        classes.append({**entry, 'map': map_to_json(score_map)} if with_maps else entry)
    return dict(classes=classes, source=_listed(calibrator.source._asdict()))


def _classes_from_json(
    content: dict[str, Any], pooled: dict[str, Any] | None = None
) -> tuple[ClassMap, ...]:
    """Read the classes; ``pooled`` is the common map of classes without their own."""
    classes = []
    for entry in content['classes']:
        raw, cut = (
            math.nan if entry[name] is None else float(entry[name])
            for name in ('raw_threshold', 'threshold')
        )
        score_map = map_from_json(entry['map'] if pooled is None else pooled)
        name, status, number = str(entry['name']), str(entry['status']), int(entry['detections'])
        classes.append(ClassMap(name, score_map, status, raw, cut, number))
    if not classes:
        raise ValueError('it has no classes')
    return tuple(classes)


def _source_of(content: dict[str, Any]) -> FitSource:
    data = content['source']
    return FitSource(data['fingerprint'], tuple(data['images']), int(data['detections']))


class Kind(NamedTuple):
    """Reader, writer and name of a kind of calibrator."""

    format: str
    name: str
    tool: str  # command that writes such files
    to_json: Callable[[Any], dict[str, Any]]  # without format, version and score type
    from_json: Callable[[dict[str, Any]], Any]


FIT = 'gfl-det calibrate'
KINDS: dict[type[Any], Kind] = {
    DetectionCalibrator: Kind(
        'gfl_det detection calibrator', 'calibrator', FIT, _maps_to_json, _maps_from_json
    ),
    DistributionCalibrator: Kind(
        'gfl_det distribution calibrator',
        'distribution calibrator',
        FIT,
        _distribution_to_json,
        _distribution_from_json,
    ),
    IntervalCalibrator: Kind(
        'gfl_det interval calibrator',
        'calibrator of intervals',
        'gfl-det intervals fit',
        _intervals_to_json,
        _intervals_from_json,
    ),
    OperatingPoint: Kind(
        'gfl_det operating point',
        'file of cuts',
        'gfl-det operate',
        _cuts_to_json,
        _cuts_from_json,
    ),
}
