"""Calibrators that read edges and neighbours: the evidence, the model, its file, and a head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from gfl_det import calibration
from gfl_det.calibration.apply import edge_detections
from gfl_det.calibration.distribution import COLUMNS, evidence
from gfl_det.calibration.files import calibrator_to_json
from gfl_det.calibration.logistic import FAR, fit_logistic, predict_unseen
from gfl_det.calibration.maps import fit_isotonic
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.matching import TRUE
from gfl_det.ops import distribution
from tests.helpers.edge_scenes import scene
from tests.helpers.heads import head_pair, make_maps, make_meta

SIDE = 64.0


def one_box(logits: list[float], box=(0.0, 0.0, SIDE, SIDE), width: float = 8.0):
    found = calibration.Detections(
        np.zeros(1, int), np.zeros(1, int), np.array([box]), np.array([0.5])
    )
    edges = np.broadcast_to(np.array(logits), (1, 4, len(logits)))
    return calibration.EdgeDetections(found, edges, np.full((1, 4), width))


def column(name: str, found: calibration.EdgeDetections) -> float:
    group = next(group for group, names in COLUMNS.items() if name in names)
    return float(evidence(found, [group])[0, COLUMNS[group].index(name)])


def test_evidence_of_a_drawn_box() -> None:
    """Two equal bins, 2 apart: spread 1 bin of 8 px on a side of 64, one nat of log 2."""
    found = one_box([-80.0, 0.0, -80.0, 0.0, -80.0])
    assert column('log widest spread over the side', found) == pytest.approx(
        np.log(1 / 8), abs=1e-3
    )
    assert column('mean entropy', found) == pytest.approx(np.log(2))
    assert column('mean peak', found) == pytest.approx(0.5)
    assert column('mean of the two best bins', found) == pytest.approx(1)
    assert column('log side in px', found) == pytest.approx(np.log(64))
    assert column('log side in bins', found) == pytest.approx(np.log(8))
    assert column('log elongation', found) == 0
    assert column('logit of the score', found) == 0
    tall = one_box([-80.0, 0.0, -80.0, 0.0, -80.0], (0.0, 0.0, 32.0, 64.0))
    # 8 px are a quarter of the width and an eighth of the height.
    assert column('log widest spread over the side', tall) == pytest.approx(np.log(1 / 4), abs=1e-3)
    assert column('log mean spread of the edges over the side', tall) == pytest.approx(
        np.log(3 / 16), abs=1e-3
    )
    assert column('log elongation', tall) == pytest.approx(np.log(2))


def sized_scene(seed: int, images: int = 80):
    """Small and large boxes of the same scores; .9 of the large ones are right, .3 of the small."""
    rng = np.random.default_rng(seed)
    entries, rows = [], []
    for image in range(images):
        for place in range(8):
            side = rng.choice([16.0, 128.0])
            box = [200.0 * place, 0.0, side, side]
            entries.append(dict(image_id=image, category_id=1, bbox=box))
            right = rng.random() < (0.9 if side > 64 else 0.3)
            rows.append((image, 0, box[0], 0.0 if right else 500.0, side, side))
    dataset = dict(
        images=[dict(id=image, file_name=f'{seed}-{image}') for image in range(images)],
        categories=[dict(id=1, name='cat')],
        annotations=[dict(id=number, **entry) for number, entry in enumerate(entries, 1)],
    )
    table = np.array(rows)
    scores = rng.uniform(0.3, 0.9, len(rows))
    found = calibration.Detections(*table[:, :2].T.astype(int), table[:, 2:], scores)
    logits = np.zeros((len(rows), 4, 5))
    edges = calibration.EdgeDetections(found, logits, np.full((len(rows), 4), 8.0))
    return calibration.gts_from_coco(dataset), edges


def test_calibration_conditional_on_the_box_is_right_for_each_size() -> None:
    fitting, judged = sized_scene(0), sized_scene(1)
    gaps = {}
    for groups in (('score',), ('score', 'box')):
        chosen = calibration.DistributionSettings(groups, cuts=(0.0, 0.0), zero_overlap='reject')
        fitted = calibration.fit_distribution_calibrator(*fitting[::-1], chosen)
        scores = fitted.calibrate(judged[1])
        large = judged[1].detections.boxes[:, 2] > 64
        gaps[groups] = [abs(scores[large].mean() - 0.9), abs(scores[~large].mean() - 0.3)]
    assert max(gaps['score', 'box']) < 0.06
    assert min(gaps['score',]) > 0.2
    assert column('log width in px', one_box([0.0, 0.0])) == pytest.approx(np.log(SIDE))
    assert column('logit of the score times log side', one_box([0.0, 0.0])) == 0


def test_evidence_agrees_with_the_distributions_of_the_package() -> None:
    logits = torch.randn(1, 4, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = one_box([0.0])._replace(logits=logits.numpy())
    spread = float((distribution.std(logits) * 8 / SIDE).mean())
    assert np.exp(column('log mean spread of the edges over the side', found)) == pytest.approx(
        spread, abs=2e-4
    )
    assert column('largest entropy', found) == pytest.approx(
        float(distribution.entropy(logits).max())
    )
    peak = float(logits.softmax(-1).amax(-1).mean())
    assert column('mean peak', found) == pytest.approx(peak)


def test_overlap_is_with_better_boxes_of_the_same_image() -> None:
    boxes = np.array(
        [[0, 0, 10, 10], [0, 5, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [100, 0, 10, 10]], float
    )
    found = calibration.EdgeDetections(
        calibration.Detections(
            np.array([0, 0, 0, 1, 0]),
            np.array([0, 0, 1, 0, 0]),
            boxes,
            np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
        ),
        np.zeros((5, 4, 3)),
        np.ones((5, 4)),
    )
    third = 1 / 3
    # Of its class, of others; the fourth is alone in its image, the last one far away.
    expected = [[0, 0], [third, 0], [0, 1], [0, 0], [0, 0]]
    np.testing.assert_allclose(evidence(found, ['overlap']), expected)
    turned = found.take(np.arange(5)[::-1])
    np.testing.assert_allclose(evidence(turned, ['overlap'])[::-1], expected)
    later = found.detections._replace(image=found.detections.image + 1)  # nothing in the first
    np.testing.assert_allclose(evidence(found._replace(detections=later), ['overlap']), expected)
    none = found.take(np.zeros(5, bool))
    assert evidence(none, tuple(COLUMNS)).shape == (0, sum(map(len, COLUMNS.values())))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_evidence_is_finite(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    found = calibration.EdgeDetections(
        calibration.Detections(
            rng.integers(0, 3, number),
            rng.integers(0, 2, number),
            rng.choice([0.0, 1e-3, 5.0, 1e5], (number, 4)),
            rng.choice([0.0, 1e-30, 0.5, 1.0], number),
        ),
        rng.choice([-1e4, 0.0, 1e4], (number, 4, 5)),
        rng.choice([0.1, 8.0, 1e3], (number, 4)),
    )
    assert np.isfinite(evidence(found)).all()


def test_the_model_finds_the_probabilities_that_made_its_targets() -> None:
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(20_000, 2)) * [3.0, 0.1] + [5.0, -1.0]
    label = rng.integers(0, 3, len(columns))
    offsets = np.array([-2.0, 0.0, 1.0])
    wanted = expit(columns @ [0.3, 4.0] + offsets[label])
    model = fit_logistic(columns, label, rng.binomial(20, wanted) / 20, 3)
    np.testing.assert_allclose(model.weights, [0.3, 4.0], rtol=0.05)
    np.testing.assert_allclose(model(columns, label), wanted, atol=0.02)


@pytest.mark.parametrize('value', [0.0, 1.0])
def test_targets_that_are_all_one_value_have_a_model(value: float) -> None:
    columns, label = np.arange(6.0)[:, None], np.zeros(6, int)
    model = fit_logistic(columns, label, np.full(6, value), 2)
    np.testing.assert_allclose(model(columns, label), abs(value - FAR), rtol=1e-9)


def test_what_is_unseen_is_predicted_by_others() -> None:
    """An image's own targets do not change what is said of it."""
    rng = np.random.default_rng(1)
    columns, label, image = rng.normal(size=(60, 1)), np.zeros(60, int), np.arange(60) // 6
    targets = rng.random(60)
    before = predict_unseen(columns, label, targets, 1, image)
    changed = np.where(image == 3, 1 - targets, targets)
    after = predict_unseen(columns, label, changed, 1, image)
    assert (before[image == 3] == after[image == 3]).all()
    assert (before[image == 4] != after[image == 4]).all()
    assert len(predict_unseen(columns, label, targets, 1, np.zeros(60, int))) == 60


