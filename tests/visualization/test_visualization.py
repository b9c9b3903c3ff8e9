"""Pictures: what is drawn where, against drawn geometry, slow loops, and mmdet's palette."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.structures import InstanceData

from gfl_det.errors import DataError
from gfl_det.visualization import (
    Boxes,
    EdgeBins,
    class_colours,
    draw_boxes,
    edge_figure,
    save_figure,
    sharp_and_flat,
    side_by_side,
)
from gfl_det.visualization.charts import edge_entropy, edge_spread
from gfl_det.visualization.labels import luminance, oklab, place_labels, text_colour
from gfl_det.visualization.picture import (
    INK,
    VEIL,
    box_texts,
    contact_sheet,
    draw_lines,
    draw_soft_edges,
    edge_opacity,
    enlargement,
    presence,
    reach,
    share_below,
    thumbnail,
)
from tests.helpers.heads import head_pair, make_maps, make_meta

ORANGE = class_colours(1).astype(np.float32)


def bins_of(box: tuple[float, ...], width: float, probabilities: list[list[float]]) -> EdgeBins:
    """Bins whose first bin is at the box's centre, and which go outwards."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    steps = width * np.arange(len(probabilities[0]))
    positions = np.stack([x - steps, y - steps, x + steps, y + steps])
    return EdgeBins(positions[None], np.array(probabilities)[None])


def sure(box: tuple[float, ...], width: float, count: int = 9) -> EdgeBins:
    """All probability on the bin at the box's edge."""
    half = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    rows = [np.eye(count)[round(half[side % 2] / width)].tolist() for side in range(4)]
    return bins_of(box, width, rows)


class TestPalette:
    def test_oklab_of_known_colours(self):
        # Ottosson's reference values; white is neutral and as light as can be.
        expected = [(1, 0, 0), (0, 0, 0), (0.628, 0.2249, 0.1258), (0.452, -0.0324, -0.3115)]
        given = np.array([(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)])
        np.testing.assert_allclose(oklab(given), expected, atol=1e-3)

    def test_eighty_classes_are_farther_apart_than_mmdets(self):
        def nearest(colours: np.ndarray) -> float:
            points = oklab(colours)
            distance = np.linalg.norm(points[:, None] - points, axis=2)
            return float((distance + np.eye(len(points))).min())

        theirs = np.array(CocoDataset.METAINFO['palette'])
        assert nearest(class_colours(80)) > 1.3 * nearest(theirs)
        assert nearest(class_colours(10)) > 0.1

    def test_a_class_keeps_its_colour(self):
        many = class_colours(200)
        for count in (0, 1, 7, 10, 11, 80):
            np.testing.assert_array_equal(class_colours(count), many[:count])
        assert len(np.unique(many, axis=0)) == 200

    def test_labels_are_legible_on_every_colour(self):
        for colour in class_colours(200):
            light, dark = sorted([luminance(colour), luminance(text_colour(colour))])[::-1]
            assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, level AA

    def test_boxes_are_seen_on_dark_pictures(self):
        assert min(luminance(colour) for colour in class_colours(80)) > 0.1


