"""The registered metric: against the functions, beside ``CocoMetric``, in one process and two."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

import gfl_det  # noqa: F401  (registers the metric)
from gfl_det.calibration import Detections, GroundTruth, evaluate_detections
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation import VOCMetric
from tests.helpers.processes import run_in_two

CLASSES = ('a', 'b', 'c')
TYPE = 'gfl_det.CalibrationMetric'


def make_samples(images: int = 7, seed: int = 0) -> list[dict]:
    """Samples as mmdet's detectors hand them to metrics, with gt boxes; one image has none."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for image in range(images):
        number = 0 if image == 2 else 4
        corner = torch.rand(number, 2, generator=generator) * 60
        boxes = torch.cat(
            [corner, corner + 10 + 30 * torch.rand(number, 2, generator=generator)], 1
        )
        labels = torch.randint(0, 2, (number,), generator=generator)
        near = boxes.repeat(2, 1) + 4 * torch.randn(2 * number, 4, generator=generator)
        found = dict(
            bboxes=near,
            scores=torch.rand(2 * number, generator=generator),
            labels=torch.cat([labels, torch.randint(0, 3, (number,), generator=generator)]),
        )
        instances = [
            dict(bbox=box.tolist(), bbox_label=int(label), ignore_flag=int(index == 3))
            for index, (box, label) in enumerate(zip(boxes, labels))
        ]
        samples.append(
            dict(img_id=image, ori_shape=(100, 100), pred_instances=found, instances=instances)
        )
    return samples


def flat(samples: list[dict]) -> tuple[Detections, GroundTruth]:
    def boxes(corners: list) -> np.ndarray:
        array = np.array(corners, float).reshape(-1, 4)
        return np.concatenate([array[:, :2], array[:, 2:] - array[:, :2]], 1)

    marks = [(sample['img_id'], each) for sample in samples for each in sample['instances']]
    gts = GroundTruth(
        list(range(len(samples))),
        [''] * len(samples),
        list(range(3)),
        list(CLASSES),
        np.array([image for image, _ in marks]),
        np.array([each['bbox_label'] for _, each in marks]),
        boxes([each['bbox'] for _, each in marks]),
        np.array([bool(each['ignore_flag']) for _, each in marks]),
    )
    found = [(sample['img_id'], sample['pred_instances']) for sample in samples]
    detections = Detections(
        np.concatenate([[image] * len(each['scores']) for image, each in found]).astype(int),
        np.concatenate([each['labels'] for _, each in found]),
        boxes(np.concatenate([each['bboxes'] for _, each in found])),
        np.concatenate([each['scores'] for _, each in found]).astype(float),
    )
    return detections, gts


def evaluator(*metrics: dict, classes: tuple = CLASSES) -> Evaluator:
    with DefaultScope.overwrite_default_scope('mmdet'):  # as in every config
        built = Evaluator(list(metrics))
    built.dataset_meta = dict(classes=classes)
    return built


def write_annotations(samples: list[dict], folder: Path, backwards: bool = False) -> str:
    _, gts = flat(samples)
    label_ids = [10, 5, 0]
    categories = [dict(id=label_ids[k], name=name) for k, name in enumerate(CLASSES)]
    path = folder / 'annotations.json'
    annotations = [
        dict(
            id=index + 1,
            image_id=int(gts.image[index]),
            category_id=label_ids[gts.label[index]],
            bbox=box.tolist(),
            area=float(box[2] * box[3]),
            iscrowd=int(gts.crowd[index]),
        )
        for index, box in enumerate(gts.boxes)
    ]
    images = [dict(id=index, width=100, height=100) for index in range(len(samples))]
    path.write_text(
        json.dumps(
            dict(
                images=images[::-1],
                categories=categories[::-1] if backwards else categories,
                annotations=annotations,
            )
        )
    )
    return str(path)


