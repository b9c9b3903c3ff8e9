"""From files to results: what can be read, in which order, and what is said of the rest."""

from __future__ import annotations

import json
import runpy
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image

from gfl_det import GFLInferencer
from gfl_det.cli import infer
from gfl_det.cli.infer import parse_arguments
from gfl_det.errors import CheckpointError, ConfigError, DataError, SetupError
from gfl_det.inference import stream
from gfl_det.inference.inferencer import _at_least
from tests.helpers.commands import run_tool
from tests.helpers.inferring import CLASSES, small_config, write_checkpoint, write_images
from tests.helpers.paths import ROOT
from tests.helpers.swapping import zoo_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('inferring')


@pytest.fixture(scope='module')
def checkpoint(folder: Path) -> Path:
    return write_checkpoint(folder)


@pytest.fixture(scope='module')
def images(folder: Path) -> list[Path]:
    return write_images(folder / 'images', 3)


@pytest.fixture(scope='module')
def detect(checkpoint: Path) -> GFLInferencer:
    return GFLInferencer(checkpoint, device='cpu', score_thr=0.3)


def assert_same(found, expected) -> None:
    assert len(found) == len(expected)
    assert sorted(found.keys()) == sorted(expected.keys())
    for name in expected.keys():  # noqa: SIM118  (iterating InstanceData gives its rows)
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-3)


def test_results_are_those_of_mmdets_inferencer(checkpoint, images, detect, folder) -> None:
    """The config in the checkpoint, our reading and batching against mmdet's own way."""
    from mmdet.apis import DetInferencer

    cfg = small_config()
    cfg.model.test_cfg.update(score_thr=0.3, with_uncertainty=True, interval_level=0.9)
    cfg.dump(folder / 'config.py')
    theirs = DetInferencer(str(folder / 'config.py'), str(checkpoint), device='cpu')
    results = detect(folder / 'images', progress=False)
    assert [each.source for each in results] == [str(path) for path in images]
    for result, path in zip(results, images):
        expected = theirs(str(path), return_datasamples=True)['predictions'][0].pred_instances
        assert len(result) > 5
        assert_same(result.instances, expected)
        assert result.size == (96, 128)
        assert result.classes == CLASSES
        assert result.level == 0.9


def test_a_batch_gives_what_single_images_give(detect, images, folder) -> None:
    """Images of different sizes, mixed; nothing is padded to its neighbours."""
    wide = write_images(folder / 'wide', 3, (64, 160))
    mixed = [path for pair in zip(images, wide) for path in pair]
    single = detect(mixed, progress=False)
    for batch_size in (2, 4):
        batched = detect(mixed, batch_size=batch_size, progress=False)
        assert [each.source for each in batched] == [str(path) for path in mixed]
        assert [each.size for each in batched] == [(96, 128), (64, 160)] * 3
        for found, expected in zip(batched, single):
            assert_same(found.instances, expected.instances)


def test_images_of_one_size_go_together(detect, images, monkeypatch) -> None:
    sizes = []
    plain = detect._predict

    def predict(batch):
        sizes.append(len(batch))
        return plain(batch)

    monkeypatch.setattr(detect, '_predict', predict)
    monkeypatch.setattr(stream, 'WINDOW_BATCHES', 2)
    detect([*images, *images, images[0]], batch_size=2, progress=False)
    assert sizes == [2, 2, 2, 1]


def test_all_kinds_of_inputs(detect, images, folder) -> None:
    array = cv2.imread(str(images[0]))
    expected = detect(images[0], progress=False)[0].instances
    for given in (str(images[0]), str(folder / 'images' / '1.*'), array, [array]):
        results = detect(given, progress=False)
        assert len(results) == 1
        assert_same(results[0].instances, expected)
    both = detect([array, images[1], array], progress=False)
    assert [each.source for each in both] == ['array 0', str(images[1]), 'array 1']
    grey = detect(cv2.imread(str(images[0]), cv2.IMREAD_GRAYSCALE), progress=False)
    assert grey[0].size == (96, 128)


