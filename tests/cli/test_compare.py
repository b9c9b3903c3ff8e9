"""gfl-det compare: result files, a checkpoint and a work dir as sides; table, picture, numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from gfl_det.cli import compare
from gfl_det.cli.main import main
from gfl_det.errors import ConfigError, DataError
from gfl_det.inference.coverage import read_split
from tests.helpers import reporting
from tests.helpers.inferring import CLASSES, small_config, write_checkpoint, write_images


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
    """Annotations, results, and two worse ones: boxes moved by some pixels."""
    folder = tmp_path_factory.mktemp('compare')
    dataset, results = reporting.made_up(30, 2, 8, edges=False)
    rng = np.random.default_rng(0)
    (folder / 'gts.json').write_text(json.dumps(dataset))
    (folder / 'good.json').write_text(json.dumps(results))
    for run in (1, 2):
        moved = [
            each
            | dict(bbox=[*(np.array(each['bbox'][:2]) + rng.normal(0, 9, 2)), *each['bbox'][2:]])
            for each in results
        ]
        (folder / f'bad{run}.json').write_text(json.dumps(moved))
    return folder


def test_seeds_of_one_side_against_another(files, tmp_path, capsys) -> None:
    words = ['--a', f'{files}/good.json', '--b', f'{files}/bad1.json', f'{files}/bad2.json']
    words += ['--truths', f'{files}/gts.json', '--names', 'new', 'old', '--resamples', '400']
    out, picture = tmp_path / 'numbers.json', tmp_path / 'differences.png'
    main(['compare', *words, '--json', str(out), '--picture', str(picture)])
    printed = capsys.readouterr().out
    assert 'new is better in AP (by 0.' in printed
    assert '1 and 2 trainings' in printed
    assert 'AP class 1' in printed
    numbers = json.loads(out.read_text())
    assert numbers['AP_difference'] > 0
    assert f'{numbers["AP_a"]:.4f}' in printed
    assert cv2.imread(str(picture)).std() > 5


def test_a_verdict_needs_resamples_and_images(files, capsys) -> None:
    words = ['--a', f'{files}/good.json', '--b', f'{files}/bad1.json']
    main(['compare', *words, '--truths', f'{files}/gts.json', '--resamples', '60'])
    printed = capsys.readouterr().out
    assert '60 resamples are too few for a verdict: give --resamples 280' in printed
    assert 'noise' not in printed.splitlines()[-1]
    dataset = json.loads((files / 'gts.json').read_text())
    five = {each['id'] for each in dataset['images'][:5]}
    few = [each for each in dataset['annotations'] if each['image_id'] in five]
    (files / 'few.json').write_text(json.dumps(dataset | dict(annotations=few)))
    main(['compare', *words, '--truths', f'{files}/few.json', '--resamples', '60'])
    printed = capsys.readouterr().out
    assert 'are not tested: fewer than 6 images' in printed
    assert 'cannot be compared: too few images have gt boxes' in printed
    assert 'nan' not in printed


def test_checkpoints_and_work_dirs_are_run(tmp_path) -> None:
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    checkpoint = write_checkpoint(work_dir)
    write_images(tmp_path / 'img', 2)
    content = dict(
        images=[dict(id=n, file_name=f'{n}.png') for n in (2, 1)],
        # Classes in another order than the detector's, and one that it does not know.
        categories=[dict(id=n + 1, name=name) for n, name in enumerate((*CLASSES[::-1], 'x'))],
        annotations=[],
    )
    path = tmp_path / 'gts.json'
    path.write_text(json.dumps(content))
    small_config().dump(work_dir / 'config.py')
    shutil.copy(checkpoint, work_dir / 'best_coco_bbox_mAP_epoch_1.pth')
    words = ['--a', 'x', '--b', 'y', '--truths', str(path), '--device', 'cpu']
    args = compare.parse_arguments([*words, '--images', str(tmp_path / 'img')])
    split = read_split(args.truths, args.images)
    one, other = (compare.read_side(str(each), split, args) for each in (checkpoint, work_dir))
    assert len(one.scores) > 0
    for values in zip(one, other):
        np.testing.assert_array_equal(*values)
    assert set(one.label) <= set(range(10))
    assert set(one.image) == {0, 1}
    with pytest.raises(ConfigError, match=r'work .*--images'):
        compare.read_side(str(work_dir), split, compare.parse_arguments(words))


def test_what_cannot_be_written_is_told_first(files) -> None:
    words = ['--a', 'no.json', '--b', 'no.json', '--truths', f'{files}/gts.json']
    for option, value, match in (
        ('--picture', 'x.gif', r'x\.gif must end in'),
        ('--json', f'{files}/gts.json/x.json', 'cannot be written'),
        ('--json', f'{files}/gts.json', 'is an input of this command'),
        ('--json', 'no.json', 'is an input of this command'),
    ):
        with pytest.raises(DataError, match=match):
            compare.run(compare.parse_arguments([*words, option, value]))
