"""Training state loads, resumes, and stays what it was; anything else is refused and never run."""

from __future__ import annotations

import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import Tensor, nn

from gfl_det.compat import checkpoint
from gfl_det.compat.checkpoint import NUMBERS
from gfl_det.errors import CheckpointError

METAINFO = dict(
    classes=('cell', 'platelet'),
    palette=[(220, 20, 60), (0, 0, 142)],
    colours=np.array([[220, 20, 60], [0, 0, 142]], dtype=np.uint8),
    names=ConfigDict(cell=ConfigDict(latin='cellula')),
)

needs_allow_list = pytest.mark.skipif(
    not checkpoint.HAS_ALLOW_LIST, reason='torch before 2.4 has no list of safe types'
)


class Points(torch.utils.data.Dataset):
    metainfo = METAINFO

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, 1.0])


class Line(BaseModel):
    """A line through the points, with batch statistics as something to resume."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    def forward(self, points: Tensor, mode: str) -> dict[str, Tensor]:
        return dict(loss=(self.layers(points) - points[:, :1]).square().mean())


class NoteScore(Hook):
    """Notes what evaluation notes: the best score so far, a numpy number."""

    def after_train_epoch(self, runner: Runner) -> None:
        runner.message_hub.update_info('best_score', np.float64(0.25 * (runner.epoch + 1)))


def collate(points: list[Tensor]) -> dict[str, Tensor]:
    return dict(points=torch.stack(points))


def train(folder: Path, epochs: int, schedule: dict, resume: str | None = None) -> Runner:
    torch.manual_seed(0)
    runner = Runner(
        Line(),
        str(folder),
        train_dataloader=dict(
            batch_size=4,
            dataset=Points(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=collate,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=[schedule],
        custom_hooks=[dict(type='EMAHook', momentum=0.1), NoteScore()],
        load_from=resume,
        resume=resume is not None,
        experiment_name=f'{folder.name} {schedule["type"]}',  # each has its own message hub
        default_scope='mmdet',  # it outlives this runner, and other tests build mmdet's parts
        log_level='ERROR',
    )
    runner.train()
    return runner


LINEAR = dict(type='LinearLR', start_factor=0.1, end=10, by_epoch=False)
ONE_CYCLE = dict(type='OneCycleLR', eta_max=0.1, total_steps=10, by_epoch=False)


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('trained')
    train(folder, 2, LINEAR)
    return folder


@needs_allow_list
@pytest.mark.parametrize('load', [checkpoint.load_file, torch.load])
def test_training_state_comes_back_as_it_was(trained: Path, load) -> None:
    options = dict(weights_only=True) if load is torch.load else {}
    state = load(str(trained / 'epoch_2.pth'), **options)
    assert set(state) >= {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'}

    history = state['message_hub']['log_scalars']['train/loss']
    assert type(history) is HistoryBuffer
    assert [type(part) for part in history.data] == [np.ndarray, np.ndarray]
    assert history.data[1].tolist() == [1, 1, 1, 1]
    assert history.statistics('mean', 2) == history.data[0][-2:].mean()
    history.update(1.0)
    assert history.current() == 1.0

    best = state['message_hub']['runtime_info']['best_score']
    assert (type(best), best) == (np.float64, 0.5)
    meta = state['meta']['dataset_meta']
    assert meta['classes'] == METAINFO['classes']
    assert meta['names'].cell.latin == 'cellula'
    np.testing.assert_array_equal(meta['colours'], METAINFO['colours'])
    assert meta['colours'].dtype == np.uint8
    # mmengine compares the pickles, and warns where they differ
    assert pickle.dumps(meta['colours']) == pickle.dumps(METAINFO['colours'])


@needs_allow_list
@pytest.mark.parametrize('schedule', [LINEAR, ONE_CYCLE], ids=lambda schedule: schedule['type'])
def test_a_resumed_training_equals_one_that_ran_through(tmp_path: Path, schedule: dict) -> None:
    through = train(tmp_path / 'through', 2, schedule)
    first = str(tmp_path / 'through' / 'epoch_1.pth')
    resumed = train(tmp_path / 'resumed', 2, schedule, resume=first)
    for name, value in through.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    again = checkpoint.load_file(str(tmp_path / 'resumed' / 'epoch_2.pth'))
    whole = checkpoint.load_file(str(tmp_path / 'through' / 'epoch_2.pth'))
    assert again['optimizer']['param_groups'] == whole['optimizer']['param_groups']
    np.testing.assert_array_equal(
        again['message_hub']['log_scalars']['train/loss'].data[0],
        whole['message_hub']['log_scalars']['train/loss'].data[0],
    )
    assert again['ema_state_dict'].keys() == whole['ema_state_dict'].keys()
    for name, value in whole['ema_state_dict'].items():
        assert torch.equal(value, again['ema_state_dict'][name]), name


def with_global_renamed(source: Path, target: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(source) as written, zipfile.ZipFile(target, 'w') as renamed:
        for name in written.namelist():
            renamed.writestr(
                name, written.read(name).replace(b'c' + old + b'\n', b'c' + new + b'\n')
            )


@needs_allow_list
def test_files_of_numpy_1_and_numpy_2_load(trained: Path, tmp_path: Path) -> None:
    cores = [b'numpy._core.multiarray', b'numpy.core.multiarray']
    for old, new in (cores, reversed(cores)):
        with_global_renamed(trained / 'epoch_2.pth', tmp_path / 'other.pth', old, new)
        hub = checkpoint.load_file(str(tmp_path / 'other.pth'))['message_hub']
        assert hub['log_scalars']['train/loss'].data[1].tolist() == [1, 1, 1, 1]
        assert hub['runtime_info']['best_score'] == 0.5


@needs_allow_list
def test_numbers_of_every_type_and_byte_order_survive(tmp_path: Path) -> None:
    arrays = [np.arange(6).reshape(2, 3).astype(code) for code in NUMBERS]
    arrays += [np.asfortranarray(arrays[-1]), arrays[-1].astype('>f8'), np.array(3.5)]
    torch.save(dict(arrays=arrays, numbers=[array.flat[0] for array in arrays]), tmp_path / 'a.pth')
    loaded = checkpoint.load_file(str(tmp_path / 'a.pth'))
    for array, number, before in zip(loaded['arrays'], loaded['numbers'], arrays):
        assert array.dtype == before.dtype.newbyteorder('=')  # numpy turns the bytes round
        np.testing.assert_array_equal(array, before)
        assert number.dtype == before.dtype.newbyteorder('=')
        assert number == before.flat[0]


@needs_allow_list
def test_types_that_somebody_else_allowed_do_no_harm(trained: Path) -> None:
    before = list(torch.serialization.get_safe_globals())
    theirs = [np.ndarray, np.dtype, np.dtype('f8').__class__, getattr, HistoryBuffer, Path]
    torch.serialization.add_safe_globals(theirs)
    try:
        history = checkpoint.load_file(str(trained / 'epoch_2.pth'))['message_hub']['log_scalars']
        assert type(history['train/loss']) is HistoryBuffer
        assert set(torch.serialization.get_safe_globals()) == {*before, *theirs}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


class Calls:
    """Pickles as a call that unpickling would make."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('legacy', [False, True])
