"""The versions that gfl_det works with. Nothing but Python's own library is imported.

setup.py asks for the same ranges, and a test holds the two together.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Range(NamedTuple):
    """Versions from the first up to, but not including, the second; None leaves a side open."""

    oldest: str | None
    newer: str | None
    tested: str  # what is installed to cure another version

    def holds(self, version: str) -> bool:
        """Whether a version lies in the range; of ``2.1.0+cpu`` or ``2.2.0rc1`` the numbers."""
        numbers = release(version)
        return (self.oldest is None or numbers >= release(self.oldest)) and (
            self.newer is None or numbers < release(self.newer)
        )

    def __str__(self) -> str:
        parts = [f'>={self.oldest}' if self.oldest else '', f'<{self.newer}' if self.newer else '']
        return ','.join(part for part in parts if part)


# By the name of the module; numpy and the like go with whatever torch and mmcv were built for.
RANGES = {
    'torch': Range('2.1', None, 'torch==2.13.0'),
    'mmengine': Range('0.10.3', '1', 'mmengine==0.10.7'),
    'mmcv': Range('2.0.1', '2.2', 'mmcv-lite==2.1.0'),  # mmdet 3.3 refuses 2.2
    'mmdet': Range('3.3', '4', 'mmdet==3.3.0'),
}


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version without zeros at the end, so that 2.1 equals 2.1.0."""
    match = re.match(r'\d+(?:\.\d+)*', version.strip())
    numbers = [int(part) for part in match.group().split('.')] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
