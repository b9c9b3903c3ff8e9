"""The embedded data set: one seed, one set of bytes; honest splits; tight boxes; safe writing."""

from __future__ import annotations

import collections
import hashlib
import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from gfl_det.datasets.digits.build import (
    CLASSES,
    SPLITS,
    DigitsRecipe,
    build_digits,
    is_complete,
    load_scans,
    split_scans,
)
from gfl_det.datasets.digits.scenes import (
    INK_LEVEL,
    ScanSet,
    SceneRecipe,
    background,
    blot,
    draw_scene,
    overlap,
    pattern,
    random_glyph,
    render_glyph,
    scratch,
    value_noise,
)
from gfl_det.datasets.images import write_preview
from gfl_det.errors import DataError
from tests.helpers.commands import run_tool

SMALL = DigitsRecipe(train=40, val=20)


def rng(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope='module')
def scans() -> ScanSet:
    return load_scans()


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'digits'
    assert build_digits(root, SMALL, workers=0).built
    return root


@pytest.fixture(scope='module')
def contents(built) -> dict[str, dict]:
    return {s: json.loads((built / 'annotations' / f'{s}.json').read_text()) for s in SPLITS}


# ---------------------------------------------------------------- bytes


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(built, tmp_path):
    build_digits(tmp_path / 'again', SMALL, workers=2)
    assert digest(tmp_path / 'again') == digest(built)
    assert len(digest(built)) == SMALL.train + SMALL.val + 2


def test_a_longer_data_set_begins_with_the_same_pictures(built, tmp_path):
    build_digits(tmp_path / 'longer', DigitsRecipe(train=43, val=20), workers=0)
    pictures = {name: sha for name, sha in digest(built).items() if name.endswith('.png')}
    assert pictures.items() <= digest(tmp_path / 'longer').items()


def test_another_seed_gives_other_pictures_and_other_splits_of_the_scans(built, tmp_path, scans):
    build_digits(tmp_path / 'other', DigitsRecipe(train=40, val=20, seed=1), workers=0)
    ours, other = digest(built), digest(tmp_path / 'other')
    assert ours.keys() == other.keys()
    assert not set(ours.values()) & set(other.values())
    val_ids = [split_scans(scans, 0.25, seed)[1].ids for seed in (0, 1)]
    assert val_ids[0].tolist() != val_ids[1].tolist()


def test_no_two_pictures_are_alike(built):
    shas = list(digest(built).values())
    assert len(set(shas)) == len(shas)


# ---------------------------------------------------------------- splits


def test_scans_are_split_by_class_without_a_common_one(scans):
    train, val = split_scans(scans, 0.25, seed=0)
    assert not set(train.ids) & set(val.ids)
    assert sorted([*train.ids, *val.ids]) == list(range(1797))
    for label, total in collections.Counter(scans.labels.tolist()).items():
        assert (val.labels == label).sum() == round(0.25 * total)
    for part in (train, val):
        np.testing.assert_array_equal(part.images, scans.images[part.ids])
        np.testing.assert_array_equal(part.labels, scans.labels[part.ids])


def test_train_and_val_show_different_scans_with_their_own_labels(contents, scans):
    used = {split: {a['scan_id'] for a in c['annotations']} for split, c in contents.items()}
    assert not used['train'] & used['val']
    for split, part in zip(SPLITS, split_scans(scans, SMALL.val_share, SMALL.seed)):
        assert used[split] <= set(part.ids.tolist())
        for item in contents[split]['annotations']:
            assert item['category_id'] == scans.labels[item['scan_id']] + 1


# ---------------------------------------------------------------- truth


def test_pycocotools_reads_it(built, contents):
    for split in SPLITS:
        coco = COCO(built / 'annotations' / f'{split}.json')
        assert len(coco.imgs) == getattr(SMALL, split)
        assert [coco.cats[i]['name'] for i in range(1, 11)] == list(CLASSES)
        assert len(coco.anns) == len(contents[split]['annotations'])
        for image in coco.imgs.values():
            picture = cv2.imread(str(built / split / image['file_name']))
            assert picture.shape == (image['height'], image['width'], 3)