def test_a_pickled_call_is_refused_and_not_made(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / 'executed', tmp_path / 'bad.pth'
    call = Calls(os.system, f'touch {marker}')
    torch.save(dict(state_dict={}, meta=call), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(Line(), str(path))
    message = str(caught.value)
    assert str(path) in message
    assert f'{os.system.__module__}.system' in message
    assert '\n' not in message
    assert 'weights_only' not in message  # nobody is told how to run it all the same
    assert not marker.exists()


NOT_STATE = {
    'a function': collate,
    'a class': Path,
    'eval': Calls(eval, '1'),
    'an array of objects': np.array([None, 'text'], dtype=object),
    'an array over raw memory': Calls(np.ndarray, (1,), 'O', b'\x41' * 8),
    'memory flags in the name of a number': Calls(np.dtype, 'O'),
    'an attribute of a class': Calls(getattr, HistoryBuffer, '__init__'),
    'an attribute of an object': Calls(getattr, np.float64(1), 'tobytes'),
    'a list in the place of a history': HistoryBuffer([1.0], [1]),
}
NOT_STATE['a list in the place of a history']._log_history = [1.0]


@needs_allow_list
@pytest.mark.parametrize('kind', NOT_STATE)
def test_other_content_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, meta=NOT_STATE[kind]), path)
    with pytest.raises(CheckpointError, match='bad') as caught:
        checkpoint.load_file(str(path))
    assert '\n' not in str(caught.value)


@needs_allow_list
def test_a_file_cannot_replace_the_statistics_of_histories(tmp_path: Path) -> None:
    history = HistoryBuffer([1.0, 5.0], [1, 1])
    history._statistics_methods = dict(mean=HistoryBuffer.max)
    torch.save(dict(history=history), tmp_path / 'poisoned.pth')
    loaded = checkpoint.load_file(str(tmp_path / 'poisoned.pth'))['history']
    assert loaded.statistics('mean') == HistoryBuffer([1.0], [1]).statistics('mean') + 2 == 3