class TestEdges:
    def test_bins_have_their_mean_at_the_box_and_the_heads_spread(self):
        head, _ = head_pair(
            test_cfg=dict(with_uncertainty=True, with_distribution=True, score_thr=0.3)
        )
        head.bbox_coder.clip_border = False
        maps = make_maps(1, (128, 160), torch.Generator().manual_seed(2), bias=0.0)
        meta = make_meta((128, 160), scale=2.0)
        (found,) = head.predict_by_feat(*maps, batch_img_metas=[meta], rescale=True)
        boxes = Boxes.of(found)
        assert boxes.edges is not None
        assert len(boxes.boxes) > 5
        mean = (boxes.edges.positions * boxes.edges.probabilities).sum(-1)
        np.testing.assert_allclose(mean, found.bboxes, atol=1e-3)
        np.testing.assert_allclose(edge_spread(boxes.edges), found.edge_std, rtol=1e-4)

    def test_results_are_sorted_and_cut_by_score_with_their_edges(self):
        logits = torch.zeros(3, 4, 5)
        logits[2] = torch.tensor([9.0, 0, 0, 0, 0])
        found = InstanceData(
            bboxes=torch.arange(12.0).view(3, 4),
            labels=torch.tensor([4, 5, 6]),
            scores=torch.tensor([0.2, 0.5, 0.9]),
            edge_logits=logits,
            bin_widths=torch.full((3, 4), 2.0),
            prior_centres=torch.zeros(3, 2),
        )
        boxes = Boxes.of(found, 0.5)
        assert boxes.labels.tolist() == [6, 5]
        assert boxes.edges.probabilities[0, 0, 0] > 0.99
        np.testing.assert_allclose(boxes.edges.probabilities[1], 0.2)
        assert boxes.edges.positions[0, 0].tolist() == [0, -2, -4, -6, -8]
        assert boxes.edges.positions[0, 3].tolist() == [0, 2, 4, 6, 8]
        doubled = boxes.scaled(2)
        np.testing.assert_array_equal(doubled.edges.positions, 2 * boxes.edges.positions)
        np.testing.assert_array_equal(doubled.boxes, 2 * boxes.boxes)
        assert len(Boxes.of(found, 0.95).boxes) == 0
        found.edge_logits, found.scores = logits.bfloat16(), found.scores.bfloat16()
        assert Boxes.of(found, 0.4).scores.tolist() == pytest.approx([0.9, 0.5], abs=0.01)

    @pytest.mark.parametrize('direction', [1, -1])
    def test_presence_is_the_probability_at_bins_and_keeps_the_ink(self, direction):
        rng = np.random.default_rng(0)
        positions = 40 + direction * 8.0 * np.arange(6)
        fine = np.arange(-40, 120, 0.01)
        for _ in range(5):
            probabilities = rng.dirichlet(np.ones(6))
            np.testing.assert_allclose(presence(positions, probabilities, positions), probabilities)
            at = presence(positions, probabilities, fine)
            # Sharp or flat, a distribution lays the same ink across its edge: one bin's width.
            assert at.sum() * 0.01 == pytest.approx(8.0, rel=1e-3)
            assert (at * fine).sum() * 0.01 / 8 == pytest.approx(
                (positions * probabilities).sum(), abs=0.05
            )

    @pytest.mark.parametrize('direction', [1, -1])
    def test_the_share_below_is_the_sum_of_the_bins_below(self, direction):
        probabilities = np.array([0.1, 0.0, 0.6, 0.3])
        positions = 10 + direction * 4.0 * np.arange(4)
        between = positions + 2.0  # halfway to the next bin up the axis
        expected = [probabilities[positions <= x].sum() for x in between]
        np.testing.assert_allclose(share_below(positions, probabilities, between), expected)
        far = share_below(positions, probabilities, np.array([-100.0, 100.0]))
        np.testing.assert_allclose(far, [0, 1])

    def test_reach_ends_one_bin_beyond_what_matters(self):
        positions = np.array([0.0, 5, 10, 15])
        assert reach(positions, np.array([0, 0.3, 0.7, 0]), 0.01) == (0, 15)
        assert reach(positions, np.array([0.5, 0.5, 0, 0]), 0.9) == (-5, 10)


