"""Declared image sizes, checked before memory is allocated for pixels."""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

MAX_PIXELS = 178_956_970  # PIL's limit: 512 MiB decoded, which a file of a few kilobytes can demand
LIMIT_VARIABLE = 'OPENCV_IO_MAX_IMAGE_PIXELS'
EXIF_ORIENTATION = 0x0112
TEXT_HEAD = 4096  # bytes of a file that contain a textual header

_raised = threading.Lock()


class Header(NamedTuple):
    """Header of an image file."""

    pixels: int  # width times height
    orientation: int = 1  # EXIF orientation, 1 to 8; 1: as stored
    stored: tuple[int, int] | None = None  # width and height, px, before rotation

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height after decoding, px; orientations from 5 on swap them."""
        if self.stored is None or self.orientation < 5:
            return self.stored
        return self.stored[1], self.stored[0]


def limit_decoder() -> None:
    """Make OpenCV reject images above ``MAX_PIXELS``, unless the environment sets a limit.

    OpenCV reads the variable when it is first imported; its own limit is six times as large.
    """
    os.environ.setdefault(LIMIT_VARIABLE, str(MAX_PIXELS))


def pixel_limit() -> int:
    """Return the largest number of pixels that an image may have."""
    given = os.environ.get(LIMIT_VARIABLE, '')
    return int(given) if given.isdecimal() else MAX_PIXELS


def too_large(pixels: int, limit: int | None = None) -> str | None:
    """Explain that an image has too many pixels; None if it has not.

    Args:
        pixels: Width times height.
        limit: Largest allowed number; None: :func:`pixel_limit`.
    """
    most = pixel_limit() if limit is None else limit
    if pixels <= most:
        return None
    cure = f'{LIMIT_VARIABLE} in the environment' if limit is None else 'a larger max_pixels'
    return f'has {pixels:,} pixels, more than the limit of {most:,} ({cure} raises it)'


@contextmanager
def pillow_opens(pixels: int) -> Iterator[None]:
    """Let Pillow open images of this size, already checked by the caller.

    Pillow's limit is global to all threads, so only one caller may raise it at a time.
    """
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is None or pixels <= MAX_PIXELS:
        yield
        return
    with _raised:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def is_endless(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a device or a pipe, which may never reach an end.

    Raises:
        OSError: If the path does not exist.
        ValueError: If the path is not a valid file name.
    """
    mode = os.stat(path).st_mode
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def header_of(content: bytes | BinaryIO, formats: list[str] | None = None) -> Header | None:
    """Read the header of an image file; None if PIL is missing or cannot read it.

    Args:
        content: Open file, full content, or a sufficient beginning.
        formats: Pillow's names of the formats to read; None: all.
    """
    try:
        from PIL import Image
    except ImportError:
        return None
    stated = text_header_of(content) if formats is None else None
    if stated is not None:
        return stated
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about sizes above half of the limit
            file = io.BytesIO(content) if isinstance(content, bytes) else content
            picture = Image.open(file, formats=formats)
            orientation = _orientation(picture)
    except Image.DecompressionBombError as refusal:
        return Header(int(re.findall(r'\d+', str(refusal))[0]))
    except Exception:  # a damaged header can raise anything
        return None
    width, height = picture.size
    return Header(width * height, orientation, (width, height))


def text_header_of(content: bytes | BinaryIO) -> Header | None:
    """Read the textual header of a Radiance HDR, PAM or PFM file; None for other files."""
    if isinstance(content, bytes):
        begin = content[:TEXT_HEAD]
    else:
        begin = content.read(TEXT_HEAD)
        content.seek(-len(begin), os.SEEK_CUR)
    if begin.startswith((b'#?RADIANCE', b'#?RGBE')):
        found = re.search(rb'\n\n[-+][XY] (\d{1,9}) [-+][XY] (\d{1,9})\n', begin)
        return Header(int(found[1]) * int(found[2])) if found else None
    if begin.startswith((b'PF', b'Pf')):
        found = re.match(rb'P[Ff]\s+(\d{1,9})\s+(\d{1,9})\s', begin)
        return Header(int(found[1]) * int(found[2])) if found else None
    if begin.startswith(b'P7\n'):
        head = begin.partition(b'ENDHDR')[0]
        sides = [re.search(rb'\n%s (\d{1,9})\n' % key, head) for key in (b'WIDTH', b'HEIGHT')]
        return Header(int(sides[0][1]) * int(sides[1][1])) if sides[0] and sides[1] else None
    return None


def _orientation(picture: Any) -> int:
    # For a PNG without an EXIF entry before the pixels, PIL would decode all pixels to find one
    # behind.
    if picture.format == 'PNG' and 'exif' not in picture.info:
        return 1
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # decoders ignore a damaged entry; the size is still valid
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
