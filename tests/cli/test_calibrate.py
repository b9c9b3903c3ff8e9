"""Calibrators in use: the tool on result files, and inside a detector."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gfl_det import calibration
from gfl_det.calibration.apply import check_class_names
from gfl_det.cli import calibrate
from gfl_det.engine.preflight.agreement import check_calibrator
from gfl_det.errors import DataError
from gfl_det.evaluation import evaluate
from gfl_det.visualization.report import calibration as report
from projects.benchmark.detections import make_set
from tests.helpers.edge_scenes import scene
from tests.helpers.heads import head_pair, make_maps, make_meta
from tests.helpers.paths import ROOT

TOOL = ROOT / 'tools' / 'calibrate.py'


def write_set(folder: Path, seed: int) -> tuple[str, str]:
    """Ground truth and results as COCO files; images of different seeds have different names."""
    coco_set = make_set(40, 30, 3, seed=seed)
    for image in coco_set.dataset['images']:
        image['file_name'] = f'{seed}_{image["id"]}.jpg'
    results = []
    for sample in coco_set.samples:
        found = sample['pred_instances']
        corners = found['bboxes'].numpy().astype(float)
        for box, score, label in zip(corners, found['scores'].tolist(), found['labels'].tolist()):
            sides = [*box[:2], *(box[2:] - box[:2])]
            results.append(
                dict(image_id=sample['img_id'], bbox=sides, score=score, category_id=label + 1)
            )
    gts, detections = folder / f'{seed}.json', folder / f'{seed}.bbox.json'
    gts.write_text(json.dumps(coco_set.dataset))
    detections.write_text(json.dumps(results))
    return str(gts), str(detections)


def digits(value: float) -> float:
    """A number as the page has it: four significant digits."""
    return float(f'{value:.4g}')


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, 'argv', ['calibrate.py', *arguments])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_the_tool_fits_and_applies(tmp_path, monkeypatch, capsys) -> None:
    path = str(tmp_path / 'calibrator.json')
    gts, results = write_set(tmp_path, 0)
    run(
        monkeypatch,
        'fit',
        path,
        '--truths',
        gts,
        '--results',
        results,
        '--method',
        'temperature',
    )
    assert f'calibrator: {path}' in capsys.readouterr().out
    gts, results = write_set(tmp_path, 1)
    out = tmp_path / 'new' / 'out.json'
    run(monkeypatch, 'apply', path, '--truths', gts, '--results', results, '--out', str(out))
    table = {
        line.split()[0]: [float(each.rstrip('*')) for each in line.split()[1:]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(('LaECE_0', 'AP '))
    }
    assert table['LaECE_0'][1] < table['LaECE_0'][0]  # random scores say little of the IoU
    assert table['AP'][1] == pytest.approx(table['AP'][0], abs=0.01)  # but for ties
    raw, calibrated = json.loads(Path(results).read_text()), json.loads(out.read_text())
    calibrator = calibration.load_calibrator(path)
    expected = calibrator.calibrate(
        np.array([each['score'] for each in raw]),
        np.array([each['category_id'] - 1 for each in raw]),
    )
    assert [each['bbox'] for each in calibrated] == [each['bbox'] for each in raw]
    np.testing.assert_allclose([each['score'] for each in calibrated], expected)


def judged_by_pycocotools(gts: str, results: list[dict], tau: float | None = None) -> COCOeval:
    """COCO's evaluation of all areas; at one threshold of the IoU, or at its ten."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(gts)
        known.dataset.setdefault('info', {})
        judge = COCOeval(known, known.loadRes(results), 'bbox')
        if tau is not None:
            judge.params.iouThrs = np.array([tau])
        judge.evaluate()
        judge.accumulate()
    return judge


def lrp_by_pycocotools(gts: str, results: list[dict], category: int, tau: float) -> float:
    judge = judged_by_pycocotools(gts, results, tau)
    distances, wrong, number = [], 0, 0
    for each in judge.evalImgs:
        if not each or each['category_id'] != category or each['aRng'] != judge.params.areaRng[0]:
            continue
        number += sum(1 - np.array(each['gtIgnore']))
        overlaps = judge.ious[each['image_id'], category]  # detections by score, gt boxes as listed
        listed = [entry['id'] for entry in judge._gts[each['image_id'], category]]
        for row, (match, ignored) in enumerate(zip(each['dtMatches'][0], each['dtIgnore'][0])):
            if not ignored and match:
                distances.append(1 - overlaps[row, listed.index(match)])
            wrong += not ignored and not match
    missed = number - len(distances)
    errors = sum(distances) / (1 - tau) + wrong + missed
    return float(errors / (len(distances) + wrong + missed))


