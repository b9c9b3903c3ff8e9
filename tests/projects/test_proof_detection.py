"""The comparison of scores: those that are true stay, those that are not are mended."""

from __future__ import annotations

import json
import runpy
import sys

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope

import gfl_det
from gfl_det.calibration import evaluate_detections, gts_from_coco
from gfl_det.calibration.splits import Judged
from gfl_det.datasets.digits.build import DigitsRecipe, build_digits
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import Detections
from gfl_det.evaluation.matching import match
from projects.calibration_study.detection import METHODS, VIEWS, compare, halves, means
from projects.calibration_study.detection_command import keep, parse_arguments, read_pair
from tests.helpers.paths import ROOT

TOOL = ROOT / 'tools' / 'prove_detection.py'


def dataset(images: int, name: str = '') -> dict:
    return dict(
        images=[dict(id=n, file_name=f'{name}{n}.jpg') for n in range(images)],
        categories=[dict(id=5, name='cat'), dict(id=2, name='dog')],
        annotations=[
            dict(id=10 * n + b, image_id=n, category_id=(5, 2)[b % 2], bbox=[50 * b, 0, 40, 40])
            for n in range(images)
            for b in range(6)
        ],
    )


def judged(images: int, wrongness: float, seed: int = 0, name: str = '') -> Judged:
    """Shifted gt boxes, misses and inventions, scored with their IoU to the power of a number."""
    generator = np.random.default_rng(seed)
    gts = gts_from_coco(dataset(images, name))
    boxes = gts.boxes + generator.uniform(-9, 9, (len(gts.boxes), 1)) * [1, 0, 0, 0]
    missed = generator.random(len(boxes)) < 0.3
    boxes[missed, 1] += 500
    found = Detections(gts.image, gts.label, boxes, np.full(len(boxes), 0.5))
    (matches,) = match(found, gts, [0.0], 'reject')
    iou = np.zeros(len(boxes))
    iou[matches.row] = matches.iou
    iou[missed] = generator.uniform(0, 0.02, int(missed.sum()))
    found = found._replace(scores=iou**wrongness)
    wrong = found._replace(
        boxes=np.add(found.boxes, [0, 600, 0, 0]),
        scores=generator.uniform(0, 0.02, len(iou)) ** wrongness,
    )
    return Judged(gts, Detections(*map(np.concatenate, zip(found, wrong))))


def test_true_scores_stay_and_others_are_mended() -> None:
    true = list(compare('true', judged(40, 1), judged(40, 1, 1, 'test')))
    bold = list(compare('bold', judged(40, 0.25), judged(40, 0.25, 1, 'test')))
    assert len(true) == len(METHODS) * len(VIEWS)
    outcomes = [*true, *bold]

    def value(name: str, method: str, metric: str, view: str = 'all') -> float:
        return means(outcomes, name, method, view, metric).item()

    assert value('true', 'identity', 'LaECE_0') < 0.02
    assert value('bold', 'identity', 'LaECE_0') > 0.1
    assert value('bold', 'identity', 'bias') > 0.1
    for method in METHODS:
        assert value('true', method, 'LaECE_0') < 0.05
    for method in ('linear', 'isotonic'):
        assert value('bold', method, 'LaECE_0') < value('bold', 'identity', 'LaECE_0') / 3
        assert abs(value('bold', method, 'bias')) < 0.03
    # Maps that rise strictly leave the order, and so AP, as it is.
    for method in ('temperature', 'platt'):
        assert value('bold', method, 'AP') == pytest.approx(value('bold', 'identity', 'AP'))
    # The kept ones are an operating point: the inventions are cut.
    assert value('bold', 'identity', 'LRP_0', 'kept') < value('bold', 'identity', 'LRP_0') - 0.1


def test_raw_rows_are_the_detections_as_they_are() -> None:
    test = judged(20, 0.5, 1, 'test')
    raw = next(
        each
        for each in compare('a', judged(20, 0.5), test)
        if (each.method, each.view) == ('identity', 'all')
    )
    metrics = evaluate_detections(test.detections, test.gts)
    assert {name: raw.metrics[name] for name in metrics} == pytest.approx(metrics, nan_ok=True)


