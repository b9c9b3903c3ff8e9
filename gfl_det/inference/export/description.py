"""The description in an exported file: JSON under one key of its metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from gfl_det.errors import DataError
from gfl_det.inference.export.preprocessing import Preprocessing
from gfl_det.inference.stored_config import SUPPRESSIONS
from gfl_det.version import __version__

KEY = 'gfl_det'
FORMAT = 1


@dataclass(frozen=True)
class Description:
    """Everything that a runtime needs beside the graph.

    Args:
        name: of the config.
        head: type of the head, whose scores these are.
        classes: names in the order of the labels.
        preprocessing: from a picture to the inputs.
        settings: the head's ``test_cfg``: ``score_thr``, ``nms_pre``, ``nms``, ``min_bbox_size``
            and ``max_per_img``.
        outputs: names of the graph's outputs.
        nms: whether suppression is inside the graph.
        calibrated: whether a calibrator is inside.
        level: of the edges' intervals; None: there are none.
        precision: ``float32`` or ``int8``.
        version: of the gfl_det that exported it.
    """

    name: str
    head: str
    classes: list[str]
    preprocessing: Preprocessing
    settings: dict[str, Any]
    outputs: list[str]
    nms: bool
    calibrated: bool
    level: float | None = None
    precision: str = 'float32'
    version: str = field(default=__version__)

    def to_json(self) -> str:
        """As text."""
        content = dict(vars(self), preprocessing=self.preprocessing.to_json(), format=FORMAT)
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str | None, source: str) -> Description:
        """What :meth:`to_json` wrote.

        Args:
            text: None: there was none.
            source: name of the file, for messages.

        Raises:
            DataError: it is not of this package, or of a later format.
        """
        if not text:
            raise DataError(f'{source} was not written by gfl-det export: export it there.')
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f'{source} has a description that is not JSON: export it again.'
            ) from error
        if not isinstance(content, dict) or content.pop('format', None) != FORMAT:
            content = content if isinstance(content, dict) else {}
            raise DataError(
                f'{source} was written by gfl_det {content.get("version")!s:.60} in a format that '
                f'gfl_det {__version__} does not read: export it again.'
            )
        try:
            preprocessing = Preprocessing.from_json(content.pop('preprocessing'))
            nms = content['settings'].get('nms')
            if nms is not None and nms.get('type', 'nms') not in SUPPRESSIONS:
                raise ValueError(f'nms of the type {nms["type"]!r:.60}')  # mmcv evaluates its name
            return cls(preprocessing=preprocessing, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'{source} describes itself wrongly ({error!r}): export it again.'
            ) from error