class TestSoftEdges:
    def test_opacity_against_a_slow_loop(self):
        rng = np.random.default_rng(1)
        bins = bins_of((10, 10, 30, 40), 6.0, rng.dirichlet(np.ones(5), 4).tolist())
        xs, ys = np.arange(-20, 60) + 0.5, np.arange(-10, 70) + 0.5
        opacity = edge_opacity(bins, 0, xs, ys)
        assert opacity.shape == (80, 80)
        assert 0 <= opacity.min() < opacity.max() <= 1

        def at(side: int, value: float) -> float:
            total = 0.0
            for place, height in zip(bins.positions[0, side], bins.probabilities[0, side]):
                total += height * max(0.0, 1 - abs(value - place) / 6)
            return total

        def below(side: int, value: float) -> float:
            total = 0.0
            for place, height in zip(bins.positions[0, side], bins.probabilities[0, side]):
                total += height * min(1.0, max(0.0, (value - place + 3) / 6))
            return total

        for row, column in rng.integers(0, 80, (200, 2)):
            x, y = xs[column], ys[row]
            upright = max(at(0, x), at(2, x)) * below(1, y) * (1 - below(3, y))
            level = max(at(1, y), at(3, y)) * below(0, x) * (1 - below(2, x))
            assert opacity[row, column] == pytest.approx(max(upright, level), abs=1e-9)

    def test_a_sure_box_is_its_outline(self):
        box = (16.0, 24.0, 80.0, 56.0)
        opacity = edge_opacity(sure(box, 8.0), 0, np.arange(0, 97.0), np.arange(0, 81.0))
        assert opacity[40, 16] == opacity[40, 80] == opacity[24, 48] == opacity[56, 48] == 1
        assert opacity[40, 48] == opacity[10, 48] == opacity[40, 5] == 0
        assert opacity[40, 12] == opacity[40, 20] == 0.5  # halfway to the next bin

    def test_an_unsure_edge_is_wider_and_fainter(self):
        box = (16.0, 16.0, 80.0, 80.0)
        flat = sure(box, 8.0)
        flat.probabilities[0, 2] = 1 / 9
        rows = [
            edge_opacity(bins, 0, np.arange(0, 160) + 0.5, np.array([48.5]))[0]
            for bins in (sure(box, 8.0), flat)
        ]
        right_sharp, right_flat = (row[48:] for row in rows)
        assert right_flat.max() < 0.2 < right_sharp.max()
        assert (right_flat > 0.05).sum() > 3 * (right_sharp > 0.05).sum()

    def test_colour_is_blended_by_opacity(self):
        box = (16.0, 24.0, 80.0, 56.0)
        edges = sure(box, 8.0)
        canvas = np.full((80, 96, 3), 100, np.float32)
        boxes = Boxes(np.array([box]), np.array([0]), edges=edges)
        draw_soft_edges(canvas, boxes, ORANGE)
        xs, ys = np.arange(96) + 0.5, np.arange(80) + 0.5
        opacity = INK * edge_opacity(edges, 0, xs, ys)[..., None]
        np.testing.assert_allclose(canvas, 100 + opacity * (ORANGE[0] - 100), atol=1e-3)

    def test_soft_edges_never_hide_what_is_smaller(self):
        small, large = (40.0, 40.0, 48.0, 48.0), (8.0, 8.0, 88.0, 88.0)
        unsure = bins_of(small, 4.0, [[0.5, 0.5, 0.0]] * 4)  # 12 px wide
        edges = EdgeBins(
            *map(np.concatenate, zip(*[unsure] * 9, bins_of(large, 20.0, [[0, 0, 1]] * 4)))
        )
        boxes = Boxes(np.array([small] * 9 + [large]), np.zeros(10, int), edges=edges)
        canvas = np.full((96, 96, 3), 255, np.float32)
        colours = np.zeros((10, 3), np.float32)
        draw_soft_edges(canvas, boxes, colours)
        seen = canvas[..., 0] / 255
        assert seen[40:48, 40:48].min() == pytest.approx(1 - VEIL, abs=1e-3)
        around = edge_opacity(unsure, 0, np.array([38.5]), np.array([44.5])).item()
        assert seen[44, 38] == pytest.approx((1 - INK * around) ** 9, abs=1e-3)  # as ever
        alone = np.full((96, 96, 3), 255, np.float32)
        draw_soft_edges(
            alone, boxes._replace(boxes=boxes.boxes[9:], edges=edges.take([9])), colours
        )
        np.testing.assert_array_equal(canvas[:, :24], alone[:, :24])

    def test_edges_outside_the_picture_draw_nothing_there(self):
        far = (500.0, 500.0, 564.0, 564.0)
        canvas = np.full((40, 40, 3), 7, np.float32)
        boxes = Boxes(np.array([far]), np.array([0]), edges=sure(far, 8.0))
        draw_soft_edges(canvas, boxes, ORANGE)
        draw_lines(canvas, boxes, ORANGE, 2)
        assert (canvas == 7).all()

    def test_a_line_is_as_wide_as_asked_with_a_dark_casing(self):
        canvas = np.full((60, 60, 3), 200, np.float32)
        draw_lines(canvas, Boxes(np.array([[10.0, 10, 50, 50]]), np.array([0])), ORANGE, 2)
        row = canvas[30, :, 2]
        assert row[9] == row[10] == ORANGE[0, 2]
        assert row[8] == row[11] == pytest.approx(200 * 0.7)
        assert row[7] == row[12] == row[30] == 200
        assert canvas[9, 30, 2] == canvas[50, 30, 2] == ORANGE[0, 2]

    @pytest.mark.parametrize(
        'box', [[5.0, 5, 5, 5], [-9, -9, 400, 400], [-50, -50, -10, -10], [8, 8, 4, 4]]
    )
    def test_odd_boxes_do_no_harm(self, box):
        canvas = np.full((30, 30, 3), 200, np.float32)
        draw_lines(canvas, Boxes(np.array([box], dtype=float), np.array([0])), ORANGE, 3)
        assert np.isfinite(canvas).all()
        assert canvas.min() >= 0
        assert canvas.max() <= 255


