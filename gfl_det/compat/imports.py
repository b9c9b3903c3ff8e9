"""Imports: explanations of failed ones, supported versions, libraries that wait, old paths.

Since 0.2 the code is in :mod:`gfl_det.models`, :mod:`gfl_det.engine` and :mod:`gfl_det.inference`.
An import path of version 0.1, such as ``gfl_det.heads``, and its submodules resolve to the same
module objects as the new one: a second copy would register every class twice.

``import mmdet.models`` imports scikit-learn for the interpolation of tracks, SciPy's optimisers for
Hungarian assignment and pyplot for pictures of tracking errors, which takes most of its time. While
:func:`late` is in force, such names are bound to stand-ins that import the library when they are
called or read. None of them stays in ``sys.modules``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

from gfl_det.errors import GFLDetError, SetupError
from gfl_det.utils.faults import modules_of


class Range(NamedTuple):
    """Version range from the first up to, but excluding, the second; None is unbounded."""

    oldest: str | None
    newer: str | None
    tested: str  # requirement to install instead of other versions

    def holds(self, version: str) -> bool:
        """Whether a version is in the range; ``2.1.0+cpu`` counts as 2.1.0."""
        numbers = release(version)
        return (self.oldest is None or numbers >= release(self.oldest)) and (
            self.newer is None or numbers < release(self.newer)
        )

    def __str__(self) -> str:
        parts = [f'>={self.oldest}' if self.oldest else '', f'<{self.newer}' if self.newer else '']
        return ','.join(part for part in parts if part)


# By module name; numpy and similar packages must match the builds of torch and mmcv.
RANGES = {
    'torch': Range('2.1', None, 'torch==2.13.0'),
    'mmengine': Range('0.10.3', '1', 'mmengine==0.10.7'),
    'mmcv': Range('2.0.1', '2.2', 'mmcv-lite==2.1.0'),  # mmdet 3.3 refuses 2.2
    'mmdet': Range('3.3', '4', 'mmdet==3.3.0'),
}


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version without trailing zeros, so that 2.1 equals 2.1.0."""
    match = re.match(r'\d+(?:\.\d+)*', version.strip())
    numbers = [int(part) for part in match.group().split('.')] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


DOCTOR = 'gfl_det.cli.doctor'
DOCTOR_NAMES = ('gfl_det.doctor', 'gfl_det.__main__', DOCTOR)  # typed names, and the module
SCRIPT_NAMES = ('gfl-det', 'gfl-det.exe', 'gfl-det-script.py')
LITE_LINE = 'pip install mmcv-lite==2.1.0'
BUILD_LINE = (
    'pip uninstall -y mmcv-lite; pip install "setuptools<81" wheel ninja; '
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary mmcv mmcv==2.1.0'
)
SETUPTOOLS_LINE = 'pip install "setuptools<81"'
HEADLESS_LINE = (
    'pip uninstall -y opencv-python; pip install --force-reinstall opencv-python-headless'
)
# Modules whose distribution has another name or belongs to another package.
LINES = {
    'mmcv': LITE_LINE,
    'cv2': 'pip install opencv-python',
    'pkg_resources': SETUPTOOLS_LINE,
    'sklearn': 'pip install scikit-learn',
    'yaml': 'pip install pyyaml',
    'PIL': 'pip install pillow',
    **{
        name: f'pip install "{known.tested}"'
        for name, known in RANGES.items()
        if name in ('torch', 'mmengine', 'mmdet')
    },
}

