"""The comparison of training losses: its data, its verdicts, and the tool."""

from __future__ import annotations

import json
import math
import runpy
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

from gfl_det.errors import ConfigError
from projects.calibration_study.claims import (
    CLAIMS,
    MUKHOTI,
    WANG,
    Claim,
    judge,
    judge_all,
    published,
)
from projects.calibration_study.classification import (
    LOSSES,
    MEASURES,
    Recipe,
    Run,
    load_parts,
    measure,
    run_one,
)
from projects.calibration_study.tables import fraction, markdown, spread
from tests.helpers.paths import ROOT

TOOL = ROOT / 'tools' / 'prove_classification.py'


def run(loss: str, seed: int, error: float, ece: float = 0.1, temperature: float = 1.0) -> Run:
    values = dict.fromkeys(MEASURES, ece)
    return Run(loss, seed, error, temperature, values, {name: v / 2 for name, v in values.items()})


def test_parts_hold_every_scan_once_and_the_noise_asked_for() -> None:
    clean = load_parts(Recipe(noise=0), 3)
    assert [len(part.labels) for part in clean] == [700, 400, 697]
    assert sorted(torch.cat([part.labels for part in clean]).tolist()) == sorted(
        load_digits().target
    )
    noisy = torch.cat([part.labels for part in load_parts(Recipe(noise=1 - 1e-9), 3)])
    assert noisy.bincount().min() > 130  # 180 each, with a standard deviation of 13
    images = torch.cat([part.images for part in clean]).double()
    assert images.mean().item() == pytest.approx(0, abs=1e-6)
    assert len(torch.unique(images, dim=0)) == len(
        np.unique(load_digits().images.reshape(1797, 64), axis=0)
    )


@pytest.mark.parametrize('seed', range(3))
def test_the_best_probabilities_are_those_of_the_noise(seed: int) -> None:
    """Whoever knows the digit, and says what the noise leaves of it, has no error but chance."""
    recipe = Recipe(noise=0.3, train=1, held_out=1)
    part = load_parts(recipe, seed)[2]
    scans = {
        scan.tobytes(): label for scan, label in zip(load_digits().images, load_digits().target)
    }
    raw = load_digits().images
    images = part.images.double().numpy() * raw.std() + raw.mean()
    digits = np.array([scans[np.abs(image.round()).tobytes()] for image in images])
    probabilities = np.full((len(digits), 10), 0.03)
    probabilities[np.arange(len(digits)), digits] += 0.7
    found = measure(probabilities, part.labels.numpy())
    assert found['ECE'] < 3 * math.sqrt(0.73 * 0.27 / len(digits))
    sharper = np.where(probabilities > 0.5, 0.91, 0.01)
    assert measure(sharper, part.labels.numpy())['ECE'] > 0.1
    assert found['NLL'] < measure(sharper, part.labels.numpy())['NLL']


@pytest.mark.parametrize('name', LOSSES)
def test_each_loss_learns_and_gives_the_same_again(name: str) -> None:
    recipe = Recipe(noise=0, epochs=8, train=1000)
    parts = load_parts(recipe, 0)
    first = run_one(name, parts, recipe, 0)
    assert first.error < 0.2
    assert first.temperature > 0
    assert run_one(name, parts, recipe, 0) == first


def test_a_claim_holds_its_opposite_holds_or_neither() -> None:
    claim = Claim('a paper', 'error', 'A', 'B')
    noise = [0.001, -0.002, 0.0015, 0.0, -0.001]
    lower = [run('A', seed, 0.10 + noise[seed]) for seed in range(5)]
    higher = [run('B', seed, 0.15 - noise[seed] / 2) for seed in range(5)]
    found = judge(claim, [*lower, *higher])
    assert found.verdict == 'holds'
    assert (found.seeds_for, found.seeds) == (5, 5)
    assert found.difference.mean == pytest.approx(-0.05, abs=1e-3)
    swapped = judge(claim._replace(lower='B', higher='A'), [*higher, *lower])
    assert swapped.verdict == 'contradicted'
    assert swapped.difference.p == pytest.approx(found.difference.p)
    wide = [run('B', seed, 0.10 + 100 * noise[seed]) for seed in range(5)]
    assert judge(claim, [*lower, *wide]).verdict == 'undecided'


def test_pairs_go_by_seed_and_not_by_place() -> None:
    claim = Claim('a paper', 'ECE after', 'A', 'B')
    lower = [run('A', seed, 0, ece=0.1 * seed) for seed in range(4)]
    higher = [run('B', seed, 0, ece=0.1 * seed + 0.01 + 0.001 * (seed % 2)) for seed in range(4)]
    found = judge(claim, [*lower, *higher[::-1]])
    assert found.difference.mean == pytest.approx(-0.00525)
    assert found.verdict == 'holds'