def overlaps(spots: np.ndarray) -> float:
    """Area that labels share, pair by pair."""
    total = 0.0
    for i, a in enumerate(spots):
        for b in spots[:i]:
            wide = min(a[2], b[2]) - max(a[0], b[0])
            tall = min(a[3], b[3]) - max(a[1], b[1])
            total += max(0, wide) * max(0, tall)
    return total


class TestLabels:
    def test_labels_of_a_crowd_overlap_far_less_than_at_fixed_places(self):
        rng = np.random.default_rng(3)
        corner = rng.uniform(0, 500, (60, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(30, 140, (60, 2))], axis=1)
        sizes = np.tile([70.0, 18.0], (60, 1))
        spots = place_labels(boxes, sizes, (640, 640))
        fixed = np.concatenate([corner, corner + sizes], axis=1)
        assert overlaps(spots) < 0.25 * overlaps(fixed)

    def test_of_equal_boxes_each_gets_a_place_of_its_own(self):
        boxes = np.tile([100.0, 100, 300, 300], (6, 1))
        spots = place_labels(boxes, np.tile([60.0, 18.0], (6, 1)), (400, 400))
        assert overlaps(spots) == 0

    def test_labels_stay_in_the_picture_and_touch_their_box(self):
        boxes = np.array([[0.0, 0, 20, 20], [380, 380, 400, 400], [-30, 100, 20, 140]])
        sizes = np.tile([60.0, 18.0], (3, 1))
        spots = place_labels(boxes, sizes, (400, 400))
        assert spots.min() >= 0
        assert spots.max() <= 400
        for (x1, y1, x2, y2), spot in zip(boxes, spots):
            assert spot[0] <= x2 + 2
            assert spot[2] >= x1 - 2
            assert spot[1] <= y2 + 2
            assert spot[3] >= y1 - 2

    def test_a_label_larger_than_the_picture_and_none_at_all(self):
        spots = place_labels(np.array([[0.0, 0, 5, 5]]), np.array([[60.0, 18.0]]), (20, 10))
        assert spots[0, :2].tolist() == [0, 0]
        assert place_labels(np.empty((0, 4)), np.empty((0, 2)), (20, 10)).shape == (0, 4)

    def test_texts(self):
        boxes = Boxes(np.zeros((2, 4)), np.array([1, 7]), np.array([0.5, 0.126]))
        assert box_texts(boxes, ('cat', 'dog')) == ['dog 0.50', 'class 7 0.13']
        assert box_texts(boxes._replace(scores=None), None) == ['class 1', 'class 7']