def run(judge: Evaluator, samples: list[dict]) -> dict[str, float]:
    for begin in range(0, len(samples), 2):
        judge.process(samples[begin : begin + 2])
    return judge.evaluate(len(samples))


def test_it_is_the_functions_on_what_the_samples_hold() -> None:
    samples = make_samples()
    result = run(evaluator(dict(type=TYPE, taus=(0.0, 0.3, 0.5))), samples)
    wanted = evaluate_detections(*flat(samples), taus=(0.0, 0.3, 0.5))
    assert set(result) == {f'calibration/{name}' for name in wanted}
    for name, value in wanted.items():
        np.testing.assert_equal(result[f'calibration/{name}'], value)
    assert 0 < result['calibration/LaECE_0.3'] < 1


def test_ends_of_intervals_are_logged_on_request() -> None:
    samples = make_samples()
    result = run(evaluator(dict(type=TYPE, resamples=20, seed=1)), samples)
    wanted = evaluate_detections(*flat(samples), resamples=20, seed=1)
    assert {name.removeprefix('calibration/') for name in result} == set(wanted)
    assert result['calibration/AP_low'] == wanted['AP_low'] <= wanted['AP_high']


def test_beside_coco_metric_with_the_same_file(tmp_path: Path) -> None:
    samples = make_samples()
    path = write_annotations(samples, tmp_path)
    both = evaluator(dict(type='mmdet.CocoMetric', ann_file=path), dict(type=TYPE, ann_file=path))
    result = run(both, samples)
    for name, theirs in (('AP', 'mAP'), ('AP50', 'mAP_50'), ('AP75', 'mAP_75')):
        # CocoMetric rounds to three digits.
        coco = result[f'coco/bbox_{theirs}']
        assert result[f'calibration/{name}'] == pytest.approx(coco, abs=6e-4)


@pytest.mark.parametrize('backwards', [False, True])
def test_gts_of_a_file_are_those_of_the_samples(tmp_path: Path, backwards: bool) -> None:
    samples = make_samples()
    path = write_annotations(samples, tmp_path, backwards)
    wanted = run(evaluator(dict(type=TYPE)), samples)
    found = run(evaluator(dict(type=TYPE, ann_file=path)), samples)
    assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_of_a_larger_file_the_shown_images_and_classes_are_judged(tmp_path: Path) -> None:
    samples = make_samples()
    path = write_annotations(samples, tmp_path)
    for sample in samples:
        keep = sample['pred_instances']['labels'] < 2
        sample['pred_instances'] = {k: v[keep] for k, v in sample['pred_instances'].items()}
    classes = CLASSES[:2]
    result = run(evaluator(dict(type=TYPE, ann_file=path), classes=classes), samples[:4])
    wanted = run(evaluator(dict(type=TYPE), classes=classes), samples[:4])
    assert result['calibration/classes'] == 2
    assert result == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_a_cut_by_score() -> None:
    samples = make_samples()
    for cut in (0.5, [0.5, 0.2, 0.0]):
        judge = evaluator(dict(type=TYPE, score_thr=cut, classwise=True))
        detections, gts = flat(samples)
        least = np.broadcast_to(cut, 3)[detections.label]
        wanted = evaluate_detections(detections.take(detections.scores >= least), gts)
        result = run(judge, samples)
        assert result['calibration/LaECE_0.5'] == wanted['LaECE_0.5']
        assert result['calibration/LRP_0'] == wanted['LRP_0']


def test_instances_of_mmengine_are_read_as_dicts_are() -> None:
    samples = make_samples()
    wanted = run(evaluator(dict(type=TYPE)), samples)
    for sample in samples:
        sample['pred_instances'] = InstanceData(**sample['pred_instances'])
    assert run(evaluator(dict(type=TYPE)), samples) == pytest.approx(wanted, nan_ok=True)