# Pattern of a failure -> its meaning and the command that cures it; the first match counts.
FAILURES: tuple[tuple[str, str, str], ...] = (
    (
        r"No module named '(?P<name>mmcv\._ext)'",
        'this mmcv has no compiled operators: import gfl_det before mmdet.models, which brings '
        'operators of its own, or build mmcv with them',
        BUILD_LINE,
    ),
    (
        r'mmcv/_ext\S*:.*undefined symbol|_ext\S*\.so.*undefined symbol|DLL load failed.*_ext',
        "mmcv's compiled operators were built for another torch",
        BUILD_LINE,
    ),
    (
        r'MMCV==(?P<version>\S+) is used but incompatible',
        'mmdet refuses mmcv {version}',
        f'pip uninstall -y mmcv mmcv-lite; {LITE_LINE}',
    ),
    (
        r'MMEngine==(?P<version>\S+) is used but incompatible',
        'mmengine {version} is refused',
        LINES['mmengine'],
    ),
    (
        r"cannot import name '\w+' from 'mmcv"
        r"|No module named 'mmcv\.(?:runner|parallel|utils\.\w+)'",
        'an mmcv or mmdet of another generation (1.x, 2.x) is installed',
        f'pip uninstall -y mmcv-full mmcv mmcv-lite mmdet; {LITE_LINE} mmdet==3.3.0',
    ),
    (
        r"No module named '(?P<name>pkg_resources)'",
        'mmengine needs pkg_resources, which this setuptools lacks',
        SETUPTOOLS_LINE,
    ),
    (
        r'(?P<name>lib(?:GL|gthread|glib|SM|Xext|Xrender)\S*?\.so\S*): cannot open shared object',
        'OpenCV needs the screen library {name}, which this system lacks',
        HEADLESS_LINE,
    ),
    (
        r'numpy\.core\.multiarray failed|compiled using NumPy 1|_ARRAY_API not found'
        r'|numpy\.(?:dtype|ndarray) size changed',
        'a package was compiled for another numpy than the installed one',
        'pip install --upgrade --force-reinstall --no-cache-dir pycocotools opencv-python numpy',
    ),
    (
        r'(?P<name>lib(?:cu|nccl|nv|torch|c10)\S*?\.so\S*): cannot open shared object',
        'torch lacks the library {name}, so its installation is incomplete',
        'pip install --force-reinstall torch',
    ),
)
# Packages whose assertions and missing names point to a broken installation.
FAMILY = ('torch', 'mmengine', 'mmcv', 'mmdet', 'cv2', 'numpy', 'pycocotools', 'scipy', 'sklearn')


def is_own_command() -> bool:
    """Whether this process was started as ``gfl-det``, ``-m gfl_det`` or ``-m gfl_det.doctor``.

    Python imports a package before its modules. These commands answer ``--help`` without torch, or
    diagnose failing imports, and register the components later. Other programs must register at
    import, so the process's command line is checked: user programs and spawned data loader workers
    have different ones. Python 3.9 does not keep the command line, so there help takes seconds and
    the doctor needs an importable installation.
    """
    words = iter(getattr(sys, 'orig_argv', ())[1:])
    for word in words:
        if not word.startswith('-'):
            return re.split(r'[/\\]', word)[-1] in SCRIPT_NAMES
        if word.startswith('--') or word == '-':
            continue
        option = re.search('[cmWX]', word)  # options with a value, joined or as the next word
        if option is None:
            continue
        value = word[option.end() :] or next(words, '')
        if option[0] == 'm':
            return value == 'gfl_det' or value.startswith(DOCTOR_NAMES)
        if option[0] == 'c':
            return False
    return False


@contextmanager
def explained() -> Iterator[None]:
    """Convert failed imports of the OpenMMLab family to a SetupError; other errors pass unchanged.

    Raises:
        SetupError: If a package is missing, broken or of an incompatible version.
    """
    try:
        yield
    except GFLDetError:
        raise
    except Exception as error:  # an import can raise anything
        said = explain(error)
        if said is None:
            raise
        raise said from error


