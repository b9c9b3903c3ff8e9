"""Short trainings with seeds: which runs there are, and the table of their results."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from scipy import stats

import gfl_det
from gfl_det.errors import ConfigError, DataError
from projects.calibration_study import heads, pages
from projects.calibration_study.detection import METHODS, VIEWS
from projects.calibration_study.tables import paired, verdict
from projects.provenance import commit
from projects.training_study import recipes, trainings
from projects.training_study.arms import SHARED, TrainingRun, arm_of, studies
from projects.training_study.trainings import runs_of, table
from tests.helpers.paths import ROOT
from tests.helpers.project import make_project


def result(data: str, arm: str, seed: int, ap: float | None, study: str = 'weights') -> dict:
    metrics = {} if ap is None else dict.fromkeys(trainings.KEYS.values(), ap)
    return dict(
        run=dict(study=study, data=data, arm=arm, seed=seed),
        epochs=4,
        rate=0.001,
        scale=[416, 416],
        minutes=2.0,
        metrics=dict(test=metrics),
    )


def write(folder, found: list[dict]) -> None:
    for each in found:
        run = each['run']
        name = f'{run["study"]}-{run["data"]}-{run["arm"]}-seed{run["seed"]}.json'
        (folder / name).write_text(json.dumps(each))


def cells(text: str) -> list[list[str]]:
    """Rows of a Markdown table without its head."""
    lines = text.splitlines()[2:]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_a_seed_is_done_by_every_arm_before_the_next() -> None:
    runs = list(runs_of('weights', ['bccd'], [0, 1]))
    assert [run.seed for run in runs] == [0] * 3 + [1] * 3
    assert len({run.name for run in runs}) == 6
    assert not list(runs_of('assigners', ['face_masks'], [0]))
    assert all(arm.published for arm in studies()['tuning'])
    [run] = runs_of('scores', ['bccd'], [4], ['brier'])
    assert run.name == 'scores-bccd-brier-seed4'


def test_what_arms_compare_with_is_there_and_trained_as_long() -> None:
    for study, arms in studies().items():
        assert len({arm.name for arm in arms}) == len(arms)
        for arm in arms:
            for other in filter(None, (arm.base, arm.teacher)):
                for data in arm.epochs:
                    found = arm_of(*other)
                    assert data in found.epochs, (study, arm.name)
                    if other == arm.base and study not in ('tuning',):
                        assert found.epochs[data] == arm.epochs[data]


def planned() -> Config:
    cfg = gfl_det.get_config('gfl_r18_fpn_bccd')
    cfg.merge_from_dict(arm_of(*SHARED).options)
    return cfg


@pytest.mark.parametrize('name', ['atss', 'retinanet'])
def test_heads_differ_in_the_head_alone(name) -> None:
    usual, cfg = planned(), planned()
    cfg.model.bbox_head.num_classes = 7
    trainings.take_head(cfg, trainings.CONFIGS / arm_of('heads', name).head)
    assert cfg.model.bbox_head.num_classes == 7
    assert cfg.model.backbone == usual.model.backbone
    assert cfg.model.neck == usual.model.neck
    assert cfg.train_dataloader == usual.train_dataloader
    assert trainings._parameters(cfg) > 0
    cfg = planned()
    cfg.model.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64]
    with pytest.raises(SystemExit, match='priors'):
        trainings.take_head(cfg, trainings.CONFIGS / arm_of('heads', name).head)


@pytest.mark.parametrize('study', ['scores', 'options', 'distillation'])
def test_the_changes_of_an_arm_can_be_built(study) -> None:
    for arm in studies()[study]:
        cfg = planned()
        cfg.merge_from_dict(arm.options)
        if arm.teacher is not None:
            cfg.model.teacher_config = 'never read'
        assert trainings._parameters(cfg) > 0


def test_pictures_are_resized_in_every_split() -> None:
    cfg = planned()
    trainings.set_scale(cfg, (96, 64))
    assert [trainings._scale(cfg)] == [[96, 64]]
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (96, 64)
    load, views = trainings.views_pipeline(cfg, (0.5, 1.0))
    assert load['type'] == 'LoadImageFromFile'
    assert [each['scale'] for each in views['transforms'][0]] == [(48, 32), (96, 64)]
    assert 'flip' in views['transforms'][3][0]['meta_keys']


def test_a_run_that_is_missing_is_named(tmp_path) -> None:
    with pytest.raises(SystemExit, match=r'distillation-bccd-teacher-seed0.*run the arm teacher'):
        trainings.trained('distillation', 'teacher', 'bccd', 0, tmp_path)


def test_the_interval_is_students() -> None:
    gains = [0.1, 0.13, 0.08]
    expected = stats.t.interval(0.95, 2, np.mean(gains), stats.sem(gains))
    assert str(paired(gains)) == f'+0.103 [{expected[0]:+.3f}, {expected[1]:+.3f}]'
    assert paired(gains).p == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
    assert (str(paired([0.1])), str(paired([]))) == ('+0.100', '')
    assert (paired([0.25, 0.25]).p, paired([0.0, 0.0]).p) == (0, 1)


def test_a_verdict_needs_a_small_p() -> None:
    assert verdict(-0.1, 0.04) == 'holds'
    assert verdict(0.1, 0.04) == 'contradicted'
    assert verdict(-0.1, 0.05) == verdict(-0.1, float('nan')) == 'undecided'


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
    write(tmp_path, found)
    lines = cells(table('weights'))
    assert [line[:2] for line in lines] == [
        ['bccd', 'r18_random'],
        ['bccd', 'nanodet_published'],
        ['face_masks', 'nanodet_random'],
    ]
    assert lines[0][6:8] == ['2', '.250 ± .071']
    assert lines[1][6:8] == ['3', '.667 ± .208']
    assert lines[1][-3:-1] == ['r18_random', '+0.300 [+0.300, +0.300]']
    assert lines[2][7] == '.000'


def test_the_shared_arm_is_compared_with_and_p_values_are_adjusted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trainings, 'RESULTS', tmp_path)
    first, second = [0.01, 0.02, 0.03], [0.02, 0.05, -0.01]
    found = [result('bccd', 'gfl', seed, 0.4, 'heads') for seed in range(3)]
    found += [result('bccd', 'flsd', s, 0.4 + gain, 'scores') for s, gain in enumerate(first)]
    found += [result('bccd', 'brier', s, 0.4 + gain, 'scores') for s, gain in enumerate(second)]
    write(tmp_path, found)
    lines = cells(table('scores'))
    assert [line[1] for line in lines] == ['gfl', 'flsd', 'brier']
    assert lines[0][-3:] == ['', '', '']
    assert lines[1][-3] == 'gfl'
    p = 2 * stats.ttest_1samp(first, 0).pvalue  # the smaller of two
    assert lines[1][-1] == f'{p:.3f}'.lstrip('0')


def calibrated(arm: str, seed: int, error: float, study: str = 'heads') -> dict:
    """A run whose isotonic maps take off nine tenths of its error."""
    views = {
        view: {
            method: dict.fromkeys(heads.VIEW_COLUMNS['all'], 0.5)
            | dict.fromkeys(heads.VIEW_COLUMNS['kept'], 0.5)
            | dict(
                LaECE_0=error / (10 if method == 'isotonic' else 1),
                LaECE_0_debiased=error,
                LaECE_0_count=1000,
                LaECE_0_floor_95=0.03,
            )
            for method in METHODS
        }
        for view in VIEWS
    }
    return result('bccd', arm, seed, 0.4, study) | dict(calibration=views)


def test_claims_are_tested_by_seed_and_one_seed_decides_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trainings, 'RESULTS', tmp_path)
    with pytest.raises(DataError, match='No run of heads on bccd'):
        heads.runs_of('heads', 'bccd')
    write(tmp_path, [calibrated('gfl', 0, 0.1), calibrated('atss', 0, 0.05)])
    rows = cells(heads.claim_table(heads.runs_of('heads', 'bccd'), heads.HEAD_CLAIMS))
    assert {row[-1] for row in rows} == {'undecided'}
    write(tmp_path, [calibrated('gfl', s, 0.1 + 0.0001 * s**2) for s in (1, 2)])
    write(tmp_path, [calibrated('atss', s, 0.05) for s in (1, 2)])
    found = heads.runs_of('heads', 'bccd')
    rows = {row[0]: row for row in cells(heads.claim_table(found, heads.HEAD_CLAIMS))}
    assert rows['LaECE_0 debiased, all: ATSS < GFL'][-1] == 'holds'
    assert rows['LaECE_0 debiased, kept: GFL < ATSS'][-1] == 'contradicted'
    assert rows['LaECE_0, all: GFL, isotonic < GFL'][1].startswith('-0.090')
    assert rows['AP, all: ATSS < GFL'][-1] == 'undecided'
    assert not any('RetinaNet' in name for name in rows)
    shown = cells(heads.table(found, 'kept', ('identity', 'isotonic')))
    assert shown[0][:6] == ['GFL', 'raw', '3', '.500 ± .000', '1000', '.100 ± .000']
    assert shown[1][5:7] == ['.010 ± .000', '.030 ± .000']
    assert len(heads.draw(['bccd']).axes) == 2


def interrupted(*_: object, **__: object) -> None:
    raise InterruptedError


def test_the_clock_goes_on_where_a_training_was_cut(monkeypatch) -> None:
    now = iter([0, 10, 20, 25, 100, 107])
    monkeypatch.setattr(trainings.time, 'process_time', lambda: float(next(now)))
    clock, kept = trainings.TrainingClock(), {}
    clock.before_train_epoch(None)
    clock.after_train_epoch(None)
    assert clock.seconds == 10
    clock.before_train_epoch(None)
    clock.before_save_checkpoint(None, kept)
    again = trainings.TrainingClock()  # the epoch is cut here, and gone on with
    again.after_load_checkpoint(SimpleNamespace(_resume=True), kept)
    again.before_train_epoch(None)
    again.after_train_epoch(None)
    assert again.seconds == 10 + 5 + 7
    fresh = trainings.TrainingClock()
    fresh.after_load_checkpoint(SimpleNamespace(_resume=False), kept)  # weights to start from
    assert fresh.seconds == 0


def test_a_recipe_is_trained_once_and_its_validations_are_kept(tmp_path, monkeypatch, capsys):
    project = make_project(tmp_path / 'project')
    short = {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 1}
    recipe = recipes.Recipe(str(project / 'tiny.py'), 'pets', short)
    monkeypatch.setattr(recipes, 'RECIPES', dict(pets=recipe))
    monkeypatch.setattr(recipes, 'RESULTS', tmp_path / 'results')
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    words = ['--recipes', 'pets', '--seeds', '3', '--base', str(tmp_path / 'base')]
    monkeypatch.setattr(sys, 'argv', ['recipes', *words])
    for data, said in (
        ([], '--data pets=FOLDER'),
        (['--data', 'pets'], 'write NAME=FOLDER'),
        (['--data', 'pets=data', 'cats=data'], '--data cats'),
    ):
        monkeypatch.setattr(sys, 'argv', ['recipes', *words, *data])
        with pytest.raises(ConfigError, match=said):
            recipes.main()
    monkeypatch.setattr(sys, 'argv', ['recipes', *words, '--data', f'pets={project / "data"}'])
    work_dir = tmp_path / 'base' / 'recipes-pets-seed3'
    with monkeypatch.context() as cut:
        cut.setattr(recipes.Validations, 'after_val_epoch', interrupted)
        with pytest.raises(InterruptedError):
            recipes.main()
    assert (work_dir / 'commit.txt').read_text() == commit()
    (work_dir / 'commit.txt').write_text('of the first part')
    before = torch.load(work_dir / 'epoch_1.pth')[trainings.TrainingClock.KEY]
    recipes.main()
    found = json.loads((tmp_path / 'results' / 'pets-seed3.json').read_text())
    assert found['commit'] == 'of the first part'
    assert list(found['validations']) == ['1', '2']
    assert found['minutes'] * 60 > before > 0
    assert [row[:3] for row in cells(recipes.table())] == [['pets', '1', '1'], ['pets', '1', '2']]
    capsys.readouterr()
    recipes.main()
    assert capsys.readouterr().out == ''  # nothing is left to do


def test_recipes_are_compared_by_seed_and_epoch(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(recipes, 'RESULTS', tmp_path)
    aps_of = {
        ('bccd', 0): (0.2, 0.5),
        ('bccd', 1): (0.4, 0.6),
        ('bccd_mmdet', 0): (0.1, 0.5),
        ('bccd_mmdet', 1): (0.2, 0.5),
        ('bccd_mmdet', 2): (0.9, 0.9),
    }
    for (name, seed), aps in aps_of.items():
        validations = {
            str(epoch): dict.fromkeys(recipes.KEYS, ap) for epoch, ap in zip((6, 12), aps)
        }
        found = dict(recipe=name, seed=seed, epochs=12, validations=validations, minutes=9)
        (tmp_path / f'{name}-seed{seed}.json').write_text(json.dumps(found))
    *_, before, last = cells(recipes.table(['bccd_mmdet', 'bccd']))
    assert before[:4] == ['bccd', '2', '6', '.300 ± .141']
    assert before[-2:] == ['bccd_mmdet', str(paired([0.1, 0.2]))]
    assert last[-3:] == ['9.0', 'bccd_mmdet', str(paired([0.0, 0.1]))]
    assert len(cells(recipes.table(['digits']))) == 0


def test_tables_of_pages_are_those_of_the_results(tmp_path, monkeypatch) -> None:
    texts = [path.read_text() for path in sorted((ROOT / 'docs' / 'results').glob('*.md'))]
    texts = [text for text in texts if pages.PLACE.search(text)]
    assert texts
    assert all(pages.written_anew(text) == text for text in texts)
    text = 'a\n\n<!-- table: heads bccd claims -->\n\n| old |\n| 1 |\n\nb\n'
    monkeypatch.setattr(trainings, 'RESULTS', tmp_path)
    missing = text.replace('| old |\n| 1 |', pages.MISSING)
    assert pages.written_anew(text) == missing
    assert pages.written_anew(text.replace('| old |\n| 1 |\n\n', '')) == missing
    write(tmp_path, [calibrated('gfl', 0, 0.1), calibrated('atss', 0, 0.05)])
    again = pages.written_anew(pages.written_anew(text))
    assert 'old' not in again
    assert again.count('ATSS < GFL') == 2
    assert again.endswith('|\n\nb\n')


@pytest.mark.parametrize(
    'path', sorted(trainings.RESULTS.glob('*.json')), ids=lambda path: path.stem
)
def test_results_belong_to_an_arm_of_today(path) -> None:
    found = json.loads(path.read_text())
    run = found['run']
    arm = arm_of(run['study'], run['arm'])
    assert path.stem == TrainingRun(run['study'], run['data'], arm, run['seed']).name
    assert found['epochs'] == arm.epochs[run['data']]
    assert arm.rate in (None, found['rate'])
    assert arm.split in found['metrics']
    if arm.calibrated:
        assert set(found['calibration']) == set(VIEWS)
        raw = found['calibration']['all']['identity']
        assert raw['LaECE_0_count'] > 0
        assert raw['AP'] == pytest.approx(found['metrics']['test'][trainings.KEYS['AP']], abs=0.002)
    assert found['commit']
    assert found['machine']['threads'] == 1
