"""Command ``gfl-det demo``: serve a detector as a local web page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import add_calibrator, add_detector, add_intervals, amount, parsing, port

if TYPE_CHECKING:
    from gfl_det.visualization.demo.server import DemoServer


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Serve a page to drop images on. It shows boxes with soft edges, and the edge '
        'distributions of a clicked box.',
    )
    add_detector(parser)
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on (%(default)s); 0.0.0.0 admits everyone who can reach this '
        'machine',
    )
    parser.add_argument(
        '--port',
        type=port,
        default=7860,
        metavar='N',
        help='port (%(default)s), 0 for a free one',
    )
    parser.add_argument(
        '--max-mb',
        type=amount,
        default=10,
        metavar='MIB',
        help='maximum file size (%(default)s)',
    )
    parser.add_argument(
        '--max-megapixels',
        type=amount,
        default=20,
        metavar='MP',
        help='maximum image size, according to its header (%(default)s)',
    )
    add_calibrator(parser)
    add_intervals(parser)
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl+C.

    Raises:
        GFLDetError: See :func:`build_server`.
    """
    server = build_server(args)
    print(f'open {server.url} (stop with Ctrl+C)', flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def build_server(args: argparse.Namespace) -> DemoServer:
    """Load the detector and bind the address.

    Raises:
        GFLDetError: If the config or the checkpoint cannot be used, or the address is in use.
    """
    from gfl_det.inference import GFLInferencer
    from gfl_det.visualization.demo.server import LOOPBACK, DemoServer, UploadLimits

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
