"""What a reader says of a file."""

from __future__ import annotations

from collections.abc import Callable

from gfl_det.errors import GFLDetError

MOST = 4000  # characters, of a list of all faults


def refusal(reader: Callable, argument: object) -> str | None:
    """What a reader says of a file that it refuses; None where it takes it.

    Any other error than one meant for the user fails the test.
    """
    try:
        reader(argument)
    except GFLDetError as error:
        said = str(error)
    else:
        return None
    assert said
    assert len(said) < MOST
    return said
