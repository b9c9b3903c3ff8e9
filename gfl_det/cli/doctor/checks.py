"""One line of the doctor's report."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal['ok', 'note', 'problem']


class Check(NamedTuple):
    """What was looked at and found."""

    name: str
    state: State
    text: str  # what is there, or what is wrong
    cure: str = ''  # the exact line to type