def test_images_of_other_libraries_give_what_their_file_gives(detect, images) -> None:
    path = images[0]
    expected = detect(path, progress=False)[0].instances
    pillow = Image.open(path)
    pixels = torch.from_numpy(np.array(pillow.convert('RGB'))).permute(2, 0, 1)
    for given in (pillow, [pillow], pixels, pixels / 255, torch.stack([pixels]), [pixels]):
        assert_same(detect(given, progress=False)[0].instances, expected)
    assert detect(pillow, progress=False)[0].source == str(path)
    assert len(detect(torch.stack([pixels] * 3), progress=False)) == 3


def test_a_call_may_ask_for_other_scores(detect, images) -> None:
    """Lower ones too, which the head must decode anew."""
    usual = detect(images, progress=False)
    for score in (0.1, 0.6):
        other = detect(images, progress=False, score_thr=score)
        for found, each in zip(other, usual):
            assert len(found.above(max(score, 0.3))) == len(each.above(score))
            assert (len(found) > len(each)) == (score < 0.3)
    assert [len(each) for each in detect(images, progress=False)] == [len(each) for each in usual]
    with pytest.raises(ConfigError, match='score_thr must be a score from 0 to 1, not 2'):
        detect(images, progress=False, score_thr=2)


def test_an_image_that_breaks_the_network_ends_no_other(detect, images, monkeypatch) -> None:
    plain = detect._predict

    def predict(batch):
        if any(each.data['data_samples'].img_path == str(images[1]) for each in batch):
            raise RuntimeError('no memory for that\nmore')
        return plain(batch)

    monkeypatch.setattr(detect, '_predict', predict)
    results = detect(images, batch_size=3, progress=False)
    assert [each.error is None for each in results] == [True, False, True]
    assert results[1].error == (
        f'The detector fails at {images[1]} of 128 x 96 px (RuntimeError: no memory for that).'
    )
    assert all(each.milliseconds > 0 for each in results if each.error is None)


def test_files_passed_over_are_counted_and_named(detect, images, folder, capsys) -> None:
    mixed = folder / 'mixed'
    mixed.mkdir()
    (mixed / 'a.png').write_bytes(images[0].read_bytes())
    for number in range(7):
        (mixed / f'{number}.txt').write_text('')
    detect(mixed)
    assert (
        f'7 files in {mixed} skipped, because the extensions are not those of images: 0.txt, '
        '1.txt, 2.txt, 3.txt, 4.txt and 2 more'
    ) in capsys.readouterr().err


def test_a_model_of_one_channel_takes_all_kinds(folder, images) -> None:
    cfg = small_config()
    cfg.model.backbone.in_channels = 1
    cfg.model.data_preprocessor.update(mean=[114.0], std=[58.0], bgr_to_rgb=False)
    loader = dict(type='LoadImageFromFile', color_type='grayscale')
    cfg.test_dataloader.dataset.pipeline[0] = loader
    (folder / 'grey').mkdir()
    grey = GFLInferencer(write_checkpoint(folder / 'grey', cfg), device='cpu', score_thr=0.2)
    colours = cv2.imread(str(images[0]))
    plane = cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY)
    expected = grey(plane, progress=False)[0]
    assert len(expected) > 0
    for given in (plane[..., None], colours, Image.fromarray(plane)):
        assert_same(grey(given, progress=False)[0].instances, expected.instances)
    written = folder / 'grey.png'
    cv2.imwrite(str(written), plane)
    assert_same(grey(written, progress=False)[0].instances, expected.instances)
    clip = write_video(folder / 'grey.avi', [colours] * 2)
    results = grey([images[0], clip, images[1]], progress=False, keep_images=True)
    assert [each.error for each in results] == [None] * 4
    assert results[0].plot(0.2).size[0] >= 128


def test_an_address(detect, images, folder) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder / 'images'))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f'http://127.0.0.1:{server.server_address[1]}'
        results = detect([f'{base}/1.png', f'{base}/none.png'], progress=False)
        assert_same(results[0].instances, detect(images[0], progress=False)[0].instances)
        assert results[1].error == f'{base}/none.png cannot be fetched: HTTP status 404.'
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(DataError, match='cannot be fetched'):
        detect(f'{base}/1.png', progress=False)


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (width, height))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no video')
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def test_a_video_is_its_frames(detect, images, folder) -> None:
    frames = [cv2.imread(str(path)) for path in images] * 2
    path = write_video(folder / 'film.avi', frames)
    results = detect(path, batch_size=4, progress=False)
    assert [each.name for each in results] == [f'{path}#{number}' for number in range(6)]
    assert_same(results[0].instances, results[3].instances)
    assert [each.frame for each in detect(path, every=4, progress=False)] == [0, 4]