def test_boxes_are_inside_few_varied_and_hardly_overlap(contents):
    heights, labels, counts = [], set(), set()
    for content in contents.values():
        images = {image['id']: image for image in content['images']}
        boxes = collections.defaultdict(list)
        for item in content['annotations']:
            x, y, width, height = item['bbox']
            image = images[item['image_id']]
            assert 0 <= x < x + width <= image['width']
            assert 0 <= y < y + height <= image['height']
            assert item['area'] == width * height >= 16 * 3
            boxes[item['image_id']].append(item['bbox'])
            heights.append(height)
            labels.add(item['category_id'])
        assert boxes.keys() == images.keys()  # no picture without a digit
        for group in boxes.values():
            counts.add(len(group))
            for i, box in enumerate(group):
                assert all(overlap(box, other) <= 0.2 for other in group[:i])
    assert labels == set(range(1, 11))
    assert min(counts) == 1
    assert max(counts) == 8
    assert min(heights) < 30
    assert max(heights) > 96
    assert 30 < np.median(heights) < 60


def test_overlap_is_never_less_than_the_iou():
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0
    assert overlap((0, 0, 10, 10), (5, 0, 10, 10)) == 0.5
    assert overlap((0, 0, 100, 100), (40, 40, 10, 10)) == 1  # IoU .01: a digit under another


