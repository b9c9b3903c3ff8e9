"""Import the packages of the family one by one; run in a process of its own, since any may crash.

    python -m gfl_det.cli.doctor.family FILE

Each line of FILE is a step that began or ended.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial

from gfl_det.cli.doctor.installed import DISTRIBUTIONS
from gfl_det.cli.doctor.steps import Steps
from gfl_det.compat.imports import explain


def import_one(name: str) -> dict[str, str]:
    """Import a package.

    Returns:
        Its version.

    Raises:
        SetupError: It does not import; the message says what it means.
    """
    try:
        module = importlib.import_module(name)
    except Exception as error:
        said = explain(error)
        if said is None:
            raise
        raise said from error
    return {'version': str(getattr(module, '__version__', ''))}


def main() -> None:
    """Take the steps."""
    with Steps(sys.argv[1]) as steps:
        for name in DISTRIBUTIONS:
            steps.take(name, partial(import_one, name))


if __name__ == '__main__':
    main()