def explain(error: BaseException) -> SetupError | None:
    """Explain a failed import; None if the installation is not the cause."""
    text = re.sub(r'\s+', ' ', str(error)).strip()
    for pattern, meaning, line in FAILURES:
        match = re.search(pattern, text)
        if match:
            # The text may contain braces: only the meaning is a template.
            named = {key: value.rstrip('.,') for key, value in match.groupdict().items()}
            return SetupError(f'{_first_upper(meaning.format(**named))}: run `{line}`.')
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition('.')[0]
        if top == 'gfl_det':
            return None
        line = LINES.get(top, f'pip install {top}')
        if top != error.name:  # the package exists but lacks a module
            line = line.replace('pip install', 'pip install --force-reinstall --no-deps')
        return SetupError(f'The package {error.name} is not installed: run `{line}`.')
    culprit = _culprit(error)
    if culprit is None or not isinstance(
        error, (ImportError, OSError, AssertionError, AttributeError)
    ):
        return None
    line = LINES.get(culprit, f'pip install {culprit}').replace(
        'pip install', 'pip install --force-reinstall'
    )
    return SetupError(
        f'The package {culprit} does not import ({type(error).__name__}: {text[:300]}): '
        f'run `{line}`, and `python -m {DOCTOR_NAMES[0]}` to see all versions.'
    )


def _culprit(error: BaseException) -> str | None:
    """Name the package of the family that raised an error, or the missing module."""
    found = None
    for module in modules_of(error):
        top = module.partition('.')[0]
        if top in (*FAMILY, 'gfl_det'):
            found = top
    name = (getattr(error, 'name', None) or '').partition('.')[0]
    if found == 'gfl_det':
        return name if name in FAMILY else None
    return found or (name if name in FAMILY else None)


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith('mm') else text


# Modules of libraries, and the names in each that mmdet imports and only ever calls.
LATE: dict[str, tuple[str, ...]] = {
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
        if standing and name in LATE[module]:
            return _called_later(module, name)
        if name.startswith('__'):
            raise AttributeError(name)
        _remove(module.partition('.')[0])
        return import_module(place) if place in LATE else getattr(import_module(module), name)


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
    for name in LATE:
        if name.partition('.')[0] == library and isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


@contextmanager
def late() -> Iterator[None]:
    """Put stand-ins in the place of libraries that are installed and not imported yet."""
    libraries = {name.partition('.')[0] for name in LATE}
    libraries = {name for name in libraries if name not in sys.modules and find_spec(name)}
    for name in LATE:
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


MOVED = {
    'gfl_det.assigners': 'gfl_det.models.assigners',
    'gfl_det.assigners.lattice': 'gfl_det.models.assigners.closed_form',
    'gfl_det.compat.nms': 'gfl_det.compat.ops',
    'gfl_det.detectors': 'gfl_det.models.detectors',
    'gfl_det.export': 'gfl_det.inference.export',
    'gfl_det.export.openvino': 'gfl_det.inference.export.runtime',
    'gfl_det.export.preprocessing': 'gfl_det.inference.export.graph',
    'gfl_det.export.source': 'gfl_det.inference.export.onnx_file',
    'gfl_det.heads': 'gfl_det.models.heads',
    'gfl_det.hooks': 'gfl_det.engine.hooks',
    'gfl_det.hooks.assignment_log': 'gfl_det.engine.hooks.monitoring',
    'gfl_det.hooks.sample_pictures': 'gfl_det.engine.hooks.monitoring',
    'gfl_det.losses': 'gfl_det.models.losses',
    'gfl_det.visualization.edges': 'gfl_det.visualization.picture',
}


class MovedFinder(MetaPathFinder, Loader):
    """Finder of modules under their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = '.'.join(fullname.split('.')[:2])
        if fullname in MOVED:
            return ModuleSpec(fullname, self, origin=MOVED[fullname])
        if package not in MOVED:
            return None
        return ModuleSpec(fullname, self, origin=fullname.replace(package, MOVED[package], 1))

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        # After running a module, import reads sys.modules again, so it may be replaced there.
        sys.modules[module.__name__] = import_module(str(module.__spec__.origin))


def find_moved() -> None:
    """Let Python find modules under their old names; later calls do nothing."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())
