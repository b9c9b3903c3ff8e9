"""The command line behind ``tools/demo_web.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gfl_det.cli.arguments import amount, port
from gfl_det.inference import GFLInferencer
from gfl_det.visualization.demo.server import LOOPBACK, DemoServer
from gfl_det.visualization.demo.uploads import UploadLimits


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Serve a page to drop images on: boxes with soft edges, and the edge '
        'distributions of the box that is clicked.'
    )
    parser.add_argument('checkpoint', help='weights: a file or an address')
    parser.add_argument(
        '--config',
        help='a config file, or the name of a shipped config; without, the one in the checkpoint',
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on (%(default)s); 0.0.0.0 lets everyone in who can reach this '
        'machine',
    )
    parser.add_argument(
        '--port', type=port, default=7860, metavar='N', help='%(default)s; 0 takes a free one'
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ...; without, the best there is')
    parser.add_argument(
        '--max-mb',
        type=amount,
        default=10,
        metavar='MIB',
        help='largest file that is taken (%(default)s)',
    )
    parser.add_argument(
        '--max-megapixels',
        type=amount,
        default=20,
        metavar='MP',
        help='largest image that is taken, by its header (%(default)s)',
    )
    parser.add_argument('--calibrator', metavar='JSON', help='what tools/calibrate.py fit wrote')
    parser.add_argument('--intervals', metavar='JSON', help='what tools/intervals.py fit wrote')
    return parser.parse_args(argv)


def build_server(args: argparse.Namespace) -> DemoServer:
    """Load the detector and bind the address.

    Raises:
        GFLDetError: the config or the checkpoint is unusable, or the address is taken.
    """
    detector = GFLInferencer(
        args.checkpoint,
        args.config,
        device=args.device,
        calibrator=args.calibrator,
        intervals=args.intervals,
        distributions=True,
    )
    if args.host not in LOOPBACK:
        print(
            f'warning: everyone who can reach {args.host} may use this page; it has no password',
            file=sys.stderr,
        )
    return DemoServer(
        lambda image: detector(image[..., ::-1], progress=False)[0].instances,
        detector.classes,
        (args.host, args.port),
        title=Path(args.config or args.checkpoint).stem,
        limits=UploadLimits(round(args.max_mb * 2**20), round(args.max_megapixels * 1e6)),
        level=detector.level,
    )