def test_no_detection_in_any_image() -> None:
    samples = make_samples()
    for sample in samples:
        sample['pred_instances'] = {k: v[:0] for k, v in sample['pred_instances'].items()}
    result = run(evaluator(dict(type=TYPE)), samples)
    assert math.isnan(result['calibration/LaECE_0'])
    assert result['calibration/LRP_0.5'] == 1
    assert result['calibration/AP'] == 0


class TestRefused:
    def test_invalid_scores(self) -> None:
        for bad in (float('nan'), 1.5):
            samples = make_samples()
            samples[3]['pred_instances']['scores'][0] = bad
            with pytest.raises(DataError, match=r'score (nan|1\.5).*\[0, 1\]'):
                run(evaluator(dict(type=TYPE)), samples)

    def test_images_missing_from_the_file(self, tmp_path: Path) -> None:
        path = write_annotations(make_samples(5), tmp_path)
        with pytest.raises(DataError, match=r'2 images .* id 5'):
            run(evaluator(dict(type=TYPE, ann_file=path)), make_samples(7))

    def test_classes_missing_from_the_file(self, tmp_path: Path) -> None:
        path = write_annotations(make_samples(), tmp_path)
        judge = evaluator(dict(type=TYPE, ann_file=path), classes=('a', 'cat'))
        with pytest.raises(DataError, match=r"annotations\.json .*\['cat'\]"):
            run(judge, make_samples())

    def test_samples_without_gts(self) -> None:
        samples = make_samples()
        del samples[0]['instances']
        with pytest.raises(ConfigError, match='give it an ann_file'):
            run(evaluator(dict(type=TYPE)), samples)

    def test_a_cut_for_another_number_of_classes(self) -> None:
        with pytest.raises(ConfigError, match=r'score_thr .*2 .*3 classes'):
            run(evaluator(dict(type=TYPE, score_thr=[0.1, 0.2])), make_samples())

    def test_a_data_set_without_class_names(self) -> None:
        judge = evaluator(dict(type=TYPE), classes=())
        with pytest.raises(ConfigError, match='name its classes'):
            run(judge, make_samples())


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    samples = make_samples(7)
    # As a distributed sampler deals them: in turn, with the first again to fill up.
    mine = [samples[index % 7] for index in range(rank, 8, 2)]
    judge = evaluator(dict(type=TYPE))
    for sample in mine:
        judge.process([sample])
    result = judge.evaluate(7)
    Path(folder, f'{rank}.json').write_text(json.dumps(result))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_in_two(_process, str(tmp_path))
    wanted = run(evaluator(dict(type=TYPE)), make_samples(7))
    for rank in (0, 1):
        result = json.loads((tmp_path / f'{rank}.json').read_text())
        np.testing.assert_equal(result, wanted)


@pytest.mark.parametrize(('mode', 'expected'), [('area', 5 / 6), ('11points', 28 / 33)])
def test_voc_needs_no_other_process(monkeypatch, mode, expected) -> None:
    """Of two gt boxes on two images one is found first, the other after a false detection.

    So precision is 1 up to recall 1/2, then 2/3.
    """
    square = torch.tensor([[10.0, 10.0, 49.0, 49.0]])
    gt = dict(bboxes=square, labels=torch.zeros(1, dtype=torch.long))
    nothing = dict(bboxes=square[:0], labels=gt['labels'][:0])
    found = [([square], [0.9]), ([square + 60, square], [0.8, 0.7])]
    samples = [
        dict(
            gt_instances=gt,
            ignored_instances=nothing,
            pred_instances=dict(
                bboxes=torch.cat(boxes),
                scores=torch.tensor(scores),
                labels=torch.zeros(len(boxes), dtype=torch.long),
            ),
        )
        for boxes, scores in found
    ]

    def refuse() -> int:
        raise AssertionError('a process was forked')

    monkeypatch.setattr('os.fork', refuse)
    metric = VOCMetric(eval_mode=mode)
    metric.dataset_meta = dict(classes=('a',))
    metric.process({}, samples)
    assert metric.evaluate(size=2)['pascal_voc/mAP'] == pytest.approx(expected)
