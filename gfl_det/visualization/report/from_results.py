"""A report's data from a file of COCO results and the annotations of its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gfl_det.calibration.distribution import DistributionCalibrator
from gfl_det.calibration.files import load_any_calibrator
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import (
    Detections,
    Truths,
    detections_from_coco,
    read_json,
    truths_from_coco,
)
from gfl_det.visualization.report.data import ReportData, box_areas, file_names


def read_results(
    results: str, annotations: str, images: str | None = None, calibrator: str | None = None
) -> ReportData:
    """Read COCO results, with ``edge_std``, ``edge_low``, ``edge_high`` and ``raw_score`` if held.

    Args:
        results: what ``gfl-det test --out`` or ``gfl-det infer --out --annotations`` wrote.
        annotations: COCO file.
        images: folder of the image files; None: the report has no pictures.
        calibrator: of scores, fitted on other images; None: none.

    Raises:
        DataError: a file cannot be used, or the results do not belong to the annotations.
    """
    dataset = read_json(annotations)
    gts = truths_from_coco(dataset, annotations)
    entries = read_json(results)
    if isinstance(entries, dict) and 'images' in entries:
        raise DataError(f'{results} holds annotations and no results: give a list of detections.')
    found = detections_from_coco(entries, gts, results)
    names = file_names(dataset, gts)
    _check_names(entries, found, names, results)
    raw = _column(entries, 'raw_score', (), results)
    facts = [('results', results), ('annotations', annotations)]
    if calibrator is not None:
        raw = found.scores if raw is None else raw
        found = calibrated(found._replace(scores=raw), gts, calibrator)
        facts.append(('calibrator', calibrator))
    low, high = (_column(entries, name, (4,), results) for name in ('edge_low', 'edge_high'))
    return ReportData(
        Path(results).stem,
        facts,
        gts,
        box_areas(dataset, gts),
        names,
        _folder(images),
        found,
        raw_scores=raw,
        edge_std=_column(entries, 'edge_std', (4,), results),
        intervals=None if low is None or high is None else (low, high),
    )


def calibrated(found: Detections, truths: Truths, path: str) -> Detections:
    """The detections with calibrated scores.

    Raises:
        DataError: the calibrator is none, for other classes, fitted on these images, or of the kind
            that reads distributions, which result files lack.
    """
    calibrator = load_any_calibrator(path)
    if isinstance(calibrator, DistributionCalibrator):
        raise DataError(
            f'{path} reads the distributions of edges, which result files lack: give a work dir.'
        )
    calibrator.check_unseen(truths)
    calibrator = calibrator.for_classes(truths.class_names)
    return found._replace(scores=calibrator.calibrate(found.scores, found.label))


def _check_names(
    entries: Sequence[dict[str, Any]], found: Detections, names: Sequence[str], source: str
) -> None:
    """Refuse ids of another numbering, where results name their images.

    ``gfl-det infer`` without ``--annotations`` numbers images in the order of the folder.
    """
    for entry, image in zip(entries, found.image):
        name = entry.get('file_name')
        if name is not None and Path(name).name != Path(names[image]).name:
            raise DataError(
                f'{source} has {name} for the image {entry["image_id"]}, which is {names[image]} '
                'in the annotations: write it with gfl-det infer --annotations.'
            )


def _column(
    entries: Sequence[dict[str, Any]], name: str, shape: tuple[int, ...], source: str
) -> np.ndarray | None:
    """A field of all entries ``(N, *shape)``; None if none has it.

    Raises:
        DataError: some lack it, or a value is of another kind.
    """
    if not any(name in entry for entry in entries):
        return None
    lacking = next((i for i, entry in enumerate(entries) if name not in entry), None)
    if lacking is not None:
        raise DataError(f'{source}: entry {lacking} has no "{name}", others have: write it anew.')
    try:
        values = np.array([entry[name] for entry in entries], float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (len(entries), *shape) or not np.isfinite(values).all():
        what = f'{shape[0]} finite numbers' if shape else 'a finite number'
        raise DataError(f'{source}: "{name}" is not {what} in every entry: correct it.')
    return values


def _folder(images: str | None) -> Path | None:
    if images is None:
        return None
    folder = Path(images)
    if not folder.is_dir():
        raise DataError(f'The folder {images} of --images does not exist: correct the path.')
    return folder
