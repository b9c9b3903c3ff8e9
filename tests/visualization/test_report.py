"""The report: the command on results and on a work dir, its page's text, its size."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData

import gfl_det
from gfl_det.calibration import (
    Settings,
    evaluate_detections,
    fit_calibrator,
    fit_distribution_calibrator,
    load_calibrator,
    save_calibrator,
    save_distribution_calibrator,
)
from gfl_det.cli import report
from gfl_det.engine import runner
from gfl_det.engine.runner import detect_edges
from gfl_det.engine.training.checkpoints import best_checkpoint
from gfl_det.errors import CheckpointError, ConfigError, DataError
from gfl_det.evaluation.detections import detections_from_coco, gts_from_coco
from gfl_det.inference.results import ImageResult
from gfl_det.visualization.picture import NORMAL_BINS
from gfl_det.visualization.report import analyse, draw_gallery, render
from gfl_det.visualization.report.analysis import data_statistics
from gfl_det.visualization.report.data import (
    annotated_sizes,
    read_results,
    run_work_dir,
)
from gfl_det.visualization.report.errors import choose_images
from gfl_det.visualization.report.page import MAX_BOXES, embed, plain, size_of
from tests.helpers import reporting
from tests.helpers.commands import run_tool
from tests.helpers.inferring import CLASSES, write_checkpoint

HOSTILE = '</script><script>document.title="run"</script>'


def data_of(page: Path) -> dict:
    text = page.read_text(encoding='utf-8')
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('results')
    dataset, results = reporting.made_up(10, 3, 20)
    dataset['categories'][1]['name'] = HOSTILE
    reporting.write_images(folder / 'img', dataset)
    paths = dict(truths=folder / 't.json', results=folder / 'found.json', images=folder / 'img')
    paths['truths'].write_text(json.dumps(dataset))
    paths['results'].write_text(json.dumps(results))
    return paths


def read(files: dict[str, Path], **others: str):
    given = {name: str(path) for name, path in files.items()}
    return read_results(given['results'], given['truths'], given['images'], **others)


def changed(files: dict[str, Path], folder: Path, change) -> dict[str, Path]:
    entries = json.loads(files['results'].read_text())
    change(entries)
    path = folder / 'changed.json'
    path.write_text(json.dumps(entries))
    return {**files, 'results': path}


def test_a_report_of_results(files, tmp_path):
    out = tmp_path / 'new' / 'report.html'
    done = run_tool(
        'report',
        files['results'],
        '--truths',
        files['truths'],
        '--images',
        files['images'],
        '--out',
        out,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r'report: .*report\.html \(\d\.\d MB\)', done.stdout)
    assert '7/7 analyses' in done.stderr
    values = data_of(out)
    assert values['counts'][:2] == [['images', 10], ['gt boxes', len(read(files).gts.label)]]
    judged = [index for index, row in enumerate(values['images']) if row[1] is not None]
    assert sorted(entry['image'] for entry in values['pictures']) == judged
    assert values['uncertainty']['sides']['left']['edges'] > 0
    assert values['training'] is None
    assert len(values['reliability']) == 1


class Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == 'script'
        self.found += [value for name, value in attrs if name in ('src', 'href') and value]


def test_the_page_fetches_nothing_and_its_names_are_text(files):
    data = read(files)
    analysis = analyse(data._replace(title=HOSTILE))
    page = render({**analysis.values, 'pictures': draw_gallery(data, analysis, 2)})
    parser = Addresses()
    parser.feed(page)
    assert parser.found == ['data:,']
    assert parser.scripts == 2  # the numbers and the program
    assert "default-src 'none'" in page
    assert HOSTILE not in page
    assert not re.search(r'<!--[A-Z]+-->', page)
    addresses = {'http://www.w3.org/2000/svg'}  # a name, which nothing is fetched from
    assert set(re.findall(r'https?://[^\s\'"<>)]+', page)) == addresses


def test_what_is_embedded_is_read_as_it_was():
    values = {'a': [HOSTILE, '<!--', ']]>', '\u2028', 'é', '\ud800', None], 'b': np.arange(3)}
    text = embed(values)
    assert not set(text) & set('<>&')
    assert text.isascii()
    assert json.loads(text) == {'a': values['a'], 'b': [0, 1, 2]}
    numbers = [np.float32(1 / 3), np.nan, -np.inf, np.int64(7), True, np.bool_(False), (1.5,)]
    assert plain(numbers) == [0.3333, None, None, 7, True, False, [1.5]]
    assert plain({'x': np.array([[np.nan, 2.0]])}) == {'x': [[None, 2.0]]}


def test_a_calibrator_gives_two_sides(files, tmp_path):
    dataset, results = reporting.made_up(10, 3, 20, seed=1)
    dataset['categories'][1]['name'] = HOSTILE
    for image in dataset['images']:
        image['file_name'] = f'other{image["id"]}.jpg'
    gts = gts_from_coco(dataset)
    path = tmp_path / 'calibrator.json'
    save_calibrator(fit_calibrator(detections_from_coco(results, gts), gts, Settings()), path)
    data = read(files, calibrator=str(path))
    sides = analyse(data).values['reliability']
    assert [side['name'] for side in sides] == ['raw', 'calibrated']
    raw = data.detections._replace(scores=data.raw_scores)
    mapped = load_calibrator(path).calibrate(raw.scores, raw.label)
    assert np.abs(mapped - raw.scores).max() > 0.1
    for side, scores in zip(sides, (raw.scores, mapped)):
        metrics = evaluate_detections(raw._replace(scores=scores), data.gts)
        assert side['metrics']['LaECE_0'] == metrics['LaECE_0']
        assert side['floors']['LaECE_0'][1] == metrics['LaECE_0_floor_95']
        held = np.nansum(side['number'][0] * side['score'][0])
        assert held == pytest.approx(scores.sum())  # 20 an image: all of them count
    np.testing.assert_array_equal(data.raw_scores, read(files).detections.scores)
    own = tmp_path / 'own.json'
    save_calibrator(fit_calibrator(read(files).detections, data.gts, Settings()), own)
    with pytest.raises(DataError, match=r'used to fit'):
        read(files, calibrator=str(own))


def test_intervals_of_metrics_on_request(files):
    data = read(files)
    (side,) = analyse(data).values['reliability']
    assert side['intervals'] == {}
    (side,) = analyse(data, resamples=40).values['reliability']
    wanted = evaluate_detections(data.detections, data.gts, resamples=40)
    assert set(side['intervals']) == {'AP', 'AP50', 'AP75', 'LaECE_0', 'LaACE_0', 'D-ECE', 'oLRP'}
    assert side['intervals']['AP'] == [wanted['AP_low'], wanted['AP_high']]


def test_raw_scores_and_intervals_of_results_are_used(files, tmp_path):
    def calibrate(entries):
        for entry in entries:
            x, y, width, height = entry['bbox']
            edges = [x, y, x + width, y + height]
            entry.update(raw_score=entry['score'], score=entry['score'] ** 2)
            entry['edge_low'] = [edge - 1000 for edge in edges]
            entry['edge_high'] = [edge + 1000 for edge in edges]

    values = analyse(read(changed(files, tmp_path, calibrate))).values
    assert len(values['reliability']) == 2
    assert values['uncertainty']['coverage'] == [1, 1, 1, 1, 1]
    assert values['uncertainty']['boxes'] == 1


def test_plain_results_have_no_uncertainty_and_sharp_edges(files, tmp_path):
    plain_files = changed(files, tmp_path, lambda entries: [e.pop('edge_std') for e in entries])
    data = read(plain_files)
    assert analyse(data).values['uncertainty'] is None
    assert data.bins(np.array([0])) is None


def test_soft_edges_from_deviations_have_these_deviations(files):
    data = read(files)
    rows = np.flatnonzero((data.edge_std > 1).all(1))[:5]
    bins = data.bins(rows)
    np.testing.assert_allclose(bins.probabilities.sum(-1), 1)
    mean = (bins.positions * bins.probabilities).sum(-1)
    np.testing.assert_allclose(mean[:, :2], data.detections.boxes[rows, :2])
    variance = (bins.probabilities * (bins.positions - mean[..., None]) ** 2).sum(-1)
    np.testing.assert_allclose(np.sqrt(variance), data.edge_std[rows], rtol=0.02)
    assert len(NORMAL_BINS) == bins.positions.shape[-1]


def test_the_folder_of_infer_many_gives_the_page_of_its_coco_results(files, tmp_path):
    shards = pytest.importorskip('gfl_det.inference.shards', reason='needs pyarrow')
    dataset = json.loads(files['truths'].read_text())
    classes = tuple(each['name'] for each in dataset['categories'])
    rng = torch.Generator().manual_seed(0)
    results = []
    for image in dataset['images']:
        boxes = torch.tensor(
            [each['bbox'] for each in dataset['annotations'] if each['image_id'] == image['id']]
        ).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        number, noise = len(boxes), torch.rand(len(boxes), 16, generator=rng)
        found = InstanceData(
            bboxes=boxes + noise[:, :4],
            scores=noise[:, 4],
            raw_scores=noise[:, 5],
            labels=torch.arange(number) % len(classes),
            edge_std=noise[:, 6:10],
            edge_low=boxes - noise[:, 10:14],
            edge_high=boxes + 1 + noise[:, 10:14],
        )
        results.append(ImageResult(f'there/{image["file_name"]}', (480, 640), found, classes))
    folder = shards.ResultFolder(tmp_path / 'many')
    parts = [shards.Shard(number, ('',)) for number in (0, 1)]
    folder.start(parts, dict(level=0.8))
    for part, mine in zip(parts, (results[:4], results[4:])):
        folder.commit(part, mine)
    with pytest.raises(DataError, match='2 of 2 shards: repeat'):
        read({**files, 'results': folder.path})
    folder.finish()
    by_json = {**files, 'results': tmp_path / 'coco.json'}
    by_json['results'].write_text(json.dumps(shards.coco_results(folder.path, dataset)))
    pages = []
    for given in (by_json, {**files, 'results': folder.path}):
        words = [str(given['results']), '--truths', str(given['truths']), '--quiet']
        words += ['--images', str(given['images']), '--out', str(tmp_path / 'page.html')]
        pages.append(data_of(report.report(report.parse_arguments(words))))
    for page in pages:
        del page['title'], page['facts']
    assert pages[1]['uncertainty'].pop('level') == 0.8  # of the manifest, which JSON lacks
    assert pages[0]['uncertainty'].pop('level') is None
    assert pages[0] == pages[1]


def test_no_detections_and_no_gts(files, tmp_path):
    nothing = changed(files, tmp_path, lambda entries: entries.clear())
    data = read(nothing)
    analysis = analyse(data)
    assert analysis.values['ap'][0][1:4] == [0, 0, 0]
    (picture, *_) = draw_gallery(data, analysis, 3)
    assert picture['found'] == []
    assert picture['truths']
    assert all(missed and lost for *_, missed, lost in picture['truths'])
    dataset = json.loads(files['truths'].read_text())
    bare = tmp_path / 'bare.json'
    bare.write_text(json.dumps({**dataset, 'annotations': []}))
    values = analyse(read({**files, 'truths': bare})).values
    assert np.isnan(values['ap'][0][1])
    assert 'NaN' not in embed(values)


def test_pictures_stop_at_a_size_and_pass_over_broken_images(files, monkeypatch, tmp_path, capsys):
    folder = tmp_path / 'img'
    shutil.copytree(files['images'], folder)
    (folder / '000003.jpg').unlink()
    (folder / '000003.jpg').write_text('no image')
    data = read({**files, 'images': folder})
    analysis = analyse(data)
    shown = draw_gallery(data, analysis, 10)
    judged = np.flatnonzero(~np.isnan(analysis.judged.quality))
    assert sorted(entry['image'] for entry in shown) == [i for i in judged if i != 3]
    assert 'warning: ' in capsys.readouterr().err
    assert [each['image'] for each in shown] == sorted(
        (each['image'] for each in shown), key=lambda image: analysis.judged.quality[image]
    )
    size = {each['image']: size_of(each) for each in shown}
    chosen = [image for image in choose_images(analysis.judged, 10) if image != 3]
    monkeypatch.setattr(
        'gfl_det.visualization.report.page.MAX_BYTES', sum(map(size.get, chosen[:5]))
    )
    few = draw_gallery(data, analysis, 10)
    assert {each['image'] for each in few} == set(chosen[:5])
    assert draw_gallery(data._replace(folder=None), analysis, 10) == []


def test_a_picture_has_what_the_page_counts(files):
    data = read(files)
    analysis = analyse(data)
    matrix = np.zeros((4, 4), int)
    kinds = np.zeros((3, 6), int)
    for picture in draw_gallery(data, analysis, 10):
        mine = data.detections.image == picture['image']
        scores = [entry[1] for entry in picture['found']]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) <= min(mine.sum(), MAX_BOXES)
        assert picture['kept'] == mine[analysis.kept].sum()
        for place, (label, score, _, kind, row, edges) in enumerate(picture['found']):
            assert (row >= 0) == (place < picture['kept'])
            assert len(edges) == 4
            if place < picture['kept']:
                assert score >= analysis.values['cut']['threshold'] - 1e-4
                matrix[row, label] += 1
                kinds[label, kind] += kind >= 0
        for label, _, cover, missed, lost in picture['truths']:
            kinds[label, 5] += missed
            matrix[label, 3] += lost
            assert not missed or cover < analysis.values['cut']['threshold']
    cells = np.zeros_like(matrix)
    for row in analysis.values['images']:
        for i, j, number in np.reshape(row[6], (-1, 3)):
            cells[i, j] += number
    whole = {(i, j): number for i, j, number in analysis.values['confusion']}
    assert {(i, j): cells[i, j] for i, j in np.argwhere(cells)} == whole
    np.testing.assert_array_equal(matrix, cells)  # all images have pictures here
    np.testing.assert_array_equal(kinds, analysis.values['errors']['kept'][1:])


def test_statistics_of_a_drawn_data_set():
    dataset = dict(
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=64 + 2 * (i > 1), height=48) for i in range(3)
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate('ab')],
        annotations=[
            dict(id=i + 1, image_id=image, category_id=0, bbox=[0, 0, *size], iscrowd=crowd)
            for i, (image, size, crowd) in enumerate(
                [(0, (10, 10), 0), (0, (8, 32), 0), (2, (40, 40), 0), (2, (9, 9), 1)]
            )
        ],
    )
    gts = gts_from_coco(dataset)
    found = data_statistics(gts, *annotated_sizes(dataset, gts))
    assert [tuple(row[:3]) for row in found['classes']] == [(2, 1, 16.0), (0, 0, None)]
    assert found['classes'][0][3:] == pytest.approx((2 / 3, 1 / 3, 0))
    assert found['per_image'].tolist() == [1, 1, 1]
    assert found['sizes'] == [[64, 48, 2], [66, 48, 1]]
    for name, values in (('sides', [10, 16, 40]), ('ratios', [1, 0.25, 1])):
        borders, counts = found[name]['borders'], found[name]['counts']
        np.testing.assert_array_equal(counts, [np.histogram(values, borders)[0]] * 2 + [counts[2]])
        assert counts[2].sum() == 0


@pytest.mark.parametrize('area', [None, 'large', float('nan'), [1]])
def test_a_non_finite_area_is_that_of_the_box(files, tmp_path, area):
    dataset = json.loads(files['truths'].read_text())
    dataset['annotations'][2]['area'] = area
    path = tmp_path / 'gts.json'
    path.write_text(json.dumps(dataset))
    expected = read(files)
    width, height = expected.gts.boxes[2, 2:]
    found = read({**files, 'truths': path})
    assert found.area[2] == width * height
    assert found.area.tolist()[:2] == expected.area.tolist()[:2]


def test_names_with_invalid_unicode_are_written(files, tmp_path):
    dataset = json.loads(files['truths'].read_text())
    dataset['categories'][0]['name'] = '\ud800'
    path = tmp_path / 'gts.json'
    path.write_text(json.dumps(dataset))
    out = tmp_path / 'report.html'
    words = [files['results'], '--truths', path, '--out', out, '--quiet', '--title', 'x \udc80']
    report.report(report.parse_arguments([str(word) for word in words]))
    assert data_of(out)['classes'][0] == '\ud800'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda e: e[3].pop('edge_std'), r'entry 3 lacks "edge_std"'),
        (lambda e: e[3].update(edge_std=[1, 2, 3]), r'"edge_std" is not 4 finite numbers'),
        (lambda e: e[0].update(raw_score=float('nan')), r'entry 1 lacks "raw_score"'),
        (lambda e: e[0].update(file_name='a/999.jpg'), r'gfl-det infer --annotations'),
        (lambda e: e[0].update(image_id=77), r'the image_id \[77\] is not an image'),
    ],
)
def test_results_that_cannot_be_used(files, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read(changed(files, tmp_path, change))


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (['nowhere'], DataError, 'nowhere does not exist'),
        (['{results}'], ConfigError, 'give their --truths'),
        (
            ['{results}', '--truths', '{truths}', '--checkpoint', 'x'],
            ConfigError,
            '--checkpoint is',
        ),
        (['{images}', '--truths', '{truths}'], ConfigError, '--truths is not for a work dir'),
        (['{images}'], ConfigError, 'no config'),
        (['{results}', '--out', 'report.pdf'], DataError, 'must end in .html'),
        (['no', '--out', 'taken/a.html'], DataError, r'a\.html cannot be written \(Is a direct'),
        (['no', '--out', '{results}/a.html'], DataError, r'a\.html cannot be written \(File ex'),
        (['{results}', '--truths', '{truths}', '--images', 'no/'], DataError, 'does not exist'),
        (
            ['{results}', '--truths', '{truths}', '--images', '.'],
            DataError,
            r'None of the \d+ images .* is in \.',
        ),
        (['{results}', '--truths', '{truths}', '--logs', '.'], DataError, 'has no scalars.json'),
        (['{truths}', '--truths', '{truths}'], DataError, 'holds annotations, not results'),
    ],
)
def test_refusals_are_sentences(files, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'taken' / 'a.html').mkdir(parents=True)
    words = [word.format(**files) for word in arguments]
    with pytest.raises(error, match=message):
        report.report(report.parse_arguments([*words, '--quiet']))
    assert not list(tmp_path.glob('*.html'))


@pytest.fixture
def trained(tmp_path) -> tuple[Path, Config]:
    """A work dir without a config, and the config: data of three images, random weights."""
    rng = np.random.default_rng(0)
    images = tmp_path / 'data' / 'img'
    images.mkdir(parents=True)
    for index in range(3):
        noise = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
        cv2.imwrite(str(images / f'{index}.png'), noise)
    dataset = dict(
        images=[dict(id=i, file_name=f'{i}.png', width=128, height=96) for i in range(3)],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)],
        annotations=[
            dict(id=i, image_id=i, category_id=i, bbox=[9, 9, 40, 40], area=1600, iscrowd=0)
            for i in range(3)
        ],
    )
    (tmp_path / 'data' / 'val.json').write_text(json.dumps(dataset))
    work_dir = tmp_path / 'work'
    logs = work_dir / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    (logs / 'scalars.json').write_text('{"loss": 1.5, "iter": 1, "epoch": 1, "step": 1}\n')
    cfg = gfl_det.get_config('gfl_r18_fpn_digits')
    write_checkpoint(work_dir, cfg)
    cfg.merge_from_dict(
        {
            'val_dataloader.dataset.data_root': f'{tmp_path}/data/',
            'val_dataloader.dataset.ann_file': 'val.json',
            'val_dataloader.dataset.data_prefix.img': 'img/',
            'val_dataloader.num_workers': 0,
            'val_dataloader.persistent_workers': False,
            'val_evaluator.ann_file': f'{tmp_path}/data/val.json',
        }
    )
    return work_dir, cfg


def test_a_calibrator_ranks_the_pool_that_it_has_in_the_detector(trained, tmp_path, monkeypatch):
    """Of 60 boxes an image the 10 that it thinks best are kept, as the detector itself keeps."""
    work_dir, cfg = trained
    checkpoint = str(work_dir / 'epoch_1.pth')
    cfg.model.test_cfg.max_per_img = 60
    cfg.val_dataloader.batch_size = 1
    gts, found = detect_edges(cfg, checkpoint, 'val')
    rows = np.arange(len(found.detections.scores))[::3]  # some of what is found is true
    known = {
        name: values[rows]
        for name, values in found.detections._asdict().items()
        if name != 'scores'
    }
    others = gts._replace(
        image_keys=[f'other {key}' for key in gts.image_keys],
        crowd=np.zeros(len(rows), bool),
        **known,
    )
    path = str(tmp_path / 'pool.json')
    fitted = fit_distribution_calibrator(found, others)
    save_distribution_calibrator(fitted, path)
    cfg.model.test_cfg.update(max_per_img=10, rank_pool=60)
    data = run_work_dir(work_dir, cfg, checkpoint, 'val', path)
    detector = gfl_det.GFLInferencer(checkpoint, cfg, device='cpu', calibrator=path)
    images = sorted((tmp_path / 'data' / 'img').iterdir())
    for index, result in enumerate(detector(list(images), progress=False)):
        mine = data.detections.image == index
        order = np.argsort(-data.detections.scores[mine], kind='stable')
        want = result.instances
        assert len(want) == mine.sum() == 10
        np.testing.assert_allclose(data.detections.scores[mine][order], want.scores, atol=1e-6)
        np.testing.assert_allclose(data.raw_scores[mine][order], want.raw_scores, atol=1e-6)
        np.testing.assert_allclose(data.edge_std[mine][order], want.edge_std, rtol=1e-4)
        np.testing.assert_allclose(data.intervals[1][mine][order], want.edge_high, rtol=1e-4)
    assert len(data.distributions.edge_logits) == 30
    best_of_all = np.sort(found.detections.scores[found.detections.image == 0])[::-1][:10]
    assert data.raw_scores[data.detections.image == 0].min() < best_of_all.min()

    monkeypatch.setattr(runner, 'build_runner', pytest.fail)  # what follows is refused before
    seen = replace(fitted, source=fitted.source._replace(images=tuple(gts.image_keys)))
    for other, message in (
        (seen, '3 of 3 images were used to fit'),
        (replace(fitted, score_type='GFLv2Head'), "for scores of 'GFLv2Head', not"),
    ):
        save_distribution_calibrator(other, path)
        with pytest.raises(DataError, match=message):
            run_work_dir(work_dir, cfg, checkpoint, 'val', path)


def test_a_work_dir_is_run(trained, tmp_path):
    work_dir, cfg = trained
    with pytest.raises(ConfigError, match='no config'):
        report.report(report.parse_arguments([str(work_dir), '--out', str(tmp_path / 'a.html')]))
    cfg.model.test_cfg.interval_level = None
    cfg.dump(str(work_dir / 'mine.py'))
    (work_dir / 'epoch_1.pth').rename(work_dir / 'best_coco_bbox_mAP_epoch_1.pth')
    out = tmp_path / 'report.html'
    done = run_tool('report', work_dir, '--out', out, '--title', 'My run', '--pictures', 2)
    assert done.returncode == 0, done.stderr
    values = data_of(out)
    assert values['title'] == 'My run'
    facts = dict(values['facts'])
    assert facts['checkpoint'].endswith('best_coco_bbox_mAP_epoch_1.pth')
    assert facts['config'].endswith('mine.py')
    assert values['counts'][0] == ['images', 3]
    assert dict(map(tuple, values['counts']))['detections'] > 0
    assert values['training']['training'][0]['values'] == [1.5]
    assert values['uncertainty']['level'] == 0.9
    assert len(values['pictures']) == 2
    assert values['model']['parameters'] > 1e6
    assert values['model']['milliseconds'] > 0
    (work_dir / 'best_coco_bbox_mAP_epoch_1.pth').unlink()
    with pytest.raises(CheckpointError, match='has no checkpoint'):
        best_checkpoint(work_dir)


@pytest.mark.slow
def test_five_thousand_images_stay_below_15_megabytes(tmp_path):
    dataset, results = reporting.made_up(5000, 80, 100)
    reporting.write_images(tmp_path / 'img', dataset)
    (tmp_path / 't.json').write_text(json.dumps(dataset))
    (tmp_path / 'r.json').write_text(json.dumps(results))
    out = tmp_path / 'report.html'
    files = ('--truths', tmp_path / 't.json', '--images', tmp_path / 'img', '--out', out)
    done = run_tool('report', tmp_path / 'r.json', *files, '--pictures', 400)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size < 15e6
    assert len(data_of(out)['images']) == 5000