class TestPicture:
    def test_the_image_is_left_alone_and_enlarged_when_small(self):
        image = np.full((60, 80, 3), 90, np.uint8)
        boxes = Boxes(np.array([[20.0, 20, 60, 50]]), np.array([3]), np.array([0.9]))
        picture = draw_boxes(image, boxes)
        assert (image == 90).all()
        assert picture.shape == (480, 640, 3)  # eight times, no more
        assert picture.dtype == np.uint8
        assert draw_boxes(image, boxes, scale=1).shape == (60, 80, 3)
        assert enlargement(800, 1333) == 1
        assert enlargement(480, 640) == 1.5

    def test_without_boxes_it_is_the_image(self):
        image = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
        none = Boxes(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))
        np.testing.assert_array_equal(draw_boxes(image, none, scale=1), image)

    def test_the_box_is_where_it_should_be_with_its_colour(self):
        image = np.zeros((200, 200, 3), np.uint8)
        boxes = Boxes(np.array([[40.0, 60, 160, 150]]), np.array([1]))
        picture = draw_boxes(image, boxes, ('a', 'b'), scale=1)
        blue = class_colours(2)[1]
        # A line of one pixel runs around the box.
        np.testing.assert_array_equal(picture[100, 39], blue)
        np.testing.assert_array_equal(picture[150, 100], blue)
        assert (picture[100, 100] == 0).all()

    def test_soft_edges_can_be_left_out(self):
        box = (16.0, 24.0, 80.0, 56.0)
        boxes = Boxes(np.array([box]), np.array([0]), np.array([0.5]), sure(box, 8.0))
        image = np.zeros((80, 96, 3), np.uint8)
        plain = draw_boxes(image, boxes._replace(edges=None), scale=1)
        np.testing.assert_array_equal(draw_boxes(image, boxes, scale=1, soft=False), plain)
        assert (draw_boxes(image, boxes, scale=1) != plain).any()

    def test_panels_stand_side_by_side_below_their_titles(self):
        red, green = (np.full((50, 70, 3), 0, np.uint8) for _ in range(2))
        red[..., 0] = green[..., 1] = 200
        sheet = side_by_side([('truth', red), ('prediction', green)])
        below = sheet[-50:]
        np.testing.assert_array_equal(below[:, :70], red)
        np.testing.assert_array_equal(below[:, -70:], green)
        assert sheet[:-50].max() > 200  # letters


@pytest.fixture(scope='module')
def charted() -> Boxes:
    """A sure box and an unsure one, with the better score on the second."""
    first, second = (32.0, 32.0, 96.0, 96.0), (120.0, 40.0, 184.0, 104.0)
    flat = bins_of(second, 8.0, [[0, 0, 0.1, 0.2, 0.4, 0.2, 0.1, 0, 0]] * 4)
    edges = EdgeBins(*(np.concatenate(pair) for pair in zip(flat, sure(first, 8.0))))
    return Boxes(np.array([second, first]), np.array([0, 1]), np.array([0.9, 0.4]), edges)

    def test_a_thumbnail_is_small_and_names_some_boxes(self):
        image = np.zeros((300, 600, 3), np.uint8)
        box = np.array([[150.0, 60, 450, 240]])
        boxes = Boxes(box, np.zeros(1, int), np.ones(1))
        bare = thumbnail(image, boxes, ['cat'], np.zeros(0, int), side=200)
        assert bare.shape == (100, 200, 3)
        assert (bare[50, 50] == ORANGE[0]).all()
        assert (bare[30:70, 60:140] == 0).all()
        named = thumbnail(image, boxes, ['cat'], np.zeros(1, int), side=200)
        assert (named == ORANGE[0]).all(-1).sum() > (bare == ORANGE[0]).all(-1).sum() + 100

    def test_a_contact_sheet_has_its_pictures_in_rows(self):
        wide, high = np.full((20, 100, 3), 255, np.uint8), np.full((50, 30, 3), 200, np.uint8)
        panels = [('1 ' + 'long name ' * 9, wide), ('2', wide), ('3', high)]
        sheet = contact_sheet(panels, ['cat', 'dog'], [1], columns=2)
        one = contact_sheet(panels[:1], ['cat', 'dog'], [1], columns=2)
        assert (sheet == 255).all(-1).sum() == 2 * wide[..., 0].size
        rows = np.flatnonzero((sheet == 255).all(-1).any(1))
        assert len(rows) == 20  # both wide ones in one row
        below = np.flatnonzero((sheet == 200).all(-1).any(1))
        assert len(below) == 50
        assert below[0] > rows[-1]
        assert one.shape[1] < 120
        legend = sheet[:26].reshape(-1, 3)
        assert (legend == class_colours(2)[1]).all(1).any()
        assert not (legend == class_colours(2)[0]).all(1).any()