def test_faults_leave_the_others_done(detect, images, folder, capsys) -> None:
    torn = folder / 'torn.png'
    torn.write_bytes(images[0].read_bytes()[:3000])
    empty = folder / 'empty'
    empty.mkdir()
    (folder / 'notes.txt').write_text('no image')
    inputs = [torn, images[1], empty, folder / 'notes.txt', folder / 'absent.png', images[2]]
    results = detect(inputs)
    errors = [each.error for each in results]
    assert errors[1] is None
    assert errors[5] is None
    assert errors[0] == f'{torn} is truncated: its end is missing; copy or download it again.'
    assert 'is empty (subfolders are not searched)' in str(errors[2])
    assert 'has the extension .txt: use one of .apng .avi .avif .bmp' in str(errors[3])
    assert errors[4] == f'{folder / "absent.png"} does not exist: check the path.'
    assert len(results.failures) == 4
    told = capsys.readouterr().err
    assert all(f'warning: {error}\n' in told for error in errors if error)
    assert_same(results[5].instances, detect(images[2], progress=False)[0].instances)


@pytest.mark.parametrize('name', ['shot', 'shot.png.part', 'shot.jfif'])
def test_a_named_file_is_an_image_by_its_content(detect, images, folder, name) -> None:
    (folder / name).write_bytes(images[0].read_bytes())
    assert_same(detect(folder / name)[0].instances, detect(images[0])[0].instances)


def test_nothing_done_is_an_error(detect, folder) -> None:
    (folder / 'data').mkdir(exist_ok=True)
    (folder / 'data' / 'a.csv').write_text('')
    with pytest.raises(DataError, match=r'has no images, only \.csv \(1\)'):
        detect(folder / 'data', progress=False)
    with pytest.raises(DataError, match='matches no file'):
        detect(str(folder / '*.xyz'), progress=False)
    with pytest.raises(DataError, match=r'1 does not exist.* inputs: 1\.'):
        detect([folder / '1', folder / '2'], progress=False)
    with pytest.raises(DataError, match='list of inputs is empty'):
        detect([], progress=False)


@pytest.mark.parametrize(
    ('inputs', 'match'),
    [
        (torch.zeros(20, 30, 3, dtype=torch.uint8), r'array 0 has the shape \(30, 3, 20\)'),
        (torch.full((3, 20, 30), 255.0), 'tensor of floats from 255 to 255: give floats from 0'),
        (None, 'type NoneType'),
        (3, 'type int'),
        (b'abc', r'type bytes .* BGR\.$'),  # and not: so it is with others
        ({'a.png': 1}, 'type dict'),
        ([[]], 'type list'),
        ('', 'empty string: name an image'),
        ('s3://a/b.png', 'only URLs with http'),
    ],
)
def test_other_inputs_are_named(detect, inputs, match) -> None:
    """Above all a tensor whose rows would be taken for its channels."""
    with pytest.raises(DataError, match=match):
        detect(inputs, progress=False)


@pytest.mark.parametrize(
    'options',
    [
        dict(batch_size=0), dict(batch_size=2.5), dict(batch_size='2'),
        dict(every=0), dict(max_pixels=-5), dict(max_pixels='many'),
    ],
)  # fmt: skip
def test_numbers_are_checked(detect, images, options) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f'{name} must be an integer of at least 1, not'):
        detect(images[0], progress=False, **options)
    assert len(detect(images[0], progress=False, batch_size=np.int64(2))) == 1


