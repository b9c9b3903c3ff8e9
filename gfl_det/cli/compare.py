"""Command ``gfl-det compare``: test whether one detector is better than another."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import add_batch_size, add_config_and_device, add_seed, count, parsing
from gfl_det.errors import ConfigError, DataError
from gfl_det.utils.choices import CHART_ENDINGS
from gfl_det.utils.files import check_writable, write_json

if TYPE_CHECKING:
    from gfl_det.evaluation.detections import Detections
    from gfl_det.inference.coverage import Split

EPILOG = """\
Each side is one or more of: a .json file of COCO results (gfl-det test --out), a work dir of
gfl-det train (its best checkpoint, else the newest), a checkpoint. The latter two need --images.
Several of one side are trainings of one recipe with different seeds: their means are compared, and
their spread widens the interval. The bootstrap is paired: both sides use the same resampled images.
"""
MAX_CLASSES = 20  # in the table and the picture; --json lists all


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Compare two detectors: differences, .95 intervals, p values, a verdict.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    for side in 'ab':
        add(
            f'--{side}',
            nargs='+',
            required=True,
            metavar=side.upper(),
            help=f'side {side}, see below',
        )
    add('--names', nargs=2, metavar='NAME', default=['A', 'B'], help='names of the sides (A B)')
    add('--truths', '--annotations', metavar='JSON', required=True, help='COCO annotations')
    add('--images', metavar='DIR', help='folder of their image files, for checkpoints')
    add_config_and_device(parser)
    add_batch_size(parser)
    add('--resamples', type=count, default=1000, metavar='N', help='bootstrap resamples (1000)')
    add_seed(parser, 'seed of the resamples')
    add('--picture', metavar='FILE', help=f'draw the differences: {", ".join(CHART_ENDINGS)}')
    add('--json', metavar='FILE', help='write all numbers')
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Compare two detectors, print a table and the verdict, and write the requested files.

    Raises:
        GFLDetError: If a side cannot be read or run, or a file cannot be written.
    """
    from gfl_det.evaluation.comparison import JUDGED, compare_detections
    from gfl_det.inference.coverage import read_split
    from gfl_det.utils.console import print_table
    from gfl_det.visualization.charts import difference_figure, save_figure

    if args.picture and Path(args.picture).suffix not in CHART_ENDINGS:
        raise DataError(f'--picture {args.picture} must end in {", ".join(CHART_ENDINGS)}.')
    for path in filter(None, (args.picture, args.json)):
        check_writable(path, (*args.a, *args.b, args.truths))
    split = read_split(args.truths, args.images or '.')
    a, b = ([read_side(each, split, args) for each in side] for side in (args.a, args.b))
    found = compare_detections(a, b, split.gts, args.resamples, args.seed)
    first, second = args.names
    columns = ['', first, second, 'difference', '.95 interval', 'p', 'p of all']
    print_table('', columns, _rows(found, {name: name for name in JUDGED}))
    names = split.gts.class_names
    classes = _classes(found, names)
    if len(names) > 1:
        print_table('\nAP by class, least p first', columns, _rows(found, classes))
    trainings = '' if len(a) == len(b) == 1 else f', {len(a)} and {len(b)} trainings'
    print(f'{len(split.gts.image_ids)} images{trainings}, {args.resamples} resamples; ', end='')
    print('p of all: after Holm, for one false alarm in all rows of a table')
    if len(a) == 1 or len(b) == 1:
        print('With one training per side, the result says nothing about other seeds.')
    _tell_limits(found, names, args.resamples)
    print(_verdict(found, args))
    if args.json:
        write_json(args.json, found, indent=1)
        print(f'numbers: {args.json}')
    if args.picture:
        rows = {name: name for name in JUDGED} | classes
        save_figure(difference_figure(found, rows, (first, second)), Path(args.picture))
        print(f'picture: {args.picture}')


def read_side(source: str, split: Split, args: argparse.Namespace) -> Detections:
    """Detections from a result file, the detector of a work dir, or a checkpoint.

    Args:
        source: File, folder, or the name or address of a checkpoint.
        split: Images and gt boxes.
        args: Arguments of the command.

    Raises:
        GFLDetError: If the source cannot be read or run.
    """
    from gfl_det.evaluation.detections import detections_from_coco, read_json
    from gfl_det.inference import GFLInferencer
    from gfl_det.inference.coverage import check_files, detect

    if Path(source).suffix == '.json':
        return detections_from_coco(read_json(source), split.gts, source)
    if not args.images:
        raise ConfigError(f'{source} is run on the images: give their folder with --images.')
    check_files(split, args.truths, args.images)
    detector = GFLInferencer(source, args.config, device=args.device, level=None)
    return detect(detector, split, args.batch_size)


def _classes(found: Mapping[str, float], names: list[str]) -> dict[str, str]:
    """Rows of the classes with the smallest p values, by metric name; NaN entries are left out."""
    rows = {f'AP_class_{k}': f'AP {name}' for k, name in enumerate(names)}
    known = [name for name in rows if found[f'{name}_p'] <= 1]  # drops NaN
    chosen = sorted(known, key=lambda name: found[f'{name}_p'])[:MAX_CLASSES]
    return {name: rows[name] for name in chosen}


def _tell_limits(found: Mapping[str, float], names: list[str], resamples: int) -> None:
    """Print which classes have too few images, and how many resamples the others need."""
    from gfl_det.evaluation.comparison import FEWEST_IMAGES

    tested = sum(found[f'AP_class_{k}_p'] <= 1 for k in range(len(names)))
    if tested < len(names):
        print(
            f'{len(names) - tested} of {len(names)} classes are not tested: fewer than '
            f'{FEWEST_IMAGES} images have boxes of them.'
        )
    needed = _resamples_needed(tested)
    if tested > 1 and resamples < needed:
        print(
            f'For p of all below .05 in a table of {tested} classes, give --resamples {needed} or '
            'more.'
        )


def _resamples_needed(rows: int) -> int:
    """Least number of resamples from which Holm's correction over the rows leaves p below .05."""
    return 40 * rows  # the least p is 2 / (resamples + 1), times rows


def _verdict(found: Mapping[str, float], args: argparse.Namespace) -> str:
    from gfl_det.evaluation.comparison import JUDGED, verdict

    needed = _resamples_needed(sum(found[f'{name}_p'] <= 1 for name in JUDGED))
    if args.resamples < needed:
        return (
            f'{args.resamples} resamples are too few for a verdict: give --resamples {needed} or '
            'more.'
        )
    return verdict(found, *args.names)


def _rows(found: Mapping[str, float], rows: Mapping[str, str]) -> list[list[str]]:
    from gfl_det.evaluation.comparison import holm

    family = [name for name in found if name.startswith('AP_class_') and name.endswith('_p')]
    if not any(name.startswith('AP_class_') for name in rows):
        family = [f'{name}_p' for name in rows]
    adjusted = holm({name: found[name] for name in family})
    cells = []
    for name, title in rows.items():
        a, b, value, low, high, p = (
            found[f'{name}_{end}'] for end in ('a', 'b', 'difference', 'low', 'high', 'p')
        )
        row = [title, f'{a:.4f}', f'{b:.4f}', f'{value:+.4f}']
        if p <= 1:  # not NaN
            row += [f'{low:+.4f} to {high:+.4f}', f'{p:.3f}', f'{adjusted[f"{name}_p"]:.3f}']
        cells.append(row + [''] * (7 - len(row)))
    return cells
