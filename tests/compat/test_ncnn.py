"""ncnn's pair of files: a pair written by hand byte by byte, and pairs with something wrong."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from gfl_det.compat.ncnn import read_pair
from gfl_det.errors import CheckpointError

FLOAT16 = 0x01306B47
# Three 1x1 kernels of one channel, with a leaky rectifier; two 3x3 kernels, depthwise.
LINES = [
    'Input data 0 1 data',
    'Convolution first 1 1 data one 0=3 1=1 5=1 6=3 9=2 -23310=1,1.0e-01',
    'ConvolutionDepthWise second 1 1 one two 0=2 1=3 3=2 4=1 5=1 6=18 7=2',
]
FIRST = struct.pack('<I3e2x3f', FLOAT16, 1, 2, -0.5, 10, 20, 30)  # 6 bytes of weights, 2 to fill
SECOND = struct.pack('<I18f2f', 0, *range(18), -1, 1)


def pair(folder, lines=LINES, content=FIRST + SECOND, head=None):
    param, weights = folder / 'net.param', folder / 'net.bin'
    head = ['7767517', f'{len(lines)} {len(lines)}'] if head is None else head
    param.write_text('\n'.join([*head, *lines]) + '\n')
    weights.write_bytes(content)
    return param, weights


def refusal(*paths) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pair(*paths)
    message = str(caught.value)
    assert message.count('\n') == 0
    return message


def test_weights_biases_and_settings_are_read(tmp_path):
    first, second = read_pair(*pair(tmp_path))
    np.testing.assert_array_equal(first.weight.reshape(-1), [1, 2, -0.5])
    assert first.weight.shape == (3, 1, 1, 1)
    np.testing.assert_array_equal(first.bias, [10, 20, 30])
    assert (first.name, first.stride, first.padding, first.groups) == ('first', 1, 0, 1)
    assert first.slope == pytest.approx(0.1)
    np.testing.assert_array_equal(second.weight, np.arange(18).reshape(2, 1, 3, 3))
    np.testing.assert_array_equal(second.bias, [-1, 1])
    assert second[3:] == (2, 1, 2, None)


@pytest.mark.parametrize('size', [0, 3, 5, 11, 23, 24, 30, len(FIRST + SECOND) - 1])
def test_a_bin_cut_short_is_refused_wherever_it_ends(size, tmp_path):
    param, weights = pair(tmp_path, content=(FIRST + SECOND)[:size])
    message = refusal(param, weights)
    assert str(weights) in message
    assert ('first' if size < len(FIRST) else 'second') in message
    assert 'truncated' in message


def test_a_bin_with_more_than_the_param_lists_is_refused(tmp_path):
    assert '4 bytes' in refusal(*pair(tmp_path, content=FIRST + SECOND + bytes(4)))


@pytest.mark.parametrize('tag', [0x000D4B38, 0x0002C056, 12345])
def test_weights_stored_in_another_way_are_refused(tag, tmp_path):
    content = struct.pack('<I', tag) + FIRST[4:] + SECOND
    assert f'{tag:#010x}' in refusal(*pair(tmp_path, content=content))


def test_weights_that_are_nan_are_refused(tmp_path):
    content = struct.pack('<I3e2x3f', FLOAT16, 1, float('nan'), 3, 0, 0, 0) + SECOND
    assert 'first' in refusal(*pair(tmp_path, content=content))


@pytest.mark.parametrize(
    ('head', 'named'),
    [
        ([], '7767517'),
        (['7767518', '3 3'], '7767517'),
        (['7767517', '4 4'], '3 of the 4 layers'),
        (['7767517', 'x 3'], '7767517'),
    ],
)
def test_a_text_that_is_no_param_is_refused(head, named, tmp_path):
    param, weights = pair(tmp_path, head=head)
    message = refusal(param, weights)
    assert str(param) in message
    assert named in message


@pytest.mark.parametrize(
    'line',
    [
        'InnerProduct fc 1 1 one two 0=2 1=1 2=4',  # has weights that would be skipped
        'Convolution first 1 1 data one 0=3 1=1 6=3',  # without bias
        'Convolution first 1 1 data one 0=3 1=1 2=2 5=1 6=3',  # dilated
        'Convolution first 1 1 data one 0=3 1=1 11=3 5=1 6=9',  # oblong
        'Convolution first 1 1 data one 0=3 1=1 5=1 6=3 8=2',  # int8
        'Convolution first 1 1 data one 0=3 1=1 5=1 6=3 9=3',  # clipped
        'Convolution first 1 1 data one 0=3 1=1 5=1 6=4',  # no multiple
        'Convolution first 1 1 data one 0=x 1=1 5=1 6=3',
        'Convolution first one 1 data',
        'Convolution',
    ],
)
def test_a_layer_of_another_network_is_refused(line, tmp_path):
    param, weights = pair(tmp_path, lines=[LINES[0], line, LINES[2]])
    assert str(param) in refusal(param, weights)


def test_swapped_and_missing_files_are_refused(tmp_path):
    param, weights = pair(tmp_path)
    weights.write_bytes(b'\xff' + FIRST)
    assert '.param file first' in refusal(weights, param)
    assert 'absent.bin' in refusal(param, tmp_path / 'absent.bin')
    assert 'absent.param' in refusal(tmp_path / 'absent.param', weights)
