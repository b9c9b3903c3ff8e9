"""How often the cuts of one half of a split keep their promise on the other half.

    python -m projects.decisions.halves --truths JSON --results JSON --out JSON

The images are halved at random, cuts are chosen on one half, and the other half judges them. The
other half is a sample too: a promise that holds in truth fails there by chance, the more often the
fewer images there are.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np

from gfl_det.calibration import (
    Promise,
    choose_cuts,
    detections_from_coco,
    gts_from_coco,
    match,
    read_json,
)
from gfl_det.calibration.operating_point import cut_mask
from gfl_det.calibration.splits import Judged, split
from gfl_det.evaluation.matching import IGNORED, TRUE
from gfl_det.utils.files import check_writable, write_json

PROMISES = (('precision', 0.9), ('precision', 0.8), ('recall', 0.5), ('false_alarms', 0.5))


def main() -> None:
    """Halve, choose, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for names in (('--truths', '--annotations'), ('--results',), ('--out',)):
        parser.add_argument(*names, required=True)
    parser.add_argument('--halvings', type=int, default=100)
    parser.add_argument('--one-class', action='store_true', help='all classes as one')
    args = parser.parse_args()
    check_writable(args.out)
    gts = gts_from_coco(read_json(args.truths), args.truths)
    judged = Judged(gts, detections_from_coco(read_json(args.results), gts, args.results))
    if args.one_class:
        judged = as_one_class(judged)
    write_json(args.out, [row(judged, *each, args.halvings) for each in PROMISES])


def as_one_class(judged: Judged) -> Judged:
    """All boxes as of one class; a detection of another class than its gt's becomes right."""
    gts, found = judged
    gts = gts._replace(category_ids=[1], class_names=['object'], label=np.zeros_like(gts.label))
    return Judged(gts, found._replace(label=np.zeros_like(found.label)))


def row(judged: Judged, goal: str, target: float, halvings: int) -> dict[str, object]:
    """Shares of halvings and classes with a cut, and of these that keep the promise."""
    cuts = kept = cases = 0
    for seed in range(halvings):
        first, second = split(judged, seed)
        point = choose_cuts(first.detections, first.gts, Promise(goal, target))  # type: ignore[arg-type]
        found = second.detections
        (matches,) = match(found, second.gts, [0.5])
        above = cut_mask(matches.label, matches.scores, point.thresholds())
        images = len(second.gts.image_ids)
        for label, each in enumerate(point.classes):
            mine = above & (matches.label == label) & (matches.state != IGNORED)
            cases += 1
            if each.cut is None:
                continue
            cuts += 1
            right, number = int((matches.state[mine] == TRUE).sum()), int(mine.sum())
            gts = int(matches.gt_counts[label])
            value = dict(
                precision=right / max(number, 1) if number else 1.0,
                recall=right / gts if gts else 1.0,
                false_alarms=(number - right) / images,
            )[goal]
            kept += value <= target if goal == 'false_alarms' else value >= target
    share = round(kept / cuts, 3) if cuts else None
    return dict(goal=goal, target=target, halvings=halvings, cases=cases, with_cut=cuts, kept=share)


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    main()
