"""Odd image files: every format and mode, torn ones, bombs, and what is no image at all."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60
PIXELS = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
BOMBS = ((20_000, 20_000), (2**31 - 1, 2**31 - 1), (200_001, 1000), (2**31 - 1, 1))


class File(NamedTuple):
    """Attributes: ``size`` is height and width where every reader must decode it."""

    name: str
    content: bytes
    size: tuple[int, int] | None = None
    refused: bool = False  # by every reader; else a result is as good


def image_files() -> Iterator[File]:
    """Yield files."""
    yield from _modes()
    yield from _sizes()
    yield from _torn()
    yield from _bombs()
    yield from _animated()
    yield from _others()


def encoded(kind: str, mode: str = 'RGB', pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b'') -> bytes:
    """A PNG that says what it is told to say, with a few bytes of pixels."""
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    parts = (
        (b'IHDR', header),
        (b'IDAT', zlib.compress(rows or b'\0' * 1000)),
        (b'IEND', b''),
    )
    return b'\x89PNG\r\n\x1a\n' + b''.join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + check


def _modes() -> Iterator[File]:
    size = (HEIGHT, WIDTH)
    for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'I;16'):
        yield File(f'PNG of mode {mode}', encoded('PNG', mode), size)
    for mode in ('RGB', 'CMYK', 'L', 'YCbCr'):
        yield File(f'JPEG of mode {mode}', encoded('JPEG', mode), size)
    for mode in ('RGB', 'RGBA', 'L', 'CMYK', 'F', 'I', 'LAB'):
        whole = encoded('TIFF', mode)
        yield File(f'TIFF of mode {mode}', whole, size if mode in ('RGB', 'RGBA', 'L') else None)
    for mode in ('RGB', 'L', 'P', '1'):
        yield File(f'BMP of mode {mode}', encoded('BMP', mode), size)
    for mode in ('RGB', 'RGBA'):
        yield File(f'WebP of mode {mode}', encoded('WEBP', mode), size)
    yield File('progressive JPEG', encoded('JPEG', progressive=True), size)
    yield File('PPM', encoded('PPM'), size)
    deep = PIXELS.astype(np.uint16) * 256
    for ending, picture in (('png', deep), ('tiff', deep), ('png', deep[..., 0])):
        content = cv2.imencode(f'.{ending}', picture)[1].tobytes()
        yield File(f'16 bits, {ending}, {picture.ndim} axes', content, size)
    two = np.dstack([PIXELS[..., 0], PIXELS[..., 1]])
    yield File('two channels', encoded('PNG', 'LA', np.dstack([PIXELS, two[..., 0]])), size)
    for axes in (4, 5, 7):
        stack = np.dstack([PIXELS[..., 0]] * axes)
        yield File(f'TIFF of {axes} channels', _tiff_of_channels(stack))


def _tiff_of_channels(picture: np.ndarray) -> bytes:
    """An uncompressed TIFF of any number of channels, by hand."""
    height, width, channels = picture.shape
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, picture.size),
    ]  # fmt: skip
    directory = struct.pack('<H', len(tags))
    directory += b''.join(struct.pack('<HHII', *tag) for tag in tags) + bytes(4)
    return struct.pack('<2sHI', b'II', 42, 8 + picture.size) + picture.tobytes() + directory


def _sizes() -> Iterator[File]:
    for width, height in ((1, 1), (20_000, 1), (1, 20_000), (3, 2), (65_500, 1)):
        pixels = np.full((height, width, 3), 99, np.uint8)
        for kind in ('PNG', 'JPEG', 'BMP'):
            yield File(
                f'{kind} of {width} x {height}', encoded(kind, 'RGB', pixels), (height, width)
            )
    yield File('PNG of no width', png(0, 5), refused=True)
    yield File('PNG of no height', png(5, 0), refused=True)


def _torn() -> Iterator[File]:
    wholes = {
        'PNG': encoded('PNG'),
        'JPEG': encoded('JPEG'),
        'progressive JPEG': encoded('JPEG', progressive=True),
        'WebP': encoded('WEBP'),
        'BMP': encoded('BMP'),
        'TIFF': encoded('TIFF'),
    }
    for name, whole in wholes.items():
        for share in (0.02, 0.2, 0.5, 0.8, 0.97):
            must = name in ('PNG', 'JPEG', 'progressive JPEG') or share < 0.1
            yield File(f'{name} torn at {share}', whole[: int(share * len(whole))], refused=must)
        for seed in range(4):
            yield File(f'{name} with other bytes, {seed}', _scrambled(whole, seed))
        zeros = whole[: len(whole) // 3] + bytes(len(whole) // 3) + whole[2 * len(whole) // 3 :]
        yield File(f'{name} with a hole', zeros)
        yield File(f'{name} and more behind it', whole + b'more' * 9999, (HEIGHT, WIDTH))


def _scrambled(content: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    found = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, len(found), 20)
    found[places] = rng.integers(0, 256, 20)
    return found.tobytes()


def _bombs() -> Iterator[File]:
    for width, height in BOMBS:
        yield File(f'PNG bomb of {width} x {height}', png(width, height), refused=True)
        yield File(f'BMP bomb of {width} x {height}', _bmp(width, height), refused=True)
        yield File(
            f'PPM bomb of {width} x {height}', b'P6 %d %d 255\n' % (width, height), None, True
        )
    yield File('16-bit PNG bomb', png(20_000, 20_000, 16, 6), refused=True)
    yield File('GIF bomb', b'GIF89a' + struct.pack('<HHBBB', 65_535, 65_535, 0, 0, 0), None, True)
    jpeg = bytearray(encoded('JPEG'))
    at = jpeg.index(b'\xff\xc0') + 5
    jpeg[at : at + 4] = struct.pack('>HH', 65_500, 65_500)
    yield File('JPEG bomb', bytes(jpeg), refused=True)
    text = _chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(50_000_000)))
    whole = encoded('PNG')
    yield File('PNG with a bomb of text', whole[:33] + text + whole[33:])
    yield File('PNG of too many rows', png(WIDTH, HEIGHT, rows=bytes(30_000_000)))


def _bmp(width: int, height: int) -> bytes:
    info = struct.pack('<IiiHHIIiiII', 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b'BM' + struct.pack('<IHHI', 54, 0, 0, 54) + info


def _animated() -> Iterator[File]:
    frames = [Image.fromarray(np.roll(PIXELS, step, 0)) for step in range(6)]
    for kind in ('GIF', 'WEBP', 'PNG', 'TIFF'):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        yield File(f'animated {kind}', file.getvalue(), (HEIGHT, WIDTH) if kind != 'GIF' else None)


def _others() -> Iterator[File]:
    contents = {
        'an empty file': b'',
        'a byte': b'\x89',
        'zeros': bytes(5000),
        'a text': b'no picture at all\n' * 9,
        'SVG': b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        'EPS': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n',
        'PDF': b'%PDF-1.4\n',
        'a zip': b'PK\x03\x04' + bytes(60),
        'a pickle': b'\x80\x04cposix\nsystem\n(S"true"\ntR.',
        'a PNG signature': b'\x89PNG\r\n\x1a\n',
        'a JPEG signature': b'\xff\xd8\xff\xe0',
        'a web page': b'<!DOCTYPE html><title>404</title>',
        'a pointer of Git LFS': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
    }
    for name, content in contents.items():
        yield File(name, content, refused=True)
    exif = Image.Exif()
    for value in (0, 9, 65_535):
        exif[0x0112] = value
        yield File(f'EXIF turns by {value}', encoded('JPEG', exif=exif), (HEIGHT, WIDTH))
    loop = (
        b'\xff\xe1\x00\x20Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x08\0\0\0'
    )
    whole = encoded('JPEG')
    yield File('EXIF that points at itself', whole[:2] + loop[:34] + whole[2:])