def test_it_is_truer_than_any_map_of_the_score_where_edges_tell() -> None:
    (gts, found), (others, unseen) = scene(0), scene(1)
    fitted = calibration.fit_distribution_calibrator(found, gts)
    fitted.check_unseen(others)
    with pytest.raises(DataError, match='were used to fit'):
        fitted.check_unseen(gts)
    raw = unseen.detections
    plain = calibration.fit_calibrator(found.detections, gts, calibration.Settings(cuts=(0.0, 0.0)))
    ours, theirs = (
        calibration.evaluate_detections(raw._replace(scores=scores), others)
        for scores in (fitted.calibrate(unseen), plain.calibrate(raw.scores, raw.label))
    )
    assert ours['LaACE_0'] < 0.8 * theirs['LaACE_0']
    assert ours['LaECE_0'] < theirs['LaECE_0'] + 0.02
    assert ours['AP'] > theirs['AP'] + 0.05


def test_the_score_alone_keeps_the_order_of_scores() -> None:
    gts, found = scene(2)
    chosen = calibration.DistributionSettings(groups=('score',))
    fitted = calibration.fit_distribution_calibrator(found, gts, chosen)
    assert fitted.settings.columns == ['logit of the score']
    sign = np.sign(fitted.model.weights[0])
    scores = fitted.calibrate(found)
    for label in (0, 1):
        mine = found.detections.label == label
        order = np.argsort(sign * found.detections.scores[mine])
        assert (np.diff(scores[mine][order]) >= 0).all()
        assert len(np.unique(scores[mine])) == mine.sum()  # no ties


