"""The benchmark measures what it says, and its results can be compared with later ones."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from gfl_det.errors import DataError
from gfl_det.utils.timing import Row, Runs, kept_for_backward, peak_memory
from projects.benchmark import loading, models, parts, report, suite, whole

QUICK = Runs(repeats=0, seconds=0)
SMALL = parts.Case(size=(96, 128), batch=1, gts=3, classes=4)


def test_functions_run_in_turns() -> None:
    order: list[str] = []
    times = Runs(repeats=5, seconds=60).in_turns(
        partial(order.append, 'a'), partial(order.append, 'b')
    )
    assert order == ['a', 'b'] * 6  # the first pair warms up
    assert len(times) == 2
    assert all(time >= 0 for time in times)


def test_memory_is_counted() -> None:
    weight = torch.zeros(2**18, requires_grad=True)
    assert kept_for_backward(lambda: weight.exp().sum()) == pytest.approx(1, abs=0.01)
    assert peak_memory(lambda: torch.zeros(2**18) + 1) == pytest.approx(2, abs=0.1)


def test_the_heads_rows(monkeypatch) -> None:
    narrow = partial(models.build_heads, in_channels=32, feat_channels=32)
    monkeypatch.setattr(parts, 'build_heads', narrow)
    rows = parts.contract_rows(SMALL, QUICK)
    assert {row.target for row in rows} >= {4.0, 30.0, 80.0, 5.0, 9.0, 20.0, 6.0}
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)
    losses = [row for row in rows if row.name.startswith('loss') and row.unit == 'ms']
    assert all(row.floor for row in losses)


def test_a_sweep_names_every_case_once() -> None:
    names = [name for name, _ in suite._measurements(suite.PARTS, sweep=True)]
    assert len(names) == len(set(names))
    assert any('2000 gt boxes' in name for name in names)
    assert any('1203 classes' in name for name in names)


@pytest.fixture
def small_detectors(monkeypatch) -> None:
    small = partial(models.build_detectors, name='gfl_r18-w16_fpn_digits')
    monkeypatch.setattr(whole, 'build_detectors', small)


def test_rows_of_whole_detectors(small_detectors) -> None:
    case = SMALL._replace(size=(64, 96))
    inference = whole.inference_rows(case, QUICK, {'optimized, float32': 1.25})
    assert [row.target for row in inference] == [None, 1.25, None]
    training = whole.training_rows(case, QUICK)
    assert len(training) == 4
    assert all(row.floor and row.floor > 0 for row in inference + training)


def test_rows_of_bfloat16_are_empty_where_the_processor_lacks_it(
    small_detectors, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(whole, 'computes_bfloat16', lambda: False)
    case = SMALL._replace(size=(64, 96))
    rows = whole.inference_rows(case, QUICK, {'optimized, bfloat16': 2.2})
    rows += whole.training_rows(case, QUICK)
    empty = [row for row in rows if row.ours is None]
    assert [row.name.split(', ')[-1] for row in empty] == [
        'bfloat16',
        '--amp',
        '--amp --channels-last',
    ]
    assert len(rows) == 7
    assert all(math.isnan(row.ratio) for row in empty)
    assert report.format_table(empty[:1]).endswith(' ms | | | | | |')
    path = tmp_path / 'benchmark.json'
    report.write_json(rows, path, 'cpu')
    assert report.read_json(path) == rows
    assert report.slower_rows(rows, rows, 0.2) == []
    report.draw(rows, tmp_path / 'benchmark.png', 'cpu')


def test_the_header_names_the_kind_of_processor(monkeypatch) -> None:
    monkeypatch.setattr(report, 'processor_kind', lambda: 'AVX2')
    assert '(AVX2), ' in report.machine('cpu')


def test_convolution_calls_are_those_of_the_function() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3))
    calls = whole.convolution_calls(model, lambda: model(torch.zeros(1, 1, 9, 9)))
    assert [tuple(call.maps.shape) for call in calls] == [(1, 1, 9, 9), (1, 2, 7, 7)]
    assert whole.convolution_calls(model, lambda: None) == []  # the hooks are gone


def test_loading_rows(monkeypatch) -> None:
    monkeypatch.setattr(loading, 'write_pictures', partial(loading.write_pictures, size=(120, 160)))
    smaller = [
        {**step, 'scale': (333, 200)} if 'scale' in step else step for step in loading.PIPELINE
    ]
    monkeypatch.setattr(loading, 'PIPELINE', smaller)
    rows = loading.loading_rows(QUICK)
    assert len(rows) == 3
    assert all(row.floor and row.theirs > row.floor for row in rows)


ROWS = [
    Row('fast', 10.0, 2.0, target=4.0, floor=1.0),
    Row('small', 3.0, 1.5, unit='MiB'),
]


def test_results_are_written_read_and_compared(tmp_path) -> None:
    path = tmp_path / 'benchmark.json'
    report.write_json(ROWS, path, 'cpu')
    assert report.read_json(path) == ROWS
    assert report.slower_rows(ROWS, ROWS, 0.2) == []
    slower = [ROWS[0]._replace(ours=3.0), ROWS[1], Row('new', 1.0, 9.0)]
    assert report.slower_rows(slower, ROWS, 0.2) == ['fast: 3.33 times mmdet, 5.00 before']
    assert '| fast | 10.0 ms | 2.0 ms | 5.00 | 4 | 1 ms | 2 |' in report.format_table(ROWS)
    both = report.format_table(ROWS, [slower[0], ROWS[1]])
    assert '| fast | 10.0 ms | 2.0 ms | 5.00, 3.33 | 4 | 1 ms | 2 |' in both
    with pytest.raises(DataError, match='the same rows'):
        report.format_table(ROWS, ROWS[::-1])


@pytest.mark.parametrize('text', ['', '{}', '[1]', '{"version": 9, "rows": []}'])
def test_what_is_no_result_is_refused(tmp_path, text: str) -> None:
    path = tmp_path / 'other.json'
    path.write_text(text)
    with pytest.raises(DataError, match=r'other\.json'):
        report.read_json(path)
    with pytest.raises(DataError, match='FileNotFoundError'):
        report.read_json(tmp_path / 'missing.json')


def test_the_picture_opens(tmp_path) -> None:
    import cv2

    path = tmp_path / 'benchmark.png'
    report.draw(ROWS, path, 'cpu')
    assert cv2.imread(str(path)).shape[2] == 3
    assert json.loads(json.dumps(report.machine('cpu')))
