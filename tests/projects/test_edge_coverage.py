"""The study of interval coverage, on edges whose distributions are known to be too wide."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch

from gfl_det.calibration.intervals import MatchedEdges
from gfl_det.utils.files import write_json
from projects.calibration_study import edge_coverage as study

IMAGES, BOXES = 60, 10
BINS, WIDTH, SPREAD = 17, 8.0, 6.0  # px


def too_wide(seed: int) -> MatchedEdges:
    """Distances about 64 px with a standard deviation of 6 px; the detector says 12."""
    generator = torch.Generator().manual_seed(seed)
    number = IMAGES * BOXES
    distances = torch.normal(64.0, SPREAD, (number, 4), generator=generator)
    bins = torch.arange(BINS) * WIDTH
    logits = (-(((bins - 64) / (2 * SPREAD)) ** 2) / 2).expand(number, 4, BINS)
    gts = 200 + distances * torch.tensor([-1, -1, 1, 1])
    return MatchedEdges(
        logits,
        torch.full((number, 4), WIDTH),
        torch.full((number, 2), 200.0),
        torch.full((number, 4), 400.0),
        gts,
        torch.zeros(number).long(),
        torch.arange(IMAGES).repeat_interleave(BOXES),
    )


def content(*parts: dict) -> dict:
    return dict(parts=parts, kinds=study.judge_kinds(too_wide(1), splits=3))


def test_factors_of_one_split_give_the_other_the_coverage_of_the_level():
    found = study.judge_part(too_wide(0), too_wide(1), ['cat'])
    levels = np.array(found['own']['levels'])
    assert found['fitted'] == found['judged'] == IMAGES * BOXES
    assert np.all(np.array(found['own']['share'])[levels < 0.9] > levels[levels < 0.9] + 0.05)
    np.testing.assert_allclose(found['calibrated']['share'], levels, atol=0.03)
    assert np.all(np.array(found['low']) < found['calibrated']['share'])
    assert np.all(np.array(found['high']) > found['calibrated']['share'])
    at = found['own']['levels'].index(0.9)
    # Edges are independent here: the width of the interval is the binomial one.
    expected = 2 * 1.96 * (0.9 * 0.1 / (4 * IMAGES * BOXES)) ** 0.5
    assert found['high'][at] - found['low'][at] == pytest.approx(expected, rel=0.3)
    assert found['calibrated']['width'][at] == pytest.approx(2 * 1.645 * SPREAD, rel=0.1)


def test_a_share_is_uncertain_by_images_and_not_by_edges():
    edges = too_wide(0)
    first = edges.take(np.arange(0, IMAGES * BOXES, BOXES))
    copies = first.take(np.arange(IMAGES).repeat(BOXES))  # a picture's boxes have one error
    once, often = (study.share_interval(each, [0.5], [[1.0] * 4]) for each in (first, copies))
    assert np.allclose(once, often)


def test_halves_have_all_edges_of_their_images():
    edges = too_wide(0)
    first, second = study.halves(edges, (np.arange(20), np.arange(20, IMAGES)))
    assert (len(first), len(second)) == (20 * BOXES, 40 * BOXES)
    assert first.images.max() == 19


def test_kinds_are_compared_in_the_same_halves():
    kinds = study.judge_kinds(too_wide(0), splits=3)
    assert {len(rows) for rows in kinds.values()} == {3}
    # All boxes have one size and one distribution here, so that nothing is to be gained.
    assert kinds['constant'] == kinds['size group']
    means = {name: np.mean([each['score'] for each in rows]) for name, rows in kinds.items()}
    assert means['constant'] == pytest.approx(means['distributions'], rel=0.05)


def test_tables_and_the_figure_are_of_the_file(tmp_path, monkeypatch, capsys):
    one = study.judge_part(too_wide(0), too_wide(1), ['cat'])
    two = study.judge_part(too_wide(1), too_wide(0), ['cat'])
    path, picture = tmp_path / 'found.json', tmp_path / 'drawn.png'
    write_json(path, content(one))
    monkeypatch.setattr(sys, 'argv', ['study', str(path), '--figure', str(picture)])
    study.main()
    printed = capsys.readouterr().out
    assert f'| all | {IMAGES * BOXES} | {IMAGES * BOXES} | .' in printed
    assert '| a constant per size of box | .' in printed
    assert cv2.imread(str(picture)) is not None
    found = study.tables(content(one, two))
    assert ' ± ' in found['levels']
    assert '[' not in found['levels']
    assert found['groups'].count('\n') == 2  # random halves have groups of their own
    assert f'| all | {IMAGES * BOXES} | {IMAGES * BOXES} | .' in found['groups']


def test_levels_that_a_part_does_not_reach_are_left_out(tmp_path):
    few = too_wide(0).take(np.arange(2 * BOXES))  # 20 boxes, too few for .975
    parts = [study.judge_part(each, too_wide(1), ['cat']) for each in (too_wide(0), few)]
    assert len(parts[1]['own']['levels']) < len(parts[0]['own']['levels'])
    found = content(*parts)
    assert found['parts'][1]['own']['levels'][-1] == 0.95
    assert '| .95 | ' in study.tables(found)['levels']
    study.draw_levels(found, tmp_path / 'drawn.png')
    few = too_wide(0).take(np.arange(BOXES))  # .9 at most
    parts[1] = study.judge_part(few, too_wide(1), ['cat'])
    assert '| .95 | ' not in study.tables(content(*parts))['levels']


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--halvings', '3'], 'give --checkpoint'),
        (['--judged', 'a.json', 'a'], 'give --checkpoint'),
        (['--checkpoint', 'a.pth'], 'give --judged'),
        (
            [
                '--checkpoint',
                'a.pth',
                '--judged',
                'a.json',
                'a',
                '--fitted',
                'b.json',
                'b',
                '--halvings',
                '3',
            ],
            'leave --fitted out',
        ),
    ],
)
def test_arguments_that_would_do_nothing_are_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        study.parse_arguments(['found.json', *words])
    assert said in capsys.readouterr().err