def test_an_image_that_the_pipeline_cannot_take_is_named(detect) -> None:
    results = detect([np.zeros((1, 20000, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)])
    assert 'array 0 (20000 x 1 px)' in str(results[0].error)
    assert results[1].error is None


def test_one_pixel_is_an_image(detect) -> None:
    assert detect(np.zeros((1, 1, 3), np.uint8), progress=False)[0].size == (1, 1)


@pytest.mark.parametrize(
    ('options', 'error', 'match'),
    [
        (dict(device='cuda:99'), SetupError, "device 'cuda:99' cannot be used"),
        (dict(level=90), ConfigError, 'level .*not 90'),
        (dict(level='high'), ConfigError, "between 0 and 1, not 'high'"),
        (dict(score_thr=30), ConfigError, 'score_thr must be a score from 0 to 1, not 30'),
        (dict(optimize='int8'), ConfigError, "float32, bfloat16, float16, not 'int8'"),
        (dict(config='gfl_r18_fpn_bccd'), CheckpointError, r'does not fit gfl_r18_fpn_bccd: \d+'),
        (dict(config='gfl_r18_fpn_digit'), ConfigError, 'did you mean "gfl_r18_fpn_digits"'),
        (dict(intervals='absent.json'), DataError, r'absent\.json cannot be read'),
        (dict(optimize='float16'), SetupError, 'no fast float16'),
    ],
)
def test_what_does_not_fit_is_said(checkpoint, options, error, match) -> None:
    with pytest.raises(error, match=match):
        GFLInferencer(checkpoint, **{'device': 'cpu', **options})


def test_other_parts_than_the_configs_are_said(checkpoint) -> None:
    cfg = small_config()
    cfg.model.bbox_head.stacked_convs = 3
    with pytest.raises(CheckpointError, match=r'config: \d+ tensors .*missing'):
        GFLInferencer(checkpoint, cfg, device='cpu')
    cfg.model.bbox_head.stacked_convs = 1
    with pytest.raises(CheckpointError, match=r'\d+ tensors have no place'):
        GFLInferencer(checkpoint, cfg, device='cpu')


def test_mmdets_head_is_built_as_ours(checkpoint, images, detect) -> None:
    cfg = small_config()
    for part, name in (
        (cfg.model.bbox_head, 'GFLHead'),
        (cfg.model.bbox_head.loss_cls, 'QualityFocalLoss'),
        (cfg.model.bbox_head.loss_dfl, 'DistributionFocalLoss'),
    ):
        part.type = name
    found = GFLInferencer(checkpoint, cfg, device='cpu', score_thr=0.3)(images[0], progress=False)
    assert_same(found[0].instances, detect(images[0], progress=False)[0].instances)


def test_heads_without_distributions_give_boxes_and_scores(images, tmp_path) -> None:
    cfg = small_config()
    cfg.model.type, cfg.model.bbox_head.type = 'ATSS', 'ATSSHead'
    for name in ('loss_dfl', 'reg_max'):
        cfg.model.bbox_head.pop(name)
    cfg.model.bbox_head.loss_cls = dict(type='FocalLoss', use_sigmoid=True)
    model = MODELS.build(cfg.model)
    path = tmp_path / 'atss.pth'
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    result = GFLInferencer(path, device='cpu', score_thr=0.0)(images[0], progress=False)[0]
    assert sorted(result.instances.keys()) == ['bboxes', 'labels', 'scores']
    assert result.level is None
    assert len(result) == len(result.to_coco()) > 0


def test_the_least_score_reaches_the_second_stage(images, tmp_path, monkeypatch) -> None:
    """Of mmdet's Faster R-CNN, in whose test config each stage has an entry of its own."""
    monkeypatch.setattr('mmcv.ops.RoIAlign.forward', crop)
    register_all_modules()
    cfg = two_stages()
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.weight.mul_(8)
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'faster.pth')

    def scores(thr: float | None) -> torch.Tensor:
        detect = GFLInferencer(tmp_path / 'faster.pth', device='cpu', score_thr=thr)
        return detect(images[0], progress=False)[0].instances.scores

    own = scores(None)  # the config's 0.05
    assert len(own) > 5
    assert torch.equal(scores(float(own[4:6].mean())), own[:5])
    below = scores(0.0)  # which a filter behind the detector could not bring back
    assert (below <= 0.05).any()
    assert torch.equal(below[below > 0.05], own)


def crop(layer, maps: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """What RoIAlign does, which needs compiled operators, for the maps of one image."""
    height, width = maps.shape[-2:]
    low, high = (rois[:, 1:] * layer.spatial_scale).split(2, dim=1)
    steps = (torch.arange(layer.output_size[0]) + 0.5) / layer.output_size[0]
    places = low[:, None] + steps[:, None] * (high - low)[:, None]  # (N, 7, 2) x and y
    places = places / torch.tensor([width, height]) * 2 - 1
    x, y = places.unbind(-1)
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)
    return F.grid_sample(maps.expand(len(rois), -1, -1, -1), grid, align_corners=False)