def test_a_class_without_detections_keeps_its_scores_and_is_named() -> None:
    gts, found = scene(3)
    fitted = calibration.fit_distribution_calibrator(found, gts)
    assert [each.status for each in fitted.classes] == ['fitted', 'fitted', 'no truths']
    eel = found._replace(detections=found.detections._replace(label=np.full(len(found.logits), 2)))
    np.testing.assert_array_equal(fitted.calibrate(eel), eel.detections.scores)


def least_lrp(
    detections: calibration.Detections, gts: calibration.GroundTruth, label: int
) -> float:
    """The score of the class with the least LRP at tau 0 above it: every cut is tried."""

    def above(score: float) -> float:
        kept = detections.take(detections.scores >= score)
        (found,) = calibration.match(kept, gts, [0.0])
        mine = found.label == label
        right = mine & (found.state == TRUE)
        wrong = int(mine.sum() - right.sum())
        missed = int(gts.counts()[label] - right.sum())
        return float((1 - found.iou[right]).sum() + wrong + missed) / (right.sum() + wrong + missed)

    return max(detections.scores[detections.label == label], key=lambda each: (-above(each), each))


def test_maps_and_thresholds_are_for_images_that_the_model_has_not_seen() -> None:
    """The protocol step by step: cut, fit the model, fit maps to what it says of others, cut."""
    gts, found = scene(4, images=16)
    wanted = calibration.DistributionSettings(cuts=('lrp', 'lrp'))
    fitted = calibration.fit_distribution_calibrator(found, gts, wanted)
    raw, columns = found.detections, evidence(found)
    cuts = [least_lrp(raw, gts, label) for label in (0, 1)]
    assert [each.raw_threshold for each in fitted.classes[:2]] == cuts
    rows = np.flatnonzero(raw.scores >= np.array([*cuts, 0.0])[raw.label])
    assert 0.3 * len(raw.scores) < len(rows) < 0.9 * len(raw.scores)

    (matches,) = calibration.match(raw.take(rows), gts, [0.0])
    assert (matches.iou == 0).sum() > 2  # false positives above the cuts
    targets = np.zeros(len(rows))
    targets[matches.row] = matches.iou
    # In the order of matching, so that sums are rounded alike.
    rows, targets = rows[matches.row], targets[matches.row]
    given = columns[rows], raw.label[rows], targets, 3
    unseen = predict_unseen(*given, raw.image[rows])
    seen = fit_logistic(*given)(columns[rows], raw.label[rows])
    said = np.empty(len(rows))
    for label in (0, 1):
        mine = raw.label[rows] == label
        assert fitted.classes[label].map == fit_isotonic(unseen[mine], targets[mine])
        assert fitted.classes[label].map != fit_isotonic(seen[mine], targets[mine])
        said[mine] = 0.99 * fitted.classes[label].map(unseen[mine]) + 0.01 * unseen[mine]
    kept = raw.take(rows)._replace(scores=said)
    thresholds = [least_lrp(kept, gts, label) for label in (0, 1)]
    assert [each.threshold for each in fitted.classes[:2]] == pytest.approx(thresholds, abs=1e-12)


