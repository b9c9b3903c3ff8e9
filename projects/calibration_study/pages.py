"""Tables of the result pages, made from the results that are committed.

    python -m projects.calibration_study.pages docs/results/*.md

A comment such as ``<!-- table: heads bccd kept -->`` names the table below it: a study, its data,
and a kind. Of the studies in `projects/training_study` the kinds are the views of
:mod:`.heads`, ``claims``, and ``AP`` (the table of the trainings); of ``classification`` and
``cifar`` they are ``results`` and ``claims``, of ``cifar`` ``tuning`` and ``mechanism`` too, of
``distribution`` ``results``, of ``floors`` ``calibrated``, ``ratios`` and ``errors``, of
``published`` ``halves``, ``reliability`` and ``ranks``, and of ``intervals`` ``levels``, ``groups``
and ``kinds``. ``recipes``, the trainings of shipped configs, has the kind ``AP``. What is measured
on a processor has its name for data: ``benchmark`` and ``processors`` have ``rows``, ``runtimes``
has ``ap``, ``exported`` and ``int8``, ``exports`` has ``same``, ``trained``, ``int8`` and ``time``.
The data of ``zoo`` is a head, its kind ``outcomes``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from gfl_det.cli import main as cli
from gfl_det.errors import DataError
from gfl_det.utils.files import write_text
from projects.calibration_study import heads
from projects.training_study.arms import SHARED

RESULTS = Path(__file__).parent / 'results'
# A comment that names a table, and the table, or the sentence, that is there.
PLACE = re.compile(r'(<!-- table: (\w+) ([\w.]+) (\w+) -->)\n\n((?:\|.*\n)*(?:No run .*\n)?)')
MISSING = 'No run is finished.'


def written_anew(page: str) -> str:
    """A page with each table below a comment made from the results that are there today."""

    def replaced(found: re.Match[str]) -> str:
        comment, *names, old = found.groups()
        # Where no table was yet, the blank line before the next paragraph follows it.
        return f'{comment}\n\n{_table_of(*names)}\n' + ('' if old else '\n')

    return PLACE.sub(replaced, page)


def _table_of(study: str, data: str, kind: str) -> str:
    own = {
        'classification': _classification,
        'cifar': _cifar,
        'distribution': _distribution,
        'floors': _floors,
        'published': _published,
        'intervals': _intervals,
        'benchmark': _benchmark,
        'recipes': _recipes,
        'processors': _processors,
        'runtimes': _runtimes,
        'exports': _exports,
        'zoo': _zoo,
    }
    try:
        return own[study](data, kind) if study in own else _trained(study, data, kind)
    except KeyError as error:
        raise DataError(f'table: {study} {data} {kind}: there is no {error}.') from error
    except FileNotFoundError as error:
        where = f'there is no {error.filename}'
        raise DataError(f'table: {study} {data} {kind}: {where}.') from error


def _trained(study: str, data: str, kind: str) -> str:
    from projects.training_study import trainings  # loads mmdet

    if kind == 'AP':
        return trainings.table(study) if trainings.read_results(study) else MISSING
    try:
        found = heads.runs_of(study, data)
    except DataError:
        return MISSING
    if not found.keys() - {SHARED[1]}:
        return MISSING
    if kind == 'claims':
        return heads.claim_table(found, heads.CLAIMS[study])
    return heads.table(found, kind, heads.METHODS[study])


def _classification(data: str, kind: str) -> str:
    from projects.calibration_study import classification_command as command

    content = (RESULTS / f'classification-{data}.json').read_text(encoding='utf-8')
    runs, findings = command.from_json(json.loads(content))
    return command.claim_table(findings) if kind == 'claims' else command.result_table(runs)


def _distribution(data: str, kind: str) -> str:
    from projects.calibration_study import distribution_command as command

    content = (RESULTS / f'distribution-{data}.json').read_text(encoding='utf-8')
    return command.table([command.Outcome(**each) for each in json.loads(content)['outcomes']])


def _cifar(data: str, kind: str) -> str:
    from projects.calibration_study import cifar_tables

    return cifar_tables.tables(float(data.removeprefix('noise'))).get(kind, MISSING)


def _floors(data: str, kind: str) -> str:
    from projects.calibration_study import floors

    content = (RESULTS / f'floors-{data}.json').read_text(encoding='utf-8')
    return floors.tables(json.loads(content))[kind]


def _published(data: str, kind: str) -> str:
    from projects.calibration_study import published_weights

    content = (RESULTS / f'published-{data}.json').read_text(encoding='utf-8')
    return published_weights.tables(json.loads(content))[kind]


def _intervals(data: str, kind: str) -> str:
    from projects.calibration_study import edge_coverage  # loads mmdet

    content = (RESULTS / f'intervals-{data}.json').read_text(encoding='utf-8')
    return edge_coverage.tables(json.loads(content))[kind]


def _benchmark(data: str, kind: str) -> str:
    from projects.benchmark import report

    runs = [report.read_json(path) for path in sorted(report.RESULTS.glob(f'{data}-*.json'))]
    if not runs:
        raise KeyError(data)
    return {'rows': report.format_table}[kind](*runs)


def _recipes(data: str, kind: str) -> str:
    from projects.training_study import recipes  # loads mmdet

    shown = {'digits': ('digits_short', 'digits'), 'bccd': ('bccd_mmdet', 'bccd')}
    return {'AP': recipes.table}[kind](shown[data])


def _processors(data: str, kind: str) -> str:
    from projects.benchmark import processors, report  # loads mmdet

    paths = sorted(report.RESULTS.glob(f'processors-{data}-*.json'))
    if not paths:
        raise KeyError(data)
    runs = [json.loads(path.read_text(encoding='utf-8')) for path in paths]
    return {'rows': processors.table}[kind](runs)


def _runtimes(data: str, kind: str) -> str:
    from projects.benchmark import report, runtimes  # loads mmdet

    content = (report.RESULTS / f'runtimes-{data}.json').read_text(encoding='utf-8')
    return runtimes.tables(json.loads(content))[kind]


def _exports(data: str, kind: str) -> str:
    from projects.benchmark import exports, report  # loads mmdet

    part, table = exports.TABLES[kind]
    content = (report.RESULTS / f'exports_{part}-{data}.json').read_text(encoding='utf-8')
    return table(json.loads(content))


def _zoo(data: str, kind: str) -> str:
    from projects.zoo import sweep, zoo  # loads mmdet

    return {'outcomes': zoo.table}[kind](zoo.read_json(sweep.RESULTS / f'{data}.json'))


def main() -> None:
    """Write the tables of pages anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('pages', type=Path, nargs='+', metavar='FILE')
    for path in parser.parse_args().pages:
        page = path.read_text(encoding='utf-8')
        if PLACE.search(page):
            write_text(path, written_anew(page))


if __name__ == '__main__':
    cli.run(main)
