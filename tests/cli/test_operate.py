"""The command that chooses cuts: what it reads, writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gfl_det.calibration.calibrators import ClassMap, DetectionCalibrator, FitSource, Settings
from gfl_det.calibration.files import file_digest, load_operating_point, save_calibrator
from gfl_det.calibration.maps import Platt
from gfl_det.cli.operate import parse_arguments, run
from gfl_det.errors import DataError


def write_files(folder: Path, images: int) -> list[str]:
    """A cat that is found at .9 and missed at .3 in each image, a dog in the first alone."""
    square = [0, 0, 9, 9]
    listed = [dict(id=each, file_name=f'{each}.png') for each in range(images)]
    given = [dict(id=each, image_id=each, category_id=1, bbox=square) for each in range(images)]
    given.append(dict(id=images, image_id=0, category_id=2, bbox=square))
    found = [dict(image_id=0, category_id=2, bbox=square, score=0.8)]
    for each in range(images):
        found.append(dict(image_id=each, category_id=1, bbox=square, score=0.9))
        found.append(dict(image_id=each, category_id=1, bbox=[50, 0, 9, 9], score=0.3))
    names = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    gts, results = folder / 'gts.json', folder / 'results.json'
    gts.write_text(json.dumps(dict(images=listed, categories=names, annotations=given)))
    results.write_text(json.dumps(found))
    return ['--truths', str(gts), '--results', str(results)]


def operate(out: Path, *argv: str) -> None:
    run(parse_arguments([str(out), *argv]))


def test_cuts_are_written_and_what_is_missing_is_told(tmp_path, capsys) -> None:
    out = tmp_path / 'cuts.json'
    operate(out, '--precision', '.9', *write_files(tmp_path, 80))
    told = capsys.readouterr().out
    assert 'cat: kept from 0.31: 80 of 80 kept boxes are right' in told
    assert 'dog: no cut can promise it (about ' in told
    point = load_operating_point(out)
    assert [each.cut for each in point.classes] == [0.31, None]
    assert (point.score_type, point.calibrator) == ('GFLHead', None)
    operate(out, '--false-alarms-per-image', '.5', *write_files(tmp_path, 80))
    assert [each.cut for each in load_operating_point(out).classes] == [0.31, 0.0]


def test_the_scores_of_a_calibrator_are_cut(tmp_path) -> None:
    files = write_files(tmp_path, 80)
    maps = (Platt(0.5, 0.0), Platt(1.0, 0.0))  # .9 becomes .75, and .3 becomes .396
    nan = float('nan')
    classes = tuple(
        ClassMap(name, each, 'fitted', nan, nan, 9) for name, each in zip(('cat', 'dog'), maps)
    )
    fitted, out = tmp_path / 'calibrator.json', tmp_path / 'cuts.json'
    save_calibrator(
        DetectionCalibrator(Settings(), 'GFLHead', classes, FitSource('', (), 9)), fitted
    )
    operate(out, '--precision', '.9', '--calibrator', str(fitted), *files)
    point = load_operating_point(out)
    assert point.classes[0].cut == 0.4
    assert point.calibrator == file_digest(fitted)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (dict(out='cuts.txt'), r'cuts\.txt must end in \.json'),
        (dict(out='gts.json'), r'gts\.json is an input'),
        (dict(goal=['--recall', '.99999']), r'No cut of any class .* no file'),
    ],
)
def test_nothing_is_overwritten_where_it_cannot_be_done(tmp_path, change, match) -> None:
    files, out = write_files(tmp_path, 20), tmp_path / change.get('out', 'cuts.json')
    if not out.exists():
        out.write_text('kept')
    before = out.read_text()
    with pytest.raises(DataError, match=match):
        operate(out, *change.get('goal', ['--precision', '.9']), *files)
    assert out.read_text() == before


@pytest.mark.parametrize(
    'argv', [[], ['--precision', '1'], ['--precision', '.9', '--recall', '.9']]
)
def test_one_promise_is_named(tmp_path, argv, capsys) -> None:
    with pytest.raises(SystemExit):
        operate(tmp_path / 'cuts.json', *argv)
