"""Chosen pictures against random ones: runs, what they start from, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from projects.training_study.trainings import KEYS
from projects.what_to_label import study
from projects.what_to_label.study import ARMS, BUDGETS, START, LabelRun, LabelStudy, runs_of, table


def write_result(folder: Path, run: LabelRun, ap: float, pictures: list[str]) -> None:
    content = dict(
        run=run._asdict(),
        boxes=dict(cat=3, dog=run.budget),
        metrics=dict.fromkeys(KEYS.values(), ap),
        pictures=pictures,
    )
    (folder / f'{run.name}.json').write_text(json.dumps(content))


@pytest.fixture
def small(tmp_path, monkeypatch) -> LabelStudy:
    monkeypatch.setattr(study, 'RESULTS', tmp_path)
    images = [dict(id=n, file_name=f'{n}.png') for n in range(100)]
    labels = [dict(id=n, image_id=n % 100, category_id=1) for n in range(150)]
    dataset = dict(images=images, annotations=labels, categories=[dict(id=1, name='cat')])
    (tmp_path / 'train.json').write_text(json.dumps(dataset))
    return LabelStudy(tmp_path, 'nanodet.pth', tmp_path / 'work')


def test_each_run_follows_the_one_that_it_builds_on() -> None:
    runs = list(runs_of([0, 1]))
    assert len(runs) == len({run.name for run in runs}) == 2 * (1 + 2 * len(ARMS))
    for place, run in enumerate(runs):
        assert run.arm == START or runs.index(run.before()) < place
    assert LabelRun(0, 'chosen', 40).before() == LabelRun(0, START, 20)
    assert LabelRun(0, 'chosen', 80).before() == LabelRun(0, 'chosen', 40)
    assert all(study.STEPS * study.BATCH % budget == 0 for budget in BUDGETS)


def test_all_arms_begin_with_the_same_pictures(small, tmp_path, monkeypatch) -> None:
    start = small.pictures(LabelRun(3, START, 20))
    more = small.pictures(LabelRun(3, 'random', 80))
    assert more[:20] == start
    assert more[:40] == small.pictures(LabelRun(3, 'random', 40))
    assert len(set(more)) == 80
    assert start != small.pictures(LabelRun(4, START, 20))
    write_result(tmp_path, LabelRun(3, START, 20), 0.4, start)
    asked = []

    def choose(before: LabelRun, kept: list[str], number: int, arm: str) -> list[str]:
        asked.append((before, number, arm))
        return [name for name in small.names if name not in kept][:number]

    monkeypatch.setattr(small, 'choose', choose)
    chosen = small.pictures(LabelRun(3, 'chosen', 40))
    assert asked == [(LabelRun(3, START, 20), 20, 'chosen')]
    assert chosen[:20] == start
    part = small.part(chosen)
    assert {each['file_name'] for each in part['images']} == set(chosen)
    ids = {each['id'] for each in part['images']}
    assert [each for each in small.train['annotations'] if each['image_id'] in ids] == (
        part['annotations']
    )


def test_differences_are_paired_by_seed_and_corrected_over_budgets(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(study, 'RESULTS', tmp_path)
    gains = {40: [0.01, 0.03, 0.02], 80: [0.01, -0.01, 0.03]}
    for seed in range(3):
        write_result(tmp_path, LabelRun(seed, START, 20), 0.4, [])
        for budget in (40, 80):
            base = 0.5 + 0.1 * seed
            write_result(tmp_path, LabelRun(seed, 'random', budget), base, [])
            ap = base + gains[budget][seed]
            write_result(tmp_path, LabelRun(seed, 'chosen', budget), ap, [])
    write_result(tmp_path, LabelRun(9, 'chosen', 40), 0.9, [])  # without a partner
    lines = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in table().splitlines()[2:]
    ]
    assert [line[:3] for line in lines] == [
        ['20', 'start', '3'],
        ['40', 'random', '3'],
        ['40', 'chosen', '4'],
        ['80', 'random', '3'],
        ['80', 'chosen', '3'],
    ]
    assert lines[2][3] == '43'
    assert lines[1][4] == '.600 ± .100'
    assert lines[2][6] == '+0.020 [-0.005, +0.045]'
    # t of 3.464 with two degrees of freedom: p = .0742, twice that by Holm.
    assert lines[2][7] == '.148'
    assert float(lines[4][7]) >= float(lines[2][7])
    assert lines[1][6:] == ['', '']


@pytest.mark.parametrize('path', sorted(study.RESULTS.glob('*.json')), ids=lambda path: path.stem)
def test_results_belong_to_a_run_of_today(path) -> None:
    found = json.loads(path.read_text())
    run = LabelRun(**found['run'])
    assert path.stem == run.name
    assert run in set(runs_of(study.SEEDS))
    assert len(set(found['pictures'])) == run.budget
    assert found['steps'] == study.STEPS
    assert np.isfinite(list(found['metrics'].values())).all()
    assert found['commit']
    assert found['machine']['threads'] == 1
