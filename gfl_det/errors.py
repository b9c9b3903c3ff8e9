"""The errors users see: each message is one sentence that names the culprit and the cure."""

from __future__ import annotations


class GFLDetError(Exception):
    """Base of every error raised on purpose; tools print it without a traceback."""


class DataError(GFLDetError, ValueError):
    """A data set, an annotation entry or an image file that cannot be used."""


class CheckpointError(GFLDetError, RuntimeError):
    """A weights file that is unsafe, torn, missing or of another kind."""


class ConfigError(GFLDetError, ValueError):
    """A config whose parts contradict each other."""


class SetupError(GFLDetError, ImportError):
    """An installation that lacks a package or has an incompatible one."""


class MissingOpError(GFLDetError, NotImplementedError):
    """An operator that only compiled mmcv provides."""


class NotSwappableError(ConfigError):
    """A detector whose head cannot give way to another by its nature."""


class NonFiniteLossError(GFLDetError, ArithmeticError):
    """A training step whose loss or gradient is infinite or not a number."""
