"""Command ``gfl-det infer``: detect objects in images and videos."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import (
    add_detector,
    add_stream,
    count,
    count_or_zero,
    parsing,
    share,
)
from gfl_det.errors import DataError
from gfl_det.utils.files import check_writable, writing

if TYPE_CHECKING:
    from gfl_det.inference.drawing import Drawer, VideoDrawer
    from gfl_det.inference.inferencer import GFLInferencer
    from gfl_det.inference.results import ImageResult, Results
    from gfl_det.inference.sources import ImageSource

EPILOG = """\
INPUT is an image, a video, a folder, a pattern in quotes ('shots/**/*.png'), a URL, or several of
them. Images that cannot be read are reported, the others are processed; the exit status is then 1.
Besides boxes and scores, results contain for the left, top, right and bottom edge: edge_std (px),
edge_low and edge_high (the interval of --level, px), edge_entropy (nats). See
docs/howto/intervals.md.
"""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Detect in images and videos.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_detector(parser)
    add('inputs', metavar='INPUT', nargs='+', help='see below')
    add('--out', metavar='FILE', help='write results: .json (COCO results) or .csv (needs pandas)')
    add('--annotations', metavar='JSON', help='COCO file whose image and class ids --out uses')
    add('--show-dir', metavar='DIR', help='draw every image into this folder')
    add('--save-video', metavar='FILE', help='draw the frames of the video into this .mp4')
    add(
        '--show-thr',
        type=share,
        default=0.3,
        metavar='S',
        help='minimum score of drawn and counted boxes (0.3)',
    )
    add_stream(parser)
    add('--class-scores', action='store_true', help='add the scores of all classes to --out')
    add(
        '--operating-point',
        metavar='JSON',
        help='score thresholds per class, from `gfl-det operate`',
    )
    add('--joint', action='store_true', help='intervals for whole boxes: all four edges at once')
    add(
        '--tile',
        type=count,
        nargs='+',
        metavar='PX',
        help='detect larger pictures in tiles of this side, or of this height and width; '
        '--batch-size tiles per forward pass',
    )
    add(
        '--overlap',
        type=count_or_zero,
        metavar='PX',
        help='minimum overlap of the tiles (a fifth of the side)',
    )
    add('--recursive', action='store_true', help='search subfolders too')
    add('--every', type=count, default=1, metavar='N', help='use every N-th frame of a video (1)')
    add('--quiet', action='store_true', help='no line per image, no progress')
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Detect objects, and print and write the results.

    Raises:
        GFLDetError: If detection cannot start; or, after all other images are processed, if some
            images could not be read.
    """
    from gfl_det.datasets.checks.check import read
    from gfl_det.inference.drawing import Drawer
    from gfl_det.inference.inferencer import GFLInferencer

    _check_out(args)
    annotations = read(args.annotations) if args.annotations else None
    detector = GFLInferencer(
        args.checkpoint,
        args.config,
        device=args.device,
        score_thr=args.score_thr,
        level=args.level,
        calibrator=args.calibrator,
        intervals=args.intervals,
        joint=args.joint,
        operating_point=args.operating_point,
        tile=args.tile[0] if args.tile and len(args.tile) == 1 else args.tile,
        overlap=args.overlap,
        with_class_scores=args.class_scores,
        distributions=args.show_dir is not None or args.save_video is not None,
        optimize=args.optimize,
    )
    drawer = Drawer(args.show_dir, detector.classes, args.show_thr) if args.show_dir else None
    started = time.perf_counter()
    results = _detect(args, detector, drawer, annotations)
    if not args.quiet:
        _tell_speed(results, time.perf_counter() - started)
    failed = results.failures
    if args.out and len(failed) < len(results):
        _write(results, args.out, annotations)
        print(f'results: {args.out}')
    if drawer and len(failed) < len(results):
        print(f'pictures: {args.show_dir} ({len(results) - len(failed)} files)')
    if len(failed) == len(results) == 1:
        raise DataError(str(failed[0].error))
    if failed:
        raise DataError(f'{len(failed)} of {len(results)} inputs could not be read, see above.')


