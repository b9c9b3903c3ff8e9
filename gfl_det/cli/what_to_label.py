"""Command ``gfl-det what-to-label``: rank unlabelled pictures by what their labels would teach."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gfl_det.cli.arguments import (
    add_batch_size,
    add_calibrator,
    add_config_and_device,
    add_pixel_limit,
    count,
    parsing,
)
from gfl_det.errors import ConfigError, DataError
from gfl_det.utils.files import check_writable, write_json

if TYPE_CHECKING:
    import numpy as np

    from gfl_det.evaluation.label_choice import ExpectedErrors, LabelChoice
    from gfl_det.evaluation.label_evidence import UncertainDetections
    from gfl_det.inference.sources import ImageSource
    from gfl_det.inference.survey import SurveyInferencer
    from gfl_det.visualization.picture import Boxes

EPILOG = """\
SOURCE is a checkpoint or a work dir, which is run on the images, or a .json file of results that
`gfl-det infer --out` wrote for them. Pictures come in the order in which to label them: each by the
expected error of scores and edges that it covers, its own and that of pictures like it, as far as
those before it and those with labels do not. Of near copies, one is listed early.
Experimental: on blood cells, such pictures did not raise the AP beyond random ones by more than
chance would.
"""
SHEET_PICTURES = 24
LABELS = 3  # of the boxes with the largest expected errors, on the sheet
TOLD = 10  # pictures that are printed


class PicturePool(NamedTuple):
    """I pictures to choose from, and L with labels."""

    names: list[str]  # I
    labelled: list[str]  # L
    found: UncertainDetections  # in the I
    features: np.ndarray  # (I + L, D)
    classes: tuple[str, ...]
    detector: SurveyInferencer | None


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Rank unlabelled pictures by what their labels would teach (experimental).',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('source', metavar='SOURCE', help='see below')
    add('images', metavar='IMAGES', nargs='+', help='folders, files, patterns in quotes')
    add('--out', metavar='FILE', type=Path, required=True, help='the list to write, .json')
    add('--number', metavar='N', type=count, default=50, help='number of pictures to choose (50)')
    add(
        '--sheet',
        metavar='FILE',
        type=Path,
        help=f'contact sheet of the first {SHEET_PICTURES} to write, .jpg or .png',
    )
    add(
        '--labelled',
        metavar='PATH',
        nargs='+',
        default=[],
        help='pictures that have labels: folders, or COCO .json files that list some of IMAGES',
    )
    add_config_and_device(parser)
    add_calibrator(parser)
    add_batch_size(parser)
    add('--recursive', action='store_true', help='search subfolders too')
    add_pixel_limit(parser)
    add('--quiet', action='store_true', help='no progress')
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Write the list and the contact sheet.

    Raises:
        GFLDetError: If inputs are missing or do not match, or an output exists.
    """
    _check_outputs(args)
    from gfl_det.evaluation.label_choice import COUNTED, choose_pictures, expected_errors

    is_results = Path(args.source).suffix == '.json'
    pool = _pool_of_results(args) if is_results else _pool_of_detector(args)
    errors = expected_errors(pool.found, len(pool.names))
    number = len(pool.names)
    if not errors.objects.any():
        print(
            f'warning: {args.source} gives no detection from a score of {COUNTED} on: the pictures '
            'are chosen for their differences alone.',
            file=sys.stderr,
        )
    choice = choose_pictures(
        errors.value, pool.features[:number], args.number, pool.features[number:]
    )
    entries = list_entries(pool.names, pool.labelled, errors, choice)
    write_json(args.out, entries, indent=1)
    _tell(entries, number, args.out)
    if args.sheet:
        _write_sheet(args, pool, entries[:SHEET_PICTURES])
        print(f'sheet: {args.sheet}')


def list_entries(
    names: Sequence[str], labelled: Sequence[str], errors: ExpectedErrors, choice: LabelChoice
) -> list[dict]:
    """Entries of the list, in the order of choice."""
    known = [*names, *labelled]
    return [
        dict(
            rank=rank,
            image=names[index],
            gain=round(gain, 6),
            value=round(float(errors.value[index]), 6),
            expected_error_scores=round(float(errors.scores[index]), 6),
            expected_error_edges=round(float(errors.edges[index]), 6),
            objects=round(float(errors.objects[index]), 3),
            nearest=None if nearest < 0 else known[nearest],
            similarity=None if nearest < 0 else round(similarity, 6),
        )
        for rank, (index, gain, nearest, similarity) in enumerate(
            zip(*(values.tolist() for values in choice)), 1
        )
    ]


def _check_outputs(args: argparse.Namespace) -> None:
    """Check before the work that the outputs are new files that can be written."""
    if args.out.suffix != '.json':
        raise DataError(f'--out {args.out} must end in .json.')
    if args.sheet and args.sheet.suffix.lower() not in ('.jpg', '.jpeg', '.png'):
        raise DataError(f'--sheet {args.sheet} must end in .jpg or .png.')
    for path in filter(None, (args.out, args.sheet)):
        if path.exists():
            raise DataError(f'{path} exists, and nothing is overwritten: name a new file.')
        check_writable(path)


def _pool_of_detector(args: argparse.Namespace) -> PicturePool:
    import numpy as np

    from gfl_det.evaluation.label_choice import standardised
    from gfl_det.inference.survey import SurveyInferencer, survey

    detector = SurveyInferencer(
        args.source,
        args.config,
        device=args.device,
        level=None,
        calibrator=args.calibrator,
        distributions=True,
    )
    reading = dict(recursive=args.recursive, max_pixels=args.max_pixels)
    sources, labelled = _find(args, lambda names: detector.find(names, **reading), detector.classes)
    found = survey(detector, sources, args.batch_size, not args.quiet)
    order, number = _split(found.names, labelled)
    names = [found.names[row] for row in order]
    detections = found.found._replace(image=np.argsort(order)[found.found.image])
    return PicturePool(
        names[:number],
        names[number:],
        detections.take(detections.image < number),
        standardised(found.features)[order],
        detector.classes,
        detector,
    )