def test_what_is_kept_reaches_both_thresholds() -> None:
    gts, found = scene(4)
    wanted = calibration.DistributionSettings(cuts=('lrp', 'lrp'))
    fitted = calibration.fit_distribution_calibrator(found, gts, wanted)
    kept, rows = fitted.apply(found)
    scores, raw = fitted.calibrate(found), found.detections
    assert 0.3 * len(scores) < len(rows) < 0.9 * len(scores)
    np.testing.assert_array_equal(kept.detections.scores, scores[rows])
    expected = [
        row
        for row, label in enumerate(raw.label)
        if raw.scores[row] >= fitted.classes[label].raw_threshold
        and scores[row] >= fitted.classes[label].threshold
    ]
    np.testing.assert_array_equal(rows, expected)


def test_a_file_gives_the_same_calibrator(tmp_path: Path) -> None:
    gts, found = scene(5)
    fitted = calibration.fit_distribution_calibrator(found, gts, score_type='GFLHead')
    path = tmp_path / 'new' / 'c.json'
    calibration.save_distribution_calibrator(fitted, path)
    loaded = calibration.load_any_calibrator(path)
    assert calibrator_to_json(loaded) == calibrator_to_json(fitted)
    np.testing.assert_array_equal(loaded.calibrate(found), fitted.calibrate(found))
    content = json.loads(path.read_text())
    assert content['weights'].keys() == set(fitted.settings.columns)
    turned = fitted.for_classes(['dog', 'cat'])
    back = found._replace(detections=found.detections._replace(label=1 - found.detections.label))
    np.testing.assert_array_equal(turned.calibrate(back), fitted.calibrate(found))
    with pytest.raises(DataError, match='not for'):
        fitted.for_classes(['cow'])
    plain = calibration.fit_calibrator(found.detections, gts, calibration.Settings())
    calibration.save_calibrator(plain, path)
    assert type(calibration.load_any_calibrator(path)) is type(plain)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(version=2), 'version 2'),
        (dict(weights={}), 'damaged'),
        (dict(offsets=[0.0]), 'number of offsets'),
        (dict(offsets=[float('nan')] * 3), 'not finite'),
        (dict(settings=dict(groups=['colour'], cuts=[0, 0])), 'damaged'),
        (dict(classes=[]), 'no classes'),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    gts, found = scene(6, images=10)
    path = tmp_path / 'c.json'
    calibration.save_distribution_calibrator(
        calibration.fit_distribution_calibrator(found, gts), path
    )
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        calibration.load_any_calibrator(path)


@pytest.mark.parametrize(
    'options',
    [dict(groups=()), dict(groups=('colour',)), dict(tau=1.0), dict(target='x'), dict(cuts=(2, 0))],
)
def test_settings_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        calibration.DistributionSettings(**options)


def test_nothing_to_fit_on_is_said() -> None:
    gts, found = scene(7, images=2)
    with pytest.raises(DataError, match='no detections'):
        calibration.fit_distribution_calibrator(found.take(np.zeros(len(found.logits), bool)), gts)
    eel = found._replace(detections=found.detections._replace(label=np.full(len(found.logits), 2)))
    with pytest.raises(DataError, match=r'detection'):
        calibration.fit_distribution_calibrator(eel, gts)


@pytest.fixture(scope='module')
def fitted_head(tmp_path_factory):
    """A head, its maps, and a calibrator of what it finds (with gt boxes that are some of it)."""
    ours, _ = head_pair(test_cfg=dict(with_distribution=True))
    maps = make_maps(2, (128, 160), torch.Generator().manual_seed(0), 0.0)
    metas = [make_meta((128, 160))] * 2
    results = ours.predict_by_feat(*maps, batch_img_metas=metas)
    found = edge_detections(results)
    names = [f'class {number}' for number in range(8)]
    gts = calibration.gts_from_coco(
        dict(
            images=[dict(id=0), dict(id=1)],
            categories=[dict(id=number, name=name) for number, name in enumerate(names)],
            annotations=[
                dict(id=row, image_id=int(image), category_id=int(label), bbox=box.tolist())
                for row, (image, label, box, _) in enumerate(zip(*found.detections), 1)
                if row % 3
            ],
        )
    )
    fitted = calibration.fit_distribution_calibrator(found, gts)
    path = str(tmp_path_factory.mktemp('calibrator') / 'c.json')
    calibration.save_distribution_calibrator(fitted, path)
    return ours, maps, metas, fitted, path


