"""The command line behind ``tools/demo_web.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import cli
from ..visualization.detector import Detector
from .server import LOOPBACK, DemoServer
from .uploads import Limits


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Serve a page to drop images on: boxes with soft edges, and the edge '
        'distributions of the box that is clicked.'
    )
    parser.add_argument('config', help='a config file, or the name of a shipped config')
    parser.add_argument('checkpoint', help='weights: a file or an address')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on; 0.0.0.0 lets everyone in who can reach this machine',
    )
    parser.add_argument('--port', type=int, default=7860, help='0 takes a free one')
    parser.add_argument('--device', default='cpu', help='cpu, cuda or cuda:1')
    parser.add_argument('--max-mb', type=float, default=10, metavar='MIB', help='of an upload')
    parser.add_argument('--max-megapixels', type=float, default=20, metavar='MP')
    parser.add_argument(
        '--cfg-options', nargs='+', action=cli.KeyValueAction, metavar='KEY=VALUE', default={}
    )
    return parser.parse_args(argv)


def build_server(args: argparse.Namespace) -> DemoServer:
    """Load the detector and bind the address.

    Raises:
        GFLDetError: the config or the checkpoint is unusable, or the address is taken.
    """
    cfg = cli.load_config(args.config, args.cfg_options)
    detector = Detector(cfg, args.checkpoint, args.device)
    if args.host not in LOOPBACK:
        print(
            f'warning: everyone who can reach {args.host} may use this page; it has no password',
            file=sys.stderr,
        )
    return DemoServer(
        detector,
        detector.classes,
        (args.host, args.port),
        title=Path(args.config).stem,
        limits=Limits(round(args.max_mb * 2**20), round(args.max_megapixels * 1e6)),
    )
