"""A report's data from a work dir: its config, its best checkpoint, its logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict

from gfl_det.calibration.apply import detection_config, edge_detections
from gfl_det.calibration.distribution import DistributionCalibrator, EdgeDetections
from gfl_det.calibration.files import AnyCalibrator, load_any_calibrator
from gfl_det.engine.run_split import Split, run_split, score_type, truths_path
from gfl_det.engine.training.checkpoints import newest_checkpoint
from gfl_det.errors import CheckpointError, ConfigError
from gfl_det.evaluation.detections import Detections, Truths, detections_from_coco, read_json
from gfl_det.utils.config import datasets_of, image_folder
from gfl_det.visualization.report.data import EdgeLogits, ReportData, box_areas, file_names
from gfl_det.visualization.report.training import scalar_files

LEVEL = 0.9  # of the edges' intervals, unless the config has another
EDGE_FIELDS = ('prior_centres', 'edge_std', 'edge_low', 'edge_high')


def find_config(work_dir: Path) -> Path:
    """The config that mmengine wrote into a work dir.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found = sorted(work_dir.glob('*.py'))
    if len(found) != 1:
        what = 'several configs' if found else 'no config'
        raise ConfigError(f'{work_dir} has {what}: name one with --config.')
    return found[0]


def find_checkpoint(work_dir: Path) -> Path:
    """The best checkpoint of a work dir, else the newest good one.

    Raises:
        CheckpointError: there is none.
    """
    best = sorted(work_dir.glob('best_*.pth'), key=lambda path: path.stat().st_mtime_ns)
    if best:
        return best[-1]
    newest = newest_checkpoint(work_dir).found
    if newest is None:
        raise CheckpointError(f'{work_dir} has no checkpoint: name one with --checkpoint.')
    return newest.path


def run_work_dir(
    work_dir: Path, cfg: Config, checkpoint: str, split: Split, calibrator: str | None = None
) -> ReportData:
    """Run the detector of a work dir over a split of its config.

    Args:
        work_dir: with the logs of the training.
        cfg: of the detector.
        checkpoint: a file or an address.
        split: 'val' or 'test'.
        calibrator: of scores, fitted on other images; None: that of the config, if it names one.

    Raises:
        GFLDetError: something is missing, or the calibrator does not belong to the detector.
    """
    cfg = Config(cfg.to_dict(), filename=cfg.filename)
    test_cfg = cfg.model.setdefault('test_cfg', {})
    test_cfg.update(with_distribution=True, with_uncertainty=True)
    if test_cfg.get('interval_level') is None:
        test_cfg['interval_level'] = LEVEL
    calibrator = calibrator or test_cfg.get('calibrator')
    kept_of_image = test_cfg.get('max_per_img', -1)
    fitted, head = None, score_type(cfg)
    if calibrator is not None:  # one that ranks by distributions may want more to rank
        fitted = load_any_calibrator(calibrator)
        fitted.check_score_type(head)
        cfg.model.test_cfg = detection_config(ConfigDict(test_cfg, calibrator=calibrator), fitted)
    check = None if fitted is None else fitted.check_judged
    gts, results, samples = run_split(cfg, checkpoint, split, check)
    path = truths_path(cfg, split)
    dataset = read_json(path)
    folder = image_folder(datasets_of(cfg, split)[0])
    facts = [('config', cfg.filename), ('checkpoint', checkpoint), (f'{split} split', path)]
    edges = _edges(samples, gts)
    data = ReportData(
        Path(cfg.filename).stem,
        facts if calibrator is None else [*facts, ('calibrator', calibrator)],
        gts,
        box_areas(dataset, gts),
        file_names(dataset, gts),
        None if folder is None else Path(folder),
        edges.detections if edges else detections_from_coco(results, gts, checkpoint),
        scalars=scalar_files(work_dir),
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


def _edges(samples: Sequence[Any], truths: Truths) -> EdgeDetections | None:
    """Detections with distributions; None of a head that gives none."""
    found = [sample.pred_instances for sample in samples]
    if not found or not all('edge_logits' in each for each in found):
        return None
    place = {image_id: index for index, image_id in enumerate(truths.image_ids)}
    return edge_detections(found, [place[sample.img_id] for sample in samples])


def _joined(samples: Sequence[Any], name: str) -> np.ndarray:
    return np.concatenate([sample.pred_instances[name].float().numpy() for sample in samples])


def _best(found: Detections, number: int) -> np.ndarray:
    """Rows of the best detections of each image, in their order."""
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
            f'The calibrator reads the distributions of edges, which {head} does not give.'
        )
    return calibrator.calibrate(edges)
