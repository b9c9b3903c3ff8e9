"""Shared command-line arguments, and value types with one-sentence error messages.

Only light modules are imported: each command builds its parser from these before torch is loaded.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Union

from gfl_det.utils.choices import DTYPES
from gfl_det.utils.pixels import LIMIT_VARIABLE, pixel_limit

Parser = Union[argparse.ArgumentParser, argparse._ArgumentGroup]
CONFIG_HELP = 'a config file, a work dir, or the name of a shipped config'
CHECKPOINT_HELP = 'weights: a file, a URL, or a name that gfl-det models lists'
BEST_HELP = 'default: the best one of the work dir'


def parsing(
    make_parser: Callable[[str | None], argparse.ArgumentParser],
    finish: Callable[[argparse.Namespace], None] | None = None,
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None] | None = None,
) -> Callable[..., argparse.Namespace]:
    """Make the ``parse_arguments(argv=None, prog=None)`` of a command.

    Args:
        make_parser: Function that makes the command's parser.
        finish: Function that derives values in the parsed arguments from others.
        check: Function that refuses invalid combinations, for commands with optional positional
            arguments.
    """

    def parse_arguments(
        argv: Sequence[str] | None = None, prog: str | None = None
    ) -> argparse.Namespace:
        parser = make_parser(prog)
        if check is None:
            args = parser.parse_args(argv)
        else:  # otherwise options between the positional arguments would end them
            args = parser.parse_intermixed_args(argv)
            check(parser, args)
        if finish is not None:
            finish(args)
        return args

    return parse_arguments


def count(text: str) -> int:
    """Integer of at least 1."""
    return _whole(text, 1)


def count_or_zero(text: str) -> int:
    """Integer of at least 0."""
    return _whole(text, 0)


def port(text: str) -> int:
    """TCP port number, or 0."""
    value = _whole(text, 0)
    if value > 65535:
        raise argparse.ArgumentTypeError(f'a port lies in 0 to 65535, not {text}')
    return value


def share(text: str) -> float:
    """Number in [0, 1], such as a score."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'a share in 0 to 1 is needed, not {text}')
    return value


def amount(text: str) -> float:
    """Finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'a number above 0 is needed, not {text}')
    return value


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


class KeyValueAction(argparse.Action):
    """Parses ``KEY=VALUE ...`` into a dict, with the same values as mmengine's ``DictAction``.

    ``DictAction`` would load torch even for ``--help``. A word without ``=`` or unmatched brackets
    are usage errors.
    """

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        options = dict(getattr(namespace, self.dest, None) or {})
        for word in values:
            key, separator, text = word.partition('=')
            if not separator:
                parser.error(f'{option_string}: {word!r} is not of the form KEY=VALUE')
            try:
                options[key] = parse_value(text)
            except ValueError as error:
                parser.error(f'{option_string}: {word!r}: {error}')
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """Parse a value: a number, ``true``, ``None``, a string, or a list or tuple of values.

    Examples:
        >>> parse_value('0.1'), parse_value('True'), parse_value('None'), parse_value('a.py')
        (0.1, True, None, 'a.py')
        >>> parse_value('1,b'), parse_value('[(1,2),(3,4)]'), parse_value('()')
        ([1, 'b'], [(1, 2), (3, 4)], ())

    Raises:
        ValueError: If brackets are unmatched.
    """
    text = text.strip('\'"').replace(' ', '')
    is_tuple = text.startswith('(') and text.endswith(')')
    is_list = text.startswith('[') and text.endswith(']')
    if not (is_tuple or is_list or ',' in text):
        return _plain_value(text)
    inner = text[1:-1] if is_tuple or is_list else text
    values = []
    for item in _items(inner):
        if item == text:  # a comma that does not separate items, as in "1),(2"
            raise ValueError('its brackets do not match')
        values.append(parse_value(item))
    return tuple(values) if is_tuple else values


def _items(text: str) -> Iterator[str]:
    """Split at the commas outside brackets."""
    if any(text.count(left) != text.count(right) for left, right in ('()', '[]')):
        raise ValueError('its brackets do not match')
    begin, round_depth, square_depth = 0, 0, 0
    for place, character in enumerate(text):
        round_depth += (character == '(') - (character == ')')
        square_depth += (character == '[') - (character == ']')
        if character == ',' and round_depth == square_depth == 0:
            yield text[begin:place]
            begin = place + 1
    if begin < len(text):
        yield text[begin:]


def _plain_value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    return None if text == 'None' else text


def add_cfg_options(
    parser: argparse._ActionsContainer,
    text: str = 'override values of the config, as in data_root=DIR',
) -> None:
    """Add ``--cfg-options`` to a parser or an argument group."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE', help=text
    )


