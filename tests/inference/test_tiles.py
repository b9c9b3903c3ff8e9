"""Tiles: where they lie, whose boxes are of one object, large pictures in files and arrays."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from gfl_det import GFLInferencer
from gfl_det.cli import infer
from gfl_det.cli.infer import parse_arguments
from gfl_det.datasets.images import map_image, read_image
from gfl_det.errors import ConfigError, DataError
from gfl_det.inference.tiles import TileGrid, join
from tests.helpers.inferring import write_checkpoint

SIZE = (100, 180)  # of the drawn picture, in two tiles that share x from 80 to 100
TILES = TileGrid(100, 100, 20).tiles(*SIZE)


def part(*rows: tuple) -> InstanceData:
    """Rows of box, score, label and the deviation of each edge."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    return InstanceData(
        bboxes=boxes,
        scores=torch.tensor([row[1] for row in rows]),
        labels=torch.tensor([row[2] for row in rows], dtype=torch.long),
        edge_std=torch.tensor([row[3] for row in rows], dtype=torch.float32).reshape(-1, 4),
        edge_low=boxes - 3,
        edge_high=boxes + 3,
    )


SURE = (1.0, 1.0, 1.0, 1.0)
NOTHING = part()


@pytest.mark.parametrize('side', [1, 99, 100, 101, 180, 181, 1234])
def test_equal_tiles_cover_a_picture_and_overlap_enough(side) -> None:
    tiles = TileGrid(100, 64, 20).tiles(side, 2 * side)
    assert {(t.right - t.left, t.bottom - t.top) for t in tiles} == {
        (min(64, 2 * side), min(100, side))
    }
    seen = np.zeros((side, 2 * side), int)
    for left, top, right, bottom in tiles:
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1
    tops = sorted({t.top for t in tiles})
    assert all(a + 100 - b >= 20 for a, b in zip(tops, tops[1:]))
    assert (tiles[0].left, tiles[0].top) == (0, 0)
    assert (tiles[-1].right, tiles[-1].bottom) == (2 * side, side)


def test_an_object_in_both_tiles_is_one_box() -> None:
    """With the means over both tiles; the weight of an edge is the inverse of its variance."""
    left = part(([88, 20, 96, 40], 0.6, 0, SURE))
    right = part(([8, 20, 16, 41], 0.8, 0, (1.0, 1.0, 1.0, 2.0)))
    found = join([left, right], TILES, SIZE)
    assert found.bboxes.tolist() == [pytest.approx([88, 20, 96, 40.2])]
    assert found.scores.tolist() == pytest.approx([0.7])
    assert found.edge_low.tolist() == [pytest.approx([85, 17, 93, 37.2])]
    assert found.edge_std.tolist() == [pytest.approx([1, 1, 1, 1.2])]


def test_a_tile_that_sees_nothing_there_counts_as_a_score_of_zero() -> None:
    scores = torch.tensor([[0.1, 0.6]])
    for box, share in (([88, 20, 96, 40], 0.5), ([50, 20, 75, 40], 1), ([70, 20, 90, 40], 1)):
        first = part((box, 0.6, 1, SURE))
        first.class_scores, first.raw_scores = scores, torch.tensor([0.8])
        second = part(([60, 60, 70, 70], 0.9, 1, SURE))
        second.class_scores, second.raw_scores = scores, torch.tensor([0.7])
        found = join([first, second], TILES, SIZE)
        assert found.bboxes.tolist() == [[140, 60, 150, 70], box]
        assert found.scores[1].item() == pytest.approx(0.6 * share)
        assert found.raw_scores[1].item() == pytest.approx(0.8 * share)
        assert found.class_scores[1].tolist() == pytest.approx([0.1 * share, 0.6 * share])


def test_an_edge_without_any_deviation_is_taken_as_it_is() -> None:
    left = part(([88, 20, 96, 40], 0.6, 0, (0.0, 1.0, 1.0, 1.0)))
    found = join([left, part(([9, 20, 16, 40], 0.8, 0, SURE))], TILES, SIZE)
    assert found.bboxes[0, 0].item() == pytest.approx(88, abs=1e-3)


def test_a_box_cut_by_the_seam_gives_way_to_the_whole_one() -> None:
    """Though it scores higher; and it may end before the seam where its edge is unsure."""
    unsure = (1.0, 1.0, 8.0, 1.0)
    for right, deviation in ((100.0, SURE), (93.0, unsure)):
        first = part(([85, 20, right, 40], 0.9, 0, deviation))
        found = join([first, part(([5, 20, 40, 40], 0.5, 0, SURE))], TILES, SIZE)
        assert found.bboxes.tolist() == [[85, 20, 120, 40]]


def test_an_object_larger_than_the_overlap_is_joined() -> None:
    left = ([30, 20, 100, 40], 0.6, 0, (1.0, 2.0, 30.0, 4.0))
    right = ([0, 21, 50, 42], 0.7, 0, (20.0, 6.0, 7.0, 8.0))
    found = join([part(left), part(right)], TILES, SIZE)
    assert len(found) == 1
    assert found.scores.tolist() == pytest.approx([0.7])
    assert found.bboxes[0, [0, 2]].tolist() == [30, 130]
    assert found.bboxes[0, [1, 3]].tolist() == [21, 42]  # of the better one
    assert found.edge_std.tolist() == [[1, 6, 7, 8]]


def test_an_object_across_three_tiles_is_joined() -> None:
    tiles = TileGrid(100, 100, 20).tiles(100, 260)
    rows = [[30, 20, 100, 40], [0, 20, 100, 40], [0, 20, 60, 40]]
    parts = [part((row, score, 0, SURE)) for row, score in zip(rows, (0.9, 0.5, 0.7))]
    found = join(parts, tiles, (100, 260))
    assert found.bboxes.tolist() == [[30, 20, 220, 40]]