def test_a_head_ranks_by_the_predicted_iou(fitted_head) -> None:
    ours, maps, metas, fitted, path = fitted_head
    plain = ours.predict_by_feat(*maps, batch_img_metas=metas)
    cfg = ours.test_cfg.copy()
    cfg.update(calibrator=path, with_distribution=False)
    for found, raw in zip(ours.predict_by_feat(*maps, batch_img_metas=metas, cfg=cfg), plain):
        expected = torch.from_numpy(fitted.calibrate(edge_detections([raw]))).float()
        order = expected.sort(descending=True, stable=True).indices
        torch.testing.assert_close(found.scores, expected[order])
        assert torch.equal(found.raw_scores, raw.scores[order])
        assert torch.equal(found.bboxes, raw.bboxes[order])
        assert 'edge_logits' not in found
        assert 'bin_widths' not in found


def test_every_class_is_calibrated_and_the_own_as_the_detection_is(fitted_head) -> None:
    """Another class of a box is what a calibrator would say of it beside the other detections."""
    ours, maps, metas, fitted, path = fitted_head
    cfg = ours.test_cfg.copy()
    cfg.update(with_class_scores=True)
    (raw, _) = ours.predict_by_feat(*maps, batch_img_metas=metas, cfg=cfg)
    cfg.update(calibrator=path)
    (found, _) = ours.predict_by_feat(*maps, batch_img_metas=metas, cfg=cfg)
    rows = torch.arange(len(found))
    torch.testing.assert_close(found.class_scores[rows, found.labels], found.scores)
    own = found.raw_class_scores[rows, found.labels]
    torch.testing.assert_close(own, found.raw_scores, rtol=0, atol=1e-7)
    order = fitted.calibrate(edge_detections([raw])).argsort(kind='stable')[::-1][:5]
    every = fitted.calibrate_classes(edge_detections([raw]), raw.class_scores.double().numpy())
    for row in order:
        other = int(raw.labels[row] + 3) % 8
        changed = edge_detections([raw])
        changed.detections.label[row] = other
        changed.detections.scores[row] = float(raw.class_scores[row, other])
        assert every[row, other] == pytest.approx(fitted.calibrate(changed)[row], abs=1e-12)


def test_a_pool_is_ranked_before_the_best_are_kept(fitted_head) -> None:
    ours, maps, metas, fitted, path = fitted_head
    cfg = ours.test_cfg.copy()
    cfg.update(calibrator=path, max_per_img=10, rank_pool=60)
    wide = ours.test_cfg.copy()
    wide.update(max_per_img=60)
    pools = ours.predict_by_feat(*maps, batch_img_metas=metas, cfg=wide)
    for found, raw in zip(ours.predict_by_feat(*maps, batch_img_metas=metas, cfg=cfg), pools):
        assert len(found) == 10
        expected = np.sort(fitted.calibrate(edge_detections([raw])))[::-1][:10]
        np.testing.assert_allclose(found.scores.numpy(), expected, rtol=1e-6)
    assert (found.raw_scores < pools[-1].scores[9]).any()  # one that raw scores would have cut


def test_all_are_kept_where_no_number_is_given(fitted_head) -> None:
    ours, maps, metas, _, path = fitted_head
    every, cfg = ours.test_cfg.copy(), ours.test_cfg.copy()
    every.update(max_per_img=-1)
    cfg.update(calibrator=path)
    del cfg['max_per_img']
    wanted = ours.predict_by_feat(*maps, batch_img_metas=metas, cfg=every)
    found = ours.predict_by_feat(*maps, batch_img_metas=metas, cfg=cfg)
    assert [len(each) for each in found] == [len(each) for each in wanted]
    assert len(found[0]) > 100


def test_a_head_without_detections_and_one_of_other_bins(fitted_head) -> None:
    ours, maps, metas, _, path = fitted_head
    cfg = ours.test_cfg.copy()
    cfg.update(calibrator=path)
    low = [level - 60 for level in maps[0]]
    (empty, _) = ours.predict_by_feat(low, maps[1], batch_img_metas=metas, cfg=cfg)
    assert len(empty) == len(empty.raw_scores) == 0
    other, _ = head_pair(reg_max=8)
    narrow = [level[:, :36] for level in maps[1]]  # 9 bins an edge
    with pytest.raises(DataError, match=r'17 bins, .*9'):
        other.predict_by_feat(maps[0], narrow, batch_img_metas=metas, cfg=cfg)
