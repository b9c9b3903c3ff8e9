"""Command ``gfl-det show``: draw detections and the distributions of their edges."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfl_det.cli.arguments import (
    add_calibrator,
    add_detector,
    add_pixel_limit,
    count_or_zero,
    share,
)
from gfl_det.errors import DataError
from gfl_det.utils.choices import CHART_ENDINGS

if TYPE_CHECKING:
    from gfl_det.inference import ImageResult
    from gfl_det.visualization.picture import Boxes

DRAWN_SCORE = 0.3  # as in infer
MAX_PX = 1e9  # beyond any picture; larger numbers cannot be summed safely


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Draw detections with soft edges, and bar charts of their edges.',
        epilog='Across an edge, the opacity is the predicted probability of each position: certain '
        'edges are narrow and dense, uncertain ones wide and faint.',
    )
    add_detector(parser)
    parser.add_argument(
        'inputs', nargs='+', metavar='IMAGE', help='files, folders, patterns in quotes, URLs'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('pictures'),
        metavar='DIR',
        help='folder for IMAGE.png and, with --edges, IMAGE.edges.png (pictures)',
    )
    parser.add_argument(
        '--score-thr', type=share, metavar='S', help='minimum score, before calibration'
    )
    parser.add_argument(
        '--show-thr',
        type=share,
        metavar='S',
        help='minimum score of drawn boxes (that of --score-thr, or else 0.3)',
    )
    parser.add_argument(
        '--truths',
        '--annotations',
        type=Path,
        metavar='JSON',
        help='COCO annotations to draw beside detections',
    )
    parser.add_argument(
        '--edges',
        nargs='*',
        type=count_or_zero,
        metavar='BOX',
        help='also chart the edges of these boxes, given by their rank in score from 0; default: '
        'the box with the sharpest edges and the one with the flattest',
    )
    parser.add_argument(
        '--format',
        choices=[ending[1:] for ending in CHART_ENDINGS],
        default='png',
        help='format of the charts (png): pdf and svg are vector graphics; jpg also applies to the '
        'pictures',
    )
    add_calibrator(parser)
    add_pixel_limit(parser)
    return parser


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Parse the command line."""
    args = make_parser(prog).parse_args(argv)
    if args.show_thr is None:
        args.show_thr = DRAWN_SCORE if args.score_thr is None else args.score_thr
    return args


def run(args: argparse.Namespace) -> None:
    """Draw each image and print the files as they are written.

    Raises:
        GFLDetError: See :func:`show`.
    """
    from gfl_det.utils.console import printable

    for path in show(args):
        print(printable(f'written: {path}'))


def show(args: argparse.Namespace) -> Iterator[Path]:
    """Draw each image.

    Yields:
        Files as they are written.

    Raises:
        GFLDetError: If an input is missing or an output cannot be written; or, after all other
            images are drawn, if some images could not be read.
    """
    from gfl_det.inference import GFLInferencer
    from gfl_det.inference.drawing import PictureNames, check_apart

    gts = CocoGroundTruth(args.truths) if args.truths else None
    detector = GFLInferencer(
        args.checkpoint,
        args.config,
        device=args.device,
        score_thr=args.score_thr,
        calibrator=args.calibrator,
        distributions=True,
    )
    failed, name = 0, PictureNames()
    sources = detector.find(args.inputs, max_pixels=args.max_pixels)
    check_apart(sources, args.out)
    for result in detector.stream(sources, keep_images=True):
        if result.error is not None:
            print(f'warning: {result.error}', file=sys.stderr)
            failed += 1
        else:
            yield from _draw(args, result, gts, name(result))
    if failed:
        raise DataError(f'{failed} of the images could not be read, see above.')