def test_neighbours_and_other_classes_stay_apart() -> None:
    first = part(([70, 20, 99, 40], 0.9, 0, SURE), ([82, 60, 95, 80], 0.8, 0, SURE))
    second = part(([5, 45, 30, 58], 0.7, 0, SURE), ([2, 60, 15, 80], 0.6, 1, SURE))
    assert len(join([first, second], TILES, SIZE)) == 4


def test_boxes_of_one_tile_are_left_to_its_suppression() -> None:
    twice = part(([82, 20, 95, 40], 0.6, 0, SURE), ([82, 21, 95, 41], 0.5, 0, SURE))
    assert len(join([twice, NOTHING], TILES, SIZE)) == 2
    assert len(join([NOTHING, NOTHING], TILES, SIZE)) == 0


def test_borders_of_the_picture_are_no_seams() -> None:
    found = join(
        [part(([0, 0, 30, 100], 0.9, 0, SURE)), part(([60, 0, 80, 30], 0.8, 0, SURE))], TILES, SIZE
    )
    assert len(found) == 2


def test_without_uncertainty_nothing_can_be_joined() -> None:
    plain = InstanceData(bboxes=torch.zeros(1, 4), scores=torch.ones(1), labels=torch.zeros(1))
    with pytest.raises(ConfigError, match='uncertainty'):
        join([plain, plain], TILES, SIZE)


@pytest.mark.parametrize(
    'given',
    [(0,), ((10, 20, 30),), ('x',), (5.0,), (True,), (10, 10), (10, -1), (10, True), ((10, 5), 7)],
)
def test_tiles_out_of_range_are_refused(given) -> None:
    with pytest.raises(ConfigError, match='must be'):
        TileGrid.of(*given)


def test_numbers_of_numpy_are_integers_too() -> None:
    assert TileGrid.of(np.int64(64), np.int32(8)) == TileGrid.of((64, 64), 8) == (64, 64, 8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('tiles')


@pytest.fixture(scope='module')
def checkpoint(folder):
    return write_checkpoint(folder)


@pytest.fixture(scope='module')
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 120, (200, 300, 3), dtype=np.uint8)
    for left in range(10, 280, 55):
        pixels[60:100, left : left + 40] = rng.integers(120, 255, 3)
    return pixels


def test_a_picture_no_larger_than_a_tile_is_as_ever(checkpoint, picture) -> None:
    plain = GFLInferencer(checkpoint, device='cpu', score_thr=0.3)
    tiled = GFLInferencer(checkpoint, device='cpu', score_thr=0.3, tile=(200, 300))
    first, second = (each(picture, progress=False)[0].instances for each in (plain, tiled))
    assert torch.equal(first.bboxes, second.bboxes)


def test_tiles_are_detected_as_pictures_are_and_in_any_batch(checkpoint, picture) -> None:
    tiled = GFLInferencer(checkpoint, device='cpu', score_thr=0.3, tile=(96, 128), overlap=32)
    one, many = (tiled(picture, progress=False, batch_size=each)[0] for each in (1, 5))
    assert len(one) == len(many) > 10
    torch.testing.assert_close(one.instances.bboxes, many.instances.bboxes, rtol=0, atol=1e-2)
    assert one.size == (200, 300)
    assert one.instances.bboxes[:, 2].max() > 250
    assert {'edge_std', 'edge_low', 'edge_entropy'} <= set(one.instances.keys())
    plain = GFLInferencer(checkpoint, device='cpu', score_thr=0.3)
    corner = plain(np.ascontiguousarray(picture[:96, :128]), progress=False)[0].instances
    inner = (corner.bboxes[:, 2] < 90) & (corner.bboxes[:, 3] < 60)  # no other tile sees these
    for box in corner.bboxes[inner]:
        assert (one.instances.bboxes - box).abs().amax(1).min() < 1e-2


def test_a_tiff_is_mapped_and_gives_what_reading_gives(checkpoint, picture, folder) -> None:
    tifffile = pytest.importorskip('tifffile')
    path = folder / 'large.tif'
    tifffile.imwrite(path, picture[..., ::-1], photometric='rgb')
    mapped = map_image(path)
    assert isinstance(mapped.base, np.memmap) or isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, read_image(path))
    assert map_image(folder / 'none.png') is None
    tifffile.imwrite(folder / 'packed.tif', picture, compression='zlib', photometric='rgb')
    assert map_image(folder / 'packed.tif') is None
    with pytest.raises(DataError, match=r'large\.tif'):
        map_image(path, max_pixels=100)
    tiled = GFLInferencer(checkpoint, device='cpu', score_thr=0.3, tile=128, overlap=32)
    from_file, from_array = (tiled(each, progress=False)[0].instances for each in (path, picture))
    assert torch.equal(from_file.bboxes, from_array.bboxes)


def test_the_command_takes_tiles(checkpoint, picture, folder, capsys) -> None:
    path, out = folder / 'one.png', folder / 'found.json'
    cv2.imwrite(str(path), picture)
    argv = [str(checkpoint), str(path), '--device', 'cpu', '--score-thr', '.3', '--quiet']
    infer.run(parse_arguments([*argv, '--tile', '96', '128', '--overlap', '32', '--out', str(out)]))
    assert out.exists()
    for wrong in (
        ['--overlap', '10'],
        ['--tile', '64', '--overlap', '64'],
        ['--tile', '1', '2', '3'],
    ):
        with pytest.raises(ConfigError):
            infer.run(parse_arguments([*argv, *wrong]))
