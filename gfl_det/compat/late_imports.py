"""Libraries that mmdet imports for a few of its parts wait until such a part is used.

``import mmdet.models`` imports scikit-learn for the interpolation of tracks, SciPy's optimisers for
Hungarian assignment and pyplot for pictures of tracking errors, which takes most of its time. While
:func:`late` is in force, such names are bound to stand-ins that import the library when they are
called or read. None of them stays in ``sys.modules``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# Modules of libraries, and the names in each that mmdet imports and only ever calls.
_MODULES: dict[str, tuple[str, ...]] = {
    'matplotlib': (),
    'matplotlib.patches': ('Rectangle',),
    'matplotlib.pyplot': (),
    'scipy': (),
    'scipy.linalg': (),
    'scipy.optimize': ('linear_sum_assignment',),
    'scipy.sparse': ('csr_matrix',),
    'scipy.sparse.csgraph': ('maximum_bipartite_matching',),
    'sklearn': (),
    'sklearn.gaussian_process': ('GaussianProcessRegressor',),
    'sklearn.gaussian_process.kernels': ('RBF',),
    'sklearn.mixture': (),
}


class _Later(ModuleType):
    """Stands for a module; what is not known to be called alone imports it at once."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # as of a package, so that other submodules are asked for

    def __getattr__(self, name: str) -> Any:
        module = self.__name__
        place = f'{module}.{name}'
        standing = sys.modules.get(module) is self
        if standing and isinstance(sys.modules.get(place), _Later):
            return sys.modules[place]
        if standing and name in _MODULES[module]:
            return _called_later(module, name)
        if name.startswith('__'):
            raise AttributeError(name)
        _remove(module.partition('.')[0])
        return import_module(place) if place in _MODULES else getattr(import_module(module), name)


class _Others(MetaPathFinder):
    """Another module of a library that is stood for ends that, and is imported."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        library = fullname.partition('.')[0]
        if not isinstance(sys.modules.get(library), _Later):
            return None
        _remove(library)
        return find_spec(fullname)


def _called_later(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__module__ = module
    return call


def _remove(library: str) -> None:
    for name in _MODULES:
        if name.partition('.')[0] == library and isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


@contextmanager
def late() -> Iterator[None]:
    """Put stand-ins in the place of libraries that are installed and not imported yet."""
    libraries = {name.partition('.')[0] for name in _MODULES}
    libraries = {name for name in libraries if name not in sys.modules and find_spec(name)}
    for name in _MODULES:
        if name.partition('.')[0] in libraries:
            sys.modules[name] = _Later(name)
    finder = _Others()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for library in libraries:
            _remove(library)
