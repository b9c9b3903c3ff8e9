"""Command ``gfl-det export``: export a detector and verify the exported file."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import (
    add_calibrator,
    add_cfg_options,
    add_checkpoint,
    add_config,
    add_intervals,
)
from gfl_det.errors import ConfigError, DataError, GFLDetError
from gfl_det.utils.choices import BOX_LIMIT, EDGE_LIMIT, ENTROPY_LIMIT, OPSETS, SCORE_LIMIT
from gfl_det.utils.files import check_writable

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.structures import InstanceData

    from gfl_det.engine.runner import Split
    from gfl_det.inference.export.graph import Picture, PreparedBatch
    from gfl_det.inference.export.onnx_file import Description, ExportSettings, ExportSource
    from gfl_det.inference.export.runtime import ExportedDetector

CHECKED = 8  # pictures
NOISE_SHAPES = ((480, 640), (640, 427), (300, 900))
EPILOG = """\
FILE.onnx is for ONNX Runtime and others (pip install "gfl_det[onnx]"), FILE.xml for OpenVINO (pip
install "gfl_det[onnx,openvino]"). Both contain preprocessing, class names and settings:

    from gfl_det.inference.export import OnnxDetector, OpenVINODetector
    results = OnnxDetector('FILE.onnx')('pictures/')

Inputs of the graph: images (B, 3, H, W) float32, resized, normalised and padded; img_shape (B, 2),
height and width before padding; scale_factor (B, 2), along x and y from the original picture.
Outputs with --nms: boxes (B, K, 4) xyxy px of the original picture, scores (B, K), labels (B, K),
counts (B,). Without: boxes (B, P, 4) and scores (B, P, C) of all P cells, levels (P,).
For costs and benefits of each option see docs/howto/export.md.
"""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Export a detector to ONNX or OpenVINO.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_config(parser)
    add_checkpoint(parser)
    add('--out', metavar='FILE', type=Path, required=True, help='FILE.onnx or FILE.xml')
    _add_contents(parser)
    add('--int8', action='store_true', help='quantise on pictures of the training split; FILE.xml')
    add('--count', type=int, default=300, metavar='N', help='pictures to quantise on (%(default)s)')
    add(
        '--check',
        action='store_true',
        help='compare with torch on pictures of the test split, or on noise without one; the exit '
        f'status is 1 if scores differ by more than {SCORE_LIMIT}, boxes by {BOX_LIMIT} px, or, '
        f'with --uncertainty, edges by {EDGE_LIMIT} px or {ENTROPY_LIMIT} nats',
    )
    add('--ap', choices=['val', 'test'], help='print the AP of torch and of FILE on this split')
    add(
        '--time',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="time FILE against mmdet's detector on an input of this size",
    )
    add_cfg_options(parser)
    return parser


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Parse the command line; contradictory options are usage errors."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    if args.int8 and (args.out.suffix != '.xml' or args.check):
        parser.error('--int8 writes FILE.xml, and is judged by --ap and not by --check')
    if args.count < 1:
        parser.error(f'--count {args.count} is not a number of pictures: at least 1 is needed')
    if args.level is not None and not 0 < args.level < 1:
        parser.error(f'--level {args.level:g} is not a share between 0 and 1, such as 0.9')
    for name in ('intervals', 'level'):
        if getattr(args, name) is not None and not args.uncertainty:
            parser.error(f'--{name} is of edge_low and edge_high: give --uncertainty too')
    return args


def _add_contents(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the contents and inputs of the graph."""
    add = parser.add_argument
    add('--nms', action='store_true', help='suppress inside the graph')
    add(
        '--uncertainty', action='store_true', help='add edge_std, edge_low, edge_high, edge_entropy'
    )
    add('--distribution', action='store_true', help="add the edges' distributions")
    add('--class-scores', action='store_true', help="every class's score of each detection")
    add_calibrator(parser)
    add_intervals(parser)
    add('--level', type=float, metavar='L', help='of these intervals (0.9)')
    add(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='a fixed size of the input, px; pictures are resized to fit it',
    )
    add(
        '--opset',
        type=int,
        default=OPSETS.start,
        metavar='N',
        help=f'of ONNX, {OPSETS.start} to {OPSETS.stop - 1} (%(default)s)',
    )


def run(args: argparse.Namespace) -> None:
    """Export a detector and verify the file.

    Raises:
        GFLDetError: If inputs are missing or do not match, or the file's outputs differ from
            torch's.
    """
    from gfl_det.engine.preflight.data import check_data
    from gfl_det.inference.export.evaluation import check_judged
    from gfl_det.inference.export.onnx_file import load_source
    from gfl_det.utils.config import load_config

    settings = _settings(args)
    cfg = load_config(args.config, args.cfg_options)
    source = load_source(
        cfg, args.config, args.checkpoint, args.calibrator, args.intervals, args.level
    )
    source.model.bbox_head.test_cfg.with_class_scores = args.class_scores  # --check compares them
    if args.ap:
        check_judged(cfg, args.ap)
    if args.int8:
        check_data(cfg, ('train',))
    detector = _write(args, cfg, source, settings)
    print(f'written: {args.out} ({", ".join(detector.description.outputs)})')
    if args.check:
        _check(cfg, source, detector)
    if args.ap:
        _print_ap(cfg, source, detector, args.ap)
    if args.time:
        _print_times(args, cfg, source, detector)


