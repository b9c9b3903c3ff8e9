"""Convolutions of an ncnn network, from its ``.param`` text and ``.bin`` weights.

The format (ncnn's wiki, "param and model file structure"): a magic number, the numbers of layers
and blobs, then a line per layer with type, name, blobs and ``key=value`` settings. The ``.bin``
holds the weights in the order of the lines: for a convolution, a 4-byte tag of the storage format,
the weights padded to 4 bytes, and float32 biases.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gfl_det.errors import CheckpointError

MAGIC = '7767517'
TAGS: dict[int, type[np.floating]] = {0: np.float32, 0x01306B47: np.float16}
CONVOLUTIONS = ('Convolution', 'ConvolutionDepthWise')
# Layer types without weights; after any other type, the .bin could not be read further.
WEIGHTLESS = (
    *(
        'Input',
        'Split',
        'Concat',
        'Slice',
        'Crop',
        'ShuffleChannel',
        'Pooling',
        'Interp',
        'BinaryOp',
    ),
    *('UnaryOp', 'Sigmoid', 'ReLU', 'Reshape', 'Permute', 'Softmax', 'Flatten', 'Noop', 'Padding'),
)
LEAKY = 2  # activation code; 0 is none, 1 ReLU
ARRAYS = -23300  # array keys count down from here


class NcnnConvolution(NamedTuple):
    """Convolution with folded batch norm."""

    name: str
    weight: NDArray[np.float32]  # (out_channels, in_channels / groups, k, k)
    bias: NDArray[np.float32]  # (out_channels,)
    stride: int
    padding: int
    groups: int
    slope: float | None  # of the leaky ReLU after it; None: no activation


class _Geometry(NamedTuple):
    """Geometry of a convolution from a line of the ``.param``."""

    name: str
    outputs: int
    kernel: int
    stride: int
    padding: int
    groups: int
    size: int  # number of weights
    slope: float | None


def read_pair(
    param: str | os.PathLike[str], weights: str | os.PathLike[str]
) -> list[NcnnConvolution]:
    """Read the convolutions of a network in the order of its lines.

    Args:
        param: Path of the ``.param`` file.
        weights: Path of the ``.bin`` file.

    Raises:
        CheckpointError: If a file is missing, truncated or of another format, or has weights of
            layers other than convolutions.
    """
    geometries = [_geometry(*layer, str(param)) for layer in _layers(str(param))]
    content, offset, found = _bytes_of(weights), 0, []
    for geometry in filter(None, geometries):
        values, offset = _take(content, offset, geometry, str(weights))
        found.append(values)
    if offset != len(content):
        raise CheckpointError(
            f'{weights} holds {len(content) - offset:,} bytes behind the last weights that {param} '
            'lists: give both files of one network.'
        )
    return found


def _bytes_of(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f'{path} cannot be read ({error.strerror}): give the .param and the .bin of a network.'
        ) from error


def _layers(path: str) -> list[tuple[str, str, dict[int, str]]]:
    """Type, name and settings of each layer.

    Raises:
        CheckpointError: If the file is not a ``.param`` file, or is truncated.
    """
    try:
        lines = _bytes_of(path).decode('ascii').split('\n')
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f'{path} is not text: give the .param file first and the .bin file second.'
        ) from error
    words = [line.split() for line in lines if line.strip()]
    if len(words) < 2 or words[0] != [MAGIC] or len(words[1]) != 2 or not words[1][0].isdigit():
        raise CheckpointError(
            f'{path} is not a .param file of ncnn: its first line is not {MAGIC}.'
        )
    count, layers = int(words[1][0]), words[2:]
    if len(layers) != count:
        raise CheckpointError(
            f'{path} lists {len(layers)} of the {count} layers announced: download it again.'
        )
    return [_layer(line, path) for line in layers]


def _layer(line: list[str], path: str) -> tuple[str, str, dict[int, str]]:
    try:
        kind, name, inputs, outputs = line[:4]
        settings = line[4 + int(inputs) + int(outputs) :]
        pairs = (each.split('=', 1) for each in settings)
        return kind, name, {int(key): value for key, value in pairs}
    except ValueError as error:
        raise CheckpointError(
            f'{path} has a line that is not a layer: {" ".join(line)[:80]!r}; download it again.'
        ) from error


def _geometry(kind: str, name: str, settings: dict[int, str], path: str) -> _Geometry | None:
    """Geometry of a convolution; None for a layer without weights.

    Raises:
        CheckpointError: If the layer has an unsupported type, or the convolution an unsupported
            form.
    """
    if kind in WEIGHTLESS:
        return None
    if kind not in CONVOLUTIONS:
        raise CheckpointError(
            f'{path} has a layer {name} of type {kind}, which NanoDet-Plus does not use: give the '
            '.param of its release.'
        )
    try:
        plain = {key: int(settings.get(key, 0)) for key in (0, 1, 4, 5, 6, 8, 9)}
        across = {key: int(settings.get(key, 1)) for key in (2, 3, 7)}
        unequal = any(
            int(settings.get(other, plain.get(key, across.get(key, 0)))) != {**plain, **across}[key]
            for key, other in ((1, 11), (2, 12), (3, 13), (4, 14), (4, 15), (4, 16))
        )
        slope = float(settings[ARRAYS - 10].split(',')[1]) if plain[9] == LEAKY else None
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f'{path} has a convolution {name} with unreadable settings: download it again.'
        ) from error
    sizes = plain[0], plain[1], plain[6], across[3], across[7]
    if min(sizes) < 1 or plain[6] % (plain[0] * plain[1] ** 2):
        raise CheckpointError(
            f'{path} has a convolution {name} of an impossible size: download it again.'
        )
    if unequal or across[2] != 1 or not plain[5] or plain[8] or plain[9] not in (0, LEAKY):
        raise CheckpointError(
            f'{path} has a convolution {name} that NanoDet-Plus does not use (oblong, dilated, '
            'quantized, without bias or with another activation): give the .param of its release.'
        )
    return _Geometry(name, plain[0], plain[1], across[3], plain[4], across[7], plain[6], slope)


def _take(
    content: bytes, offset: int, geometry: _Geometry, path: str
) -> tuple[NcnnConvolution, int]:
    """Read a convolution's weights and biases; also return the offset after them.

    Raises:
        CheckpointError: If the file ends too early or has another storage format.
    """
    tag = int.from_bytes(content[offset : offset + 4], 'little')
    if len(content) - offset >= 4 and tag not in TAGS:
        raise CheckpointError(
            f'{path} has the tag {tag:#010x} before the weights of {geometry.name} instead of '
            "float32's or float16's: it is damaged, quantized or of another network."
        )
    kind = TAGS.get(tag, np.float32)
    size = geometry.size * np.dtype(kind).itemsize
    first = offset + 4
    second = first + size + -size % 4
    end = second + 4 * geometry.outputs
    if end > len(content):
        raise CheckpointError(
            f'{path} ends within the weights of {geometry.name} ({len(content):,} bytes, at least '
            f'{end:,} are needed): it is truncated; download it again.'
        )
    flat = np.frombuffer(content, kind, geometry.size, first).astype(np.float32)
    bias = np.frombuffer(content, np.float32, geometry.outputs, second).copy()
    if not (np.isfinite(flat).all() and np.isfinite(bias).all()):
        raise CheckpointError(
            f'{path} has NaN or infinite weights in {geometry.name}: it is damaged or of another '
            'network; download it again.'
        )
    weight = flat.reshape(geometry.outputs, -1, geometry.kernel, geometry.kernel)
    sizes = geometry.stride, geometry.padding, geometry.groups, geometry.slope
    return NcnnConvolution(geometry.name, weight, bias, *sizes), end