def _pool_of_results(args: argparse.Namespace) -> PicturePool:
    import numpy as np

    from gfl_det.inference.sources import Reading, find_sources
    from gfl_det.inference.survey import copy_features, read_results

    if args.calibrator:
        raise ConfigError(
            f'{args.source} holds results, whose scores --calibrator does not change: write them '
            'with gfl-det infer --calibrator.'
        )
    reading = Reading(recursive=args.recursive, max_pixels=args.max_pixels)
    sources, labelled = _find(args, lambda names: find_sources(names, reading))
    for source in sources:
        if not Path(source.name).is_file():
            next(source.open())  # says what is wrong
            raise DataError(f'{source.name} is no file, which results of files need: save it.')
    found, classes = read_results(args.source, [source.name for source in sources])
    order, number = _split([source.name for source in sources], labelled)
    names = [sources[row].name for row in order]
    found = found._replace(image=np.argsort(order)[found.image])
    return PicturePool(
        names[:number],
        names[number:],
        found.take(found.image < number),
        copy_features(names),
        classes,
        None,
    )


def _split(names: Sequence[str], labelled: set[str]) -> tuple[list[int], int]:
    """Rows of the pictures without labels, followed by those with, and the number of the former.

    Raises:
        DataError: If all have labels.
    """
    is_labelled = [_key(name) in labelled for name in names]
    if all(is_labelled):
        raise DataError(f'All {len(names)} images have labels, so none is left: name others.')
    return sorted(range(len(names)), key=is_labelled.__getitem__), is_labelled.count(False)


def _key(name: str) -> str:
    return os.path.realpath(name) if os.path.exists(name) else name


def _find(
    args: argparse.Namespace,
    find: Callable[[list[str]], list[ImageSource]],
    classes: tuple[str, ...] | None = None,
) -> tuple[list[ImageSource], set[str]]:
    """Sources of all pictures, each once, and the keys of those with labels.

    Raises:
        DataError: If labelled pictures are missing, or their classes are not the detector's.
    """
    from gfl_det.inference.survey import check_pictures, listed_pictures

    sources = find(args.images)
    names = [source.name for source in sources]
    labelled: set[str] = set()
    for path in args.labelled:
        if Path(path).suffix == '.json':
            labelled |= {_key(name) for name in listed_pictures(path, names, classes)}
        else:
            own = find([path])
            labelled |= {_key(source.name) for source in own}
            sources = sources + own
    check_pictures(sources)
    once = {_key(source.name): source for source in reversed(sources)}
    _split(list(once), labelled)  # refuses before the work
    return list(reversed(once.values())), labelled


def _tell(entries: Sequence[dict], number: int, out: Path) -> None:
    from gfl_det.utils.console import print_table

    rows = [
        [str(each['rank']), each['image'], f'{each["value"]:.3f}', f'{each["gain"]:.4f}']
        for each in entries[:TOLD]
    ]
    print_table('', ['rank', 'image', 'expected error', 'gain'], rows)
    print(f'list: {out} ({len(entries)} of {number} pictures)')


def _write_sheet(args: argparse.Namespace, pool: PicturePool, chosen: Sequence[dict]) -> None:
    import numpy as np

    from gfl_det.evaluation.label_choice import detection_errors
    from gfl_det.visualization.picture import contact_sheet, thumbnail
    from gfl_det.visualization.visualizer import save_picture

    panels, shown = [], set()
    for entry in chosen:
        image, boxes, found = _drawn(args, pool, entry['image'])
        doubts = np.argsort(-sum(detection_errors(found)), kind='stable')[:LABELS]
        picture = thumbnail(image, boxes, pool.classes, np.sort(doubts))
        title = f'{entry["rank"]}  {Path(entry["image"]).name}  {entry["value"]:.2f}'
        panels.append((title, picture))
        shown.update(boxes.labels.tolist())
    save_picture(contact_sheet(panels, pool.classes, sorted(shown)), args.sheet)


def _drawn(
    args: argparse.Namespace, pool: PicturePool, name: str
) -> tuple[np.ndarray, Boxes, UncertainDetections]:
    """Image (RGB), boxes with soft edges, and the same boxes' uncertainty, best first."""
    import numpy as np

    from gfl_det.datasets.images import read_image
    from gfl_det.evaluation.label_choice import COUNTED
    from gfl_det.inference.drawing import image_of
    from gfl_det.inference.survey import uncertain_detections
    from gfl_det.ops.boxes import xywh_to_xyxy
    from gfl_det.visualization.picture import Boxes, normal_bins

    result = None
    if pool.detector is None:
        image = read_image(name, args.max_pixels)
        found = pool.found.take(pool.found.image == pool.names.index(name))
    else:  # once more, since distributions are too large to be kept
        (result,) = pool.detector(
            name, keep_images=True, progress=False, max_pixels=args.max_pixels
        )
        image, found = image_of(result), uncertain_detections(result.instances)
    found = found.take(np.argsort(-found.scores, kind='stable'))
    found = found.take(found.scores >= COUNTED)
    if result is not None:
        boxes = Boxes.of(result.instances, COUNTED)
    else:
        edges = xywh_to_xyxy(found.boxes)
        boxes = Boxes(edges, found.label, found.scores, normal_bins(edges, found.edge_std))
    return np.ascontiguousarray(image[..., ::-1]), boxes, found