def test_halves_of_one_split_do_not_overlap_and_the_same_images_are_refused() -> None:
    whole = judged(12, 1)
    for fitting, test in halves(whole, 3):
        assert not set(fitting.gts.image_ids) & set(test.gts.image_ids)
        assert len(fitting.gts.image_ids) == 6
    with pytest.raises(DataError, match='used to fit'):
        next(compare('a', whole, whole))


def test_kept_detections_read_as_they_were(tmp_path) -> None:
    whole = judged(5, 0.7)
    gts, results = tmp_path / 'gts.json', tmp_path / 'results.json'
    gts.write_text(json.dumps(dataset(5)))
    keep(whole, results)
    again = read_pair(str(gts), str(results))
    for one, other in zip(again.detections, whole.detections):
        assert (one == other).all()


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, 'argv', ['prove_detection.py', *words])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_the_tool_averages_rows_of_one_name(tmp_path, monkeypatch, capsys) -> None:
    gts = tmp_path / 'gts.json'
    gts.write_text(json.dumps(dataset(16)))
    words = []
    for number in range(2):
        results = tmp_path / f'{number}.json'
        keep(judged(16, 0.5, number), results)
        words += ['--results', 'bold', str(gts), str(results), 'none', 'none']
    out = tmp_path / 'new' / 'values.json'
    run(monkeypatch, *words, '--halves', '2', '--out', str(out))
    printed = capsys.readouterr()
    assert '[2/2] bold judged' in printed.err
    values = json.loads(out.read_text())
    assert len(values) == 2 * 2 * len(METHODS) * len(VIEWS)
    laece = [
        each['metrics']['LaECE_0']
        for each in values
        if (each['method'], each['view']) == ('identity', 'all')
    ]
    row = next(line for line in printed.out.splitlines() if line.startswith('| bold | raw'))
    shown = f'{np.mean(laece):.3f} ± {np.std(laece, ddof=1):.3f}'.replace('0.', '.')
    assert row.split(' | ')[3] == shown
    assert sum(line.startswith('| bold | isotonic') for line in printed.out.splitlines()) == 2


def test_the_tool_runs_detectors(tmp_path, monkeypatch, capsys) -> None:
    build_digits(tmp_path / 'data', DigitsRecipe(train=1, val=8), workers=0)
    cfg = gfl_det.get_config('gfl_r18_fpn_digits')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    torch.nn.init.normal_(model.bbox_head.gfl_cls.weight, std=0.3)
    torch.nn.init.constant_(model.bbox_head.gfl_cls.bias, -1.0)
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), tmp_path / 'random.pth')
    out = tmp_path / 'values.json'
    words = ['--run', 'random', 'gfl_r18_fpn_digits', str(tmp_path / 'random.pth')]
    options = [f'data_root={tmp_path / "data"}', 'test_dataloader.num_workers=0']
    rest = ['--halves', '1', '--out', str(out), '--cfg-options', *options]
    run(monkeypatch, *words, *rest, 'val_dataloader.num_workers=0')
    direct = capsys.readouterr().out
    kept = tmp_path / 'random-0.val.bbox.json'
    gts = str(tmp_path / 'data' / 'annotations' / 'val.json')
    files = ['--results', 'random', gts, str(kept), '-', '-']
    run(monkeypatch, *files, '--halves', '1', '--out', str(out))
    tables = [text[text.index('| detector') :] for text in (direct, capsys.readouterr().out)]
    assert tables[0] == tables[1]


def test_nothing_to_judge_is_refused(monkeypatch, capsys) -> None:
    assert parse_arguments([]).halves == 0
    for words in ([], ['--run', 'a', 'b', 'c', '--halves', '-1']):
        with pytest.raises(SystemExit, match='1'):
            run(monkeypatch, *words)
        assert 'error: give at least one --run or --results' in capsys.readouterr().err


def test_a_name_that_no_file_can_have_is_refused_before_the_run(monkeypatch, capsys) -> None:
    words = ['--run', 'r18', 'none', 'none.pth', '--run', 'r18/seed 1', 'none', 'none.pth']
    with pytest.raises(SystemExit, match='1'):
        run(monkeypatch, *words)
    assert "error: The name 'r18/seed 1' becomes part of the name of a" in capsys.readouterr().err
