"""The command line behind ``tools/show.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .. import cli
from ..errors import DataError
from .charts import ENDINGS, edge_figure, save_figure, sharp_and_flat
from .detector import Detector
from .edges import Boxes
from .picture import draw_boxes, side_by_side
from .visualizer import save_picture

IMAGE_ENDINGS = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Draw detections with soft edges, and bar charts of their edges.',
        epilog='The opacity across an edge is the probability that the head gives to each place: '
        'sure edges are narrow and dense, unsure ones wide and faint.',
    )
    parser.add_argument('config', help='a config file, or the name of a shipped config')
    parser.add_argument('checkpoint', help='weights: a file or an address')
    parser.add_argument('images', nargs='+', type=Path, help='image files, or folders of them')
    parser.add_argument('--out', type=Path, default=Path('pictures'), metavar='DIR')
    parser.add_argument('--score-thr', type=_share, default=0.3, metavar='S', help='least score')
    parser.add_argument(
        '--truths', type=Path, metavar='JSON', help='COCO annotations to draw beside detections'
    )
    parser.add_argument(
        '--edges',
        nargs='*',
        type=int,
        metavar='BOX',
        help='also chart the edges of these boxes, by rank of score from 0; without a number, of '
        'the box with the sharpest edges and the one with the flattest',
    )
    parser.add_argument(
        '--format',
        choices=[ending[1:] for ending in ENDINGS],
        default='png',
        help='of the charts: pdf and svg hold vectors; jpg is that of the pictures too',
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda or cuda:1')
    parser.add_argument(
        '--cfg-options', nargs='+', action=cli.KeyValueAction, metavar='KEY=VALUE', default={}
    )
    return parser.parse_args(argv)


def show(args: argparse.Namespace) -> list[Path]:
    """Draw each image.

    Returns:
        The files that were written.

    Raises:
        GFLDetError: a file is missing, no image, or cannot be written.
    """
    paths = find_images(args.images)
    truths = CocoTruths(args.truths) if args.truths else None
    detector = Detector(
        cli.load_config(args.config, args.cfg_options), args.checkpoint, args.device
    )
    written = []
    for path in paths:
        image = read_image(path)
        found = Boxes.of(detector(image), args.score_thr)
        given = truths.of(path, detector.classes) if truths else None
        picture = draw_boxes(image, found, detector.classes)
        if given is not None:
            truth = draw_boxes(image, given, detector.classes)
            picture = side_by_side([('truth', truth), ('prediction', picture)])
        ending = 'jpg' if args.format == 'jpg' else 'png'
        written.append(args.out / f'{path.stem}.{ending}')
        save_picture(picture, written[-1])
        if args.edges is not None:
            chosen = args.edges or sharp_and_flat(found)
            if len(found.boxes) == 0:
                print(f'{path}: no box of score {args.score_thr} or more to chart')
                continue
            figure = edge_figure(image, found, chosen, detector.classes, given)
            written.append(args.out / f'{path.stem}.edges.{args.format}')
            save_figure(figure, written[-1])
    return written


def find_images(given: Sequence[Path]) -> list[Path]:
    """Image files, those in folders by name.

    Raises:
        DataError: a path does not exist, or a folder has no image.
    """
    paths = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_ENDINGS)
            if not inside:
                raise DataError(f'{path} has no image ({", ".join(IMAGE_ENDINGS)}).')
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise DataError(f'{path} does not exist: check the path.')
    return paths


def read_image(path: Path) -> np.ndarray:
    """An image file as ``(H, W, 3)`` uint8 RGB.

    Raises:
        DataError: the file is no image that OpenCV can decode.
    """
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if _size(path) else None
    if image is None:
        raise DataError(f'{path} is no image that can be decoded: is the file complete?')
    return np.ascontiguousarray(image[..., ::-1])


class CocoTruths:
    """The boxes of a COCO file, by the name of the image file.

    Raises:
        DataError: the file is missing or no COCO annotations.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = json.loads(path.read_text())
            self._ids = {Path(each['file_name']).name: each['id'] for each in content['images']}
            self._names = {each['id']: each['name'] for each in content['categories']}
            self._boxes: dict[Any, list[Any]] = {}
            for each in content['annotations']:
                self._boxes.setdefault(each['image_id'], []).append(each)
        except OSError as error:
            raise DataError(f'{path} cannot be read: {error.strerror}.') from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path} holds no COCO annotations: {error!r}.') from error

    def of(self, image: Path, classes: Sequence[str]) -> Boxes:
        """The truths of an image; those of other classes than the detector's are left out.

        Raises:
            DataError: the file does not know the image.
        """
        if image.name not in self._ids:
            raise DataError(f'{self.path} has no image {image.name}: leave --truths out.')
        entries = [
            each
            for each in self._boxes.get(self._ids[image.name], [])
            if self._names[each['category_id']] in classes
        ]
        boxes = np.array([each['bbox'] for each in entries], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [classes.index(self._names[each['category_id']]) for each in entries]
        return Boxes(boxes, np.array(labels, dtype=np.int64))


def _size(path: Path) -> int:
    return path.stat().st_size


def _share(word: str) -> float:
    value = float(word)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'a score lies in 0 .. 1, not {word}')
    return value
