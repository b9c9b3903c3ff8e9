"""Untrusted image files, read with a pixel limit that applies before decoding.

A few kilobytes can declare an image of many gigabytes. Headers are therefore read first, and only
for the formats below.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import mmcv
import numpy as np
from PIL import Image, ImageOps

from gfl_det.datasets.digits.build import CLASSES
from gfl_det.errors import DataError
from gfl_det.utils.pixels import (
    MAX_PIXELS,
    Header,
    header_of,
    is_endless,
    pillow_opens,
    pixel_limit,
    text_header_of,
    too_large,
)

ENDINGS = frozenset(
    [
        '.jpg',
        '.jpeg',
        '.jpe',
        '.png',
        '.bmp',
        '.dib',
        '.webp',
        '.tif',
        '.tiff',
        '.ppm',
        '.pgm',
        '.pbm',
        '.jp2',
        '.gif',
        '.avif',
        '.pnm',
        '.sr',
        '.ras',
        '.hdr',
        '.pic',
        '.pam',
        '.pfm',
        '.apng',
        '.jfif',
        '.mpo',
    ]
)
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'PPM', 'JPEG2000', 'MPO', 'GIF', 'AVIF', 'SUN')
TEXT_FORMATS = ('Radiance HDR', 'PAM', 'PFM')  # OpenCV decodes all, Pillow only some
ODD_TIFF = (
    'is a TIFF that cannot be decoded as colours (for example of floats or of more than four '
    'channels), or is damaged: save it with 8 bits and three channels'
)
TIFF_HEADS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
JPEG_SCAN, JPEG_END = 0xDA, b'\xff\xd9'


def read_image(path: str | Path, max_pixels: int | None = None, **decoding: Any) -> np.ndarray:
    """Read an image file, with the result of mmcv's ``LoadImageFromFile``.

    Args:
        path: Path of the file.
        max_pixels: Limit above which images are rejected; None: :func:`..pixels.pixel_limit`.
        **decoding: Arguments of ``mmcv.imfrombytes``: ``flag`` and ``backend``.

    Returns:
        ``(H, W, 3)`` uint8, BGR, rotated by its EXIF entry.

    Raises:
        DataError: If the file is missing, too large, truncated, or not an image.
    """
    path = Path(path)
    try:
        if is_endless(path):
            raise DataError(f'{path} is a device or a pipe: give an image file.')
        with path.open('rb') as file:
            _check_header(file, str(path), max_pixels)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error
    except ValueError as error:  # name with a zero byte
        if isinstance(error, DataError):
            raise
        raise DataError(f'{str(path)!r} is not a valid file name: {error}.') from error
    return decode_image(content, str(path), max_pixels, **decoding)


def map_image(path: str | Path, max_pixels: int | None = None) -> np.ndarray | None:
    """Map an uncompressed TIFF of 8-bit RGB into memory, so that only the parts in use are read.

    Args:
        path: Path of the file.
        max_pixels: As for :func:`read_image`.

    Returns:
        ``(H, W, 3)`` uint8, BGR, a view of the file; None for other files, or without tifffile.

    Raises:
        DataError: If the image is too large.
    """
    if Path(path).suffix.lower() not in ('.tif', '.tiff') or not Path(path).is_file():
        return None
    try:
        import tifffile
    except ImportError:
        return None
    with Path(path).open('rb') as file:
        _check_header(file, str(path), max_pixels)
    try:
        image = tifffile.memmap(path, mode='r')
        with tifffile.TiffFile(path) as opened:
            page = opened.pages[0]
            upright = page.tags.get('Orientation') is None or page.tags['Orientation'].value == 1
            is_rgb = page.photometric == tifffile.PHOTOMETRIC.RGB and len(opened.pages) == 1
    except Exception:  # compressed or damaged: what reads it whole says what is wrong
        return None
    if not (is_rgb and upright and image.ndim == 3 and image.shape[2] == 3):
        return None
    return image[..., ::-1] if image.dtype == np.uint8 else None


def decode_image(
    content: bytes, name: str, max_pixels: int | None = None, **decoding: Any
) -> np.ndarray:
    """Decode an image from a file's content, with the arguments of :func:`read_image`.

    Raises:
        DataError: If the content is too large, truncated, or not an image.
    """
    pixels = _check_header(content, name, max_pixels)
    if is_torn(content):
        raise DataError(f'{name} is truncated: its end is missing; copy or download it again.')
    image = decode(content, pixels, **decoding)
    if image is None:
        reason = why_not(content) or 'is truncated or damaged: it cannot be decoded'
        raise DataError(f'{name} {reason}.')
    fault = dark_floats(content)
    if fault is not None:
        raise DataError(f'{name} {fault}.')
    return image


def dark_floats(content: bytes) -> str | None:
    """Explain that a PFM file holds floats from 0 to 1; None for other files.

    OpenCV truncates floats to integers, so these decode to a black image.
    """
    if not content.startswith((b'PF', b'Pf')):
        return None
    floats = _attempt(mmcv.imfrombytes, content, flag='unchanged', backend='cv2')
    if floats is None or not 0 < floats.max() <= 1:
        return None
    return (
        f'holds floats up to {floats.max():.3g}, which are decoded as integers, so black: '
        'multiply them by 255, or save it with 8 bits'
    )


def why_not(content: bytes) -> str | None:
    """Explain, with Pillow, why an image was not decoded; None for a damaged one."""
    if content.startswith(TIFF_HEADS) and header_of(content, _formats()) is None:
        return ODD_TIFF
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as file:
            file.load()
            kind = {'F': 'floats', 'I': '32-bit integers'}.get(file.mode)
            packed = file.info.get('compression', 'another')
    except Exception:  # a damaged image can raise anything
        return None
    if kind is None:
        return f'is intact, but OpenCV cannot decode it ({packed} compression): save it as PNG'
    return f'is intact, but its pixels ({kind}) cannot be decoded as colours: save it with 8 bits'


def decode(content: bytes, pixels: int, **decoding: Any) -> np.ndarray | None:
    """Decode an image file of checked size; None if it is damaged.

    Args:
        content: Content of the file.
        pixels: Number of pixels declared by its header.
        **decoding: Arguments of ``mmcv.imfrombytes``.
    """
    with pillow_opens(pixels):
        image = _attempt(mmcv.imfrombytes, content, **decoding)
        # OpenCV's own limit is fixed at its import, whatever the caller allows.
        if image is None and pixels > min(MAX_PIXELS, pixel_limit()):
            image = _attempt(by_pillow, content, **decoding)
    return image


def by_pillow(content: bytes, flag: str = 'color', **_: Any) -> np.ndarray:
    """Decode with Pillow, which has no fixed limit, to the values of ``mmcv.imfrombytes``."""
    if flag == 'unchanged':
        return mmcv.imfrombytes(content, flag=flag, backend='pillow')
    with Image.open(io.BytesIO(content), formats=_formats()) as file:
        image = file if flag.endswith('ignore_orientation') else ImageOps.exif_transpose(file)
        if image.mode.startswith('I'):  # 16 bits, of which OpenCV keeps the upper 8
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if flag.startswith('grayscale'):
            return np.array(image.convert('L'))
        return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])


def _attempt(read: Callable[..., np.ndarray], content: bytes, **decoding: Any) -> np.ndarray | None:
    try:
        return read(content, **decoding)
    except Exception:  # decoding backends raise their own types
        return None


def check_array(array: Any, name: str) -> np.ndarray:
    """Check an image array and convert it to ``(H, W, 3)`` uint8 in BGR.

    Args:
        array: ``(H, W)`` or ``(H, W, 1)`` grey, ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA; uint8.
        name: Name for messages.

    Raises:
        DataError: If the array has another shape or type, or is empty.
    """
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise DataError(
            f'{name} has the shape {array.shape}: give (height, width), or (height, width, 3) '
            'with channels BGR.'
        )
    if array.dtype != np.uint8:
        raise DataError(f'{name} is of type {array.dtype}: give uint8 values from 0 to 255.')
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]


def _check_header(file: Any, name: str, max_pixels: int | None) -> int:
    """Reject files that are not images or too large; return the number of pixels."""
    header = image_header(file)
    if header is None and _begin(file) in TIFF_HEADS:
        raise DataError(f'{name} {ODD_TIFF}.')
    if header is None:
        raise DataError(
            f'{name} is not an image of a known format ({", ".join(FORMATS + TEXT_FORMATS)}), or '
            'is damaged.'
        )
    fault = too_large(header.pixels, max_pixels)
    if fault is not None:
        raise DataError(f'{name} {fault}: it is rejected undecoded.')
    return header.pixels


def image_header(file: bytes | BinaryIO) -> Header | None:
    """Read the header of a file in a supported format; None for other formats."""
    return text_header_of(file) or header_of(file, _formats())


def _begin(file: bytes | BinaryIO) -> bytes:
    if isinstance(file, bytes):
        return file[:4]
    file.seek(0)
    return file.read(4)


def _formats() -> list[str]:
    Image.init()
    return [each for each in FORMATS if each in Image.OPEN]


def is_torn(content: bytes) -> bool:
    """Whether a JPEG or PNG file is truncated: OpenCV would fill the missing part with grey."""
    if content.startswith(b'\x89PNG'):
        return b'IEND' not in content
    if content.startswith(b'\xff\xd8'):
        return JPEG_END not in content[_jpeg_scan(content) :]
    return False


def _jpeg_scan(content: bytes) -> int:
    """Offset of the first scan; earlier segments may hold a thumbnail with its own end marker."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == JPEG_SCAN:
            return place
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD7:  # fill bytes, markers without content
            place += 1 if marker == 0xFF else 2
            continue
        place += 2 + int.from_bytes(content[place + 2 : place + 4], 'big')
    return place


def write_preview(
    root: Path, path: Path, split: str = 'val', columns: int = 4, rows: int = 4
) -> None:
    """Write a PNG with the first images of a split at double size, with boxes and classes."""
    content = json.loads((root / 'annotations' / f'{split}.json').read_text())
    tiles = []
    for image in content['images'][: columns * rows]:
        tile = cv2.imread(str(root / split / image['file_name']))
        tile = cv2.resize(tile, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        for item in content['annotations']:
            if item['image_id'] == image['id']:
                _draw_box(tile, [2 * edge for edge in item['bbox']], item['category_id'] - 1)
        tiles.append(tile)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    strips = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.vstack(strips)):
        raise DataError(f'{path} cannot be written: name a .png file in a writable folder.')


def _draw_box(tile: np.ndarray, box: list[int], label: int) -> None:
    x, y, width, height = box
    cv2.rectangle(tile, (x - 1, y - 1), (x + width, y + height), (0, 255, 0), 1)
    place = (x, max(10, y - 3))
    cv2.putText(tile, CLASSES[label], place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 255, 255))
