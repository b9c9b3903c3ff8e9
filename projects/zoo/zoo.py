"""Every single-stage config of mmdet's zoo with a GFL head: swapped, built, trained for a step.

Configs that differ in data or schedule alone have one model, which is tried once. Outcomes are
written line by line, so a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import mmdet
from mmengine.config import Config

from gfl_det.errors import GFLDetError, MissingOpError, NotSwappableError
from gfl_det.swap.head_config import HeadName
from gfl_det.swap.swap import check_config, swap_head, without_files
from gfl_det.utils.config import type_name
from projects.calibration_study.tables import markdown

ZOO = Path(mmdet.__file__).parent / '.mim' / 'configs'
WORKS, REFUSED, NO_OPS, FAILS = 'works', 'refused', 'needs compiled mmcv', 'fails'


class Row(NamedTuple):
    """The outcome of one config."""

    config: str
    head: str
    model: str  # digest of the model's config
    outcome: str  # WORKS, REFUSED, NO_OPS or FAILS
    reason: str  # the sentence, where it does not work
    seconds: float


def single_stage_configs(zoo: Path = ZOO) -> Iterator[tuple[str, Config]]:
    """Every config of one stage with a single box head and no mask head."""
    for path in sorted(zoo.rglob('*.py')):
        if '_base_' in path.parts:
            continue
        try:
            cfg = Config.fromfile(path)
        except (ImportError, OSError):  # of a package or a file that is not there
            continue
        model = cfg.get('model') or {}
        one_stage = not {'roi_head', 'mask_head', 'decoder', 'encoder'} & set(model)
        if one_stage and isinstance(model.get('bbox_head'), dict):
            yield path.relative_to(zoo).as_posix(), cfg


def run_zoo(
    out: Path,
    head: HeadName = 'GFLHead',
    chosen: Callable[[str], bool] = lambda _: True,
    progress: Callable[[Row], None] = lambda _: None,
    zoo: Path = ZOO,
) -> list[Row]:
    """Swap and check the zoo.

    Args:
        out: file with one line per config; what it has already is not run again.
        head: the new head.
        chosen: which configs, by name; all without it.
        progress: called with each outcome.
        zoo: folder of configs.

    Returns:
        One row per config, in the zoo's order.
    """
    rows = _read(out)
    done = {row.config: row for row in rows}
    tried = {row.model: row for row in rows}
    found = []
    with out.open('a') as file:
        for name, cfg in single_stage_configs(zoo):
            if not chosen(name):
                continue
            row = done.get(name) or _try(name, cfg, head, tried)
            if name not in done:
                file.write(json.dumps(row._asdict()) + '\n')
                file.flush()
            tried[row.model] = row
            found.append(row)
            progress(row)
    return found


def table(rows: Sequence[Row]) -> str:
    """Outcomes by the head that was replaced, as Markdown."""
    families: dict[str, Counter[str]] = {}
    for row in rows:
        families.setdefault(row.head, Counter())[row.outcome] += 1
    total = Counter(row.outcome for row in rows)
    columns = [name for name in (WORKS, REFUSED, NO_OPS, FAILS) if total[name]]
    counted = [*sorted(families.items()), (f'all {len(rows)}', total)]
    cells = [[head, *(str(of[name] or '') for name in columns)] for head, of in counted]
    return markdown(['old head', *columns], cells)


def sentences(rows: Sequence[Row]) -> str:
    """Every reason why a config does not work, and how often it is given."""
    found = Counter((row.outcome, row.reason) for row in rows if row.outcome != WORKS)
    return '\n'.join(f'{count:4} {outcome}: {text}' for (outcome, text), count in found.items())


def read_json(path: Path) -> list[Row]:
    """Outcomes of a finished run."""
    return [Row(**row) for row in json.loads(path.read_text(encoding='utf-8'))['rows']]


def _try(name: str, cfg: Config, head: HeadName, tried: dict[str, Row]) -> Row:
    started = time.perf_counter()
    kind = type_name(cfg.model.bbox_head.type)
    digest = _digest(cfg)
    if digest in tried:
        same = tried[digest]
        return same._replace(config=name, seconds=0.0)
    outcome, reason = WORKS, ''
    try:
        swap = swap_head(cfg, head)
        check_config(swap.config, swap.pyramid.side)
    except NotSwappableError as error:
        outcome, reason = REFUSED, str(error)
    except MissingOpError as error:
        outcome, reason = NO_OPS, str(error).partition(':')[0]
    except GFLDetError as error:
        outcome, reason = FAILS, str(error)
    except Exception as error:  # the table is there to show whatever goes wrong
        outcome, reason = FAILS, f'{type(error).__name__}: {error}'
    gc.collect()
    return Row(name, kind, digest, outcome, reason, round(time.perf_counter() - started, 1))


def _digest(cfg: Config) -> str:
    """A mark of the model, pretrained weights and batch augmentations aside."""
    text = json.dumps(without_files(cfg.model), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(out: Path) -> list[Row]:
    if not out.is_file():
        return []
    return [Row(**json.loads(line)) for line in out.read_text().splitlines()]