def two_stages() -> Config:
    cfg, small = zoo_config('faster_rcnn/faster-rcnn_r50_fpn_1x_coco'), small_config()
    cfg.model.backbone.init_cfg = None
    cfg.model.neck.out_channels = 16
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    cfg.model.roi_head.bbox_roi_extractor.out_channels = 16
    cfg.model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=10)
    cfg.model.test_cfg.rpn.update(nms_pre=60, max_per_img=60)
    cfg.model.test_cfg.rcnn.max_per_img = -1
    return Config(
        dict(model=cfg.model, default_scope='mmdet', test_dataloader=small.test_dataloader)
    )


def test_class_scores_come_from_gfl_heads_alone(checkpoint, images, folder) -> None:
    path = folder / 'classes.json'
    argv = [str(checkpoint), str(images[0]), '--class-scores', '--out', str(path), '--quiet']
    infer.run(parse_arguments([*argv, '--device', 'cpu', '--score-thr', '0.3']))
    (first, *_) = json.loads(path.read_text())
    assert first['class_scores'][str(first['category_id'])] == pytest.approx(first['score'])
    assert len(first['class_scores']) == len(CLASSES)
    cfg = two_stages()
    register_all_modules()
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'two.pth')
    with pytest.raises(ConfigError, match=r'FasterRCNN .*two\.pth.* class scores'):
        GFLInferencer(folder / 'two.pth', cfg, device='cpu', with_class_scores=True)


def test_the_least_score_holds_where_no_test_config_has_one() -> None:
    """Detectors without suppression, as DETR, read none; scores count before calibration."""
    found = InstanceData(scores=torch.tensor([0.9, 0.4]), raw_scores=torch.tensor([0.2, 0.5]))
    assert _at_least(found, 0.3).scores.tolist() == [pytest.approx(0.4)]
    del found.raw_scores
    assert len(_at_least(found, 0.3)) == len(_at_least(found, None)) == 2
    assert len(_at_least(found, 0.95)) == 0


def test_optimized_and_without_intervals(checkpoint, images, detect) -> None:
    fast = GFLInferencer(checkpoint, device='cpu', score_thr=0.3, level=None, optimize='float32')
    found = fast(images[0], progress=False)[0]
    expected = detect(images[0], progress=False)[0]
    assert found.level is None
    assert 'edge_low' not in found.instances
    torch.testing.assert_close(
        found.instances.scores, expected.instances.scores, rtol=1e-3, atol=1e-3
    )


def test_the_tool_writes_what_it_could_read_and_exits_with_1(checkpoint, images, tmp_path) -> None:
    (tmp_path / 'in').mkdir()
    for path in images[:2]:
        (tmp_path / 'in' / path.name).write_bytes(path.read_bytes())
    (tmp_path / 'in' / '3.png').write_bytes(b'torn')
    coco = dict(
        images=[dict(id=70 + n, file_name=f'{n}.png') for n in (1, 2, 3)],
        categories=[dict(id=5 + n, name=name) for n, name in enumerate(CLASSES)],
    )
    (tmp_path / 'coco.json').write_text(json.dumps(coco))
    words = ['--out', 'out/found.json', '--annotations', 'coco.json', '--show-dir', 'drawn']
    ran = run_tool('infer', checkpoint, 'in', *words, '--batch-size', 2, cwd=tmp_path)
    assert ran.returncode == 1
    assert 'Traceback' not in ran.stderr
    lines = ran.stderr.splitlines()
    assert any(line.startswith('warning: in/3.png is not an image of') for line in lines)
    assert lines[-1] == 'error: 1 of 3 inputs could not be read, see above.'
    assert 'in/1.png: ' in ran.stdout
    assert 'results: out/found.json' in ran.stdout
    assert 'pictures: drawn (2 files)' in ran.stdout
    entries = json.loads((tmp_path / 'out' / 'found.json').read_text())
    assert {each['image_id'] for each in entries} == {71, 72}
    assert {each['category_id'] for each in entries} <= set(range(5, 15))
    assert all(len(each['edge_low']) == 4 for each in entries)
    assert sorted(path.name for path in (tmp_path / 'drawn').iterdir()) == ['1.jpg', '2.jpg']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['nothing'], 'error: The folder nothing is empty'),
        (['images/1.png', '--out', 'a.txt'], 'error: --out a.txt must end in .json'),
        (['images/1.png', '--annotations', 'a.json'], 'error: --annotations gives ids to a result'),
        (['images/1.png', '--show-dir', 'epoch_1.pth'], 'error: The folder epoch_1.pth cannot be'),
        (['images/1.png', '--config', 'absent.py'], 'error: There is no config absent.py'),
    ],
)
def test_the_tool_refuses_in_one_sentence(
    checkpoint, images, folder, monkeypatch, capsys, words, message
) -> None:
    (folder / 'nothing').mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', ['infer.py', str(checkpoint), *words])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / 'tools' / 'infer.py'), run_name='__main__')
    assert stopped.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_the_tool_writes_tables(checkpoint, images, folder, monkeypatch, capsys) -> None:
    pandas = pytest.importorskip('pandas', reason='the extra pandas is not installed')
    monkeypatch.chdir(folder)
    words = [str(checkpoint), 'images', '--out', 'table/found.csv', '--score-thr', '0.3']
    infer.run(infer.parse_arguments([*words, '--device', 'cpu']))
    table = pandas.read_csv('table/found.csv')
    assert table['source'].nunique() == 3
    assert {'left_low', 'bottom_entropy'} <= set(table.columns)
    assert 'images/1.png: ' in capsys.readouterr().out


