"""The calibration metrics in an evaluator, beside ``CocoMetric``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import (
    Detections,
    Truths,
    check_detections,
    read_json,
    truths_from_coco,
)
from gfl_det.evaluation.functional import errors_by_class, evaluate_detections, keep_above
from gfl_det.evaluation.matching import ZeroOverlap
from gfl_det.ops.boxes import xyxy_to_xywh
from gfl_det.registry import METRICS


@METRICS.register_module()
class CalibrationMetric(BaseMetric):
    """How true the scores are: LaECE, LaACE, D-ECE, LRP, oLRP and AP of boxes.

    It goes beside others in a config's evaluator: ``val_evaluator = [dict(type='CocoMetric', ...),
    dict(type='gfl_det.CalibrationMetric', ...)]``. All values are fractions; the names are those of
    :func:`.evaluation.evaluate_detections`.

    Args:
        ann_file: COCO annotations; all of its images count, as for ``CocoMetric``. None: truths
            come with the samples.
        taus: thresholds below 1 of the IoU for LaECE, LaACE and LRP.
        zero_overlap: 'oracle' or 'reject', see :func:`.matching.match`.
        score_thr: least score of a detection that counts, or one for each class.
        classwise: log a table of the classes at the first threshold.
        collect_device: where results of several processes meet, 'cpu' or 'gpu'.
        prefix: before the names.
        backend_args: of the file storage that ``ann_file`` lies in.

    Raises:
        DataError: the annotations, a score or a box cannot be used.
        ConfigError: ``score_thr`` has another number of entries than there are classes.
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
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ann_file = ann_file
        self.taus = tuple(taus)
        self.zero_overlap: ZeroOverlap = zero_overlap
        self.score_thr = score_thr
        self.classwise = classwise
        content = read_json(ann_file, backend_args) if ann_file else None
        self.file_truths = truths_from_coco(content, ann_file) if ann_file else None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep what is needed of a batch: one entry an image, as the gathering counts them.

        Args:
            data_batch: not used.
            data_samples: with ``img_id`` and ``pred_instances``, and ``instances`` (the truths of
                the image as it lies on disk) where there is no ``ann_file``.
        """
        for sample in data_samples:
            found = sample['pred_instances']
            entry = {
                name: found[name].detach().cpu().numpy() for name in ('bboxes', 'scores', 'labels')
            }
            entry['img_id'] = sample['img_id']
            if self.file_truths is None:
                if 'instances' not in sample:
                    raise ConfigError(
                        'CalibrationMetric got samples without truths: give it an ann_file'
                    )
                entry['truths'] = sample['instances']
            self.results.append(entry)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Judge the detections of the whole data set; runs in one process.

        Args:
            results: entries of :meth:`process`, gathered.
        """
        names = list((self.dataset_meta or {}).get('classes', ()))
        if not names:
            raise ConfigError('CalibrationMetric needs the data set to name its classes: metainfo')
        truths = (
            _truths_of_samples(results, names)
            if self.file_truths is None
            else self.file_truths.of_classes(names, str(self.ann_file))
        )
        detections = check_detections(_collect(results, truths))
        if np.ndim(self.score_thr) and len(np.atleast_1d(self.score_thr)) != len(names):
            raise ConfigError(
                f'score_thr has {len(np.atleast_1d(self.score_thr))} entries for {len(names)} '
                'classes: give one number, or one for each class'
            )
        detections = detections.take(keep_above(detections, self.score_thr))
        metrics = evaluate_detections(detections, truths, self.taus, self.zero_overlap)
        if self.classwise:
            self._log_classes(detections, truths)
        values = ', '.join(f'{name} {value:.4f}' for name, value in metrics.items())
        print_log(f'Calibration: {values}', logger='current')
        return metrics

    def _log_classes(self, detections: Detections, truths: Truths) -> None:
        tau = self.taus[0]
        laece, laace, lrp = errors_by_class(detections, truths, tau, self.zero_overlap)
        width = max(map(len, truths.class_names))
        head = f'{"class":{width}}  LaECE  LaACE    LRP    loc     FP     FN'
        rows = [
            f'{name:{width}} '
            + ' '.join(f'{value:6.3f}' for value in (laece.per_class[k], laace.per_class[k]))
            + ' '
            + ' '.join(f'{values[k]:6.3f}' for values in lrp)
            for k, name in enumerate(truths.class_names)
        ]
        print_log('\n'.join([f'At IoU {tau:g}:', head, *rows]), logger='current')


def _truths_of_samples(results: Sequence[dict], names: list[str]) -> Truths:
    """Truths that mmdet's data sets pass along: xyxy px, numbered classes."""
    annotations: list[dict[str, Any]] = []
    for entry in results:
        for truth in entry['truths']:
            left, top, right, bottom = (float(side) for side in truth['bbox'])
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=entry['img_id'],
                    category_id=int(truth['bbox_label']),
                    bbox=[left, top, right - left, bottom - top],
                    iscrowd=truth.get('ignore_flag', 0),
                )
            )
    return truths_from_coco(
        dict(
            images=[dict(id=entry['img_id']) for entry in results],
            categories=[dict(id=label, name=name) for label, name in enumerate(names)],
            annotations=annotations,
        ),
        'the truths of the samples',
    )


def _collect(results: Sequence[dict], truths: Truths) -> Detections:
    place = {image_id: index for index, image_id in enumerate(truths.image_ids)}
    unknown = [entry['img_id'] for entry in results if entry['img_id'] not in place]
    if unknown:
        raise DataError(
            f'{len(unknown)} images of the data set are missing in the ann_file of '
            f'CalibrationMetric, the first has the id {unknown[0]!r}: give both the same file.'
        )
    counts = [len(entry['labels']) for entry in results]
    corners = np.concatenate([entry['bboxes'] for entry in results] or [np.zeros((0, 4))])
    corners = corners.astype(float).reshape(-1, 4)
    scores = np.concatenate([entry['scores'] for entry in results] or [np.zeros(0)])
    labels = np.concatenate([entry['labels'] for entry in results] or [np.zeros(0)])
    images = np.array([place[entry['img_id']] for entry in results], np.int64)
    boxes = xyxy_to_xywh(corners)
    return Detections(
        np.repeat(images, counts), labels.astype(np.int64), boxes, scores.astype(float)
    )
