"""MMDetection's COCO metric, with a choice of who counts."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
from mmdet.datasets.api_wrappers import COCO as MMDetCOCO
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmengine.logging import print_log
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from terminaltables import AsciiTable

from gfl_det.compat.versions import FASTER_COCO_EVAL, has_faster_coco_eval
from gfl_det.errors import ConfigError, SetupError
from gfl_det.ops.boxes import xyxy_to_xywh
from gfl_det.registry import METRICS

SETTINGS = ('imgIds', 'catIds', 'iouThrs', 'recThrs', 'maxDets', 'areaRng', 'areaRngLbl', 'useCats')


class FastCOCOeval(COCOeval):
    """Drop-in for pycocotools' ``COCOeval`` on boxes: same inputs, settings, arrays and summary.

    ``summarize`` stays pycocotools' own: faster_coco_eval's takes AP from the largest of
    ``maxDets`` where pycocotools takes it from 100 detections an image.

    Entries of ``eval['precision']`` differ from pycocotools' by one unit in the last place (2e-16)
    where a single detection decides them: pycocotools adds that much to the divisor against 0 / 0.
    ``evalImgs``, pycocotools' record of each image, stays empty.
    """

    def evaluate(self) -> None:
        """Match detections with truths at every IoU threshold and area range."""
        # The package is optional, and heads and losses have no use for it.
        from faster_coco_eval import COCOeval_faster

        self._engine = COCOeval_faster(self.cocoGt, self.cocoDt, self.params.iouType)
        _copy_settings(self.params, self._engine.params)
        self._engine.evaluate()
        _copy_settings(self._engine.params, self.params)  # sorted, and each id once

    def accumulate(self) -> None:
        """Fill ``eval`` with precision (T, R, K, A, M) and recall (T, K, A, M)."""
        self._engine.accumulate()
        self.eval = self._engine.eval


def counts_alike(truths: COCO, detections: Sequence[dict[str, Any]]) -> bool:
    """Whether `FastCOCOeval` is sure to give pycocotools' numbers.

    It reads ids as integers, a missing ``area`` or ``iscrowd`` as 0, and has no place for a score
    that is not a number; pycocotools takes any id and score, and refuses what is missing.
    """
    ids = [entry['id'] for part in ('images', 'categories') for entry in truths.dataset[part]]
    annotations = truths.dataset.get('annotations', [])
    return (
        all(isinstance(each, int) for each in ids)
        and all(
            isinstance(each['id'], int) and 'area' in each and 'iscrowd' in each
            for each in annotations
        )
        and not any(math.isnan(each['score']) for each in detections)
    )


def _copy_settings(source: Any, target: Any) -> None:
    for name in SETTINGS:
        setattr(target, name, getattr(source, name))


Backend = Literal['auto', 'pycocotools', 'faster_coco_eval']

# mmdet's names of the twelve numbers that pycocotools sums up, in its order.
AVERAGE_PRECISIONS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
AVERAGE_RECALLS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
STATISTICS = AVERAGE_PRECISIONS + AVERAGE_RECALLS


@METRICS.register_module()
class CocoMetric(MMDetCocoMetric):
    """Drop-in for mmdet's ``CocoMetric``: same arguments, same numbers, several times faster.

    Boxes and proposals are counted straight from memory, by faster_coco_eval where it is sure to
    count as pycocotools does (`counts_alike`). Masks and ``use_mp_eval`` are left to mmdet's code.
    One thing differs: ``classwise`` finds each class by its id, where mmdet takes ids to ascend in
    the file, and else gives one class the AP of another.

    Args:
        *args: mmdet's.
        backend: who counts. ``'auto'`` is ``'faster_coco_eval'`` where a version is installed that
            was compared with pycocotools, else ``'pycocotools'``, the reference.
        **kwargs: mmdet's. ``iou_thrs`` may be one number or a list, as mmdet documents.

    Raises:
        ConfigError: An unknown backend or metric item.
        SetupError: ``'faster_coco_eval'`` is asked for by name and not installed.
    """

    iou_thrs: np.ndarray
    cat_ids: Any
    img_ids: Any
    _coco_api: Any

    def __init__(self, *args: Any, backend: Backend = 'auto', **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = choose_backend(backend)
        self.iou_thrs = np.atleast_1d(np.asarray(self.iou_thrs, dtype=float))
        for item in set(self.metric_items or ()) - set(STATISTICS):
            raise ConfigError(
                f'metric_items of CocoMetric has {item!r}, none of {", ".join(STATISTICS)}.'
            )

    def compute_metrics(self, results: Sequence[tuple[dict, dict]]) -> dict[str, float]:
        """Count all results.

        Args:
            results: What `process` collected: (truth, prediction) of each image.

        Returns:
            The numbers by name, rounded to three digits as mmdet does.
        """
        truths, predictions = zip(*results)
        if self.format_only or self.use_mp_eval or 'segm' in self.metrics:
            return super().compute_metrics(results)
        self._prepare(truths)
        if self.outfile_prefix is not None:
            self.results2json(predictions, self.outfile_prefix)

        numbers: dict[str, float] = {}
        for metric in self.metrics:
            print_log(f'Evaluating {metric}...', 'current')
            if metric == 'proposal_fast':
                recalls = self.fast_eval_recall(
                    predictions, self.proposal_nums, self.iou_thrs, logger='current'
                )
                numbers.update((f'AR@{n}', ar) for n, ar in zip(self.proposal_nums, recalls))
                continue
            detections = self._detections(predictions)
            if not detections:
                print_log('No image has a detection: no metric.', 'current', logging.ERROR)
                break
            evaluator = self._evaluate(detections, by_class=metric == 'bbox')
            numbers.update(self._name(metric, evaluator))
        return numbers

    def _prepare(self, truths: Sequence[dict]) -> None:
        """Make COCO truths of the samples' own where no ``ann_file`` was given, once."""
        if self._coco_api is None:
            with TemporaryDirectory() as folder:
                prefix = self.outfile_prefix or os.path.join(folder, 'results')
                self._coco_api = MMDetCOCO(self.gt_to_coco_json(truths, prefix))
        if self.cat_ids is None:
            self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        if self.img_ids is None:
            self.img_ids = self._coco_api.get_img_ids()

    def _detections(self, predictions: Sequence[dict]) -> list[dict]:
        """Write predictions in COCO's result format, in float64 as mmdet's JSON files hold them."""
        detections = []
        for prediction in predictions:
            boxes = xyxy_to_xywh(prediction['bboxes'].astype(float))
            scores, labels = prediction['scores'].tolist(), prediction['labels'].tolist()
            detections += [
                dict(
                    image_id=prediction['img_id'],
                    bbox=box,
                    score=score,
                    category_id=self.cat_ids[label],
                )
                for box, score, label in zip(boxes.tolist(), scores, labels)
            ]
        return detections

    def _evaluate(self, detections: list[dict], by_class: bool) -> COCOeval:
        """Count boxes and print COCO's table; boxes of any class may match unless ``by_class``."""
        kind = COCOeval
        if self.backend == 'faster_coco_eval' and counts_alike(self._coco_api, detections):
            kind = FastCOCOeval
        evaluator = kind(self._coco_api, self._coco_api.loadRes(detections), 'bbox')
        evaluator.params.catIds = self.cat_ids
        evaluator.params.imgIds = self.img_ids
        evaluator.params.maxDets = list(self.proposal_nums)
        evaluator.params.iouThrs = self.iou_thrs
        evaluator.params.useCats = int(by_class)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        return evaluator

    def _name(self, metric: str, evaluator: COCOeval) -> dict[str, float]:
        """Give the numbers that were asked for their names."""
        by_name = dict(zip(STATISTICS, evaluator.stats))
        items = AVERAGE_RECALLS if metric == 'proposal' else AVERAGE_PRECISIONS
        items = items if self.metric_items is None else self.metric_items
        if metric == 'proposal':
            return {item: float(f'{by_name[item]:.3f}') for item in items}
        numbers = self._list_classes(evaluator) if self.classwise else {}
        for item in items:
            numbers[f'{metric}_{item}'] = float(round(by_name[item], 3))
        row = ' '.join(f'{by_name[item]:.3f}' for item in AVERAGE_PRECISIONS)
        print_log(f'{metric}_mAP_copypaste: {row}', 'current')
        return numbers

    def _list_classes(self, evaluator: COCOeval) -> dict[str, float]:
        """AP of each class; the table also has those of `AVERAGE_PRECISIONS`."""
        precision = evaluator.eval['precision'][..., -1]  # (thresholds, recalls, classes, areas)
        numbers: dict[str, float] = {}
        table = [['category', *AVERAGE_PRECISIONS]]
        for index, cat_id in enumerate(evaluator.params.catIds):
            name = self._coco_api.cats[cat_id]['name']
            everywhere = precision[:, :, index, 0]
            at = [everywhere[np.isclose(self.iou_thrs, threshold)] for threshold in (0.5, 0.75)]
            by_area = [precision[:, :, index, area] for area in (1, 2, 3)]
            row = [round(_mean(part), 3) for part in (everywhere, *at, *by_area)]
            numbers[f'{name}_precision'] = row[0]
            table.append([name, *map(str, row)])
        print_log('\n' + AsciiTable(table).table, 'current')
        return numbers


def choose_backend(wanted: Backend) -> Backend:
    """Settle on one of the two backends.

    Raises:
        ConfigError: There is no such backend.
        SetupError: It is asked for by name and not installed.
    """
    if wanted not in get_args(Backend):
        raise ConfigError(
            f'backend={wanted!r} of CocoMetric is none of {", ".join(get_args(Backend))}.'
        )
    if wanted == 'auto':
        return 'faster_coco_eval' if has_faster_coco_eval() else 'pycocotools'
    if wanted == 'faster_coco_eval' and not has_faster_coco_eval():
        raise SetupError(
            f"backend='faster_coco_eval' of CocoMetric needs {FASTER_COCO_EVAL}, which is not "
            'installed: pip install gfl_det[faster].'
        )
    return wanted


def _mean(precision: np.ndarray) -> float:
    """Mean of what is there; -1 marks what had no truth."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else float('nan')
