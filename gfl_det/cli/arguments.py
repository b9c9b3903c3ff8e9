"""Values on command lines: types for argparse that say in one sentence what they take."""

from __future__ import annotations

import argparse
import math

from gfl_det.utils.pixels import LIMIT_VARIABLE, pixel_limit


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def count_or_zero(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def port(text: str) -> int:
    """A number of a TCP port, or 0."""
    value = _whole(text, 0)
    if value > 65535:
        raise argparse.ArgumentTypeError(f'a port lies in 0 to 65535, not {text}')
    return value


def share(text: str) -> float:
    """A number in [0, 1], such as a score."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'a share in 0 to 1 is needed, not {text}')
    return value


def amount(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'a number above 0 is needed, not {text}')
    return value


def add_pixel_limit(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-pixels``, None where it is not given."""
    parser.add_argument(
        '--max-pixels',
        type=count,
        metavar='N',
        help=f'refuse larger images before they are decoded ({pixel_limit()}, which '
        f'{LIMIT_VARIABLE} in the environment changes too)',
    )


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(
            f'a whole number of at least {least} is needed, not {text!r}'
        )
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'a number is needed, not {text!r}') from None