@pytest.mark.parametrize('sharpness', [2.5, 6.0])
@pytest.mark.parametrize('threshold', [0.3, 0.5])
def test_every_scan_has_ink_on_each_side_of_its_frame(scans, threshold, sharpness):
    for scan in scans.images:
        coverage = render_glyph(scan, 18, 0.7, 0.35, threshold, sharpness)
        ink = coverage >= INK_LEVEL
        assert all(side.any() for side in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
        assert 0 <= coverage.min() <= coverage.max() <= 1


def test_the_glyph_is_the_scan(scans):
    """Enlarged without slant and averaged back to 8x8, the glyph has ink where the scan has."""
    likeness = []
    for scan in scans.images[:50]:
        coverage = render_glyph(scan, 96, 1.0, 0.0, 0.5, 6.0)
        rows, columns = (np.flatnonzero(scan.max(axis) >= 8) for axis in (1, 0))
        core = scan[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / 16
        small = cv2.resize(coverage, core.shape[::-1], interpolation=cv2.INTER_AREA)
        likeness.append(np.corrcoef(small.ravel(), core.ravel())[0, 1])
    assert min(likeness) > 0.6  # the frame of a faint scan is cut elsewhere
    assert np.median(likeness) > 0.9


def test_height_aspect_and_slant_act_as_said(scans):
    zero = scans.images[scans.labels == 0][0]
    base = render_glyph(zero, 40, 1.0, 0.0, 0.4, 4.0).shape
    tall = render_glyph(zero, 80, 1.0, 0.0, 0.4, 4.0).shape
    wide = render_glyph(zero, 40, 2.0, 0.0, 0.4, 4.0).shape
    slanted = render_glyph(zero, 40, 1.0, 0.35, 0.4, 4.0).shape
    assert abs(tall[0] - 2 * base[0]) <= 2
    assert abs(tall[1] - 2 * base[1]) <= 2
    assert abs(wide[0] - base[0]) <= 1
    assert abs(wide[1] - 2 * base[1]) <= 2
    assert slanted[0] == base[0]
    assert slanted[1] > base[1]


def test_boxes_are_tight_around_the_ink_in_a_plain_picture(scans):
    """On flat ground without distractors and noise, what differs from the ground is the digit."""
    plain = SceneRecipe(max_objects=1, max_distractors=0, texture=0, noise=0)
    polarities = set()
    for number in range(40):
        scene = draw_scene(rng(7, number), scans, plain)
        (item,) = scene.objects
        x, y, width, height = item.box
        inside = np.zeros(scene.image.shape[:2], bool)
        inside[y : y + height, x : x + width] = True
        ground = scene.image[~inside][0].astype(int)
        assert (scene.image[~inside] == ground).all()  # no ink outside
        difference = np.abs(scene.image - ground).max(-1)
        rows, columns = np.nonzero(difference >= INK_LEVEL * difference.max() - 1)
        assert (columns.min(), rows.min()) == (x, y)
        assert (columns.max() + 1, rows.max() + 1) == (x + width, y + height)
        polarities.add(bool((scene.image - ground)[inside].sum() > 0))
    assert polarities == {True, False}  # light on dark and dark on light


def test_digits_lie_over_distractors_and_stand_out(scans):
    """The mean contrast of ink to what is around it inside the box, texture and all."""
    contrasts = []
    for number in range(40):
        scene = draw_scene(rng(8, number), scans, SceneRecipe(max_objects=1, min_size=60))
        x, y, width, height = scene.objects[0].box
        grey = scene.image[y : y + height, x : x + width].astype(float).mean(-1)
        _, mask = cv2.threshold(grey.astype(np.uint8), 0, 1, cv2.THRESH_OTSU)
        contrasts.append(grey[mask == 1].mean() - grey[mask == 0].mean())
    assert np.median(contrasts) > 50


def test_sizes_stay_in_the_recipe(scans):
    recipe = SceneRecipe()
    heights = [random_glyph(rng(9, i), scans.images[i], recipe).shape[0] for i in range(300)]
    assert min(heights) >= 0.6 * recipe.min_size
    assert max(heights) <= 1.25 * recipe.max_size
    middle = (recipe.min_size + recipe.max_size) / 2
    assert np.mean(np.array(heights) < middle) > 0.55  # small ones are more frequent


# ---------------------------------------------------------------- textures


def test_textures_keep_their_range_and_shape():
    for number in range(20):
        for cells in (1, 2, 20):
            noise = value_noise(rng(1, number), 48, 64, cells)
            assert noise.shape == (48, 64)
            assert -1 <= noise.min() < noise.max() <= 1
        assert np.abs(pattern(rng(2, number), 48, 64)).max() <= 1.0001
        for coverage in (scratch(rng(3, number), 48, 64), blot(rng(4, number), 40)):
            assert 0 <= coverage.min() <= coverage.max() <= 1
        assert blot(rng(4, number), 40).max() > 0.9


def test_strength_zero_is_one_colour_and_one_is_not():
    flat = background(rng(5), 48, 64, strength=0)
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
    assert background(rng(5), 48, 64, strength=1).std() > 5


# ---------------------------------------------------------------- writing


def test_the_second_build_does_nothing_and_force_builds_again(built):
    before = {path: path.stat().st_mtime_ns for path in built.rglob('*')}
    calls = []
    summary = build_digits(built, SMALL, progress=lambda *counts: calls.append(counts))
    assert not summary.built
    assert not calls
    assert summary.images == {'train': 40, 'val': 20}
    assert before == {path: path.stat().st_mtime_ns for path in built.rglob('*')}
    build_digits(built, SMALL, force=True, workers=0, progress=lambda *c: calls.append(c))
    assert calls == [(i, 60) for i in range(1, 61)]


def test_another_recipe_replaces_the_old_data_set(tmp_path):
    root = tmp_path / 'digits'
    build_digits(root, DigitsRecipe(train=3, val=2), workers=0)
    assert not is_complete(root, DigitsRecipe(train=2, val=2))
    assert build_digits(root, DigitsRecipe(train=2, val=2), workers=0).built
    assert sorted(path.name for path in (root / 'train').iterdir()) == ['000001.png', '000002.png']
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_a_scene_option_changes_the_fingerprint():
    changed = DigitsRecipe(scene=SceneRecipe(noise=9))
    assert changed.fingerprint() != DigitsRecipe().fingerprint()
    assert DigitsRecipe().fingerprint() == DigitsRecipe().fingerprint()


def damage(root: Path, kind: str) -> None:
    if kind == 'missing picture':
        (root / 'train' / '000002.png').unlink()
    elif kind == 'torn picture':
        (root / 'val' / '000001.png').write_bytes(b'\x89PNG')
    elif kind == 'torn json':
        path = root / 'annotations' / 'val.json'
        path.write_text(path.read_text()[:500])
    else:
        (root / 'annotations' / 'train.json').unlink()


@pytest.mark.parametrize('kind', ['missing picture', 'torn picture', 'torn json', 'no json'])
def test_a_damaged_data_set_is_built_again(tmp_path, kind):
    recipe = DigitsRecipe(train=3, val=2)
    root = tmp_path / 'digits'
    build_digits(root, recipe, workers=0)
    whole = digest(root)
    damage(root, kind)
    assert digest(root) != whole
    assert build_digits(root, recipe, workers=0).built
    assert digest(root) == whole


class Killed(BaseException):
    """Like a KeyboardInterrupt: nothing on the way handles it."""


def test_a_killed_build_leaves_the_old_data_set_and_the_next_one_cleans_up(tmp_path):
    root = tmp_path / 'digits'
    old, new = DigitsRecipe(train=2, val=1), DigitsRecipe(train=4, val=2)
    build_digits(root, old, workers=0)

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        build_digits(root, new, workers=0, progress=kill)
    assert is_complete(root, old)
    (tmp_path / '.digits.old').mkdir()  # as if killed between the two renamings
    assert build_digits(root, new, workers=0).built
    assert is_complete(root, new)
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_other_peoples_folders_are_never_touched(tmp_path):
    thesis = tmp_path / 'thesis.txt'
    thesis.write_text('years of work')
    for root in (tmp_path, thesis):
        with pytest.raises(DataError, match='does not hold this data set'):
            build_digits(root, DigitsRecipe(train=1, val=1), force=True)
    annotations = tmp_path / 'coco' / 'annotations'
    annotations.mkdir(parents=True)
    (annotations / 'train.json').write_text('{"info": {"version": "2017"}, "images": []}')
    with pytest.raises(DataError, match='does not hold this data set'):
        build_digits(tmp_path / 'coco', DigitsRecipe(train=1, val=1), force=True)
    assert thesis.read_text() == 'years of work'


def test_an_empty_folder_and_a_link_are_fine(tmp_path):
    (tmp_path / 'big_disk').mkdir()
    (tmp_path / 'digits').symlink_to(tmp_path / 'big_disk')
    build_digits(tmp_path / 'digits', DigitsRecipe(train=1, val=1), workers=0)
    assert (tmp_path / 'digits').is_symlink()
    assert (tmp_path / 'big_disk' / 'annotations' / 'val.json').is_file()


@pytest.mark.parametrize('recipe', [dict(train=0), dict(val=-1), dict(seed=-1)])
def test_senseless_options_are_refused(tmp_path, recipe):
    with pytest.raises(DataError, match='at least 1'):
        build_digits(tmp_path / 'digits', DigitsRecipe(**recipe))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot be written'):
        build_digits(tmp_path / 'file' / 'digits', DigitsRecipe(train=1, val=1), workers=0)


def test_the_preview_shows_the_first_pictures_with_boxes(built, tmp_path):
    path = tmp_path / 'out' / 'preview.png'
    write_preview(built, path, columns=3, rows=2)
    sheet = cv2.imread(str(path))
    assert sheet.shape == (2 * 192 * 2, 3 * 256 * 2, 3)
    assert (sheet == (0, 255, 0)).all(-1).sum() > 500
    write_preview(built, path, split='train', columns=7, rows=50)  # more tiles than pictures
    assert cv2.imread(str(path)).shape[0] == 6 * 192 * 2


def test_the_tool_says_where_and_how_many(tmp_path):
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return run_tool(
            *('build_digits', '--out', tmp_path / 'd', '--train', 2, '--val', 1, *options)
        )

    first, second, refused = run('--preview'), run(), run('--val', '0')
    assert (first.returncode, second.returncode, refused.returncode) == (0, 0, 2)
    assert 'train: 2 pictures' in first.stdout
    assert str(tmp_path / 'd' / 'preview.png') in first.stdout
    assert (tmp_path / 'd' / 'preview.png').is_file()
    assert 'already there' in second.stdout
    assert 'error: argument --val: a whole number of at least 1' in refused.stderr
    assert 'Traceback' not in refused.stderr
