"""Files written whole, their checksums, and the choice of a checkpoint to go on from."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch

from gfl_det.engine.training import (
    WholeFileBackend,
    choose_checkpoint,
    is_intact,
    newest_checkpoint,
    write_whole,
)
from gfl_det.errors import CheckpointError
from gfl_det.utils.files import clear_parts, file_sum

EMPTY_SUM = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'  # FIPS 180-2


def save(path: Path, iteration: int, **more: object) -> Path:
    content = dict(
        meta=dict(epoch=iteration // 10, iter=iteration),
        state_dict=dict(weight=torch.arange(1000.0)),
        optimizer={},
    )
    torch.save(content | more, path)
    write_whole(path, path.read_bytes(), checksum=True)
    return path


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


class TestWriting:
    def test_content_and_checksum(self, tmp_path):
        path = tmp_path / 'new' / 'a.pth'
        write_whole(path, b'', checksum=True)
        assert file_sum(path) == EMPTY_SUM
        assert (tmp_path / 'new' / 'a.pth.sha256').read_text() == f'{EMPTY_SUM}  a.pth\n'
        write_whole(path, b'other', checksum=True)
        assert path.read_bytes() == b'other'
        assert is_intact(path)
        said = subprocess.run(['sha256sum', '-c', 'a.pth.sha256'], cwd=path.parent, check=False)
        assert said.returncode == 0
        assert sorted(each.name for each in path.parent.iterdir()) == ['a.pth', 'a.pth.sha256']

    def test_any_changed_bit_is_noticed(self, tmp_path):
        path = tmp_path / 'a'
        write_whole(path, bytes(100), checksum=True)
        for position in (0, 57, 99):
            flip(path, position)
            assert is_intact(path) is False
            flip(path, position)
        path.write_bytes(bytes(99))
        assert is_intact(path) is False

    def test_without_a_checksum_nothing_is_claimed(self, tmp_path):
        write_whole(tmp_path / 'a', b'x')
        assert is_intact(tmp_path / 'a') is None
        (tmp_path / 'a.sha256').write_bytes(b'\xff\xfe')
        assert is_intact(tmp_path / 'a') is None

    @pytest.mark.parametrize('stop', range(12))
    @pytest.mark.parametrize('summed', [True, False])
    @pytest.mark.parametrize('was_summed', [True, False])
    def test_stopped_anywhere_the_old_or_the_new_content_is_there(
        self, tmp_path, monkeypatch, stop, summed, was_summed
    ):
        """A crash before any of the calls that change the disk, one after the other.

        Where one of the two has no checksum there is at worst none: what is whole is never taken
        for damaged.
        """
        path = tmp_path / 'a.pth'
        write_whole(path, b'old' * 100, checksum=was_summed)
        calls = 0

        def counting(real):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls > stop:
                    raise KeyboardInterrupt
                return real(*args, **kwargs)

            return call

        for name in ('replace', 'fsync', 'open', 'unlink'):
            monkeypatch.setattr(os, name, counting(getattr(os, name)))
        try:
            write_whole(path, b'new' * 100, checksum=summed)
            finished = True
        except KeyboardInterrupt:
            finished = False
        monkeypatch.undo()
        assert path.read_bytes() in (b'old' * 100, b'new' * 100)
        assert is_intact(path) in ([True] if summed and was_summed else [True, None])
        assert not finished or path.read_bytes() == b'new' * 100
        assert not finished or is_intact(path) is (True if summed else None)
        if stop == 0:
            assert path.read_bytes() == b'old' * 100

    def test_a_replacement_of_another_program_is_healed(self, tmp_path):
        path = tmp_path / 'a.pth'
        write_whole(path, b'old', checksum=True)
        path.write_bytes(b'a stranger')
        assert is_intact(path) is False
        write_whole(path, b'new', checksum=True)
        assert is_intact(path)

    def test_a_failed_write_leaves_the_old_content_and_no_litter(self, tmp_path, monkeypatch):
        path = tmp_path / 'a.pth'
        write_whole(path, b'old', checksum=True)

        def fsync(number):
            raise OSError(errno.ENOSPC, 'No space left on device')

        monkeypatch.setattr(os, 'fsync', fsync)
        sentence = r'a\.pth cannot be written \(No space left on device\): it needs 5\.0 MB'
        with pytest.raises(CheckpointError, match=sentence):
            write_whole(path, bytes(5_000_000), checksum=True)
        assert path.read_bytes() == b'old'
        assert is_intact(path)
        assert len(list(tmp_path.iterdir())) == 2

    def test_the_backend_of_mmengine(self, tmp_path):
        backend = WholeFileBackend()
        path = tmp_path / 'a'
        backend.put(b'1', path)
        backend.put_text('ä', path)
        assert (path.read_text(), is_intact(path)) == ('ä', True)
        backend.remove(path)
        backend.remove(path)
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_writer_left_is_swept_up(self, tmp_path):
        (tmp_path / 'epoch_1.pth.99.part').touch()
        save(tmp_path / 'epoch_1.pth', 3)
        assert [each.name for each in clear_parts(tmp_path)] == ['epoch_1.pth.99.part']
        assert len(list(tmp_path.iterdir())) == 2


class TestChoice:
    def test_the_newest_by_iteration_whatever_was_noted(self, tmp_path):
        for number, name in ((20, 'epoch_2'), (10, 'epoch_1'), (25, 'stopped_iter_25')):
            save(tmp_path / f'{name}.pth', number)
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
        found, passed_over = newest_checkpoint(tmp_path)
        assert (found.path.name, found.epoch, found.iteration) == ('stopped_iter_25.pth', 2, 25)
        assert passed_over == []

    def test_nothing_to_choose_from(self, tmp_path):
        assert newest_checkpoint(tmp_path / 'missing') == (None, [])
        torch.save({'state_dict': {}}, tmp_path / 'weights.pth')
        torch.save({'a.weight': torch.zeros(2)}, tmp_path / 'bare.pth')
        old = {'a.weight': torch.zeros(2)}
        torch.save(old, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
        (tmp_path / 'epoch_3.pth.7.part').write_bytes(b'PK')
        (tmp_path / 'last_checkpoint').write_bytes(b'\xff\x00')
        assert newest_checkpoint(tmp_path) == (None, [])

    @pytest.mark.parametrize('harm', ['cut', 'one bit', 'empty', 'text', 'pickle'])
    def test_a_damaged_one_is_passed_over(self, tmp_path, harm):
        good, bad = save(tmp_path / 'epoch_1.pth', 10), save(tmp_path / 'epoch_2.pth', 20)
        content = bad.read_bytes()
        if harm == 'one bit':
            flip(bad, content.index(torch.arange(1000.0).numpy().tobytes()) + 77)
        else:
            kinds = {'cut': content[:-500], 'empty': b'', 'text': b'hi', 'pickle': b'\x80\x02cos\n'}
            bad.write_bytes(kinds[harm])
        found, (passed_over,) = newest_checkpoint(tmp_path)
        assert found.path == good
        assert passed_over.path == bad
        assert passed_over.fault
        with pytest.raises(CheckpointError, match=r'epoch_2\.pth cannot be resumed.*epoch_1\.pth'):
            choose_checkpoint(bad, tmp_path)
        assert choose_checkpoint(good, tmp_path).iteration == 10

    def test_one_bit_without_a_checksum(self, tmp_path):
        """Torch writes sums into its archives and does not look at them."""
        good, bad = save(tmp_path / 'epoch_1.pth', 10), save(tmp_path / 'epoch_2.pth', 20)
        flip(bad, bad.read_bytes().index(torch.arange(1000.0).numpy().tobytes()) + 77)
        bad.with_name('epoch_2.pth.sha256').unlink()
        assert newest_checkpoint(tmp_path).found.path == good

    def test_only_damaged_ones_are_an_error(self, tmp_path):
        save(tmp_path / 'epoch_1.pth', 10).write_bytes(b'torn')
        with pytest.raises(CheckpointError, match=r'No checkpoint in .*epoch_1\.pth: .*remove'):
            newest_checkpoint(tmp_path)

    def test_those_in_another_folder_are_found_by_the_note(self, tmp_path):
        (tmp_path / 'out').mkdir()
        (tmp_path / 'work').mkdir()
        save(tmp_path / 'out' / 'epoch_2.pth', 20).write_bytes(b'torn')
        save(tmp_path / 'out' / 'epoch_1.pth', 10)
        (tmp_path / 'work' / 'last_checkpoint').write_text(str(tmp_path / 'out' / 'epoch_2.pth'))
        found, passed_over = newest_checkpoint(tmp_path / 'work')
        assert (found.path.name, len(passed_over)) == ('epoch_1.pth', 1)

    def test_one_that_was_named(self, tmp_path):
        torch.save({'state_dict': {}}, tmp_path / 'weights.pth')
        with pytest.raises(CheckpointError, match=r'no training state'):
            choose_checkpoint(tmp_path / 'weights.pth', tmp_path)
        (tmp_path / 'torn.pth').write_bytes(b'torn')
        with pytest.raises(CheckpointError, match=r'torn\.pth cannot be .*; give another, or'):
            choose_checkpoint(tmp_path / 'torn.pth', tmp_path)
        with pytest.raises(CheckpointError, match=r'gone\.pth does not exist'):
            choose_checkpoint(tmp_path / 'gone.pth', tmp_path)
        with pytest.raises(CheckpointError, match=r'is a folder; give another, or'):
            choose_checkpoint(tmp_path, tmp_path / 'work')
