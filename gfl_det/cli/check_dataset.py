"""Command ``gfl-det check``: check and repair annotation files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import add_cfg_options, count, parsing
from gfl_det.cli.own_data import add_own_data, one_of, read_data_set
from gfl_det.errors import ConfigError
from gfl_det.utils.files import check_writable, write_json, write_text
from gfl_det.utils.pixels import pixel_limit

if TYPE_CHECKING:
    from mmengine.config import Config

    from gfl_det.datasets.checks.check import AnnotationSource, Report
    from gfl_det.datasets.formats.pictures import DataPart
    from gfl_det.utils.config import Node

SPLITS = ('train', 'val', 'test')
MAX_CLASSES = 30  # rows in the table of classes; the JSON lists all


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Check the data of a config, or one COCO annotation file.',
        epilog='Exit status: 0 if nothing stops a training or spoils its result, else 1; with '
        '--strict warnings, which only cost boxes or images, count too.',
    )
    parser.add_argument(
        'target',
        nargs='?',
        metavar='CONFIG|ANNOTATIONS',
        help='a config (file, work dir or name) or a COCO .json',
    )
    add_own_data(parser, model=False)
    parser.add_argument('--images', metavar='DIR', help='image folder of an annotation file')
    parser.add_argument(
        '--split', choices=SPLITS, nargs='+', default=SPLITS, help='splits of a config (all)'
    )
    parser.add_argument(
        '--decode',
        action='store_true',
        help='decode images to find truncated, rotated or resized ones',
    )
    parser.add_argument(
        '--workers',
        type=count,
        default=os.cpu_count() or 1,
        metavar='N',
        help='decoding threads (%(default)s, one per processor)',
    )
    parser.add_argument(
        '--max-pixels',
        type=count,
        default=pixel_limit(),
        metavar='N',
        help='report larger images without decoding them (%(default)s)',
    )
    parser.add_argument(
        '--fix', metavar='OUT.json', help='write a repaired file, and list the changes'
    )
    parser.add_argument('--json', metavar='FILE', help='write all findings; - prints them')
    parser.add_argument('--strict', action='store_true', help='warnings count as errors')
    add_cfg_options(parser)
    return parser


parse_arguments = parsing(make_parser, check=partial(one_of, name='target'))


def run(args: argparse.Namespace) -> int:
    """Check annotation files, print and write the reports, and return the exit status.

    Raises:
        GFLDetError: If the config is missing, there is nothing to check, or --fix is given with
            several files.
    """
    from gfl_det.datasets.checks.check import Decoding, check_file

    sources = list(sources_of(args))
    if args.fix and len(sources) != 1:
        names = ', '.join(source.name for source in sources)
        raise ConfigError(f'--fix repairs one file: choose one of {names} with --split.')
    decoding = Decoding(args.workers, args.max_pixels) if args.decode else None
    if decoding and all(source.folder is None for source in sources):
        raise ConfigError('--decode needs the folder of the images: add --images DIR.')
    for path in (args.json, args.fix):
        if path not in (None, '-'):
            check_writable(path, [args.target])
    reports = [check_file(source, decoding, repair=bool(args.fix)) for source in sources]
    if args.json:
        found = [report.as_json() for report in reports]
        if args.json == '-':
            print(json.dumps(found, indent=1))
        else:
            write_json(args.json, found, indent=1)
    if args.json != '-':
        for report in reports:
            print_report(report)
    if args.fix:
        write_fixed(reports[0], args.fix, quiet=args.json == '-')
    levels = ('error', 'warning') if args.strict else ('error',)
    return int(any(each.level in levels for report in reports for each in report.findings))


def sources_of(args: argparse.Namespace) -> Iterator[AnnotationSource]:
    """Yield the annotation files to check, each once."""
    from gfl_det.datasets.checks.check import AnnotationSource
    from gfl_det.utils.config import load_config

    if args.data is not None:
        data = read_data_set(args)
        for split, part in data.parts.items():
            if split in args.split:
                yield AnnotationSource(split, str(part.file), str(part.folder), data.classes)
        return
    if args.target.endswith('.json'):
        yield AnnotationSource('', args.target, args.images)
        return
    cfg = load_config(args.target, args.cfg_options)
    seen = []
    for split in args.split:
        for source in sources_of_split(cfg, split):
            key = (source.path, source.folder, source.classes)
            if key not in seen:
                seen.append(key)
                yield source
    if not seen:
        raise ConfigError(f'{args.target} has no data set with an annotation file.')


def sources_of_split(cfg: Config, split: str) -> Iterator[AnnotationSource]:
    """Yield the local annotation files of a split; addresses such as ``s3://`` are skipped."""
    from gfl_det.datasets.checks.check import AnnotationSource
    from gfl_det.engine.preflight.agreement import class_names
    from gfl_det.engine.reach.advice import check_priors
    from gfl_det.utils.config import annotation_path, datasets_of, image_folder, is_remote

    for dataset in datasets_of(cfg, split):
        path = annotation_path(dataset)
        if path and not is_remote(path):
            names = class_names(dataset)
            pipeline = dataset.get('pipeline') or ()
            priors = partial(check_priors, cfg=cfg, pipeline=pipeline)
            source = AnnotationSource(split, path, image_folder(dataset), names, priors)
            part = voc_part(dataset, path, names or ())
            if part is not None:
                source = source._replace(folder=str(part.folder), dataset=part.dataset)
            yield source