def test_equal_sides_decide_nothing_and_temperatures_count_on_both_sides_of_1() -> None:
    claim = Claim('a paper', 'distance of T from 1', 'A', 'B')
    runs = [run('A', seed, 0, temperature=0.5) for seed in range(3)]
    same = [run('B', seed, 0, temperature=2) for seed in range(3)]
    assert judge(claim, [*runs, *same]).verdict == 'undecided'
    far = [run('B', seed, 0, temperature=0.25) for seed in range(3)]
    assert judge(claim, [*runs, *far]).verdict == 'holds'


def test_seeds_that_share_samples_count_for_less() -> None:
    """Nadeau and Bengio: the variance of the mean of n seeds is (1/n + judged/trained) s^2."""
    claim = Claim('a paper', 'ECE before', 'A', 'B')
    lower = [run('A', seed, 0, ece=0.0) for seed in range(5)]
    errors = [0.01 + 0.002 * seed for seed in range(5)]
    higher = [run('B', seed, 0, ece=error) for seed, error in enumerate(errors)]
    witness = stats.ttest_rel([0.0] * 5, errors)
    assert judge(claim, [*lower, *higher]).difference.p == pytest.approx(witness.pvalue)
    found = judge(claim, [*lower, *higher], ratio=1.0)
    shrunk = witness.statistic * (0.2 / 1.2) ** 0.5
    assert found.difference.p == pytest.approx(2 * stats.t.cdf(shrunk, 4))
    alone = judge(claim, [*lower, *higher]).difference
    of_witness = witness.confidence_interval()
    assert (alone.low, alone.high) == pytest.approx((of_witness.low, of_witness.high))
    width = found.difference.high - found.difference.low
    assert width == pytest.approx((alone.high - alone.low) * (1.2 / 0.2) ** 0.5)
    assert found.verdict == 'holds'


def test_published_values_stand_beside_the_claims_of_their_paper() -> None:
    claim = Claim(MUKHOTI, 'ECE before', 'FLSD-53', 'FL-3')
    assert published(claim) == '.0155 / .0148'
    assert published(claim._replace(lower='IFL-1.5')) == ''
    assert published(claim._replace(source=WANG)) == ''


def test_many_claims_are_adjusted_together() -> None:
    claims = [Claim('a paper', 'ECE before', 'A', other) for other in 'BCD']
    runs = [run('A', seed, 0, ece=0.0) for seed in range(5)]
    for other, shift in zip('BCD', (0.002, 0.002, 0.02)):
        runs += [run(other, seed, 0, ece=shift * (1 + seed)) for seed in range(5)]
    alone = [judge(claim, runs).difference.p for claim in claims]
    together = judge_all(claims, runs)
    assert [each.p_holm for each in together] == pytest.approx([3 * alone[0]] * 3)
    assert {each.verdict for each in together} == {'holds'}


def test_every_claim_names_losses_and_measures_that_there_are() -> None:
    runs = [run(loss, seed, 0.1 + seed / 100) for loss in LOSSES for seed in range(2)]
    for claim in CLAIMS:
        assert judge(claim, runs).verdict == 'undecided'


def test_tables_read_as_markdown() -> None:
    text = markdown(['a', 'b'], [['x', fraction(0.1234)], ['y', spread([1.0, 2.0])]])
    assert text.splitlines() == [
        '| a | b |',
        '| --- | ---: |',
        '| x | .123 |',
        '| y | 1.500 ± .707 |',
    ]
    assert [fraction(value) for value in (float('nan'), -0.05, 0)] == ['-', '-.050', '.000']
    assert spread([0.5]) == '.500'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(noise=1.0), r'noise of the labels lies in \[0, 1\)'),
        (dict(noise=float('nan')), 'noise of the labels'),
        (dict(epochs=0), 'at least 1 epoch'),
        (dict(train=1500), 'leave none'),
    ],
)
def test_a_recipe_out_of_range_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**settings)


def test_the_tool_prints_both_tables_and_writes_all_values(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / 'new' / 'values.json'
    words = ['prove_classification.py', '--seeds', '2', '--epochs', '1', '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', words)
    runpy.run_path(str(TOOL), run_name='__main__')
    printed = capsys.readouterr()
    assert f'[{2 * len(LOSSES)}/{2 * len(LOSSES)}] seed 1' in printed.err
    values = json.loads(out.read_text())
    assert len(values['runs']) == 2 * len(LOSSES)
    assert len(values['claims']) == len(CLAIMS)
    errors = [each['error'] for each in values['runs'] if each['loss'] == 'FL-3']
    assert f'| FL-3 | {spread(errors)} |' in printed.out
    monkeypatch.setattr(sys, 'argv', [words[0], '--seeds', '1'])
    with pytest.raises(SystemExit, match='1'):
        runpy.run_path(str(TOOL), run_name='__main__')
    message = 'error: --seeds is at least 2, as seeds are compared, not 1\n'
    assert capsys.readouterr().err == message