def least_lrp(gts: str, results: list[dict], cut: float, tau: float) -> float:
    """The least LRP of a category's results that a cut of the page's digits can give.

    The cut may end within equal scores, so all ends within them are tried.
    """
    ordered = sorted(results, key=lambda entry: (-entry['score'], entry['image_id']))
    ends = [end for end, entry in enumerate(ordered, 1) if digits(entry['score']) == cut]
    category = ordered[0]['category_id']
    return min(lrp_by_pycocotools(gts, ordered[:end], category, tau) for end in ends)


def test_the_report_holds_pictures_and_the_cuts_that_were_fitted(
    tmp_path, monkeypatch, capsys
) -> None:
    """The cuts come from the calibrator, whose images are others; pycocotools judges them."""
    path, out, tau = str(tmp_path / 'calibrator.json'), tmp_path / 'report', 0.3
    gts, results = write_set(tmp_path, 0)
    options = ['--tau', str(tau), '--raw-cut', 'lrp', '--method', 'linear']
    run(monkeypatch, 'fit', path, '--truths', gts, '--results', results, *options)
    gts, results = write_set(tmp_path, 1)
    given = ['--truths', gts, '--results', results, '--out', str(out)]
    counted = mock.Mock(wraps=evaluate.evaluate_detections)
    monkeypatch.setattr(evaluate, 'evaluate_detections', counted)
    monkeypatch.setattr(report, 'evaluate_detections', counted, raising=False)
    run(monkeypatch, 'report', path, *given)
    assert counted.call_count == 2  # of large data sets it takes minutes
    assert 'report.html' in capsys.readouterr().out
    for name in ('reliability.png', 'classes.png'):
        assert cv2.imread(str(out / name)).std() > 10
    page = (out / 'report.html').read_text()
    assert 'src="http' not in page
    values = json.loads(re.search('id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert values['sections'] == ['reliability', 'cuts']
    sides, cuts = values['reliability'], values['cuts']
    assert [side['name'] for side in sides] == ['raw', 'calibrated']

    calibrator, raw = calibration.load_calibrator(path), json.loads(Path(results).read_text())
    scores = calibrator.calibrate(
        np.array([each['score'] for each in raw]),
        np.array([each['category_id'] - 1 for each in raw]),
    )
    mapped = [each | dict(score=score) for each, score in zip(raw, scores.tolist())]
    for side, entries in zip(sides, (raw, mapped)):
        precision = judged_by_pycocotools(gts, entries).eval['precision'][..., 0, -1]
        assert side['metrics']['AP'] == digits(precision.mean())
        assert set(side['floors']) == {'LaECE_0', 'LaACE_0', 'D-ECE'}
        assert side['floors']['LaECE_0'][0] > 100  # detections
        assert sum(side['number'][0]) == sum(map(sum, side['number'][1:])) <= len(entries)

    lrps = []
    assert cuts['tau'] == tau
    for label, (each, row) in enumerate(zip(calibrator.classes, cuts['rows'], strict=True)):
        kept = [
            after
            for before, after in zip(raw, mapped)
            if before['score'] >= each.raw_threshold and after['score'] >= each.threshold
        ]
        lrps.append(lrp_by_pycocotools(gts, kept, label + 1, tau))
        number = sum(entry['category_id'] == label + 1 for entry in raw)
        fitted = map(digits, (each.raw_threshold, each.threshold, lrps[-1]))
        assert row[:5] == [each.name, number, *fitted]
        for cut, best, entries in zip(row[5::2], row[6::2], (raw, mapped)):
            mine = [entry for entry in entries if entry['category_id'] == label + 1]
            assert best == digits(least_lrp(gts, mine, cut, tau))
            assert best < lrps[-1]  # the best cuts of these images do better
    best = np.array(cuts['rows'], object)[:, [6, 8]].astype(float).mean(0)
    assert cuts['means'] == pytest.approx([np.mean(lrps), *best], rel=1e-3)


def test_the_halves_of_a_split_are_fitted_on_and_applied_to(tmp_path, monkeypatch, capsys) -> None:
    gts, results = write_set(tmp_path, 0)
    given = ('--truths', gts, '--results', results)
    path, out = str(tmp_path / 'c.json'), tmp_path / 'out.json'
    run(monkeypatch, 'fit', path, *given, '--half', 'first')
    assert 'method: platt, for 20 pictures' in capsys.readouterr().out
    assert '"platt"' in Path(path).read_text()
    run(monkeypatch, 'apply', path, *given, '--half', 'second', '--out', str(out))
    old, new = json.loads(Path(results).read_text()), json.loads(out.read_text())
    shown = {entry['image_id'] for entry in new}
    assert len(shown) <= 20
    kept = [entry for entry in old if entry['image_id'] in shown]
    assert [entry['bbox'] for entry in kept] == [entry['bbox'] for entry in new]
    assert [entry['score'] for entry in kept] != [entry['score'] for entry in new]


def test_many_pictures_get_isotonic_maps(monkeypatch) -> None:
    assert calibrate._method_for(calibrate.FEW_PICTURES) == 'isotonic'
    assert calibrate._method_for(calibrate.FEW_PICTURES - 1) == 'platt'


def test_the_tool_refuses_the_images_it_was_fitted_on(tmp_path, monkeypatch, capsys) -> None:
    path = str(tmp_path / 'calibrator.json')
    files = write_set(tmp_path, 0)
    given = ['--truths', files[0], '--results', files[1]]
    run(monkeypatch, 'fit', path, *given)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, 'apply', path, *given, '--out', str(tmp_path / 'out.json'))
    assert stopped.value.code == 1
    assert 'used to fit the calibrator' in capsys.readouterr().err


def test_each_mistake_is_told_in_a_sentence(tmp_path, monkeypatch, capsys) -> None:
    path, edges = (str(tmp_path / name) for name in ('calibrator.json', 'edges.json'))
    gts, results = write_set(tmp_path, 0)
    run(monkeypatch, 'fit', path, '--truths', gts, '--results', results, '--method', 'linear')
    edge_gts, found = scene(0, images=10)
    fitted = calibration.fit_distribution_calibrator(found, edge_gts)
    calibration.save_distribution_calibrator(fitted, edges)
    gts, results = write_set(tmp_path, 1)
    entries = json.loads(Path(results).read_text())
    none, nan, other = (tmp_path / f'{name}.json' for name in ('none', 'nan', 'other'))
    none.write_text('[]')
    nan.write_text(json.dumps([entries[0], entries[1] | dict(score=float('nan'))]))
    other.write_text(json.dumps([entries[0] | dict(image_id=image) for image in (70, 9000, 800)]))
    taken = tmp_path / 'taken'
    (taken / 'report.html').mkdir(parents=True)
    out, report = str(tmp_path / 'out.json'), str(tmp_path / 'report')
    for words, message in (
        (['apply', edges, results, out], f'gfl-det test CONFIG CHECKPOINT .*calibrator={edges}'),
        (['report', edges, results, report], 'give --config and --checkpoint'),
        (['report', path, str(none), report], r'none\.json gives no detections: take the results'),
        (['apply', path, str(nan), out], r'nan\.json: entry 1 has the score nan, which is not'),
        (['apply', path, str(other), out], r'\[70, 800, 9000\] is not an image of the ground'),
        (['apply', path, results, str(nan / 'x')], r'x cannot be written'),
        (['report', path, results, str(nan)], r'nan\.json cannot be made .it is a file'),
        (['report', 'no', results, str(taken)], r'report\.html cannot be written \(Is a directory'),
        (['apply', path, results, results], r'is an input of this command: name another file'),
        (['apply', path, results, gts], r'is an input of this command: name another file'),
    ):
        command, calibrator, given, target = words
        files = ['--truths', gts, '--results', given, '--out', target]
        with pytest.raises(SystemExit, match='1'):
            run(monkeypatch, command, calibrator, *files)
        printed = capsys.readouterr().err
        assert printed.startswith('error: ')
        assert re.search(message, printed), printed
    files = ['--truths', gts, '--results', str(none)]
    with pytest.raises(SystemExit, match='1'):
        run(monkeypatch, 'fit', str(tmp_path / 'new.json'), *files)
    assert f'{none} gives no detections' in capsys.readouterr().err
    before = Path(gts).read_bytes()
    with pytest.raises(SystemExit, match='1'):
        run(monkeypatch, 'fit', gts, '--truths', gts, '--results', results)
    assert 'is an input of this command' in capsys.readouterr().err
    assert Path(gts).read_bytes() == before
    with pytest.raises(SystemExit, match='2'):
        run(monkeypatch, 'fit', path, *files, '--raw-cut', '2')
    assert "a score in [0, 1] or lrp is needed, not '2'" in capsys.readouterr().err
    run(monkeypatch, 'apply', path, *files, '--out', out)  # nothing stays nothing
    assert json.loads(Path(out).read_text()) == []


@pytest.fixture
def calibrator(tmp_path) -> str:
    """For the eight classes of the small head: the k-th class gets its score to the power k + 1."""
    names = [f'c{index}' for index in range(8)]
    files = make_set(40, 60, 8)
    gts = calibration.gts_from_coco(files.dataset)
    results = [
        dict(image_id=1, bbox=[0, 0, 9, 9], score=0.5, category_id=label + 1) for label in range(8)
    ]
    fitted = calibration.fit_calibrator(
        calibration.detections_from_coco(results, gts),
        gts,
        calibration.Settings('identity', cuts=(0.0, 0.0)),
        'GFLHead',
    )
    assert fitted.class_names == names
    path = tmp_path / 'eight.json'
    calibration.save_calibrator(fitted, path)
    content = json.loads(path.read_text())
    for label, entry in enumerate(content['classes']):
        entry['map'] = dict(kind='linear', slope=1 / (label + 1), offset=0.0)
    path.write_text(json.dumps(content))
    return str(path)


def test_a_head_gives_calibrated_scores_in_order(calibrator: str) -> None:
    ours, _ = head_pair(test_cfg=dict(with_uncertainty=True))
    maps = make_maps(2, (128, 160), torch.Generator().manual_seed(0), 0.0)
    metas = [make_meta((128, 160))] * 2
    plain = ours.predict_by_feat(*maps, batch_img_metas=metas)
    ours.test_cfg.calibrator = calibrator
    for found, raw in zip(ours.predict_by_feat(*maps, batch_img_metas=metas), plain):
        expected = raw.scores / (raw.labels + 1)
        order = expected.sort(descending=True, stable=True).indices
        torch.testing.assert_close(found.scores, expected[order])
        assert torch.equal(found.labels, raw.labels[order])
        assert torch.equal(found.bboxes, raw.bboxes[order])
        assert torch.equal(found.edge_std, raw.edge_std[order])
        assert torch.equal(found.raw_scores, raw.scores[order])
    without_nms = ours.predict_by_feat(*maps, batch_img_metas=metas, with_nms=False)
    assert float(without_nms[0].scores[0]) == pytest.approx(float(plain[0].scores[0]))


def test_a_calibrator_of_another_kind_is_refused(calibrator: str, tmp_path) -> None:
    maps = make_maps(1, (128, 160), torch.Generator().manual_seed(0), 0.0)
    ours, _ = head_pair(test_cfg=dict(calibrator=calibrator))
    content = json.loads(Path(calibrator).read_text())
    for change, message in (
        (dict(score_type='RetinaHead'), 'RetinaHead'),
        (dict(classes=content['classes'][:3]), 'the head has 8'),
    ):
        path = tmp_path / 'other.json'
        path.write_text(json.dumps(content | change))
        ours.test_cfg.calibrator = str(path)
        with pytest.raises(DataError, match=message):
            ours.predict_by_feat(*maps, batch_img_metas=[make_meta((128, 160))])
    with pytest.raises(DataError, match=r'missing\.json'):
        check_class_names(str(tmp_path / 'missing.json'), ['c0'])


def test_a_config_names_a_calibrator_of_its_classes(calibrator: str) -> None:
    def config(*names: str) -> Config:
        return Config(
            dict(
                model=dict(test_cfg=dict(calibrator=calibrator)),
                test_dataloader=dict(dataset=dict(metainfo=dict(classes=names))),
            )
        )

    names = [f'c{index}' for index in range(8)]
    check_calibrator(config(*names), ['test'])
    with pytest.raises(DataError, match='in this order'):
        check_calibrator(config(*reversed(names)), ['test'])


def test_a_head_reads_a_file_once_and_keeps_its_keys(calibrator: str, monkeypatch) -> None:
    ours, _ = head_pair(test_cfg=dict(calibrator=calibrator))
    keys = set(ours.state_dict())
    maps = make_maps(1, (128, 160), torch.Generator().manual_seed(0), 0.0)
    given = dict(batch_img_metas=[make_meta((128, 160))])
    (first,) = ours.predict_by_feat(*maps, **given)
    Path(calibrator).write_text('replaced by what is not a calibrator')
    monkeypatch.setattr(Path, 'open', pytest.fail)
    monkeypatch.setattr('builtins.open', pytest.fail)
    monkeypatch.setattr('os.stat', pytest.fail)
    for head in (ours, copy.deepcopy(ours)):
        (again,) = head.predict_by_feat(*maps, **given)
        assert torch.equal(again.scores, first.scores)
        assert set(head.state_dict()) == keys
    raw = ConfigDict({**ours.test_cfg, 'calibrator': None})  # another config for one call
    (plain,) = ours.predict_by_feat(*maps, **given, cfg=raw)
    assert 'raw_scores' not in plain
    assert torch.equal(plain.scores, first.raw_scores.sort(descending=True).values)
