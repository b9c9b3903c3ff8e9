"""YAML files as data: mmengine's own reader calls whatever a tag in them names."""

from __future__ import annotations

from typing import Any

import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import YamlHandler

SafeLoader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)  # in C where that was built


class PlainLoader(SafeLoader):
    """Plain values, and the tuples that mmengine writes."""


def _tuple(loader: Any, node: Any) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


PlainLoader.add_constructor('tag:yaml.org,2002:python/tuple', _tuple)


class PlainYamlHandler(YamlHandler):
    """Reads what :class:`PlainLoader` understands; every other tag is an error."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        """Read a file; ``Loader`` chooses another loader, as in ``yaml.load``."""
        kwargs.setdefault('Loader', PlainLoader)
        return super().load_from_fileobj(file, **kwargs)


def install() -> None:
    """Let mmengine read YAML so."""
    register_handler(['yaml', 'yml'])(PlainYamlHandler)