def voc_part(dataset: Node, path: str, names: Sequence[str]) -> DataPart | None:
    """Read a data set of VOC's XMLs; None for other data sets.

    Raises:
        DataError: If an XML is invalid, or a picture is missing.
    """
    from mmdet.datasets import XMLDataset
    from mmdet.registry import DATASETS

    from gfl_det.datasets.formats.voc import read_list
    from gfl_det.utils.config import join_root

    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(kind, type) and issubclass(kind, XMLDataset)):
        return None
    prefix = (dataset.get('data_prefix') or {}).get('sub_data_root', '')
    root = Path(join_root(dataset.get('data_root'), prefix))
    pictures = root / dataset.get('img_subdir', 'JPEGImages')
    return read_list(Path(path), root / dataset.get('ann_subdir', 'Annotations'), pictures, names)


def print_report(report: Report) -> None:
    """Print the findings and the frequency of each class."""
    from gfl_det.datasets.checks.draft import LEVELS
    from gfl_det.utils.console import print_table

    source = report.source
    if not report.is_read:  # nothing to check
        print(f'error: {report.findings[0].text}', file=sys.stderr)
        return
    title = f'{source.name}: {source.path}' if source.name else source.path
    print(f'\n{title}: {report.images:,} images, {report.boxes:,} boxes, {report.seconds:.1f} s')
    rows = [
        (finding.level, finding.code, len(finding.ids) or '', str(finding), finding.fix)
        for level in LEVELS
        for finding in report.findings
        if finding.level == level
    ]
    if rows:
        print_table('', ('level', 'check', 'number', 'found', '--fix'), rows)
    else:
        print('nothing to remark')
    trained = report.trained_classes()
    shown = sorted(trained, key=lambda count: -count.boxes)[:MAX_CLASSES]
    if shown:
        left_out = len(trained) - len(shown)
        print()
        print_table('', ('class', 'boxes', 'images'), shown)
        if left_out:
            print(f'... and {left_out} classes with fewer boxes')


def write_fixed(report: Report, out: str, quiet: bool = False) -> None:
    """Write the repaired file and list the changes.

    Raises:
        ConfigError: If it would overwrite its input, or the file could not be read.
        DataError: If nothing would be left in it.
    """
    from gfl_det.datasets.annotations import find

    path, repaired = Path(out), report.result()
    if path.exists() and path.samefile(report.source.path):
        raise ConfigError(f'--fix {out} is the file that is read: choose another name.')
    write_text(path, json.dumps(repaired))
    if quiet:
        return
    changes = [finding for finding in report.findings if finding.fix]
    print(f'\nrepaired file: {out}')
    for finding in changes:
        about = f': {find(finding.ids)}' if finding.ids else ''
        print(f'  {finding.text}{about} -> {finding.fix}')
    if not changes:
        print('  nothing was changed')
    for finding in report.errors:
        if not finding.fix:
            print(f'  not repaired: {finding.text}')
