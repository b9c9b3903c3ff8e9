"""Data of a report, from COCO results or from a work dir with config, checkpoint and logs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config, ConfigDict

from gfl_det.calibration.apply import detection_config, edge_detections
from gfl_det.calibration.distribution import DistributionCalibrator, EdgeDetections
from gfl_det.calibration.files import AnyCalibrator, load_any_calibrator
from gfl_det.datasets.table import CocoTable, table_of
from gfl_det.engine.runner import ModelFacts, Split, annotations_path, run_split, score_type
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import (
    Detections,
    GroundTruth,
    detections_from_coco,
    gts_of_table,
    read_json,
    result_column,
)
from gfl_det.ops.boxes import xywh_to_xyxy
from gfl_det.utils.config import datasets_of, image_folder
from gfl_det.visualization.picture import EdgeBins, edge_bins, normal_bins

LEVEL = 0.9  # of the edge intervals, unless set in the config
EDGE_FIELDS = ('prior_centres', 'edge_std', 'edge_low', 'edge_high')
MAX_POINTS = 400  # per curve; longer ones are averaged
NOT_CURVES = ('step', 'epoch', 'iter', 'time', 'data_time', 'memory', 'base_lr')


class EdgeLogits(NamedTuple):
    """Edge distributions of N detections, as predicted by a head."""

    edge_logits: np.ndarray  # (N, 4, num_bins)
    bin_widths: np.ndarray  # (N, 4) px
    prior_centres: np.ndarray  # (N, 2) px

    def take(self, rows: np.ndarray) -> EdgeLogits:
        """Select some detections."""
        return EdgeLogits(*(values[rows] for values in self))

    def bins(self, rows: np.ndarray) -> EdgeBins:
        """Edge bins of some detections in image coordinates."""
        return edge_bins(SimpleNamespace(**self.take(rows)._asdict()))


class ReportData(NamedTuple):
    """Ground truth, N detections of a dataset, and optional further data."""

    title: str
    facts: list[tuple[str, str]]  # data sources
    gts: GroundTruth
    area: np.ndarray  # (M,) px, from the annotations
    image_wh: np.ndarray  # (I, 2) px, from the annotations; NaN where unknown
    names: list[str]  # image file names, in the order of gts.image_ids
    folder: Path | None  # folder of the image files
    detections: Detections  # with the scores to report
    raw_scores: np.ndarray | None = None  # (N,) before calibration, if any
    edge_std: np.ndarray | None = None  # (N, 4) px: left, top, right, bottom
    intervals: tuple[np.ndarray, np.ndarray] | None = None  # lower and upper ends, each (N, 4) px
    level: float | None = None  # share of gt edges that the intervals should contain
    distributions: EdgeLogits | None = None
    scalars: Sequence[Path] = ()  # log files of the training, oldest first
    model: ModelFacts | None = None  # if the detector was run

    def take(self, rows: np.ndarray) -> ReportData:
        """Select detections by indices."""
        intervals, distributions = self.intervals, self.distributions
        return self._replace(
            detections=self.detections.take(rows),
            raw_scores=None if self.raw_scores is None else self.raw_scores[rows],
            edge_std=None if self.edge_std is None else self.edge_std[rows],
            intervals=None if intervals is None else (intervals[0][rows], intervals[1][rows]),
            distributions=None if distributions is None else distributions.take(rows),
        )

    def bins(self, rows: np.ndarray) -> EdgeBins | None:
        """Edge distributions of some detections; normal ones if only deviations are known."""
        if self.distributions is not None:
            return self.distributions.bins(rows)
        if self.edge_std is None:
            return None
        return normal_bins(xywh_to_xyxy(self.detections.boxes[rows]), self.edge_std[rows])


def annotated_sizes(dataset: dict, gts: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Read the areas of gt boxes and the sizes of images.

    Args:
        dataset: Parsed annotation file.
        gts: Ground truth of the file, or of some of its classes and images.

    Returns:
        Areas ``(M,)`` px, as annotated, else of the boxes; widths and heights ``(I, 2)`` px.
    """
    table = table_of(dataset, 'the annotations')
    images, classes = set(gts.image_ids), set(gts.category_ids)
    images_kept = np.array([each in images for each in table.image_ids], bool)
    classes_kept = np.array([each in classes for each in table.category_ids], bool)
    size = dict(zip(table.image_ids, table.image_wh))
    return (
        table.area[images_kept[table.image] & classes_kept[table.label]],
        np.array([size[each] for each in gts.image_ids]).reshape(-1, 2),
    )


