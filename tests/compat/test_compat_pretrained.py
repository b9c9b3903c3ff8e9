"""Names of weights lead to files, without torchvision and without running what is in them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from gfl_det.compat import pretrained
from gfl_det.compat.pretrained import resolve
from gfl_det.errors import CheckpointError

RESNET50 = 'https://download.pytorch.org/models/resnet50-0676ba61.pth'


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torch and mmengine, and no network."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    for variable in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'LOCAL_RANK'):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture(params=['absent', 'broken'])
def no_torchvision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == 'absent':
        monkeypatch.setitem(sys.modules, 'torchvision', None)
        return

    class Broken(ModuleType):
        def __getattr__(self, name: str):
            raise RuntimeError('operator torchvision::nms does not exist')

    monkeypatch.setitem(sys.modules, 'torchvision', Broken('torchvision'))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which a server of this machine offers it."""
    folder = tmp_path / 'served'
    folder.mkdir()
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def cache(homes: Path, name: str, state: dict) -> Path:
    path = homes / 'torch' / 'hub' / 'checkpoints' / name
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


def test_each_kind_of_name_is_resolved(homes: Path) -> None:
    checkpoints = homes / 'torch' / 'hub' / 'checkpoints'
    for name in ('torchvision://resnet50', 'modelzoo://resnet50', RESNET50):
        expected = str(checkpoints / 'resnet50-0676ba61.pth')
        assert resolve(name) == (name, RESNET50, expected, False)
    table = mmengine_checkpoint.get_external_models()
    for name in ('open-mmlab://resnext101_32x4d', 'openmmlab://resnext101_32x4d'):
        url = table['resnext101_32x4d']
        assert resolve(name) == (name, url, str(checkpoints / os.path.basename(url)), False)
    query = resolve('https://example.org/a/b.pth?download=1')
    assert query.path == str(checkpoints / 'b.pth')
    assert resolve('s3://bucket/a.pth') == ('s3://bucket/a.pth',) * 3 + (False,)


def test_a_deprecated_name_leads_to_its_successor() -> None:
    old, new = next(iter(mmengine_checkpoint.get_deprecated_model_names().items()))
    assert resolve(f'open-mmlab://{old}')[1:] == resolve(f'open-mmlab://{new}')[1:]


def test_paths_and_cached_files(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(homes))
    monkeypatch.setenv('USERPROFILE', str(homes))
    assert resolve('~/own.pth') == ('~/own.pth', None, str(homes / 'own.pth'), False)
    (homes / 'own.pth').touch()
    assert resolve('~/own.pth').cached
    cached = cache(homes, 'resnet50-0676ba61.pth', {})
    assert resolve('torchvision://resnet50') == (
        'torchvision://resnet50',
        RESNET50,
        str(cached),
        True,
    )


def test_a_file_of_ones_own_in_mmengines_table(homes: Path) -> None:
    (homes / 'mmengine').mkdir()
    (homes / 'mmengine' / 'open_mmlab.json').write_text('{"mine": "mine.pth"}')
    torch.save(dict(epoch=7), homes / 'mmengine' / 'mine.pth')
    weights = resolve('open-mmlab://mine')
    assert weights[1:] == (None, str(homes / 'mmengine' / 'mine.pth'), True)
    assert CheckpointLoader.load_checkpoint('open-mmlab://mine', logger='silent') == dict(epoch=7)


@pytest.mark.usefixtures('no_torchvision')
def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(CheckpointError, match=r'torchvision://resnet5O: did you mean resnet50\?'):
        resolve('torchvision://resnet5O')
    with pytest.raises(CheckpointError, match='there are '):
        resolve('mmcls://?')


def test_names_that_only_torchvision_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {'resnet50.imagenet1k_v2': 'https://example.org/new.pth'}
    monkeypatch.setattr(mmengine_checkpoint, 'get_torchvision_models', lambda: known)
    assert resolve('torchvision://resnet50.imagenet1k_v2').url == 'https://example.org/new.pth'


@pytest.mark.usefixtures('no_torchvision')
@pytest.mark.parametrize('name', ['torchvision://resnet50', 'modelzoo://resnet50', RESNET50])
def test_cached_weights_load_without_torchvision(homes: Path, name: str) -> None:
    source, target = nn.Linear(2, 2), nn.Linear(2, 2)
    cache(homes, 'resnet50-0676ba61.pth', source.state_dict())
    load_checkpoint(target, name)
    assert torch.equal(target.weight, source.weight)


def test_mmcls_weights_load_as_by_mmengine(homes: Path) -> None:
    name, url = next(iter(mmengine_checkpoint.get_mmcls_models().items()))
    state = {'backbone.conv.weight': torch.rand(2), 'head.fc.weight': torch.rand(2)}
    cache(homes, os.path.basename(url), dict(state_dict=state))
    ours = CheckpointLoader.load_checkpoint(f'mmcls://{name}', logger='silent')['state_dict']
    theirs = mmengine_checkpoint._process_mmcls_checkpoint(dict(state_dict=state))['state_dict']
    assert list(ours) == list(theirs) == ['conv.weight']
    assert torch.equal(ours['conv.weight'], theirs['conv.weight'])


def test_weights_are_fetched_once(served, homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = served
    torch.save(dict(epoch=5), folder / 'weights.pth')
    url = f'{address}/weights.pth'
    monkeypatch.setenv('LOCAL_RANK', '1')
    with pytest.raises(CheckpointError, match='does not exist'):  # others leave it to process 0
        CheckpointLoader.load_checkpoint(url, logger='silent')
    monkeypatch.setenv('LOCAL_RANK', '0')
    assert CheckpointLoader.load_checkpoint(url, logger='silent') == dict(epoch=5)
    assert resolve(url).cached
    (folder / 'weights.pth').unlink()
    assert CheckpointLoader.load_checkpoint(url, logger='silent') == dict(epoch=5)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def test_downloaded_weights_are_loaded_with_the_same_caution(served) -> None:
    folder, address = served
    torch.save(dict(state_dict=Touch(folder / 'executed')), folder / 'bad.pth')
    with pytest.raises(CheckpointError, match='is refused'):
        CheckpointLoader.load_checkpoint(f'{address}/bad.pth', logger='silent')
    assert not (folder / 'executed').exists()


def test_a_failed_download_says_where_the_file_belongs(
    served, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(pretrained, 'barrier', lambda: waited.append(True))
    url = f'{served[1]}/missing.pth'
    with pytest.raises(CheckpointError, match=r'404.*put it at ') as caught:
        CheckpointLoader.load_checkpoint(url, logger='silent')
    assert str(caught.value).endswith(f'{resolve(url).path}.')
    assert not os.path.exists(resolve(url).path)
    assert waited == [True]  # the other processes of this machine go on, too
