"""Which lines' tests are to notice a change of a line."""

from __future__ import annotations

import pytest

from projects.mutation.line_tests import places

CODE = """\
LIMIT = 3

class Box:
    side = 2

    def area(
        self, times=1
    ):
        if times > LIMIT:
            return (
                0
            )
        return times * self.side ** 2

def first():
    return 1
"""
AREA, FIRST = {9, 10, 11, 12, 13}, {16}


@pytest.mark.parametrize(
    ('line', 'lines'),
    [
        (9, {9}),  # of an if, the head
        (11, {10, 11, 12}),  # a statement of several lines
        (16, {16}),
        (7, AREA),  # a default: the function
        (4, AREA),  # the class
        (1, AREA | FIRST),  # the module
    ],
)
def test_a_line_has_the_tests_of_what_it_stands_in(line: int, lines: set[int]) -> None:
    assert next(found for found in places(CODE, line) if found) == lines