def _draw(
    args: argparse.Namespace, result: ImageResult, gts: CocoGroundTruth | None, stem: str
) -> Iterator[Path]:
    """Draw one image and, if requested, charts of the edges of its boxes."""
    import numpy as np

    from gfl_det.inference.drawing import image_of
    from gfl_det.visualization.charts import edge_figure, save_figure, sharp_and_flat
    from gfl_det.visualization.picture import Boxes, draw_boxes, side_by_side
    from gfl_det.visualization.visualizer import save_picture

    image = np.ascontiguousarray(image_of(result)[..., ::-1])
    name = Path(result.source).name
    found = Boxes.of(result.instances, args.show_thr)
    given = gts.of(result.source, result.classes) if gts else None
    picture = draw_boxes(image, found, result.classes)
    if given is not None:
        gt = draw_boxes(image, given, result.classes)
        picture = side_by_side([('ground truth', gt), ('prediction', picture)])
    path = args.out / f'{stem}.{"jpg" if args.format == "jpg" else "png"}'
    save_picture(picture, path)
    yield path
    if args.edges is None:
        return
    if len(found.boxes) == 0:
        print(f'{name}: no box of score {args.show_thr} or more to chart', file=sys.stderr)
        return
    chosen = [each for each in args.edges if each < len(found.boxes)]
    if len(chosen) < len(args.edges):
        print(f'{name}: boxes 0 to {len(found.boxes) - 1} alone can be charted', file=sys.stderr)
    chosen = chosen or sharp_and_flat(found) or [0]
    path = args.out / f'{stem}.edges.{args.format}'
    save_figure(edge_figure(image, found, chosen, result.classes, given), path)
    yield path


class CocoGroundTruth:
    """Gt boxes of a COCO file by image file: its path, the end of its path, or its unique name.

    Raises:
        DataError: If the file is missing or contains no COCO annotations.
    """

    def __init__(self, path: Path) -> None:
        from gfl_det.datasets.annotations import parse
        from gfl_det.datasets.tidying import tidy
        from gfl_det.evaluation.shown import image_ids

        self.path = path
        try:
            given = parse(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(f'{path} cannot be read: {error.strerror}.') from error
        content, _ = tidy(given, str(path))
        try:
            self._ids = image_ids(content['images'])
            self._names = {each['id']: each['name'] for each in content['categories']}
            self._boxes: dict[Any, list[Any]] = {each: [] for each in self._ids.values()}
            for each in content['annotations']:
                entry = (self._names[each['category_id']], each['bbox'])
                self._boxes.setdefault(each['image_id'], []).append(entry)
        except DataError as error:
            raise DataError(f'{path}: {error}') from error
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise DataError(f'{path} holds no COCO annotations: {error!r:.200}.') from error

    def of(self, name: str, classes: Sequence[str]) -> Boxes:
        """Gt boxes of an image file, limited to the detector's classes.

        Raises:
            DataError: If the image is not in the file, or a box is not finite.
        """
        import numpy as np

        from gfl_det.datasets.annotations import as_boxes
        from gfl_det.evaluation.shown import find_id, path_ends
        from gfl_det.ops.boxes import xywh_to_xyxy
        from gfl_det.visualization.picture import Boxes

        alike = [each for each in self._ids if Path(each).name == Path(name).name]
        known = path_ends(name) + (alike if len(alike) == 1 else [])
        image_id = find_id(self._ids, known, name, 'image')
        entries = [each for each in self._boxes.get(image_id, []) if each[0] in classes]
        boxes, _ = as_boxes([box for _, box in entries])
        if not np.isfinite(boxes).all():
            wrong = int(np.flatnonzero(~np.isfinite(boxes).all(1))[0])
            raise DataError(
                f'{self.path}: a box of {name} is {entries[wrong][1]!r:.60}, which is not four '
                'finite numbers [x, y, width, height]: correct it.'
            )
        boxes = xywh_to_xyxy(boxes.clip(-MAX_PX, MAX_PX))
        labels = [classes.index(kind) for kind, _ in entries]
        return Boxes(boxes, np.array(labels, dtype=np.int64))
