"""Where tools write, and the values they take: one sentence for what cannot be."""

from __future__ import annotations

import argparse
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from gfl_det.cli import arguments
from gfl_det.errors import DataError
from gfl_det.utils.files import check_writable, make_folder, write_json, write_text, writing


def test_folders_are_made_and_a_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / 'a' / 'b.json'
    check_writable(path)
    assert not path.exists()
    with writing(path) as target:
        target.write_text('{}')
    check_writable(path)
    assert path.read_text() == '{}'


@pytest.mark.parametrize(
    ('name', 'reason'),
    [('folder', 'Is a directory'), ('file/x.json', 'File exists')],
)
def test_unwritable_paths_are_reported_before(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(DataError, match=rf'{name} cannot be written \({reason}\): name another'):
        check_writable(tmp_path / name)


def test_an_input_is_never_an_output(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('data.json').write_text('kept')
    Path('link.json').symlink_to('data.json')
    for name in ('data.json', f'{tmp_path}/data.json', 'link.json'):
        with pytest.raises(DataError, match=r'json is an input of this command'):
            check_writable(name, [None, 'other.json', 'data.json'])
    check_writable('data.json', [None, 'other.json'])


def test_a_disk_that_fills_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r'x\.json .*No space left'),
        writing(tmp_path / 'x.json'),
    ):
        raise OSError(28, 'No space left on device')


@pytest.mark.parametrize(
    ('kind', 'taken', 'refused'),
    [
        (arguments.count, {'1': 1, '20': 20}, ['0', '-5', '1.5', 'x', '']),
        (arguments.count_or_zero, {'0': 0, '3': 3}, ['-1', 'x']),
        (arguments.port, {'0': 0, '65535': 65535}, ['65536', '-1', 'http']),
        (arguments.share, {'0': 0, '1': 1, '.3': 0.3}, ['1.1', '-0.1', 'nan', 'x']),
        (arguments.amount, {'2.5': 2.5}, ['0', '-1', 'inf', 'nan', 'x']),
    ],
)
def test_values_of_a_command_line(kind, taken: dict, refused: list) -> None:
    assert {text: kind(text) for text in taken} == taken
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match=r', not '):
            kind(text)


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'values.json'
    nan, infinity = np.float64('nan'), float('inf')
    write_json(path, [dict(a=nan, b=(1.5, infinity)), 'NaN', True, None])
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content == [dict(a=None, b=[1.5, None]), 'NaN', True, None]
    with pytest.raises(DataError, match=r'x\.json .*File exists'):
        write_json(path / 'x.json', content)
    with pytest.raises(DataError, match=r'new .*Is a directory'):
        write_json(path.parent, content)


def test_a_folder_is_made_or_told(tmp_path: Path) -> None:
    assert make_folder(tmp_path / 'a' / 'b').is_dir()
    (tmp_path / 'file').touch()
    with pytest.raises(DataError, match=r'folder .*file .*it is a file'):
        make_folder(tmp_path / 'file')


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / 'values.json'
    write_json(path, [1])

    def full(_: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    for target in (path, tmp_path / 'other.json'):
        with pytest.raises(DataError, match=r'cannot be written \(No space left'):
            write_json(target, [2] * 9)
    assert os.listdir(tmp_path) == ['values.json']
    assert json.loads(path.read_text()) == [1]


def test_who_reads_while_it_is_written_finds_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / 'values.json'
    contents = [[number] * 50_000 for number in range(2)]
    write_json(path, contents[0])
    writer = threading.Thread(
        target=lambda: [write_json(path, contents[step % 2]) for step in range(20)]
    )
    writer.start()
    while writer.is_alive():
        assert json.loads(path.read_text()) in contents
    writer.join()


def test_a_file_that_is_replaced_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    path, link, pipe = (tmp_path / name for name in ('x.json', 'link.json', 'pipe'))
    path.write_text('old')
    path.chmod(0o640)
    link.symlink_to(path)
    write_text(link, 'new é')
    assert link.is_symlink()
    assert path.read_text(encoding='utf-8') == 'new é'
    assert path.stat().st_mode & 0o777 == 0o640
    write_text(tmp_path / ('n' * 250), 'a name of almost any length')
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, 'through')
    assert os.read(reader, 99) == b'through'
    os.close(reader)
