"""Errors of one sentence for config parts that cannot be built and for missing devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gfl_det.errors import SetupError
from gfl_det.utils.stack import calls_of, place_of

if TYPE_CHECKING:
    from torch import nn

BUILDER = 'build_from_cfg'  # mmengine's function that calls the type of a part with its settings
# What constructors raise at settings that they cannot use.
FAULTS = (AssertionError, AttributeError, KeyError, TypeError, ValueError)


def building_fault(error: BaseException) -> str | None:
    """Say which part of a config could not be built, and from what.

    Args:
        error: What came out of a command.

    Returns:
        One sentence; None where no part was being built.
    """
    from gfl_det.utils.console import few

    parts = calls_of(error, BUILDER)
    if not parts:
        return None
    reason = str(error.args[0] if error.args else '').partition('\n')[0].partition('. ')[0]
    kind = parts[-1].get('obj_cls')
    if kind is None:
        return f'A part of the config cannot be built: {reason}.'
    settings = few([f'{key}={value!r}' for key, value in _plain(parts[-1].get('args')).items()])
    cure = f'correct its settings ({settings})' if settings else 'correct its settings'
    name = getattr(kind, '__name__', str(kind))
    where = place_of(error)  # the fault may be one of a class of the user's own
    return (
        f'{name} of the config cannot be built ({type(error).__name__}: {reason}; at {where}): '
        f'{cure}.'
    )


def move(model: nn.Module, device: str) -> nn.Module:
    """Move a model to a device.

    Raises:
        SetupError: There is no such device, or torch cannot use it.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition('\n')[0].rstrip('.')
        raise SetupError(
            f'The device {device!r} cannot be used ({reason}): take cpu, or see `gfl-det doctor`.'
        ) from error


def _plain(settings: Any) -> dict[str, Any]:
    kinds = (bool, int, float, str)
    return {key: value for key, value in dict(settings or {}).items() if isinstance(value, kinds)}
