"""Compatibility with package versions, operators without a compiler, and safe loading."""

from __future__ import annotations

from functools import cache

from gfl_det.utils.pixels import limit_decoder


@cache
def install() -> None:
    """Prepare mmcv, mmengine and torch for gfl_det; later calls do nothing.

    Raises:
        SetupError: If mmcv is missing or its compiled operators do not load.
    """
    limit_decoder()  # must precede the import of OpenCV
    # Imported late: these modules import mmengine, whose failures are explained only after this
    # point.
    from gfl_det.compat import imports, ops

    imports.find_moved()
    ops.install()
    from gfl_det.compat import checkpoint, environment, pretrained

    checkpoint.install()
    pretrained.install()
    environment.install()
