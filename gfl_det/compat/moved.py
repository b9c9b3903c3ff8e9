"""Import paths of version 0.1, such as ``gfl_det.heads``, in one table.

Since 0.2 the code is in :mod:`gfl_det.models`, :mod:`gfl_det.engine` and :mod:`gfl_det.inference`.
An old path and its submodules resolve to the same module objects as the new one: a second copy
would register every class twice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    'gfl_det.assigners': 'gfl_det.models.assigners',
    'gfl_det.detectors': 'gfl_det.models.detectors',
    'gfl_det.export': 'gfl_det.inference.export',
    'gfl_det.heads': 'gfl_det.models.heads',
    'gfl_det.hooks': 'gfl_det.engine.hooks',
    'gfl_det.losses': 'gfl_det.models.losses',
}


class MovedFinder(MetaPathFinder, Loader):
    """Finder of modules under their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = '.'.join(fullname.split('.')[:2])
        if package not in MOVED:
            return None
        new = fullname.replace(package, MOVED[package], 1)
        return ModuleSpec(fullname, self, origin=new)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        # After running a module, import reads sys.modules again, so it may be replaced there.
        sys.modules[module.__name__] = import_module(str(module.__spec__.origin))


def install() -> None:
    """Let Python find modules under their old names; later calls do nothing."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())
