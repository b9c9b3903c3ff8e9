"""``tools/calibrate.py`` on a detector that it runs itself; result files are the witness."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope

import gfl_det
from gfl_det.datasets.digits.build import DigitsRecipe, build_digits
from gfl_det.engine import runner
from gfl_det.engine.runner import annotations_path, detect_split, score_type
from gfl_det.errors import ConfigError, GFLDetError
from gfl_det.utils.config import load_config
from tests.helpers.paths import ROOT

NAME = 'gfl_r18_fpn_digits'
OPTIONS = ('val_dataloader.num_workers=0', 'test_dataloader.num_workers=0')


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> tuple[str, str]:
    """A data set of a few pictures, and a checkpoint of random weights that finds boxes."""
    folder = tmp_path_factory.mktemp('digits')
    build_digits(folder / 'data', DigitsRecipe(train=1, val=10), workers=0)
    cfg = gfl_det.get_config(NAME)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    torch.nn.init.normal_(model.bbox_head.gfl_cls.weight, std=0.3)
    torch.nn.init.constant_(model.bbox_head.gfl_cls.bias, -1.0)
    path = str(folder / 'random.pth')
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), path)
    return str(folder / 'data'), path


def run(monkeypatch, tool: str, *words: str) -> None:
    monkeypatch.setattr(sys, 'argv', [tool, *words])
    runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')


def detector(digits: tuple[str, str]) -> list[str]:
    root, checkpoint = digits
    options = ['--cfg-options', f'data_root={root}', *OPTIONS]
    return ['--config', NAME, '--checkpoint', checkpoint, *options]


def test_a_detector_and_its_result_file_give_one_calibrator(
    digits, tmp_path, monkeypatch, capsys
) -> None:
    root, checkpoint = digits
    direct, by_file = str(tmp_path / 'direct.json'), str(tmp_path / 'by_file.json')
    results = str(tmp_path / 'results.json')
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, 'calibrate.py', 'fit', direct, *detector(digits))
    assert 'loading annotations' not in capsys.readouterr().out  # of pycocotools
    assert not (tmp_path / 'work_dirs').exists()
    options = ['--cfg-options', f'data_root={root}', *OPTIONS]
    run(monkeypatch, 'test.py', NAME, checkpoint, '--out', results, *options)
    gts = f'{root}/annotations/val.json'
    run(monkeypatch, 'calibrate.py', 'fit', by_file, '--truths', gts, '--results', results)
    first, second = (json.loads(Path(path).read_text()) for path in (direct, by_file))
    assert first == second
    assert first['score_type'] == 'GFLHead'
    assert first['source']['detections'] > 100
    capsys.readouterr()
    report = ['report', direct, *detector(digits), '--out', str(tmp_path / 'report')]
    monkeypatch.setattr(runner, 'build_runner', pytest.fail)  # it is refused before
    with pytest.raises(SystemExit, match='1'):
        run(monkeypatch, 'calibrate.py', *report)
    assert '10 of 10 images were used to fit' in capsys.readouterr().err


def test_one_split_serves_both_in_halves(digits, tmp_path, monkeypatch, capsys) -> None:
    path, out = str(tmp_path / 'c.json'), tmp_path / 'report'
    run(monkeypatch, 'calibrate.py', 'fit', path, *detector(digits), '--half', 'first')
    assert len(json.loads(Path(path).read_text())['source']['images']) == 5
    rest = [*detector(digits), '--half', 'second', '--out', str(out)]
    run(monkeypatch, 'calibrate.py', 'report', path, *rest)
    assert (out / 'report.html').is_file()
    content = json.loads(Path(path).read_text())
    monkeypatch.setattr(runner, 'build_runner', pytest.fail)  # what follows is refused before
    for change, half, message in (
        (dict(score_type='ATSSHead'), 'second', "for scores of 'ATSSHead', not of 'GFLHead'"),
        (dict(classes=content['classes'][:9]), 'second', "not for ['9']"),
        (dict(), 'first', '5 of 5 images were used to fit'),
    ):
        Path(path).write_text(json.dumps(content | change))
        capsys.readouterr()
        with pytest.raises(SystemExit, match='1'):
            run(monkeypatch, 'calibrate.py', 'report', path, *rest, '--half', half)
        assert message in capsys.readouterr().err


def test_a_config_with_a_calibrator_still_gives_raw_scores(digits, tmp_path) -> None:
    root, checkpoint = digits
    cfg = load_config(NAME, dict([('data_root', root), *(each.split('=') for each in OPTIONS)]))
    for split in ('val', 'test'):
        cfg[f'{split}_dataloader']['num_workers'] = 0
    plain = detect_split(cfg, checkpoint, 'val')
    cfg.model.test_cfg.calibrator = 'missing.json'
    again = detect_split(cfg, checkpoint, 'val')
    assert cfg.model.test_cfg.calibrator == 'missing.json'
    assert (again.detections.scores == plain.detections.scores).all()
    assert plain.gts.class_names == list('0123456789')


def test_splits_and_heads_are_found_or_missed_in_one_sentence(tmp_path) -> None:
    cfg = load_config(NAME)
    assert annotations_path(cfg, 'val') == 'data/digits/annotations/val.json'
    assert score_type(cfg) == 'GFLHead'
    bccd = load_config(str(ROOT / 'configs' / 'calibration' / 'atss_r18_fpn_bccd.py'))
    assert annotations_path(bccd, 'test') == 'data/bccd/test.json'
    assert score_type(bccd) == 'ATSSHead'
    bccd.pop('test_evaluator')
    assert annotations_path(bccd, 'test') == 'data/bccd/test.json'
    bccd.pop('test_dataloader')
    with pytest.raises(ConfigError, match='has no test_dataloader'):
        annotations_path(bccd, 'test')
    with pytest.raises(GFLDetError, match='checkpoint'):
        detect_split(cfg, str(tmp_path / 'missing.pth'), 'val')


@pytest.mark.parametrize(
    'words', [[], ['--truths', 'a.json'], ['--config', 'b', '--checkpoint', 'c', '--truths', 'a']]
)
def test_a_source_is_given_whole_and_once(words: list[str], monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit, match='1'):
        run(monkeypatch, 'calibrate.py', 'fit', 'x.json', *words)
    message = 'give --truths and --results, or --config and --checkpoint'
    assert message in capsys.readouterr().err
