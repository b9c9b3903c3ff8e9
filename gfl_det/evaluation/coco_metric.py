"""MMDetection's COCO metric, with a choice of evaluation backend."""

from __future__ import annotations

import inspect
import io
import logging
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from mmdet.datasets.api_wrappers import COCO as MMDetCOCO
from mmdet.datasets.api_wrappers import COCOevalMP
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmengine.logging import print_log
from pycocotools.cocoeval import COCOeval
from terminaltables import AsciiTable

from gfl_det.datasets.annotations import absent_text, match_classes
from gfl_det.datasets.table import CocoTable, with_absent
from gfl_det.errors import ConfigError
from gfl_det.evaluation.bootstrap import precision_intervals
from gfl_det.evaluation.coco_backends import Backend, FastCOCOeval, choose_backend, counts_alike
from gfl_det.evaluation.detections import (
    collect,
    gts_of_rows,
    read_annotations,
    sorted_rows,
)
from gfl_det.evaluation.functional import COCO_TAUS
from gfl_det.evaluation.shown import (
    Sample,
    match_samples,
    once,
    samples_once,
    table_of_samples,
    tell_share,
)
from gfl_det.ops.boxes import xyxy_to_xywh
from gfl_det.registry import METRICS

# mmdet's names of pycocotools' twelve summary numbers, in its order.
AVERAGE_PRECISIONS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
AVERAGE_RECALLS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
STATISTICS = AVERAGE_PRECISIONS + AVERAGE_RECALLS


PRECISIONS = ('AP', 'AP50', 'AP75')  # the first three, as other metrics here name them
DEFAULT_NUMS = (100, 300, 1000)  # mmdet's proposal_nums
STANDARD_DETECTIONS = 100  # per image: COCO's AP


class _Shown(NamedTuple):
    """The ground truth as a table, and which of its images were evaluated."""

    table: CocoTable
    rows: list[int]  # row of the table for each prediction
    predictions: list[dict]  # with the ids of the file