def _settings(args: argparse.Namespace) -> ExportSettings:
    """Export settings; impossible ones are refused before anything is loaded."""
    from gfl_det.inference.export.graph import Outputs
    from gfl_det.inference.export.onnx_file import ExportSettings, check_size

    _check_out(args.out)
    size = tuple(args.size) if args.size else None
    settings = ExportSettings(
        Outputs(args.nms, args.uncertainty, args.distribution, args.class_scores),
        size,
        args.opset,
    )
    if args.time:
        check_size(tuple(args.time), '--time')
        if size and tuple(args.time) != size:
            height, width = size
            raise ConfigError(
                f'--time {args.time[0]} {args.time[1]} is not the fixed --size {height} {width} of '
                f'the file: time it at {height} {width}, or leave --size out.'
            )
    return settings


def _check_out(path: Path) -> None:
    """Check before the work that the output can be written, and create its folder."""
    from gfl_det.inference.loading import EXPORTED

    if path.suffix not in EXPORTED:
        raise DataError(f'--out {path} must end in .onnx, or in .xml for OpenVINO.')
    check_writable(path)
    if path.suffix == '.xml':
        check_writable(path.with_suffix('.bin'))  # the weights


def _write(
    args: argparse.Namespace, cfg: Config, source: ExportSource, settings: ExportSettings
) -> ExportedDetector:
    from gfl_det.inference.export.onnx_file import write_onnx
    from gfl_det.inference.export.runtime import (
        OnnxDetector,
        OpenVINODetector,
        write_int8,
        write_openvino,
    )

    if args.out.suffix == '.onnx':
        write_onnx(source, args.out, settings)
        return OnnxDetector(args.out)
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / 'detector.onnx'
        description = write_onnx(source, onnx_path, settings)
        if args.int8:
            pictures = _training_pictures(cfg, description, args.count)
            write_int8(onnx_path, args.out, description, pictures, args.count)
        else:
            write_openvino(onnx_path, args.out, description)
    return OpenVINODetector(args.out)


def _training_pictures(
    cfg: Config, description: Description, count: int
) -> Iterator[PreparedBatch]:
    """Random pictures of the training split, the same at each call."""
    from gfl_det.datasets.images import read_image
    from gfl_det.inference.export.evaluation import picture_paths

    paths = [path for _, path in picture_paths(cfg, 'train')]
    for path in random.Random(0).sample(paths, min(count, len(paths))):
        yield description.preprocessing([read_image(path)])


def _check(cfg: Config, source: ExportSource, detector: ExportedDetector) -> None:
    from gfl_det.inference.export.evaluation import compare

    pictures, what = _test_pictures(cfg)
    found = compare(_in_torch(source, detector), detector, pictures)
    edges = f', edges within {found.edge:.1e} px and {found.entropy:.1e} nats'
    print(
        f'against torch on {len(pictures)} {what}, {found.detections} detections: scores within '
        f'{found.score:.1e}, boxes within {found.box:.1e} px'
        f'{edges if detector.description.level else ""}, {found.unmatched} without a counterpart'
    )
    if not found.is_small:
        raise GFLDetError(
            f'The file differs from torch by more than {SCORE_LIMIT} in scores, {BOX_LIMIT} px in '
            f'boxes, {EDGE_LIMIT} px or {ENTROPY_LIMIT} nats in edges, or in detections: report '
            'the config.'
        )


def _in_torch(
    source: ExportSource, detector: ExportedDetector
) -> Callable[[Picture], InstanceData]:
    from gfl_det.inference.export.evaluation import torch_detector

    return torch_detector(source, detector.description.preprocessing.size)


def _test_pictures(cfg: Config) -> tuple[list[Picture], str]:
    from gfl_det.datasets.images import read_image
    from gfl_det.inference.export.evaluation import noise_pictures, picture_paths

    try:
        paths = [path for _, path in picture_paths(cfg, 'test')[:CHECKED]]
        pictures = [read_image(path) for path in paths]
    except (GFLDetError, OSError):  # the data are not on this machine
        pictures = []
    if pictures:
        return pictures, 'pictures of the test split'
    return noise_pictures(NOISE_SHAPES), 'pictures of noise'


def _print_ap(cfg: Config, source: ExportSource, detector: ExportedDetector, split: Split) -> None:
    from gfl_det.datasets.images import read_image
    from gfl_det.inference.export.evaluation import average_precision

    in_torch = _in_torch(source, detector)
    rows = {
        'torch': lambda path: in_torch(read_image(path)),
        'file': lambda path: detector.detect([read_image(path)])[0],
    }
    for name, detect in rows.items():
        found = average_precision(detect, source.classes, cfg, split)
        values = (f'{key.split("/")[-1]} {value:.3f}' for key, value in found.items())
        print(f'{name}: {", ".join(values)}')


def _print_times(
    args: argparse.Namespace, cfg: Config, source: ExportSource, detector: ExportedDetector
) -> None:
    from gfl_det.inference.export.evaluation import time_in_turns

    name = f'{args.out.name}, {detector.description.precision}'
    times = time_in_turns(source, cfg, {name: detector}, tuple(args.time))
    first = next(iter(times.values()))
    for row, milliseconds in times.items():
        print(f'{row:40} {milliseconds:8.1f} ms {first / milliseconds:6.2f} x')
