"""Weights by name, from a server on this machine with state dicts that mmdet's models make."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope

from gfl_det import GFLInferencer
from gfl_det.cli import models
from gfl_det.compat import published
from gfl_det.compat.published import PublishedModel, config_of, fetch, published_models
from gfl_det.errors import CheckpointError
from gfl_det.inference.loading import build
from tests.helpers.inferring import write_images

NAMES = [each.name for each in published_models()]


class Torn(SimpleHTTPRequestHandler):
    """Serves files; of names with "torn" half of what it promises."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if 'torn' not in self.path:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder behind an address, and an empty cache."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    folder = tmp_path / 'served'
    folder.mkdir()
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Torn, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Torn.asked = []
    yield folder, f'http://127.0.0.1:{server.server_address[1]}'
    server.shutdown()
    server.server_close()


def put(folder: Path, stem: str, state: object, good: bool = True) -> str:
    """Write a file with its hash in its name, as OpenMMLab's are; returns the name."""
    path = folder / 'new.pth'
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if good else '0' * 8
    return path.rename(folder / f'{stem}-{digest}.pth').name


def theirs(name: str, folder: str) -> Config:
    """mmdet's config; of a student that of the same model alone."""
    cfg = Config.fromfile(published.config_folder() / folder / f'{name}.py')
    if folder == 'ld':
        cfg.model.pop('teacher_config')
        cfg.model.pop('teacher_ckpt')
        cfg.model.type, cfg.model.bbox_head.type = 'GFL', 'GFLHead'
        cfg.model.bbox_head.pop('loss_ld')
    return cfg


@pytest.mark.parametrize(
    ('name', 'folder'),
    [('gfl_r50_fpn_1x_coco', 'gfl'), ('ld_r34-gflv1-r101_fpn_1x_coco', 'ld')],
)
def test_a_name_is_fetched_once_and_run(name, folder, served, monkeypatch, tmp_path) -> None:
    register_all_modules()
    with DefaultScope.overwrite_default_scope('mmdet'):
        state = MODELS.build(theirs(name, folder).model).state_dict()
    file = put(
        served[0], name, dict(meta=dict(CLASSES=tuple(map(str, range(80)))), state_dict=state)
    )
    entry = PublishedModel(name, folder, 40.2, f'{served[1]}/{file}')
    monkeypatch.setattr(published, 'published_models', lambda: (entry,))
    for _ in range(2):
        detect = GFLInferencer(name, device='cpu', score_thr=0.0)
    assert Torn.asked == [f'/{file}']
    assert entry.path.read_bytes() == (served[0] / file).read_bytes()
    assert type(detect.model.bbox_head).__module__.startswith('gfl_det.')
    for key, value in detect.model.state_dict().items():
        assert torch.equal(value, state[key]), key
    (image,) = write_images(tmp_path / 'images', 1)
    detect._prepare.transforms[0].scale = (128, 96)  # the config's takes seconds
    assert detect(image, progress=False)[0].error is None
    assert detect.classes[79] == '79'


@pytest.mark.parametrize('stem', ['torn', 'other'])
def test_a_broken_download_leaves_nothing(stem, served) -> None:
    file = put(served[0], stem, dict(weight=torch.randn(10_000)), good=stem == 'torn')
    entry = PublishedModel(stem, 'gfl', 1.0, f'{served[1]}/{file}')
    with pytest.raises(CheckpointError) as caught:
        fetch(entry)
    assert entry.url in str(caught.value)
    assert str(caught.value).endswith(f'put it at {entry.path}.')
    assert list(entry.path.parent.iterdir()) == []


def test_without_a_network_the_sentence_names_address_and_folder(served, monkeypatch) -> None:
    entry = PublishedModel('gfl_x', 'gfl', 1.0, 'http://127.0.0.1:9/gfl_x-12345678.pth')
    monkeypatch.setattr(published, 'published_models', lambda: (entry,))
    with pytest.raises(CheckpointError) as caught:
        GFLInferencer('gfl_x')
    assert '\n' not in str(caught.value)
    assert entry.url in str(caught.value)
    assert str(entry.path) in str(caught.value)


def test_a_damaged_file_in_the_cache_is_said(served) -> None:
    entry = PublishedModel('gfl_x', 'gfl', 1.0, f'{served[1]}/gfl_x-12345678.pth')
    entry.path.parent.mkdir(parents=True)
    entry.path.write_bytes(b'half')
    with pytest.raises(CheckpointError, match=r'is damaged.*begin with 12345678: remove it'):
        fetch(entry)
    assert Torn.asked == []


def test_other_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r'did you mean gfl_r50_fpn_1x_coco\?'):
        GFLInferencer('gfl_r50_fpn_1x')
    with pytest.raises(CheckpointError, match='gfl_v2_r50_fpn_1x_coco'):  # there are none of v2
        GFLInferencer('gfl_v2_r50_fpn_1x_coco')


def test_all_that_is_published_is_listed(capsys, served) -> None:
    entries = published_models()
    assert [each.folder for each in entries] == ['gfl'] * 6 + ['ld'] * 4 + ['nanodet'] * 3
    assert all(published.HASH.search(each.url) for each in entries if each.folder != 'nanodet')
    assert {each.name: each.ap for each in entries}['gfl_r50_fpn_1x_coco'] == 40.2
    entries[0].path.parent.mkdir(parents=True)
    entries[0].path.write_bytes(bytes(3 * 2**20))
    models.run(models.parse_arguments(['--urls']))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        entries[0].name,
        '40.2',
        f'{entries[0].parameters / 1e6:.1f}',
        'M',
        '3',
        'MiB',
        'yes',
    ]
    assert lines[2].strip() == entries[0].url
    assert lines[3].split()[-1] == 'no'
    assert lines[-1] == f'folder: {entries[0].path.parent}'
    assert str(published.cache_folder().parent) == torch.hub.get_dir()


@pytest.mark.parametrize('name', NAMES)
def test_parameters_are_as_counted(name) -> None:
    entry = published.find_published(name)
    with torch.device('meta'):
        model = build(config_of(entry))
    count = sum(each.numel() for each in model.parameters())
    assert round(count / 1e6, 2) == published.PARAMETERS[name]
