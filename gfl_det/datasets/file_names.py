"""Image files by the names that annotation files give them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping

from gfl_det.datasets.tidying import path_tails

ODD_SIGNS = frozenset('\\%:?')  # of paths of other machines, encoded ones, addresses


def find_file(folder: str, name: str) -> str | None:
    """Return the name below a folder of the file that is meant; None where there is none.

    Paths of other machines (with backslashes, ``%20``, an address of a storage) are found by their
    decoded ends, the longest first.
    """
    try:
        if os.path.isfile(os.path.join(folder, name)):
            return name
        tails = (tail for tail in path_tails(name) if os.path.isfile(os.path.join(folder, tail)))
        return next(tails, None)
    except (OSError, ValueError):  # no possible name of a file
        return None


def is_there(folder: str, name: str) -> bool:
    """Whether our data set will find an image."""
    if os.path.exists(os.path.join(folder, name)):
        return True
    return not ODD_SIGNS.isdisjoint(name) and find_file(folder, name) is not None


def renamed_files(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Return the files that names with odd signs mean, where none has that name; each once."""
    listed = list(names)
    found = {name: find_file(folder, name) for name in listed if not ODD_SIGNS.isdisjoint(name)}
    return meant_once({n: file for n, file in found.items() if file not in (None, n)}, listed)


def meant_once(new: Mapping[str, str | None], listed: Iterable[str]) -> dict[str, str]:
    """Return those of the new names that no other image has or gets."""
    times = Counter(new.get(name, name) for name in set(listed))
    return {name: file for name, file in new.items() if file is not None and times[file] == 1}
