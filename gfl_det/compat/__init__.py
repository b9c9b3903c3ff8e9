"""The only folder that knows versions: operators without a compiler, safe checkpoint loading."""

from __future__ import annotations

from functools import cache

from gfl_det.utils.pixels import limit_decoder


@cache
def install() -> None:
    """Prepare mmcv, mmengine and torch for gfl_det; calls after the first do nothing.

    Raises:
        SetupError: mmcv is absent, or its compiled operators do not load.
    """
    limit_decoder()  # before OpenCV is imported
    # In here, as the others import mmengine and through it, if it is broken, fail less clearly.
    from gfl_det.compat import moved, ops

    moved.install()
    ops.install()
    from gfl_det.compat import checkpoint, pretrained, versions

    checkpoint.install()
    pretrained.install()
    versions.install()