def _detect(
    args: argparse.Namespace,
    detector: GFLInferencer,
    drawer: Drawer | None,
    annotations: dict | None,
) -> Results:
    from gfl_det.inference.drawing import check_apart
    from gfl_det.inference.results import ImageResult, Results
    from gfl_det.utils.console import Progress

    reading = dict(recursive=args.recursive, every=args.every, max_pixels=args.max_pixels)
    sources = detector.find(args.inputs, **reading)
    if drawer:
        check_apart(sources, drawer.folder)
    if annotations:  # refuses unknown images and classes before the work
        named = (ImageResult(each.name, classes=detector.classes) for each in sources)
        Results(named).to_coco(annotations)
    film = _film(args, sources)
    results = Results()
    with Progress(sum(each.images for each in sources), 'images', not args.quiet) as bar:
        stream = detector.stream(
            sources, batch_size=args.batch_size, keep_images=drawer is not None or film is not None
        )
        for note in filter(None, (each.note for each in sources)):
            bar.say(f'warning: {note}')
        for result in stream:
            bar.advance()
            results.images.append(result.compact())
            if result.error is not None:
                if len(sources) > 1:
                    bar.say(f'warning: {result.error}')
                continue
            if drawer:
                drawer(result)
            if film and result.frame is not None:
                film(result)
            if not args.quiet:
                bar.tell(_line(result, args.show_thr if drawer or film else None))
    if film:
        film.close()
        print(f'video: {film.path} ({film.frames} frames, {film.rate:g} a second)')
    return results


def _line(result: ImageResult, drawn_from: float | None) -> str:
    """Summary line of an image; if boxes are drawn, only the drawn ones are counted."""
    shown = result if drawn_from is None else result.above(drawn_from)
    hidden = len(result) - len(shown)
    others = f' ({hidden} more below --show-thr {drawn_from:g})' if hidden else ''
    return f'{shown.summary()}{others} [{result.milliseconds or 0:.0f} ms]'


def _film(args: argparse.Namespace, sources: list[ImageSource]) -> VideoDrawer | None:
    """Writer of the video for --save-video; None without that option.

    Raises:
        DataError: If the inputs are not one video, or the file cannot be written.
    """
    from gfl_det.inference.drawing import VideoDrawer, frame_rate
    from gfl_det.inference.sources import VIDEO_ENDINGS

    if not args.save_video:
        return None
    videos = [each.name for each in sources if Path(each.name).suffix.lower() in VIDEO_ENDINGS]
    if len(videos) != 1:
        raise DataError(f'--save-video takes one video, and the inputs have {len(videos)}.')
    if Path(args.save_video).resolve() == Path(videos[0]).resolve():
        raise DataError(f'--save-video {args.save_video} is the video itself: name another file.')
    rate = frame_rate(videos[0]) / args.every
    return VideoDrawer(args.save_video, rate, args.show_thr)


def _tell_speed(results: Results, seconds: float) -> None:
    """Print milliseconds per image in the detector, and images per second overall."""
    spent = [each.milliseconds for each in results if each.milliseconds is not None]
    if spent:
        what = 'frame' if all(each.frame is not None for each in results) else 'image'
        number = f'{len(spent)} {what}' + 's' * (len(spent) != 1)
        print(
            f'speed: {number}, {sum(spent) / len(spent):.0f} ms each in the detector, '
            f'{len(spent) / seconds:.1f} a second with reading and drawing'
        )


def _check_out(args: argparse.Namespace) -> None:
    """Check before the work that the outputs can be written."""
    from gfl_det.inference.results import Results

    if not args.out:
        if args.annotations:
            raise DataError('--annotations gives ids to a result file: name it with --out.')
        return
    ending = Path(args.out).suffix
    if ending not in ('.json', '.csv'):
        raise DataError(f'--out {args.out} must end in .json (COCO results) or .csv (a table).')
    check_writable(args.out, (args.annotations, args.calibrator, args.intervals, *args.inputs))
    if ending == '.csv':
        Results().to_pandas()


def _write(results: Results, out: str, annotations: dict | None) -> None:
    if Path(out).suffix == '.json':
        results.save(out, annotations)
        return
    table = results.to_pandas()
    with writing(out):
        table.to_csv(out, index=False)
