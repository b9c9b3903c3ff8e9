"""The libraries that count COCO's AP: pycocotools, and a faster one with the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gfl_det.compat.environment import FASTER_COCO_EVAL, has_faster_coco_eval
from gfl_det.errors import ConfigError, SetupError

Backend = Literal['auto', 'pycocotools', 'faster_coco_eval']
SETTINGS = ('imgIds', 'catIds', 'iouThrs', 'recThrs', 'maxDets', 'areaRng', 'areaRngLbl', 'useCats')


class FastCOCOeval(COCOeval):
    """Drop-in for pycocotools' ``COCOeval`` on boxes: same inputs, settings, arrays and summary.

    ``summarize`` stays pycocotools' own: faster_coco_eval's takes AP from the largest of
    ``maxDets`` where pycocotools takes it from 100 detections per image.

    Entries of ``eval['precision']`` differ from pycocotools' by one unit in the last place (2e-16)
    where a single detection decides them: pycocotools adds that much to the divisor against 0 / 0.
    ``evalImgs``, pycocotools' record of each image, stays empty.
    """

    def evaluate(self) -> None:
        """Match detections with gt boxes at every IoU threshold and area range."""
        # The package is optional, and heads and losses have no use for it.
        from faster_coco_eval import COCOeval_faster

        self._engine = COCOeval_faster(self.cocoGt, self.cocoDt, self.params.iouType)
        _copy_settings(self.params, self._engine.params)
        self._engine.evaluate()
        _copy_settings(self._engine.params, self.params)  # sorted, and each id once

    def accumulate(self) -> None:
        """Fill ``eval`` with precision (T, R, K, A, M) and recall (T, K, A, M)."""
        self._engine.accumulate()
        self.eval = self._engine.eval


def counts_alike(gts: COCO, detections: Sequence[dict[str, Any]]) -> bool:
    """Whether `FastCOCOeval` is sure to give pycocotools' numbers.

    It reads ids as integers, a missing ``area`` or ``iscrowd`` as 0, and has no place for a score
    that is not a number; pycocotools takes any id and score, and refuses what is missing.

    Example:
        >>> known = COCO()
        >>> known.dataset = dict(images=[dict(id=7)], categories=[dict(id='cat')], annotations=[])
        >>> counts_alike(known, [])  # faster_coco_eval cannot read the category's id
        False
    """
    ids = [entry['id'] for part in ('images', 'categories') for entry in gts.dataset[part]]
    annotations = gts.dataset.get('annotations', [])
    return (
        all(isinstance(each, int) for each in ids)
        and all(
            isinstance(each['id'], int) and 'area' in each and 'iscrowd' in each
            for each in annotations
        )
        and not any(math.isnan(each['score']) for each in detections)
    )


def _copy_settings(source: Any, target: Any) -> None:
    for name in SETTINGS:
        setattr(target, name, getattr(source, name))


def choose_backend(wanted: Backend) -> Backend:
    """Settle on one of the two backends.

    Raises:
        ConfigError: If there is no such backend.
        SetupError: If it is asked for by name and not installed.

    Example:
        >>> choose_backend('pycocotools')
        'pycocotools'
    """
    if wanted not in get_args(Backend):
        raise ConfigError(
            f'backend={wanted!r} of CocoMetric is none of {", ".join(get_args(Backend))}.'
        )
    if wanted == 'auto':
        return 'faster_coco_eval' if has_faster_coco_eval() else 'pycocotools'
    if wanted == 'faster_coco_eval' and not has_faster_coco_eval():
        raise SetupError(
            f"backend='faster_coco_eval' of CocoMetric needs {FASTER_COCO_EVAL}, which is not "
            'installed: pip install gfl_det[faster].'
        )
    return wanted
