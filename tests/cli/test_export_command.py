"""The command of tools/export_onnx.py, run as users run it."""

from __future__ import annotations

import re

import pytest

from gfl_det.cli import export
from gfl_det.errors import ConfigError, DataError
from gfl_det.inference.export import OnnxDetector
from projects.benchmark.exports import random_checkpoint
from tests.helpers.commands import run_tool
from tests.helpers.exporting import tiny_config
from tests.helpers.extras import needs

pytestmark = needs('onnxscript', 'onnxruntime')


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_the_command_exports_and_checks(folder):
    cfg = tiny_config()
    cfg.test_dataloader.dataset.data_root = 'nowhere/'
    cfg.dump(folder / 'tiny.py')
    checkpoint = random_checkpoint(cfg, folder / 'tiny.pth')
    out = folder / 'new' / 'tiny.onnx'
    options = ('--size', 96, 128, '--uncertainty', '--level', 0.8)
    given = (folder / 'tiny.py', checkpoint, '--out', out, '--nms', *options, '--check')
    done = run_tool('export_onnx', *given)
    assert done.returncode == 0, done.stderr
    assert f'written: {out} (boxes, scores, labels, counts, edge_std' in done.stdout
    assert 'against torch on 3 pictures of noise' in done.stdout
    assert re.search(r'edges within \S+e-\d+ px and \S+e-\d+ nats', done.stdout)
    assert ' 0 without a counterpart' in done.stdout
    assert (OnnxDetector(out).classes, OnnxDetector(out).level) == (('a', 'b', 'c'), 0.8)


def test_the_command_refuses_in_one_sentence(folder):
    name = 'gfl_r101-dconv-c3-c5_fpn_ms-2x_coco'
    done = run_tool('export_onnx', name, 'none.pth', '--out', folder / 'x.onnx')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('error: The checkpoint none.pth does not exist')
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['--level', '1.5'], '--level 1.5 is not a share between 0 and 1'),
        (['--level', '0.5'], '--level is of edge_low and edge_high: give --uncertainty too'),
        (['--intervals', 'i.json'], '--intervals is of edge_low and edge_high: give --uncertainty'),
        (['--count', '0'], '--count 0 is not a number of pictures'),
    ],
)
def test_options_without_what_they_are_of(words, sentence, capsys):
    with pytest.raises(SystemExit, match='2'):
        export.parse_arguments(['none', 'none.pth', '--out', 'x.onnx', *words])
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        ('--size 100 100', '--size 100 100 is not a pair of positive multiples of 32: use 96 96'),
        ('--size 0 64', '--size 0 64 is not a pair of positive multiples of 32: use 32 64'),
        ('--time -32 64', '--time -32 64 is not a pair of positive multiples of 32: use 32 64'),
        ('--size 96 96 --time 96 64', '--time 96 64 is not the fixed --size 96 96 of the file'),
    ],
)
def test_sizes_are_refused_before_anything_is_read(words, sentence):
    args = export.parse_arguments(['none', 'none.pth', '--out', 'x.onnx', *words.split()])
    with pytest.raises(ConfigError, match=sentence):
        export.run(args)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(folder):
    (folder / 'file').write_text('')
    (folder / 'x.bin').mkdir()
    (folder / 'folder.onnx').mkdir()
    for name, words in (
        ('file/x.onnx', r'file/x.onnx cannot be written \(File exists'),
        ('folder.onnx', r'folder.onnx cannot be written \(Is a directory'),
        ('x.xml', r'x.bin cannot be written \(Is a directory'),
        ('x.pt', 'x.pt must end in .onnx'),
    ):
        args = export.parse_arguments(['none', 'none.pth', '--out', str(folder / name)])
        with pytest.raises(DataError, match=words):
            export.run(args)