class TestCharts:
    image = np.full((160, 240, 3), 120, np.uint8)

    def test_the_sharpest_and_the_flattest_are_found(self, charted):
        assert sharp_and_flat(charted) == [1, 0]
        np.testing.assert_allclose(edge_entropy(charted.edges)[1], 0, atol=1e-9)
        assert sharp_and_flat(charted._replace(edges=None)) == []
        assert sharp_and_flat(Boxes(np.empty((0, 4)), np.empty(0), np.empty(0))) == []
        one = charted._replace(boxes=charted.boxes[:1], edges=charted.edges.take([0]))
        assert sharp_and_flat(one) == [0]

    def test_bars_are_the_probabilities_where_the_bins_lie(self, charted):
        figure = edge_figure(self.image, charted, [0], ('a', 'b'))
        view, above, beside = figure.axes
        assert above.get_xlim() == view.get_xlim()
        assert beside.get_ylim() == view.get_ylim()
        for axes, sides, upright in ((above, (0, 2), True), (beside, (1, 3), False)):
            drawn = {}
            for bar in axes.patches:
                x, y = bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2
                place, height = (x, bar.get_height()) if upright else (y, bar.get_width())
                drawn[round(place, 3)] = drawn.get(round(place, 3), 0) + height
            expected = {}
            for side in sides:
                edge = charted.edges.positions[0, side], charted.edges.probabilities[0, side]
                for place, height in zip(*edge):
                    expected[round(place, 3)] = expected.get(round(place, 3), 0) + height
            assert drawn == pytest.approx(expected)

    def test_an_overlapping_gt_is_dashed(self, charted):
        near = Boxes(np.array([[0.0, 0, 9, 9], [122, 42, 188, 104]]), np.array([0, 0]))
        far = Boxes(np.array([[0.0, 0, 9, 9]]), np.array([0]))

        def dashes(gts: Boxes) -> list[float]:
            lines = edge_figure(self.image, charted, [0], truths=gts).axes[1].lines
            return [line.get_xdata()[0] for line in lines if line.get_linestyle() == '--']

        assert dashes(near) == [122, 188]
        assert dashes(far) == []

    def test_files_of_print_quality(self, charted, tmp_path):
        figure = edge_figure(self.image, charted, [1, 0], ('cell', 'digit'))
        beginnings = {'png': b'\x89PNG', 'pdf': b'%PDF', 'svg': b'<?xml'}
        for ending, beginning in beginnings.items():
            path = tmp_path / 'new' / f'chart.{ending}'
            save_figure(figure, path)
            assert path.read_bytes().startswith(beginning)
        pdf = (tmp_path / 'new' / 'chart.pdf').read_bytes()
        assert b'/Type3' not in pdf
        svg = (tmp_path / 'new' / 'chart.svg').read_text()
        assert svg.count('<image') == 2  # the two views; bars and letters are paths
        assert len(re.findall('<path', svg)) > 72
        before = svg
        save_figure(figure, tmp_path / 'new' / 'chart.svg')
        after = (tmp_path / 'new' / 'chart.svg').read_text()
        date = re.compile('<dc:date>.*?</dc:date>')
        assert date.sub('', after) == date.sub('', before)

    def test_what_cannot_be_charted(self, charted, tmp_path):
        with pytest.raises(DataError, match='with_distribution=True'):
            edge_figure(self.image, charted._replace(edges=None), [0])
        for chosen in ([2], [-1], []):
            with pytest.raises(DataError, match='give indices below 2'):
                edge_figure(self.image, charted, chosen)
        figure = edge_figure(self.image, charted, [0])
        with pytest.raises(DataError, match=r'must end in \.jpg, \.pdf, \.png, \.svg'):
            save_figure(figure, tmp_path / 'chart.doc')
        (tmp_path / 'file').touch()
        with pytest.raises(DataError, match='cannot be written'):
            save_figure(figure, tmp_path / 'file' / 'chart.png')

    @pytest.mark.parametrize('box', [[0.0, 0, 240, 30], [100, 0, 110, 160], [-5, -5, 260, 170]])
    def test_thin_flat_and_large_boxes(self, box):
        edges = bins_of(tuple(box), 40.0, [[0.2, 0.3, 0.5]] * 4)
        figure = edge_figure(self.image, Boxes(np.array([box]), np.array([2]), edges=edges), [0])
        low, high = figure.axes[0].get_xlim()
        bottom, top = figure.axes[0].get_ylim()
        assert 0.6 < (high - low) / (bottom - top) < 1.7
        assert low <= box[0]
        assert high >= box[2]