def add_config(parser: Parser) -> None:
    """Add the positional ``CONFIG``."""
    parser.add_argument('config', metavar='CONFIG', help=CONFIG_HELP)


def add_checkpoint(parser: Parser) -> None:
    """Add the positional ``CHECKPOINT``."""
    parser.add_argument(
        'checkpoint',
        metavar='CHECKPOINT',
        help=f'{CHECKPOINT_HELP}; or a work dir (its best checkpoint)',
    )


def add_detector(parser: Parser) -> None:
    """Add ``CHECKPOINT``, ``--config`` to replace the stored config, and ``--device``."""
    add_checkpoint(parser)
    add_config_and_device(parser)


def add_config_and_device(parser: Parser) -> None:
    """Add ``--config``, which replaces a checkpoint's stored config, and ``--device``."""
    parser.add_argument(
        '--config', metavar='CONFIG', help=f'{CONFIG_HELP}; default: the one in the checkpoint'
    )
    parser.add_argument(
        '--device', metavar='NAME', help='cpu, cuda, cuda:1 ...; default: the best one available'
    )


def add_calibrator(parser: Parser) -> None:
    """Add ``--calibrator``."""
    parser.add_argument(
        '--calibrator',
        metavar='JSON',
        help='calibrator of the scores, from `gfl-det calibrate fit`',
    )


def add_intervals(parser: Parser) -> None:
    """Add ``--intervals``."""
    parser.add_argument(
        '--intervals',
        metavar='JSON',
        help='calibrator of the intervals, from `gfl-det intervals fit`',
    )


def add_batch_size(parser: Parser) -> None:
    """Add ``--batch-size``."""
    parser.add_argument(
        '--batch-size', type=count, default=1, metavar='N', help='images per forward pass (1)'
    )


def add_optimize(parser: Parser) -> None:
    """Add ``--optimize``, None by default."""
    parser.add_argument(
        '--optimize',
        nargs='?',
        const='float32',
        choices=DTYPES,
        help='run the copy that optimize_for_inference makes, in float32 by default',
    )


def add_pixel_limit(parser: Parser) -> None:
    """Add ``--max-pixels``, None by default."""
    parser.add_argument(
        '--max-pixels',
        type=count,
        metavar='N',
        help=f'refuse larger images before they are decoded ({pixel_limit()}, or the environment '
        f'variable {LIMIT_VARIABLE})',
    )


def add_stream(parser: Parser) -> None:
    """Add the options of detection that `gfl-det infer` and `gfl-det infer-many` share."""
    add = parser.add_argument
    add('--score-thr', type=share, metavar='S', help='minimum score, before calibration')
    add('--level', type=share, default=0.9, metavar='L', help='level of the intervals (0.9)')
    add_calibrator(parser)
    add_intervals(parser)
    add_batch_size(parser)
    add_optimize(parser)
    add_pixel_limit(parser)


def add_seed(parser: Parser, text: str) -> None:
    """Add ``--seed``."""
    parser.add_argument('--seed', type=int, default=0, metavar='N', help=f'{text} (0)')


def add_halves(parser: Parser, halves: Sequence[str]) -> None:
    """Add ``--half`` and ``--seed``, which select a random half of one held-out split."""
    parser.add_argument(
        '--half',
        choices=halves,
        help='use a random half of the images: with a single held-out split, fit on the first half '
        'and evaluate on the second',
    )
    add_seed(parser, 'seed of the random halves')