@METRICS.register_module()
class CocoMetric(MMDetCocoMetric):
    """Drop-in for mmdet's ``CocoMetric``: same arguments, same numbers, several times faster.

    Boxes and proposals are evaluated in memory, by faster_coco_eval if it is known to agree with
    pycocotools; masks by pycocotools. The metric differs from mmdet's where that one is wrong:

    - Evaluators receive images, categories and annotations renumbered from 1, whatever their ids;
      result files contain the ids of ``ann_file``.
    - Only the images seen are evaluated, each once; they are found in ``ann_file`` by id and file
      name.
    - A non-positive ``area`` becomes width * height; an ``iscrowd`` other than 1 becomes 0.
    - ``classwise`` finds each class by its id. mmdet assumes ascending ids in the file, and
      otherwise gives one class the AP of another.
    - With ``proposal_nums`` other than mmdet's, AP is taken at the largest of them.

    Args:
        *args: Arguments of mmdet's metric.
        backend: Evaluation library. ``'auto'`` is ``'faster_coco_eval'`` if the installed version
            was compared with pycocotools, else ``'pycocotools'``, the reference.
        resamples: Resamples of the images, for .95 intervals of mAP, mAP_50 and mAP_75 and, with
            ``classwise``, of each class: ``bbox_mAP_low``, ``bbox_mAP_high`` and so on
            (:mod:`.bootstrap`); 0 for none.
        seed: Seed of the resamples.
        **kwargs: Arguments of mmdet's metric. ``iou_thrs`` may be a number or a list, as mmdet
            documents, and ``proposal_nums`` a number or any count of numbers.

    Raises:
        ConfigError: If a backend or metric item is unknown, ``proposal_nums`` are not positive
            integers, or resamples are requested for IoU thresholds other than COCO's.
        DataError: If ``ann_file`` cannot be used, or an image seen is not in it.
        SetupError: If ``'faster_coco_eval'`` is requested by name and not installed.
    """

    iou_thrs: np.ndarray
    cat_ids: Any
    img_ids: Any
    _coco_api: Any

    def __init__(
        self,
        *args: Any,
        backend: Backend = 'auto',
        resamples: int = 0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        given = inspect.signature(MMDetCocoMetric).bind(*args, **kwargs).arguments
        ann_file = given.pop('ann_file', None)
        sort_categories = given.pop('sort_categories', False)
        given['proposal_nums'] = _detection_numbers(given.get('proposal_nums', DEFAULT_NUMS))
        super().__init__(**given)
        self.backend = choose_backend(backend)
        self.iou_thrs = np.atleast_1d(np.asarray(self.iou_thrs, dtype=float))
        for item in set(self.metric_items or ()) - set(STATISTICS):
            raise ConfigError(
                f'metric_items of CocoMetric has {item!r}, none of {", ".join(STATISTICS)}.'
            )
        self.resamples, self.seed = resamples, seed
        if resamples and not np.array_equal(self.iou_thrs, COCO_TAUS):
            raise ConfigError(
                f"resamples={resamples} of CocoMetric are of COCO's AP, from IoU .5 to .95: leave "
                'iou_thrs out.'
            )
        self.table: CocoTable | None = None
        if ann_file is not None:
            table = read_annotations(ann_file, self.backend_args)
            self.table = _by_category_id(table) if sort_categories else table
            self._coco_api = _coco_of(self.table)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Collect the predictions of a batch, and its gt if there is no ``ann_file``.

        Args:
            data_batch: Not used.
            data_samples: As in mmdet's metric; ``img_path`` distinguishes images of the same id.

        Raises:
            ConfigError: If there is no ``ann_file`` and the samples have no gt.
        """
        if self.table is None and not all('instances' in sample for sample in data_samples):
            raise ConfigError(
                'CocoMetric got samples without gt: give it an ann_file that lists all images, or '
                "LoadAnnotations and meta_keys with 'instances' in the pipeline."
            )
        begin = len(self.results)
        super().process(data_batch, data_samples)
        for (_, prediction), sample in zip(self.results[begin:], data_samples):
            prediction['img_path'] = str(sample.get('img_path') or '')

    def compute_metrics(self, results: Sequence[tuple[dict, dict]]) -> dict[str, float]:
        """Evaluate all results.

        Args:
            results: (ground truth, prediction) of each image, as collected by `process`.

        Returns:
            Metrics by name, rounded to three digits as in mmdet.
        """
        self._add_absent()
        shown = self._shown(results)
        labels = self._labels(shown.table)
        self.cat_ids = [shown.table.category_ids[label] for label in labels]
        if self.outfile_prefix is not None:
            self.results2json(shown.predictions, self.outfile_prefix)
            if self.table is None:
                self.gt_to_coco_json([gt for gt, _ in results], self.outfile_prefix)
        if self.format_only:
            print_log(f'The results are in {self.outfile_prefix}.*.json.', 'current')
            return {}
        gts = self._coco_api if self.table is not None else _coco_of(shown.table)
        self.img_ids = [row + 1 for row in shown.rows]
        numbers: dict[str, float] = {}
        for metric in self.metrics:
            print_log(f'Evaluating {metric}...', 'current')
            if metric == 'proposal_fast':
                numbers.update(self._fast_recalls(gts, shown.predictions))
                continue
            detections = self._detections(shown, labels, with_masks=metric == 'segm')
            if not detections:
                print_log('No image has a detection: no metric.', 'current', logging.ERROR)
                break
            evaluator = self._evaluate(gts, detections, labels, metric)
            numbers.update(self._name(metric, evaluator))
            if metric == 'bbox' and self.resamples:
                numbers.update(self._intervals(shown, labels))
        return numbers

    def _intervals(self, shown: _Shown, labels: list[int]) -> dict[str, float]:
        """Ends of the .95 intervals of mAP, mAP_50, mAP_75 and, with ``classwise``, each class."""
        names = [shown.table.class_names[label] for label in labels]
        gts, images = gts_of_rows(shown.table, shown.rows)
        most = self.proposal_nums[self._precision_column()]
        found = precision_intervals(
            collect(shown.predictions, images),
            gts.of_classes(names, shown.table.source),
            self.resamples,
            self.seed,
            most,
        )
        known = dict(zip(PRECISIONS, ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')))
        if self.classwise:
            known |= {f'AP_class_{k}': f'{name}_precision' for k, name in enumerate(names)}
        numbers: dict[str, float] = {}
        for key, name in known.items():
            low, high = (float(round(end, 3)) for end in found[key])
            numbers.update({f'{name}_low': low, f'{name}_high': high})
            print_log(f'{name}: .95 interval {low:.3f} to {high:.3f}', 'current')
        return numbers

    def _add_absent(self) -> None:
        """Add the classes of the data set that ``ann_file`` does not list; they have no gt box."""
        if self.table is None:
            return
        table, absent = with_absent(self.table, (self.dataset_meta or {})['classes'])
        if absent:
            print_log(f'{table.source}: {absent_text(absent)}', 'current', logging.WARNING)
            self.table, self._coco_api = table, _coco_of(table)

    def _shown(self, results: Sequence[tuple[dict, dict]]) -> _Shown:
        """Find the evaluated images in the ground truth, each once."""
        predictions = [prediction for _, prediction in results]
        samples = [Sample(each['img_id'], each.get('img_path', '')) for each in predictions]
        if self.table is None:
            gts = [gt for gt, _ in results]
            places = once(samples, samples_once(samples, [gt['anns'] for gt in gts]))
            chosen = [predictions[place] for place in places]
            gts = [gts[place] for place in places]
            table = table_of_samples(
                [gt['anns'] for gt in gts],
                (self.dataset_meta or {})['classes'],
                [dict(width=gt['width'], height=gt['height']) for gt in gts],
            )
            return _Shown(table, list(range(len(places))), chosen)
        table = self.table
        rows = match_samples(samples, table.image_ids, table.file_names, 'CocoMetric')
        places = once(samples, rows)
        tell_share(len(places), len(table.image_ids), 'CocoMetric')
        rows = [rows[place] for place in places]
        chosen = [
            {**predictions[place], 'img_id': table.image_ids[row]}
            for place, row in zip(places, rows)
        ]
        return _Shown(table, rows, chosen)

    def _labels(self, table: CocoTable) -> list[int]:
        """Return the file's category of each of the detector's labels, in the order of labels."""
        categories = [dict(id=row, name=name) for row, name in enumerate(table.class_names)]
        return match_classes((self.dataset_meta or {})['classes'], categories, table.source)

    def _fast_recalls(self, coco: Any, predictions: Sequence[dict]) -> dict[str, float]:
        """Compute recalls image by image: mmdet's code fails if numbers of gt boxes differ."""
        known, shown = self._coco_api, self.img_ids
        self._coco_api = coco
        found, gts = np.zeros(len(self.proposal_nums)), 0
        for row, prediction in zip(shown, predictions):
            entries = coco.load_anns(coco.get_ann_ids(img_ids=row))
            number = sum(not (each.get('ignore', False) or each['iscrowd']) for each in entries)
            if number:
                self.img_ids = [row]
                found += number * self.fast_eval_recall(
                    [prediction], self.proposal_nums, self.iou_thrs, logger='silent'
                )
                gts += number
        self._coco_api, self.img_ids = known, shown
        recalls = found / gts if gts else np.full(len(found), np.nan)
        return {f'AR@{number}': recall for number, recall in zip(self.proposal_nums, recalls)}

    def _detections(self, shown: _Shown, labels: list[int], with_masks: bool) -> list[dict]:
        """Return predictions as COCO results in float64, as in mmdet's JSON files."""
        detections = []
        for row, prediction in zip(shown.rows, shown.predictions):
            scores, found = prediction['scores'].tolist(), prediction['labels'].tolist()
            if with_masks:
                key, values = 'segmentation', prediction['masks']
                scores = prediction.get('mask_scores', prediction['scores']).tolist()
            else:
                key, values = 'bbox', xyxy_to_xywh(prediction['bboxes'].astype(float)).tolist()
            detections += [
                {'image_id': row + 1, key: value, 'score': score, 'category_id': labels[label] + 1}
                for value, score, label in zip(values, scores, found)
            ]
        return detections

    def _evaluate(
        self, coco: Any, detections: list[dict], labels: list[int], metric: str
    ) -> COCOeval:
        """Evaluate and print COCO's table; proposals may match boxes of any class."""
        kind = COCOevalMP if self.use_mp_eval else COCOeval
        is_fast = self.backend == 'faster_coco_eval' and metric != 'segm' and not self.use_mp_eval
        if is_fast and counts_alike(coco, detections):
            kind = FastCOCOeval
        with redirect_stdout(io.StringIO()):
            found = coco.loadRes(detections)
        evaluator = kind(coco, found, 'segm' if metric == 'segm' else 'bbox')
        evaluator.params.catIds = [label + 1 for label in labels]
        evaluator.params.imgIds = self.img_ids
        evaluator.params.maxDets = list(self.proposal_nums)
        evaluator.params.iouThrs = self.iou_thrs
        evaluator.params.useCats = int(metric != 'proposal')
        with redirect_stdout(io.StringIO()):
            evaluator.evaluate()
            evaluator.accumulate()
        _summarize(evaluator, self._precision_column())
        return evaluator

    def _precision_column(self) -> int:
        """Index into ``proposal_nums`` for AP; mmdet's defaults mean COCO's standard AP."""
        if tuple(self.proposal_nums) == DEFAULT_NUMS:
            return self.proposal_nums.index(STANDARD_DETECTIONS)
        largest = self.proposal_nums[-1]
        print_log(f'AP is taken at {largest} detections per image, the largest number.', 'current')
        return len(self.proposal_nums) - 1

    def _name(self, metric: str, evaluator: COCOeval) -> dict[str, float]:
        """Return the requested metrics by name."""
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
        """AP of each class; the printed table also lists `AVERAGE_PRECISIONS`."""
        precision = evaluator.eval['precision'][..., -1]  # (thresholds, recalls, classes, areas)
        numbers: dict[str, float] = {}
        table = [['category', *AVERAGE_PRECISIONS]]
        for index, cat_id in enumerate(evaluator.params.catIds):
            name = evaluator.cocoGt.cats[cat_id]['name']
            everywhere = precision[:, :, index, 0]
            at = [everywhere[np.isclose(self.iou_thrs, threshold)] for threshold in (0.5, 0.75)]
            by_area = [precision[:, :, index, area] for area in (1, 2, 3)]
            row = [round(_mean(part), 3) for part in (everywhere, *at, *by_area)]
            numbers[f'{name}_precision'] = row[0]
            table.append([name, *map(str, row)])
        print_log('\n' + AsciiTable(table).table, 'current')
        return numbers


def _detection_numbers(value: Any) -> list[int]:
    """Return the numbers of detections per image to evaluate at, ascending.

    >>> _detection_numbers((1000, 1, 10))
    [1, 10, 1000]
    >>> _detection_numbers(300)
    [300]

    Raises:
        ConfigError: If they are not positive integers.
    """
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    values = list(listed) if isinstance(listed, (list, tuple)) else [listed]
    if not values or not all(
        isinstance(each, Integral) and not isinstance(each, bool) and int(each) > 0
        for each in values
    ):
        raise ConfigError(
            f'proposal_nums={value!r:.80} of CocoMetric is not a number of detections: give '
            f'a positive integer or a list of them, such as {DEFAULT_NUMS}.'
        )
    return sorted({int(each) for each in values})


def _coco_of(table: CocoTable) -> Any:
    """Return ground truth as a pycocotools object with all ids renumbered from 1."""
    columns = (table.image, table.label, table.boxes, table.area, table.crowd, table.ignored)
    annotations = [
        dict(
            id=number,
            image_id=image + 1,
            category_id=label + 1,
            bbox=box,
            area=area,
            iscrowd=int(crowd),
            **({'segmentation': outline} if outline else {}),
            **({'ignore': 1} if ignored else {}),
        )
        for number, (image, label, box, area, crowd, ignored, outline) in enumerate(
            zip(*(column.tolist() for column in columns), table.outlines), 1
        )
    ]
    known = MMDetCOCO()
    known.dataset = dict(
        images=[
            dict(id=number, width=width, height=height)
            for number, (width, height) in enumerate(np.nan_to_num(table.image_wh).tolist(), 1)
        ],
        categories=[dict(id=number, name=name) for number, name in enumerate(table.class_names, 1)],
        annotations=annotations,
    )
    with redirect_stdout(io.StringIO()):  # pycocotools prints every step
        known.createIndex()
    known.img_ann_map, known.cat_img_map = known.imgToAnns, known.catToImgs
    return known


def _by_category_id(table: CocoTable) -> CocoTable:
    """Return the same ground truth with the categories in the order of their ids."""
    order = sorted_rows(table.category_ids)
    return table._replace(
        category_ids=[table.category_ids[row] for row in order],
        class_names=[table.class_names[row] for row in order],
        label=np.argsort(order)[table.label],
    )


def _summarize(evaluator: COCOeval, column: int) -> None:
    """Fill ``stats`` with the twelve numbers and print them with the numbers of detections.

    pycocotools' own ``summarize`` takes AP at 100 detections only, and requires three ``maxDets``.

    Args:
        evaluator: Evaluator after ``accumulate``.
        column: Index into ``maxDets`` for the first AP; the others use the largest of three.
    """
    numbers = evaluator.params.maxDets
    third = min(2, len(numbers) - 1)
    rest = max(third, column)
    rows = [
        ('precision', None, 'all', column),
        ('precision', 0.5, 'all', rest),
        ('precision', 0.75, 'all', rest),
        *(('precision', None, area, rest) for area in ('small', 'medium', 'large')),
        ('recall', None, 'all', 0),
        ('recall', None, 'all', min(1, third)),
        ('recall', None, 'all', third),
        *(('recall', None, area, third) for area in ('small', 'medium', 'large')),
    ]
    evaluator.stats = np.array([_statistic(evaluator, *row) for row in rows])


def _statistic(
    evaluator: COCOeval, kind: str, threshold: float | None, area: str, column: int
) -> float:
    """Print and return one number: the mean of the valid entries, or -1 if there are none."""
    params = evaluator.params
    values = evaluator.eval[kind][..., params.areaRngLbl.index(area), column]
    if threshold is not None:
        values = values[params.iouThrs == threshold]
        iou = f'{threshold:0.2f}'
    else:
        iou = f'{params.iouThrs[0]:0.2f}:{params.iouThrs[-1]:0.2f}'
    mean = _mean(values)
    title, name = {
        'precision': ('Average Precision', '(AP)'),
        'recall': ('Average Recall', '(AR)'),
    }[kind]
    value = -1.0 if math.isnan(mean) else mean
    print(
        f' {title:<18} {name} @[ IoU={iou:<9} | area={area:>6} | '
        f'maxDets={params.maxDets[column]:>3} ] = {value:0.3f}'
    )
    return value


def _mean(precision: np.ndarray) -> float:
    """Mean of the valid entries; -1 marks entries without a gt box."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else float('nan')