def file_names(dataset: dict, gts: GroundTruth) -> list[str]:
    """Image file names in the order of the annotated images; ids where names are missing."""
    names = {each['id']: str(each.get('file_name') or each['id']) for each in dataset['images']}
    return [names[image_id] for image_id in gts.image_ids]


class _Found(NamedTuple):
    """What files of results hold, one row for each of N detections."""

    detections: Detections
    raw_scores: np.ndarray | None  # (N,)
    edges: dict[str, np.ndarray]  # edge_std, edge_low, edge_high, each (N, 4) px, where known
    level: float | None = None
    facts: Sequence[tuple[str, str]] = ()


def read_results(
    results: str, annotations: str, images: str | None = None, calibrator: str | None = None
) -> ReportData:
    """Read results, including deviations and intervals of the edges and scores before calibration.

    Args:
        results: File from ``gfl-det test --out`` or ``gfl-det infer --out --annotations``, or
            folder from ``gfl-det infer-many``.
        annotations: Path of the COCO file.
        images: Folder of the image files; None: the report has no pictures.
        calibrator: Score calibrator, fitted on other images; None: no calibration.

    Raises:
        DataError: If a file is invalid, or the results do not belong to the annotations.
    """
    dataset = read_json(annotations)
    table = table_of(dataset, annotations)
    gts = gts_of_table(table)
    names = file_names(dataset, gts)
    if Path(results).is_dir():
        known = _read_folder(results, table)
    else:
        known = _read_entries(results, gts, names)
    found, raw = known.detections, known.raw_scores
    facts = [('results', results), ('annotations', annotations), *known.facts]
    if calibrator is not None:
        raw = found.scores if raw is None else raw
        found = calibrated(found._replace(scores=raw), gts, calibrator)
        facts.append(('calibrator', calibrator))
    with_intervals = 'edge_low' in known.edges and 'edge_high' in known.edges
    return ReportData(
        Path(results).resolve().stem,
        facts,
        gts,
        *annotated_sizes(dataset, gts),
        names,
        _folder(images),
        found,
        raw_scores=raw,
        edge_std=known.edges.get('edge_std'),
        intervals=(known.edges['edge_low'], known.edges['edge_high']) if with_intervals else None,
        level=known.level if with_intervals else None,
    )


def _read_entries(results: str, gts: GroundTruth, names: Sequence[str]) -> _Found:
    entries = read_json(results)
    if isinstance(entries, dict) and 'images' in entries:
        raise DataError(f'{results} holds annotations, not results: give a list of detections.')
    found = detections_from_coco(entries, gts, results)
    _check_names(entries, found, names, results)
    raw = result_column(entries, 'raw_score', (), results)
    least = dict(edge_std=0.0)
    edges = {
        name: result_column(entries, name, (4,), results, least.get(name, -np.inf))
        for name in EDGE_FIELDS[1:]
    }
    return _Found(found, raw, {name: each for name, each in edges.items() if each is not None})


def _read_folder(results: str, table: CocoTable) -> _Found:
    from gfl_det.inference.export.onnx_file import require  # loads mmdet

    require('pyarrow')
    from gfl_det.inference.shards import ResultFolder, read_all

    found, known = read_all(results, table)
    raw = known.pop('score_raw')
    manifest = ResultFolder(results).manifest() or {}
    failed = manifest.get('totals', {}).get('failures', 0)
    return _Found(
        found,
        None if np.array_equal(raw, found.scores) else raw,  # without a calibrator they are equal
        known,
        manifest.get('level'),
        [('images that failed', f'{failed:,}')] if failed else (),
    )