@needs_allow_list
def test_without_a_list_of_safe_types_state_is_refused_and_weights_load(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.clear_safe_globals()  # as torch before 2.4 is
    monkeypatch.setattr(checkpoint, 'HAS_ALLOW_LIST', False)
    try:
        with pytest.raises(CheckpointError, match=r'upgrade to torch>=2\.4'):
            checkpoint.load_file(str(trained / 'epoch_2.pth'))
        torch.save(Line().state_dict(), tmp_path / 'weights.pth')
        assert len(checkpoint.load_file(str(tmp_path / 'weights.pth'))) == 7
    finally:
        torch.serialization.add_safe_globals(before)


def test_content_of_a_published_checkpoint_loads(tmp_path: Path) -> None:
    meta = dict(
        env_info='sys.platform: linux', mmdet_version='2.3.0', time='Sun Jun 28 2020', epoch=12,
        CLASSES=('person', 'bicycle'), PALETTE=[(220, 20, 60)], hook_msgs=dict(), seed=None,
        config='model = dict()', lr=[0.01],
    )  # fmt: skip
    for legacy in (False, True):
        path = str(tmp_path / f'{legacy}.pth')
        published = dict(meta=meta, state_dict=Line().state_dict())
        torch.save(published, path, _use_new_zipfile_serialization=not legacy)
        assert checkpoint.load_file(path)['meta'] == meta


def damaged(folder: Path, kind: str) -> Path:
    path = folder / 'damaged.pth'
    state = dict(state_dict=dict(weight=torch.rand(1000)))
    torch.save(state, path, _use_new_zipfile_serialization='legacy' not in kind)
    whole = path.read_bytes()
    contents = {
        'half': whole[: len(whole) // 2],
        'last bytes gone': whole[:-100],
        'zeros inside': whole[:200] + bytes(100) + whole[300:],
        'half of a legacy file': whole[: len(whole) // 2],
        'empty': b'',
        'text': b'hello, this is no checkpoint\n',
        'a web page': b'<!DOCTYPE html><html></html>',
        'a pickle': pickle.dumps(dict(a=1)),
        'a picture': b'\x89PNG\r\n\x1a\n',
    }
    path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize(
    'kind',
    [
        'half', 'last bytes gone', 'zeros inside', 'half of a legacy file', 'empty', 'text',
        'a web page', 'a pickle', 'a picture',
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_in_one_sentence(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path, kind)
    with pytest.raises(CheckpointError, match='damaged, incomplete or no checkpoint') as caught:
        load_checkpoint(Line(), str(path))
    assert str(path) in str(caught.value)
    assert f'{path.stat().st_size} bytes' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_missing_files_and_other_kinds(tmp_path: Path) -> None:
    missing = str(tmp_path / 'missing.pth')
    with pytest.raises(CheckpointError, match=r'missing\.pth does not exist'):
        load_checkpoint(Line(), missing)
    with pytest.raises(CheckpointError, match='is a folder'):
        load_checkpoint(Line(), str(tmp_path))
    torch.save(torch.rand(3), tmp_path / 'tensor.pth')
    with pytest.raises(CheckpointError, match=r'a Tensor'):
        load_checkpoint(Line(), str(tmp_path / 'tensor.pth'))
    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        archive.add(tmp_path / 'tensor.pth', 'pickle')
    with pytest.raises(CheckpointError, match='tar format'):
        load_checkpoint(Line(), str(tmp_path / 'old.pth'))


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read all')
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    torch.save({}, tmp_path / 'locked.pth')
    (tmp_path / 'locked.pth').chmod(0)
    with pytest.raises(CheckpointError, match=r'locked\.pth'):
        checkpoint.load_file(str(tmp_path / 'locked.pth'))


def test_errors_that_are_not_about_the_file_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(*arguments, **options):
        raise RuntimeError('Attempting to deserialize object on a CUDA device')

    torch.save({}, tmp_path / 'good.pth')
    monkeypatch.setattr(torch, 'load', no_device)
    with pytest.raises(RuntimeError, match='CUDA device') as caught:
        checkpoint.load_file(str(tmp_path / 'good.pth'))
    assert not isinstance(caught.value, CheckpointError)


def test_the_home_folder_may_be_written_as_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    torch.save(dict(epoch=3), tmp_path / 'home.pth')
    assert CheckpointLoader.load_checkpoint('~/home.pth', 'cpu', logger='silent') == dict(epoch=3)
