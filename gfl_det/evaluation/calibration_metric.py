"""Metrics of mmengine beside ``CocoMetric``: calibration, and VOC's with own classes."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from mmdet.datasets import VOCDataset
from mmdet.evaluation import VOCMetric as MMDetVOCMetric
from mmdet.evaluation.functional import mean_ap
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from gfl_det.errors import ConfigError
from gfl_det.evaluation.detections import (
    Detections,
    GroundTruth,
    check_detections,
    collect,
    gts_of_rows,
    gts_of_table,
    read_annotations,
)
from gfl_det.evaluation.evaluate import (
    INSIDE,
    errors_by_class,
    evaluate_detections,
    format_metrics,
    keep_above,
)
from gfl_det.evaluation.matching import ZeroOverlap
from gfl_det.evaluation.shown import (
    Sample,
    match_samples,
    once,
    samples_once,
    table_of_samples,
    tell_share,
)
from gfl_det.registry import METRICS

VOC_CLASSES = tuple(VOCDataset.METAINFO['classes'])


@METRICS.register_module()
class VOCMetric(MMDetVOCMetric):
    """Drop-in for mmdet's ``VOCMetric``: same arguments, same numbers.

    - In a folder whose name contains ``VOC2007`` or ``VOC2012``, mmdet's metric prints the AP of
      custom classes under VOC's names (``aeroplane``, ``bicycle``). This one prints their own.
    - mmdet's forks four processes for each threshold. If a signal to all processes of a job ends
      one of them, the training waits for its results without limit. This one uses threads.
    """

    dataset_meta: Any

    def compute_metrics(self, results: Sequence[Any]) -> dict[str, float]:
        """Evaluate all results.

        Args:
            results: (gt, detections by class) of each image.
        """
        meta = self.dataset_meta or {}
        if has_own_classes(meta.get('classes', ())):
            self.dataset_meta = {**meta, 'dataset_type': None}
        processes, mean_ap.Pool = mean_ap.Pool, ThreadPool
        try:
            return super().compute_metrics(results)
        finally:
            self.dataset_meta, mean_ap.Pool = meta, processes


def has_own_classes(classes: Sequence[str]) -> bool:
    """Whether the classes differ from VOC's twenty, or in their order.

    Example:
        >>> has_own_classes(('cat', 'dog')), has_own_classes(VOC_CLASSES)
        (True, False)
    """
    return tuple(classes) != VOC_CLASSES


@METRICS.register_module()
class CalibrationMetric(BaseMetric):
    """How true the scores are: LaECE, LaACE, D-ECE, LRP, oLRP and AP of boxes.

    It goes beside others in a config's evaluator: ``val_evaluator = [dict(type='CocoMetric', ...),
    dict(type='gfl_det.CalibrationMetric', ...)]``. All values are fractions; the names are those of
    :func:`.evaluation.evaluate_detections`.

    Args:
        ann_file: COCO annotations; the images that the detector was shown count, as for
            ``CocoMetric``. None: the gt boxes come with the samples.
        taus: thresholds below 1 of the IoU for LaECE, LaACE and LRP.
        zero_overlap: 'oracle' or 'reject', see :func:`.matching.match`.
        score_thr: least score of a detection that counts, or one for each class.
        classwise: log a table of the classes at the first threshold.
        collect_device: where results of several processes meet, 'cpu' or 'gpu'.
        prefix: before the names.
        resamples: Resamples of the images, for the ends of each metric's .95 interval; 0 for none.
        seed: Seed of the resamples.
        backend_args: Arguments of the file storage that ``ann_file`` lies in.

    Raises:
        DataError: If the annotations, a score or a box cannot be used.
        ConfigError: If ``score_thr`` has another number of entries than there are classes.
    """

    default_prefix = 'calibration'

    def __init__(
        self,
        ann_file: str | None = None,
        taus: Sequence[float] = (0.0, 0.5),
        zero_overlap: ZeroOverlap = 'oracle',
        score_thr: float | Sequence[float] = 0.0,
        classwise: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        backend_args: dict | None = None,
        resamples: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ann_file = ann_file
        self.taus = tuple(taus)
        self.zero_overlap: ZeroOverlap = zero_overlap
        self.score_thr = score_thr
        self.classwise = classwise
        self.resamples, self.seed = resamples, seed
        self.table = read_annotations(ann_file, backend_args) if ann_file else None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep what is needed of a batch: one entry an image, as the gathering counts them.

        Args:
            data_batch: not used.
            data_samples: with ``img_id`` and ``pred_instances``, and ``instances`` (the gt boxes of
                the image as it lies on disk) where there is no ``ann_file``.
        """
        for sample in data_samples:
            found = sample['pred_instances']
            entry = {
                name: found[name].detach().cpu().numpy() for name in ('bboxes', 'scores', 'labels')
            }
            entry['img_id'] = sample['img_id']
            entry['img_path'] = str(sample.get('img_path') or '')
            if self.table is None:
                if 'instances' not in sample:
                    raise ConfigError(
                        'CalibrationMetric got samples without gt boxes: give it an ann_file'
                    )
                entry['instances'] = sample['instances']
            self.results.append(entry)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Judge the detections of the whole data set; runs in one process.

        Args:
            results: entries of :meth:`process`, gathered.
        """
        names = list((self.dataset_meta or {}).get('classes', ()))
        if not names:
            raise ConfigError('CalibrationMetric needs the data set to name its classes: metainfo')
        samples = [Sample(entry['img_id'], entry['img_path']) for entry in results]
        if self.table is None:
            rows = samples_once(samples, [entry['instances'] for entry in results])
            shown = once(samples, rows)
            results = [results[place] for place in shown]
            instances = [entry['instances'] for entry in results]
            gts = gts_of_table(table_of_samples(instances, names))
            images = list(range(len(results)))
        else:
            rows = match_samples(
                samples, self.table.image_ids, self.table.file_names, 'CalibrationMetric'
            )
            shown = once(samples, rows)
            tell_share(len(shown), len(self.table.image_ids), 'CalibrationMetric')
            results = [results[place] for place in shown]
            gts, images = gts_of_rows(self.table, [rows[place] for place in shown])
            gts = gts.of_classes(names, str(self.ann_file))
        detections = check_detections(collect(results, images))
        if np.ndim(self.score_thr) and len(np.atleast_1d(self.score_thr)) != len(names):
            raise ConfigError(
                f'score_thr has {len(np.atleast_1d(self.score_thr))} entries for {len(names)} '
                'classes: give one number, or one for each class'
            )
        detections = detections.take(keep_above(detections, self.score_thr))
        metrics = evaluate_detections(
            detections, gts, self.taus, self.zero_overlap, self.resamples, self.seed
        )
        if self.classwise:
            self._log_classes(detections, gts)
        print_log(f'Calibration:\n{format_metrics(metrics)}', logger='current')
        return metrics

    def _log_classes(self, detections: Detections, gts: GroundTruth) -> None:
        tau = self.taus[0]
        errors = errors_by_class(detections, gts, tau, self.zero_overlap)
        laece, laace = errors.laece.per_class, errors.laace.per_class
        width = max(5, *map(len, gts.class_names))
        head = (
            f'{"class":{width}}  count  LaECE   floor .95  LaACE   floor .95    LRP    loc     FP'
            '     FN'
        )
        rows = [
            f'{name:{width}} {laece.number[k]:6d} '
            + ' '.join(
                f'{floor.value[k]:6.3f}{"*" if floor.inside[k] else " "} {floor.upper[k]:10.3f}'
                for floor in (laece, laace)
            )
            + ' '
            + ' '.join(f'{values[k]:6.3f}' for values in errors.lrp)
            for k, name in enumerate(gts.class_names)
        ]
        print_log('\n'.join([f'At IoU {tau:g}:', head, *rows, INSIDE]), logger='current')