def calibrated(found: Detections, gts: GroundTruth, path: str) -> Detections:
    """Apply a calibrator to the detections' scores.

    Raises:
        DataError: If the file is not a calibrator, was fitted for other classes or on these images,
            or reads distributions, which result files lack.
    """
    calibrator = load_any_calibrator(path)
    if isinstance(calibrator, DistributionCalibrator):
        raise DataError(
            f'{path} reads edge distributions, which result files lack: give a work dir.'
        )
    calibrator.check_unseen(gts)
    calibrator = calibrator.for_classes(gts.class_names)
    return found._replace(scores=calibrator.calibrate(found.scores, found.label))


def _check_names(
    entries: Sequence[dict[str, Any]], found: Detections, names: Sequence[str], source: str
) -> None:
    """Check image ids of results that name their images.

    ``gfl-det infer`` without ``--annotations`` numbers images in folder order.
    """
    for entry, image in zip(entries, found.image):
        name = entry.get('file_name')
        if name is not None and Path(name).name != Path(names[image]).name:
            raise DataError(
                f'{source} has {name} for the image {entry["image_id"]}, which is {names[image]} '
                'in the annotations: write it with gfl-det infer --annotations.'
            )


def _folder(images: str | None) -> Path | None:
    if images is None:
        return None
    folder = Path(images)
    if not folder.is_dir():
        raise DataError(f'The folder {images} of --images does not exist: correct the path.')
    return folder


def run_work_dir(
    work_dir: Path, cfg: Config, checkpoint: str, split: Split, calibrator: str | None = None
) -> ReportData:
    """Run the detector of a work dir on a split of its config.

    Args:
        work_dir: Folder with the training logs.
        cfg: Config of the detector.
        checkpoint: File or URL.
        split: 'val' or 'test'.
        calibrator: Score calibrator, fitted on other images; None: the config's, if any.

    Raises:
        GFLDetError: If something is missing, or the calibrator does not belong to the detector.
    """
    cfg = Config(cfg.to_dict(), filename=cfg.filename)
    test_cfg = cfg.model.setdefault('test_cfg', {})
    test_cfg.update(with_distribution=True, with_uncertainty=True)
    if test_cfg.get('interval_level') is None:
        test_cfg['interval_level'] = LEVEL
    calibrator = calibrator or test_cfg.get('calibrator')
    kept_of_image = test_cfg.get('max_per_img', -1)
    fitted, head = None, score_type(cfg)
    if calibrator is not None:  # calibrators that rank by distributions may need more detections
        fitted = load_any_calibrator(calibrator)
        fitted.check_score_type(head)
        cfg.model.test_cfg = detection_config(ConfigDict(test_cfg, calibrator=calibrator), fitted)
    check = None if fitted is None else fitted.check_judged
    gts, results, samples, model = run_split(cfg, checkpoint, split, check)
    path = annotations_path(cfg, split)
    dataset = read_json(path)
    folder = image_folder(datasets_of(cfg, split)[0])
    facts = [('config', cfg.filename), ('checkpoint', checkpoint), (f'{split} split', path)]
    edges = _edges(samples, gts)
    data = ReportData(
        Path(cfg.filename).stem,
        facts if calibrator is None else [*facts, ('calibrator', calibrator)],
        gts,
        *annotated_sizes(dataset, gts),
        file_names(dataset, gts),
        None if folder is None else Path(folder),
        edges.detections if edges else detections_from_coco(results, gts, checkpoint),
        scalars=scalar_files(work_dir),
        model=model,
    )
    if edges:
        data = _with_edges(data, edges, samples, test_cfg['interval_level'])
    if fitted is None:
        return data
    raw = data.detections
    scores = _calibrate(fitted.for_classes(gts.class_names), edges, raw, head)
    data = data._replace(detections=raw._replace(scores=scores), raw_scores=raw.scores)
    return data.take(_best(data.detections, kept_of_image)) if kept_of_image > 0 else data


