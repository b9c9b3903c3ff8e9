"""Short trainings with seeds: which runs there are, and the table of their results."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from projects.training_study import trainings
from projects.training_study.trainings import interval, runs_of, studies, table


def result(data: str, arm: str, seed: int, ap: float | None) -> dict:
    metrics = {} if ap is None else dict.fromkeys(trainings.KEYS.values(), ap)
    return dict(
        run=dict(study='weights', data=data, arm=arm, seed=seed),
        epochs=4,
        rate=0.001,
        scale=[416, 416],
        minutes=2.0,
        metrics=dict(test=metrics),
    )


def test_a_seed_is_done_by_every_arm_before_the_next() -> None:
    runs = list(runs_of('weights', ['bccd'], [0, 1]))
    assert [run.seed for run in runs] == [0] * 3 + [1] * 3
    assert len({run.name for run in runs}) == 6
    assert not list(runs_of('assigners', ['face_masks'], [0]))
    assert all(arm.published for arm in studies()['tuning'])


def test_the_interval_is_students() -> None:
    gains = [0.1, 0.13, 0.08]
    expected = stats.t.interval(0.95, 2, np.mean(gains), stats.sem(gains))
    assert interval(gains) == f'+0.103 [{expected[0]:+.3f}, {expected[1]:+.3f}]'
    assert interval([0.1]) == '+0.100'


def test_differences_are_paired_by_seed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trainings, 'RESULTS', tmp_path)
    found = [
        result('bccd', 'r18_random', 0, 0.2),
        result('bccd', 'r18_random', 1, 0.3),
        result('bccd', 'nanodet_published', 0, 0.5),
        result('bccd', 'nanodet_published', 1, 0.6),
        result('bccd', 'nanodet_published', 2, 0.9),  # without a partner
        result('face_masks', 'nanodet_random', 0, None),  # no detection
    ]
    for number, each in enumerate(found):
        (tmp_path / f'weights-{number}.json').write_text(json.dumps(each))
    lines = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in table('weights').splitlines()[2:]
    ]
    assert [line[:2] for line in lines] == [
        ['bccd', 'r18_random'],
        ['bccd', 'nanodet_published'],
        ['face_masks', 'nanodet_random'],
    ]
    assert lines[0][6:8] == ['2', '.250 ± .071']
    assert lines[1][6:8] == ['3', '.667 ± .208']
    assert lines[1][-1] == '+0.300 [+0.300, +0.300]'
    assert lines[2][7] == '.000'


@pytest.mark.parametrize(
    'path', sorted(trainings.RESULTS.glob('*.json')), ids=lambda path: path.stem
)
def test_results_belong_to_an_arm_of_today(path) -> None:
    found = json.loads(path.read_text())
    run = found['run']
    [arm] = [each for each in studies()[run['study']] if each.name == run['arm']]
    assert path.stem == trainings.TrainingRun(run['study'], run['data'], arm, run['seed']).name
    assert found['epochs'] == arm.epochs[run['data']]
    assert arm.rate in (None, found['rate'])
    assert arm.split in found['metrics']
    assert found['commit']
    assert found['machine']['threads'] == 1