def test_arguments_are_checked(capsys) -> None:
    for words in (['--score-thr', '1.5'], ['--batch-size', '0'], ['--level', 'x']):
        with pytest.raises(SystemExit) as stopped:
            parse_arguments(['c.pth', 'in', *words])
        assert stopped.value.code == 2


@pytest.mark.parametrize('every', [1, 2])
def test_a_video_is_drawn_into_a_video(checkpoint, images, folder, capsys, every) -> None:
    frames = [cv2.imread(str(path)) for path in images] * 2
    clip = write_video(folder / 'drawn.avi', frames)
    out = folder / f'new{every}' / 'drawn.mp4'
    words = [checkpoint, clip, '--save-video', out, '--show-thr', 0.5, '--score-thr', 0.3]
    args = parse_arguments([*map(str, words), '--device', 'cpu', '--every', str(every)])
    infer.run(args)
    capture = cv2.VideoCapture(str(out))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6 / every
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10 / every)
    capture.release()
    lines = capsys.readouterr().out.splitlines()
    results = GFLInferencer(checkpoint, device='cpu', score_thr=0.3)(clip, progress=False)
    shown, kept = len(results[0].above(0.5)), len(results[0])
    assert lines[0].startswith(f'{clip}#0: {shown} boxes')
    assert f'({kept - shown} more below --show-thr 0.5)' in lines[0]
    assert lines[0].endswith(' ms]')
    assert f'video: {out} ({6 // every} frames, {10 / every:g} a second)' in lines
    assert lines[-1].startswith(f'speed: {6 // every} frames, ')


def test_a_video_to_save_needs_one_video(checkpoint, images, folder) -> None:
    def run(*words) -> None:
        infer.run(parse_arguments([str(checkpoint), *map(str, words), '--device', 'cpu']))

    clip = write_video(folder / 'one.avi', [cv2.imread(str(images[0]))])
    with pytest.raises(DataError, match='takes one video, and the inputs have 0'):
        run(images[0], '--save-video', folder / 'x.mp4')
    with pytest.raises(DataError, match=r'must end in \.mp4'):
        run(clip, '--save-video', folder / 'x.avi')
    with pytest.raises(DataError, match='is the video itself'):
        run(clip, '--save-video', clip)


def test_a_summary_names_the_best_of_each_class(detect, images) -> None:
    result = detect(images[0], progress=False)[0]
    text = result.summary()
    best = result.classes[int(result.instances.labels[0])]
    assert text.startswith(f'{images[0]}: {len(result)} boxes: ')
    assert f'{best} ({float(result.instances.scores[0]):.2f}' in text
    assert result.above(1.1).summary().endswith(': 0 boxes')


@pytest.mark.parametrize('name', ['mine.onnx', 'mine.xml'])
def test_an_exported_file_is_told_from_a_damaged_checkpoint(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b'graph')
    with pytest.raises(CheckpointError, match=rf'{name} is an exported detector: .*infer-many'):
        GFLInferencer(tmp_path / name)