def _with_edges(
    data: ReportData, edges: EdgeDetections, samples: Sequence[Any], level: float
) -> ReportData:
    centres, std, low, high = (_joined(samples, name) for name in EDGE_FIELDS)
    return data._replace(
        distributions=EdgeLogits(edges.logits, edges.bin_widths, centres),
        edge_std=std,
        intervals=(low, high),
        level=level,
    )


def _edges(samples: Sequence[Any], gts: GroundTruth) -> EdgeDetections | None:
    """Detections with distributions; None if the head predicts none."""
    found = [sample.pred_instances for sample in samples]
    if not found or not all('edge_logits' in each for each in found):
        return None
    place = {image_id: index for index, image_id in enumerate(gts.image_ids)}
    return edge_detections(found, [place[sample.img_id] for sample in samples])


def _joined(samples: Sequence[Any], name: str) -> np.ndarray:
    return np.concatenate([sample.pred_instances[name].float().numpy() for sample in samples])


def _best(found: Detections, number: int) -> np.ndarray:
    """Rows of the best detections per image, in order."""
    order = np.lexsort((-found.scores, found.image))
    image = found.image[order]
    rank = np.arange(len(order)) - np.searchsorted(image, image)
    return np.sort(order[rank < number])


def _calibrate(
    calibrator: AnyCalibrator, edges: EdgeDetections | None, raw: Detections, head: str
) -> np.ndarray:
    if not isinstance(calibrator, DistributionCalibrator):
        return calibrator.calibrate(raw.scores, raw.label)
    if edges is None:
        raise ConfigError(
            f'The calibrator reads edge distributions, which {head} does not predict.'
        )
    return calibrator.calibrate(edges)


class Curve(NamedTuple):
    """One scalar over the course of a training."""

    name: str
    steps: list[float]  # iterations for training scalars, epochs for validation scalars
    values: list[float]


class Curves(NamedTuple):
    """Scalars of training and validation."""

    training: list[Curve]
    validation: list[Curve]


def scalar_files(work_dir: Path) -> list[Path]:
    """Log files of all runs in a work dir, oldest first; a resumed run writes another one."""
    return sorted(work_dir.glob('*/vis_data/scalars.json')) or sorted(work_dir.glob('scalars.json'))


def read_curves(files: Sequence[Path]) -> Curves:
    """Read the scalars of one training; for repeated steps the last entry counts.

    Lines that are not JSON, such as the last line of a killed run, are skipped.
    """
    training: dict[str, dict[float, float]] = {}
    validation: dict[str, dict[float, float]] = {}
    for path in files:
        for line in path.read_text(errors='replace').splitlines():
            entry = _entry(line)
            step = entry.get('step')
            if not isinstance(step, (int, float)):
                continue
            # mmengine writes the epoch number only beside training scalars.
            kind = training if 'iter' in entry or 'epoch' in entry else validation
            for name, value in entry.items():
                if name not in NOT_CURVES and isinstance(value, (int, float)):
                    kind.setdefault(name, {})[step] = float(value)
    return Curves(_curves(training), _curves(validation))


def _entry(line: str) -> dict:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _curves(scalars: dict[str, dict[float, float]]) -> list[Curve]:
    curves = []
    for name, points in scalars.items():
        steps = sorted(points)
        width = -(-len(steps) // MAX_POINTS)
        groups = [steps[start : start + width] for start in range(0, len(steps), width or 1)]
        values = [[points[step] for step in group] for group in groups]
        curves.append(
            Curve(name, [group[-1] for group in groups], [_mean(each) for each in values])
        )
    return curves


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
