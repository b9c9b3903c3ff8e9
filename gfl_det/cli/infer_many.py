"""Command ``gfl-det infer-many``: detect objects in very large sets of images."""

from __future__ import annotations

import argparse
import time

from gfl_det.cli.arguments import add_detector, add_stream, amount, count, parsing
from gfl_det.utils.files import check_writable

EPILOG = """\
INPUT is a folder (searched recursively), a pattern in quotes, a list of files (.txt, one per
line), a WebDataset .tar, a .parquet with a column of bytes or of paths, or several of them; each
may begin with s3:// or gs://. DIR receives detections/*.parquet (one row per detection),
failures/*.parquet (images without a result, and the reason) and manifest.json. The same command
resumes an interrupted run.
"""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Detect in very many images, on one machine or a Ray cluster.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_detector(parser)
    add('inputs', metavar='INPUT', nargs='+', help='see below')
    add(
        '--out',
        metavar='DIR',
        required=True,
        help='folder of the results, accessible from all machines',
    )
    add('--shard-size', type=count, default=256, metavar='N', help='files per shard (256)')
    add('--workers', type=count, default=1, metavar='N', help='number of detectors in parallel (1)')
    add('--threads', type=count, default=1, metavar='N', help='CPU threads per detector (1)')
    add('--gpus', type=amount, metavar='SHARE', help='GPUs per detector, such as 1 or 0.5 (none)')
    add('--address', metavar='HOST:PORT', help='join a Ray cluster (auto: the one of this machine)')
    add(
        '--patience',
        type=amount,
        default=300.0,
        metavar='SECONDS',
        help='time limit for four batches, after which a worker counts as stalled (300)',
    )
    add_stream(parser)
    add('--to-coco', metavar='JSON', help='also write COCO results; needs --annotations')
    add('--annotations', metavar='JSON', help='COCO file whose image and class ids --to-coco uses')
    add('--quiet', action='store_true', help='no progress')
    return parser


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.to_coco and not args.annotations:
        parser.error('--to-coco takes ids from a COCO file: add --annotations JSON')


parse_arguments = parsing(make_parser, check=_check)


def run(args: argparse.Namespace) -> None:
    """Detect objects, and print a summary and the location of the results.

    Raises:
        GFLDetError: If an input or the detector is missing, or DIR has results of another run.
    """
    from gfl_det.inference.export.onnx_file import require

    for name in ('pyarrow', 'ray'):
        require(name)
    from gfl_det.evaluation.detections import read_json
    from gfl_det.inference.many import Cluster, DetectorSettings, detect_many
    from gfl_det.inference.results import Results
    from gfl_det.inference.shards import ShardCounts, coco_results, list_shards
    from gfl_det.utils.console import Progress
    from gfl_det.utils.files import write_json

    annotations = None
    if args.to_coco:
        check_writable(args.to_coco, (args.annotations, args.calibrator, args.intervals))
        annotations = read_json(args.annotations)
        Results().to_coco(annotations)  # refuses a file of another kind before the work
    shards = list_shards(args.inputs, args.shard_size)
    fields = {name: getattr(args, name) for name in DetectorSettings._fields}
    cluster = Cluster(args.workers, args.gpus or 0.0, args.address)
    started, new = time.perf_counter(), []
    with Progress(len(shards), 'shards', not args.quiet) as bar:

        def tell(counts: ShardCounts) -> None:
            new.append(counts.images)
            bar.advance()

        total = detect_many(shards, args.out, DetectorSettings(**fields), cluster, tell)
    seconds = time.perf_counter() - started
    print(
        f'results: {args.out} ({total.images:,} images, {total.detections:,} detections, '
        f'{total.failures:,} failures)'
    )
    if new:
        print(f'speed: {sum(new):,} images in this run, {sum(new) / seconds:.1f} a second')
    if annotations is not None:
        write_json(args.to_coco, coco_results(args.out, annotations))
        print(f'COCO results: {args.to_coco}')
