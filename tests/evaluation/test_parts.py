"""Metrics from parts are those of all detections together."""

from __future__ import annotations

import numpy as np
import pytest

import tests.helpers.commands
from gfl_det.errors import ConfigError
from gfl_det.evaluation import floors, parts
from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.evaluate import evaluate_detections
from gfl_det.evaluation.matching import Matches, match
from gfl_det.evaluation.parts import evaluate_parts

IMAGES, CLASSES = 60, 4


@pytest.fixture(scope='module')
def judged():
    """Detections near gt boxes, of which a class has none, with equal scores and crowds."""
    rng = np.random.default_rng(0)
    number = 200
    image = rng.integers(0, IMAGES, number)
    label = rng.integers(0, CLASSES - 1, number)
    boxes = np.hstack([rng.uniform(0, 60, (number, 2)), rng.uniform(5, 40, (number, 2))])
    crowd = rng.random(number) < 0.1
    names = [f'class {k}' for k in range(CLASSES)]
    gts = GroundTruth(
        list(range(IMAGES)), [''] * IMAGES, list(range(CLASSES)), names, image, label, boxes, crowd
    )
    chosen = rng.integers(0, number, 900)
    scores = rng.uniform(0, 1, 900).round(2)
    found = Detections(
        image[chosen], label[chosen], boxes[chosen] + rng.normal(0, 3, (900, 4)), scores
    )
    return found, gts


@pytest.mark.parametrize('number', [1, 7, IMAGES])
@pytest.mark.parametrize('zero_overlap', ['oracle', 'reject'])
def test_the_numbers_are_the_same(judged, number, zero_overlap):
    found, gts = judged
    chosen = np.random.default_rng(number).integers(0, number, IMAGES)
    split = [found.take(chosen[found.image] == part) for part in range(number)]
    ours = evaluate_parts(split, gts, (0.0, 0.1, 0.5), zero_overlap)
    theirs = evaluate_detections(found, gts, (0.0, 0.1, 0.5), zero_overlap)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=0, atol=1e-9)


def test_without_detections(judged):
    found, gts = judged
    empty = found.take(np.zeros(0, int))
    theirs = evaluate_detections(empty, gts)
    for split in ([], [empty]):
        np.testing.assert_equal(evaluate_parts(split, gts), theirs)


def test_a_threshold_out_of_range(judged):
    with pytest.raises(ConfigError, match=r'1\.5'):
        evaluate_parts([], judged[1], (1.5,))


def test_other_processes_match_alike(judged, monkeypatch):
    # What is sent to them is pickled as with spawn; those of a server have imported gfl_det.
    monkeypatch.setattr(parts, 'START', tests.helpers.commands.START)
    found, gts = judged
    found = found._replace(scores=found.scores.astype(np.float32).astype(float))  # as in tables
    split = [found.take(found.image % 5 == part) for part in range(5)]
    assert evaluate_parts(split, gts, workers=2) == evaluate_parts(split, gts)
    monkeypatch.undo()
    assert evaluate_parts([found], gts, workers=2) == evaluate_parts([found], gts)
    with pytest.raises(ConfigError, match='workers'):
        evaluate_parts(split, gts, workers=0)


class TestPieceByPiece:
    """What is added up in pieces, and in groups of classes, is what one piece gives."""

    @pytest.mark.parametrize('size', [1, 7, 100])
    def test_the_numbers_are_the_same(self, judged, monkeypatch, size):
        found, gts = judged
        if size == 1:  # as many pieces as there are detections
            found = found.take(np.arange(0, len(found.scores), 4))
        wanted = evaluate_detections(found, gts)
        with monkeypatch.context() as patch:
            patch.setattr(Matches.pieces, '__defaults__', (size,))
            patch.setattr(Matches.groups, '__defaults__', (size,))
            patch.setattr(parts, 'PIECE', size)
            patch.setattr(floors, 'ROWS', size)
            split = [found.take(found.image % 7 == part) for part in range(7)]
            for ours in (evaluate_detections(found, gts), evaluate_parts(split, gts)):
                np.testing.assert_allclose(
                    list(ours.values()), list(wanted.values()), rtol=0, atol=1e-9
                )

    @pytest.mark.parametrize('size', [1, 40, 10_000])
    def test_pieces_and_groups_hold_all_detections_in_order(self, judged, size):
        (matches,) = match(*judged, [0.5])
        for views in (list(matches.pieces(size)), list(matches.groups(size))):
            np.testing.assert_array_equal(np.concatenate([v.row for v in views]), matches.row)
        of_classes = [set(view.label) for view in matches.groups(size)]
        assert sum(map(len, of_classes)) == len(set(matches.label))  # no class is cut in two
        assert all(len(view.label) >= size for view in [*matches.groups(size)][:-1])
