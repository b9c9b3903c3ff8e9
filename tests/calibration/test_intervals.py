"""Calibrators of intervals: the promise on data that is drawn, files, the head, and the tool."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from gfl_det import GFLInferencer, calibration
from gfl_det.calibration.apply import HeadCalibration
from gfl_det.calibration.calibrators import FitSource
from gfl_det.calibration.intervals import KINDS, MatchedEdges, conformal_quantile, fit_factors
from gfl_det.cli.intervals import fit, measure, parse_arguments
from gfl_det.engine.preflight.agreement import check_calibrator
from gfl_det.errors import ConfigError, DataError
from gfl_det.inference import ImageResult, Results
from gfl_det.inference.coverage import coverage, judge, read_split
from gfl_det.ops.intervals import edge_intervals, edge_quantiles
from tests.helpers.heads import NUM_CLASSES, head_pair, make_maps, make_meta
from tests.helpers.inferring import CLASSES, small_config, write_checkpoint, write_images
from tests.helpers.paths import ROOT

TOOL = ROOT / 'tools' / 'intervals.py'


@given(st.integers(1, 60), st.floats(0.01, 0.99))
def test_the_conformal_quantile_is_an_order_statistic(number: int, level: float) -> None:
    scores = torch.randperm(number).float() + 1  # the k-th smallest is k
    rank = math.ceil((number + 1) * level)
    if rank > number:
        with pytest.raises(ValueError, match='no quantile'):
            conformal_quantile(scores, level)
    else:
        assert conformal_quantile(scores, level) in (rank, rank - 1)  # -1: rounding at integers


def test_nine_scores_have_their_last_as_the_ninth_tenth() -> None:
    assert conformal_quantile(torch.arange(1.0, 10.0), 0.9) == 9
    with pytest.raises(ValueError, match='8 scores'):
        conformal_quantile(torch.arange(8.0), 0.9)
    # 100 * .55 is 55, though floats make it 55.000000000000007.
    assert conformal_quantile(torch.arange(1.0, 100.0), 0.55) == 55


def drawn_edges(number: int, seed: int, scales: tuple[float, ...]) -> MatchedEdges:
    """Discrete Gaussians a side; gt boxes lie ``scales`` times as far from their means as they say.

    The widths of the distributions vary from edge to edge, and the errors with them.
    """
    generator = torch.Generator().manual_seed(seed)
    bins = torch.arange(17.0)
    centre = 6 + 4 * torch.rand(number, 4, 1, generator=generator)
    spread = 0.6 + 1.2 * torch.rand(number, 4, 1, generator=generator)
    logits = -((bins - centre) ** 2) / (2 * spread**2)
    widths = torch.full((number, 4), 8.0)
    priors = torch.full((number, 2), 500.0)
    noise = torch.randn(number, 4, generator=generator) * spread[..., 0] * torch.tensor(scales)
    sides = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    gts = 500 + sides * 8 * (centre[..., 0] + noise)
    limits = torch.full((number, 4), 1000.0)
    return MatchedEdges(logits, widths, priors, limits, gts, torch.zeros(number).long())


def test_factors_find_the_scale_of_each_side() -> None:
    """Errors half as large as said, as said, twice as large; and four times."""
    scales = (0.5, 1.0, 2.0, 4.0)
    levels, factors = fit_factors(drawn_edges(4000, 0, scales), [0.8, 0.9])
    assert levels == (0.8, 0.9)
    # A discrete Gaussian spread over bins is a little wider than the Gaussian.
    for row in factors:
        np.testing.assert_allclose(row, scales, rtol=0.12)
    _, together = fit_factors(drawn_edges(4000, 0, (1.0,) * 4), [0.8], together=True)
    assert len(set(together[0])) == 1
    assert together[0][0] == pytest.approx(1, rel=0.1)


def test_calibrated_intervals_hold_what_they_promise() -> None:
    """Over many small splits: at least the level on average, and not much more."""
    scales, level, held = (0.3, 1.0, 2.5, 1.0), 0.8, []
    for seed in range(60):
        _, factors = fit_factors(drawn_edges(39, seed, scales), [level])
        fresh = drawn_edges(200, 1000 + seed, scales)
        held.append(coverage(fresh, [level], factors).share_of_sides[0])
    mean = np.mean(held, axis=0)
    # 39 scores: the 32nd smallest, which holds 32/40 of the next on average; 60 x 200 judged.
    np.testing.assert_allclose(mean, 0.8, atol=0.025)
    raw = coverage(drawn_edges(2000, 5, scales), [level])
    assert raw.share_of_sides[0, 0] > 0.99
    assert raw.share_of_sides[0, 2] < 0.5


def test_coverage_of_a_drawn_case() -> None:
    """One certain bin: an interval of .5 is half a bin of 8 px about the edge."""
    logits = torch.full((2, 4, 17), -1e4)
    logits[..., 3] = 0
    gt = torch.tensor([[76.0, 76.0, 124.0, 124.0], [78.1, 76.0, 126.0, 121.9]])
    edges = MatchedEdges(
        logits,
        torch.full((2, 4), 8.0),
        torch.full((2, 2), 100.0),
        torch.full((2, 4), 125.0),
        gt,
        torch.zeros(2).long(),
    )
    found = coverage(edges, [0.5])
    assert found.share_of_sides.tolist() == [[0.5, 1.0, 0.5, 0.5]]  # 126 is beyond the border
    assert found.share.tolist() == [0.625]
    assert found.share_of_boxes.tolist() == [0.5]
    assert found.width.tolist() == [pytest.approx((4 + 4 + 3 + 3) / 4)]


def test_too_few_edges_lower_the_levels_or_are_refused() -> None:
    levels, _ = fit_factors(drawn_edges(12, 0, (1.0,) * 4))
    assert max(levels) == 0.9
    levels, _ = fit_factors(drawn_edges(12, 0, (1.0,) * 4), together=True)
    assert max(levels) == 0.975
    with pytest.raises(DataError, match=r'1 detections? .*too few'):
        fit_factors(drawn_edges(1, 0, (1.0,) * 4), [0.9])


def calibrator(names=CLASSES, score_type: str = 'GFLHead', **changes):
    values = dict(
        levels=(0.5, 0.9),
        factors=((0.5, 1.0, 1.5, 2.0), (1.0, 1.0, 2.0, 4.0)),
        score_type=score_type,
        class_names=tuple(names),
        iou_threshold=0.5,
        source=FitSource('00ff', ('a', 'b'), 50),
    )
    return calibration.IntervalCalibrator(**{**values, **changes})


def test_factors_are_interpolated_between_levels() -> None:
    made = calibrator()
    assert made.factors_at(0.7) == pytest.approx((0.75, 1.0, 1.75, 3.0))
    assert made.factors_at(0.1) == (0.5, 1.0, 1.5, 2.0)
    with pytest.raises(DataError, match=r'0\.9, .*0\.95'):
        made.factors_at(0.95)


@pytest.mark.parametrize(
    'changes',
    [
        dict(levels=(0.9, 0.5)),
        dict(levels=(0.5, 1.0)),
        dict(levels=(0.5, 0.5)),
        dict(levels=(0.0, 0.5)),
        dict(levels=(0.5,)),
        dict(levels=(), factors=()),
        dict(factors=((1.0,) * 4, (0.5,) * 4)),
        dict(factors=((-1.0,) * 4, (0.5,) * 4)),
        dict(factors=((1.0,) * 4, (math.inf,) * 4)),
    ],
)
def test_calibrators_that_make_no_sense_are_refused(changes) -> None:
    with pytest.raises(ConfigError, match=r'interval'):
        calibrator(**changes)


def test_a_file_keeps_every_digit(tmp_path) -> None:
    made = calibrator(factors=((0.1, 1 / 3, 2 / 3, 1e-9), (0.7, 1.1, 1e9, 2.2)))
    path = tmp_path / 'new' / 'intervals.json'
    calibration.save_interval_calibrator(made, path)
    assert calibration.load_interval_calibrator(path) == made


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (dict(format='gfl_det detection calibrator'), 'is not a calibrator of intervals'),
        (dict(version=99), 'of version 99'),
        (dict(factors=[[1, 2, 3], [1, 2, 3]]), 'damaged'),
        (dict(factors='x'), 'damaged'),
        (dict(levels=[0.5, 'a']), 'damaged'),
        (dict(source=None), 'damaged'),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, change, match) -> None:
    path = tmp_path / 'intervals.json'
    calibration.save_interval_calibrator(calibrator(), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=match) as caught:
        calibration.load_interval_calibrator(path)
    assert str(path) in str(caught.value)


def test_the_head_stretches_each_side(tmp_path) -> None:
    path = tmp_path / 'intervals.json'
    names = [f'c{index}' for index in range(NUM_CLASSES)]
    calibration.save_interval_calibrator(calibrator(names), path)
    config = dict(with_distribution=True, interval_level=0.9, interval_calibrator=str(path))
    head, _ = head_pair(test_cfg=config)
    maps = make_maps(1, (192, 256), torch.Generator().manual_seed(3), bias=-1.0)
    metas = [make_meta((192, 256))]
    (found,) = head.predict_by_feat(*maps, batch_img_metas=metas)
    quantiles = edge_quantiles(found.edge_logits, found.bin_widths, found.prior_centres, 0.9)
    limit = torch.tensor([256.0, 192.0, 256.0, 192.0])
    low, high = edge_intervals(quantiles, (1.0, 1.0, 2.0, 4.0), limit)
    torch.testing.assert_close(found.edge_low, low)
    torch.testing.assert_close(found.edge_high, high)

    # A head keeps what it has read of a file, so another one reads what has replaced it.
    calibration.save_interval_calibrator(calibrator(names[:3]), path)
    head, _ = head_pair(test_cfg=config)
    with pytest.raises(DataError, match='the 3 classes'):
        head.predict_by_feat(*maps, batch_img_metas=metas)
    calibration.save_interval_calibrator(calibrator(names, 'GFLv2Head'), path)
    with pytest.raises(DataError, match=r"'GFLv2Head', .*'GFLHead'"):
        head.predict_by_feat(*maps, batch_img_metas=metas)


@pytest.mark.parametrize('config', [{}, dict(interval_level=0.9)])
def test_nothing_is_stretched_without_a_calibrator(config: dict) -> None:
    assert HeadCalibration('GFLHead', 3).interval_factor(ConfigDict(config)) == 1


class FakeDetector:
    """Gives what it was made with."""

    classes = ('cat', 'dog')

    def __init__(self, *instances: InstanceData) -> None:
        self.instances = instances

    def __call__(self, inputs, batch_size):
        assert [Path(each).name for each in inputs] == ['b.png', 'a.png']  # by id
        return Results(
            ImageResult(source, (100, 200), found, self.classes)
            for source, found in zip(inputs, self.instances)
        )


def found_boxes(boxes, labels, scores) -> InstanceData:
    number = len(boxes)
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
        scores=torch.tensor(scores, dtype=torch.float32),
        edge_logits=torch.arange(number).float()[:, None, None].expand(number, 4, 17),
        bin_widths=torch.ones(number, 4),
        prior_centres=torch.ones(number, 2),
    )


def test_each_match_gets_its_own_gt(tmp_path) -> None:
    """Two near gt boxes of one class, one of another, a crowd, and a box that nothing hits."""
    boxes = [
        (2, 10, [0, 0, 20, 20]),
        (2, 10, [5, 0, 20, 20]),
        (2, 20, [0, 0, 20, 20]),
        (1, 10, [50, 50, 40, 40]),
    ]
    entries = [
        dict(id=n, image_id=image, category_id=kind, bbox=box, area=400, iscrowd=0)
        for n, (image, kind, box) in enumerate(boxes)
    ]
    crowd = dict(id=9, image_id=2, category_id=10, bbox=[100, 0, 90, 90], area=8100, iscrowd=1)
    content = dict(
        images=[dict(id=2, file_name='a.png'), dict(id=1, file_name='b.png')],
        categories=[dict(id=20, name='dog'), dict(id=10, name='cat')],
        annotations=[*entries, crowd],
    )
    path = tmp_path / 'gts.json'
    path.write_text(json.dumps(content))
    split = read_split(str(path), 'img')
    first = found_boxes([[0, 0, 10, 10]], [0], [0.9])
    second = found_boxes(
        [[5, 0, 26, 20], [110, 0, 150, 50], [0, 1, 20, 20], [1, 0, 20, 20], [0, 0, 19, 20]],
        [0, 0, 1, 0, 0],
        [0.9, 0.8, 0.7, 0.6, 0.5],
    )
    judged = judge(FakeDetector(first, second), split, 0.5)
    assert judged.edges.gts.tolist() == [[5, 0, 25, 20], [0, 0, 20, 20], [0, 0, 20, 20]]
    assert judged.edges.labels.tolist() == [0, 1, 0]
    assert judged.edges.logits[:, 0, 0].tolist() == [0, 2, 3]  # rows of the second image
    assert judged.edges.limits.tolist() == [[200, 100, 200, 100]] * 3
    with pytest.raises(DataError, match=r'IoU 0\.5'):
        judge(FakeDetector(first, first), split, 0.5)


def test_halves_are_disjoint_and_complete(tmp_path) -> None:
    content = dict(
        images=[dict(id=n, file_name=f'{n}.png') for n in range(11)],
        categories=[dict(id=1, name='a')],
        annotations=[
            dict(id=n, image_id=n % 11, category_id=1, bbox=[0, 0, n, 5]) for n in range(1, 40)
        ],
    )
    path = tmp_path / 'gts.json'
    path.write_text(json.dumps(content))
    halves = [read_split(str(path), 'img', half) for half in ('first', 'second')]
    ids = [half.gts.image_ids for half in halves]
    assert sorted(ids[0] + ids[1]) == list(range(11))
    assert ids[0] == sorted(ids[0])
    assert read_split(str(path), 'img', 'first', seed=1).gts.image_ids != ids[0]
    for half in halves:
        widths = {(half.gts.image_ids[i], w) for i, w in zip(half.gts.image, half.gts.boxes[:, 2])}
        expected = {(n % 11, n) for n in range(1, 40) if n % 11 in half.gts.image_ids}
        assert widths == expected
    assert [path.name for path in halves[0].files] == [f'{each}.png' for each in ids[0]]


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> Path:
    """A detector, and gt boxes that are its own boxes, moved by noise of half a pixel."""
    folder = tmp_path_factory.mktemp('intervals')
    checkpoint = write_checkpoint(folder)
    write_images(folder / 'img', 4)
    results = GFLInferencer(checkpoint, device='cpu', score_thr=0.4)(folder / 'img', progress=False)
    rng = np.random.default_rng(0)
    annotations = []
    for number, result in enumerate(results, 1):
        for box, label in zip(result.instances.bboxes.numpy(), result.instances.labels.tolist()):
            left, top, right, bottom = (box + rng.normal(0, 0.5, 4)).tolist()
            entry = dict(id=len(annotations) + 1, image_id=number, category_id=label + 1, iscrowd=0)
            entry['bbox'] = [left, top, max(1, right - left), max(1, bottom - top)]
            annotations.append(entry)
    content = dict(
        images=[dict(id=n, file_name=f'{n}.png') for n in range(1, 5)],
        categories=[dict(id=n + 1, name=name) for n, name in enumerate(CLASSES)],
        annotations=annotations,
    )
    (folder / 'gts.json').write_text(json.dumps(content))
    return folder


def run(monkeypatch, folder: Path, *words: str) -> None:
    monkeypatch.chdir(folder)
    given = ['--truths', 'gts.json', '--images', 'img', '--device', 'cpu']
    monkeypatch.setattr(sys, 'argv', ['intervals.py', *words, *given])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_the_tool_fits_and_measures(world, monkeypatch, capsys) -> None:
    run(monkeypatch, world, 'fit', 'intervals.json', 'epoch_1.pth', '--half', 'first')
    assert 'intervals: intervals.json' in capsys.readouterr().out
    made = calibration.load_interval_calibrator(world / 'intervals.json')
    assert made.class_names == CLASSES
    assert len(made.source.images) == 2
    assert made.joint is not None
    words = ['measure', 'intervals.json', 'epoch_1.pth', '--half', 'second', '--out', 'drawn.png']
    run(monkeypatch, world, *words, '--splits', '2')
    printed = capsys.readouterr().out
    assert 'whole boxes, all four edges inside' in printed
    assert all(f'\n{kind} ' in printed for kind in KINDS)
    rows = {
        line.split()[0]: [float(each) for each in line.split()[1:]]
        for line in printed.splitlines()
        if line.startswith(('0.5 ', '0.8 ', '0.9 '))
    }
    assert len(rows) == 3
    off = [[abs(share - float(level)) for share in shares[:2]] for level, shares in rows.items()]
    own, calibrated = np.array(off).T
    assert calibrated.max() < 0.12
    assert calibrated.sum() < own.sum()
    assert cv2.imread(str(world / 'drawn.png')).std() > 10

    # The inferencer applies it, and its intervals shrink accordingly.
    plain, fitted = (
        GFLInferencer(world / 'epoch_1.pth', device='cpu', intervals=path)(
            world / 'img' / '1.png', progress=False
        )[0].instances
        for path in (None, world / 'intervals.json')
    )
    ratio = (fitted.edge_high - fitted.edge_low).mean() / (plain.edge_high - plain.edge_low).mean()
    assert ratio < 0.9
    whole = GFLInferencer(
        world / 'epoch_1.pth', device='cpu', intervals=world / 'intervals.json', joint=True
    )(world / 'img' / '1.png', progress=False)[0].instances
    # All four edges at once need more than each edge by itself.
    assert (whole.edge_high - whole.edge_low).mean() > (fitted.edge_high - fitted.edge_low).mean()


def test_the_tool_does_not_measure_what_it_was_fitted_on(world, monkeypatch, capsys) -> None:
    run(monkeypatch, world, 'fit', 'all.json', 'epoch_1.pth', '--together')
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, world, 'measure', 'all.json', 'epoch_1.pth', '--half', 'second')
    assert stopped.value.code == 1
    assert '2 of 2 images were used to fit all.json' in capsys.readouterr().err


def test_intervals_of_other_classes_are_refused(world, tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / 'other.json'
    calibration.save_interval_calibrator(calibrator(reversed(CLASSES)), path)
    with pytest.raises(DataError, match=r"\['9', .*\['0'"):
        GFLInferencer(world / 'epoch_1.pth', device='cpu', intervals=path)
    with pytest.raises(SystemExit):
        run(monkeypatch, world, 'measure', str(path), 'epoch_1.pth')
    said = capsys.readouterr().err
    assert "fitted for the classes ['9'" in said
    assert "but the detector has ['0'" in said
    cfg = small_config()  # as tools/test.py looks at it before it starts
    cfg.model.test_cfg.interval_calibrator = str(path)
    with pytest.raises(DataError, match=r"data set .*\['0'"):
        check_calibrator(cfg, ['test'])
    calibration.save_interval_calibrator(calibrator(CLASSES), path)
    check_calibrator(cfg, ['test'])


@pytest.mark.parametrize(
    ('words', 'match'),
    [
        (['fit', 'x.json', '--images', 'no'], r'4 of 4 images of gts\.json are not in no, such'),
        (['fit', 'gts.json/x.json'], r'x\.json cannot be written'),
        (['measure', 'x.json', '--out', 'x.pdf'], r'x\.pdf must end in \.png'),
        (['measure', 'x.json', '--out', 'gts.json/x.png'], r'x\.png cannot be written'),
    ],
)
def test_what_would_fail_later_is_told_first(world, monkeypatch, words, match) -> None:
    monkeypatch.chdir(world)
    given = ['--truths', 'gts.json', '--images', 'img']
    args = parse_arguments([*words[:2], 'no_checkpoint.pth', *given, *words[2:]])
    with pytest.raises(DataError, match=match):
        dict(fit=fit, measure=measure)[args.command](args)
