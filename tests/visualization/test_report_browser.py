"""The report's page in headless Chromium: from a file, filtered, on a phone, in the dark."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gfl_det.calibration import Settings, evaluate_detections, fit_calibrator
from gfl_det.visualization import Boxes, EdgeBins
from gfl_det.visualization.picture import draw_soft_edges
from gfl_det.visualization.report import analyse, draw_gallery, render
from gfl_det.visualization.report.calibration import write_report
from gfl_det.visualization.report.data import read_results
from gfl_det.visualization.report.page import plain
from tests.helpers import browser, reporting

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or '')

NAMES = ['cat', '<script>document.title = "run"</script>', '<img src=x onerror=alert(1)>']
READY = "document.documentElement.dataset.ready === 'yes'"
CARDS = "return [...document.querySelectorAll('.card h3')].map(each => each.textContent)"
CHOOSE = (
    'const s = document.getElementById(arguments[0]); s.value = String(arguments[1]);'
    "s.dispatchEvent(new Event('change'))"
)


@pytest.fixture(scope='module')
def report(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp('report')
    dataset, results = reporting.made_up(30, 3, 12)
    for entry, name in zip(dataset['categories'], NAMES):
        entry['name'] = name
    reporting.write_images(folder / 'img', dataset)
    (folder / 't.json').write_text(json.dumps(dataset))
    (folder / 'r.json').write_text(json.dumps(results))
    data = read_results(*(str(folder / name) for name in ('r.json', 't.json', 'img')))
    data = data._replace(title=f'pets {NAMES[2]}')
    analysis = analyse(data)
    values = {**analysis.values, 'pictures': draw_gallery(data, analysis, 14)}
    (folder / 'report.html').write_text(render(values), encoding='utf-8')
    return folder / 'report.html', values


@pytest.fixture(scope='module')
def desk(report) -> Iterator[browser.Browser]:
    with browser.Browser(1280, 900) as window:
        window.open(report[0].as_uri())
        window.until(READY)
        yield window


def test_it_opens_with_every_section_and_no_complaint(desk):
    titles = desk.run("return [...document.querySelectorAll('h2')].map(each => each.textContent)")
    assert titles == [
        *('Summary', 'Precision and recall', 'Reliability', 'Uncertainty'),
        *('Errors', 'Confusion', 'Training', 'Data', 'Images'),
    ]
    desk.until("document.querySelectorAll('.chart svg').length >= 6")
    assert desk.run('return [...document.images].every(each => each.complete)')
    assert desk.run('return [...document.images].every(each => each.naturalWidth > 300)')
    assert desk.console() == []
    assert desk.run("return performance.getEntriesByType('resource').length") == 0


def test_names_are_text(desk):
    assert desk.run('return document.title').startswith('pets <img')
    assert desk.run("return document.querySelectorAll('script').length") == 2
    assert desk.run("return document.querySelectorAll('img[src=x]').length") == 0
    cells = desk.run(
        "return [...document.querySelectorAll('#summary td:first-child')].map(e => e.textContent)"
    )
    assert set(NAMES) <= set(cells)


def test_the_numbers_are_those_worked_out(desk, report):
    shown = desk.run(
        "return [...document.querySelectorAll('#summary .tile b')].map(each => each.textContent)"
    )
    values = report[1]
    wanted = [*values['ap'][0][1:4], values['cut']['f1'], values['cut']['threshold']]
    assert shown[:5] == [f'{value:.3f}'.lstrip('0') for value in wanted]
    bars = desk.run(
        "return [...document.querySelectorAll('#errors .bars .number')].map(e => e.textContent)"
    )
    gains = [values['errors']['gains'][kind] for kind in values['kinds']]
    assert bars == [f'+{value:.3f}'.replace('+0.', '+.') for value in gains]


def fitting(values: dict, kind: int, label: int) -> list[int]:
    """Images that a filter should leave."""
    found = []
    for index, row in enumerate(values['images']):
        errors = [row[4][start : start + 3] for start in range(0, len(row[4]), 3)]
        hit = any(kind in (-1, k) and label in (-1, c) for k, c, _ in errors)
        if hit or (kind < 0 and (label < 0 or label in row[5])):
            found.append(index)
    return found


@pytest.mark.parametrize(('kind', 'label'), [(-1, -1), (5, -1), (-1, 1), (4, 2), (0, 0), (3, 1)])
def test_images_are_filtered_by_class_and_kind(desk, report, kind, label):
    values = report[1]
    desk.run(CHOOSE, 'class', label)
    desk.run(CHOOSE, 'kind', kind)
    wanted = fitting(values, kind, label)
    pictured = {entry['image'] for entry in values['pictures']} & set(wanted)
    count = desk.text('#found')
    assert count == f'{len(wanted)} images, {len(pictured)} with pictures'
    while desk.run("return !document.getElementById('more').hidden"):
        desk.run("document.getElementById('more').click()")
    names = {text.split(' ')[0] for text in desk.run(CARDS)}
    assert names == {values['images'][index][0] for index in pictured}
    outlines = desk.run("return document.querySelectorAll('#images rect.over').length")
    assert (outlines > 0) == bool(pictured and (kind, label) != (-1, -1))
    assert desk.console() == []
    desk.run(CHOOSE, 'class', -1)
    desk.run(CHOOSE, 'kind', -1)


def test_worst_first_and_best_first(desk, report):
    values = report[1]
    quality = {row[0]: row[1] for row in values['images']}
    for order, sign in (('best', -1), ('worst', 1)):
        desk.run(CHOOSE, 'order', order)
        shown = [sign * quality[text.split(' ')[0]] for text in desk.run(CARDS)]
        assert shown == sorted(shown)


def test_a_class_changes_numbers_and_charts(desk, report):
    desk.run(CHOOSE, 'class', 1)
    ap = desk.run("return document.querySelector('#summary .tile b').textContent")
    assert ap == f'{report[1]["per_class"][1][1]:.3f}'.lstrip('0')
    assert NAMES[1] in desk.text('#precision h3')
    assert desk.run("return document.getElementById('class-here').value") == '1'
    desk.run(CHOOSE, 'class', -1)
    assert 'all classes' in desk.text('#precision h3')


def test_a_small_diagram_selects_its_class(desk, report):
    names = desk.run(
        "return [...document.querySelectorAll('.multiples b')].map(e => e.textContent)"
    )
    assert sorted(names) == sorted(NAMES)
    assert desk.run("return document.querySelectorAll('.multiples circle').length") > 20
    desk.run("document.querySelector('.multiples button').click()")
    assert desk.run("return document.getElementById('class').value") == str(NAMES.index(names[0]))
    assert desk.run('return document.activeElement.id') == 'class'
    desk.run(CHOOSE, 'class', -1)


def test_a_kind_of_error_leads_to_its_images(desk):
    desk.run("document.querySelectorAll('#errors td button')[4].click()")
    assert desk.run("return document.getElementById('kind').value") == '4'
    assert desk.run('return document.activeElement.id') == 'kind'
    desk.run(CHOOSE, 'kind', -1)


def test_tables_sort_and_charts_tell_values(desk):
    desk.run("document.querySelectorAll('#summary th button')[2].click()")
    column = "return [...document.querySelectorAll('#summary tbody')[1].rows]"
    aps = desk.run(column + '.map(row => Number(row.cells[2].textContent))')
    assert aps == sorted(aps, reverse=True)
    desk.run(
        "const svg = document.querySelector('#precision svg');"
        'const box = svg.getBoundingClientRect(); svg.dispatchEvent(new PointerEvent('
        "'pointermove', {clientX: box.left + box.width / 2, clientY: box.top + 50}))"
    )
    assert 'IoU .5' in desk.text('#precision .readout')
    labels = desk.run(
        "return [...document.querySelectorAll('.chart svg, .bars')].map(e => e.ariaLabel || '')"
    )
    assert all(len(label) > 10 for label in labels)
    desk.run("document.querySelector('#precision details').open = true")
    desk.until("document.querySelectorAll('#precision details tbody tr').length > 50")
    assert desk.console() == []


def test_groups_whose_least_errors_are_zero_are_drawn(report, tmp_path):
    """Where one edge in ten is exact everywhere, no error above zero bounds the axis below."""
    values = copy.deepcopy(report[1])
    bins = values['uncertainty']['sides']['all edges']['bins']
    bins['low'] = np.zeros(len(bins['low']))
    path = tmp_path / 'exact.html'
    path.write_text(render(values), encoding='utf-8')
    with browser.Browser(1280, 900) as window:
        window.open(path.as_uri())
        window.until(READY)
        window.until("document.querySelectorAll('#uncertainty svg circle').length > 10")
        assert window.console() == []


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_on_a_phone_nothing_is_wider_than_the_screen(report, scheme):
    with browser.Browser(390, 844, mobile=True) as phone:
        media = dict(features=[dict(name='prefers-color-scheme', value=scheme)])
        phone.command('Emulation.setEmulatedMedia', media)
        phone.open(report[0].as_uri())
        phone.until(READY)
        phone.until("document.querySelectorAll('.chart svg').length >= 6")
        wide = phone.run('return document.documentElement.scrollWidth')
        assert wide <= phone.run('return innerWidth') == 390
        sizes = phone.run(
            "return [...document.querySelectorAll('#precision text')].map(each =>"
            '{ const {a, b} = each.getScreenCTM(); const style = getComputedStyle(each);'
            'return parseFloat(style.fontSize) * Math.hypot(a, b); })'
        )
        assert min(sizes) > 10  # px: letters are not shrunk with the chart
        colours = phone.run(
            "const style = getComputedStyle(document.querySelector('section'));"
            'return [style.color, style.backgroundColor].map(text =>'
            'text.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b))'
        )
        assert (colours[0] > colours[1]) == (scheme == 'dark')
        assert phone.console() == []


def test_the_page_of_a_calibrator_has_its_two_sections(tmp_path):
    dataset, results = reporting.made_up(30, 3, 12)
    for name, content in (('t.json', dataset), ('r.json', results)):
        (tmp_path / name).write_text(json.dumps(content))
    data = read_results(str(tmp_path / 'r.json'), str(tmp_path / 't.json'))
    found, gts = data.detections, data.gts
    calibrator = fit_calibrator(found, gts, Settings('linear'))
    measured = evaluate_detections(found, gts)
    both = (measured, measured)
    *_, page = write_report(calibrator, found, found.scores, gts, both, tmp_path / 'out')
    with browser.Browser(1280, 900) as window:
        window.open(page.as_uri())
        window.until(READY)
        titles = window.run("return [...document.querySelectorAll('h2')].map(e => e.textContent)")
        assert titles == ['Reliability', 'Score thresholds per class']
        window.run(CHOOSE, 'class', 1)
        row = window.run("return document.querySelector('#cuts tr.chosen').textContent")
        assert row.startswith(gts.class_names[1])
        assert window.console() == []


SLIDE = (
    "const s = document.getElementById('cut'); s.value = String(arguments[0]);"
    "s.dispatchEvent(new Event('input'))"
)
TILES = "return [...document.querySelectorAll('#counts-here b')].map(each => each.textContent)"


def kept_at(values: dict, cut: float) -> list[int]:
    """True positives, errors of each kind, and gt boxes that are not missed."""
    return np.sum(values['by_score'], 0)[:, round(100 * cut) :].sum(-1).tolist()


@pytest.mark.parametrize('cut', [0.2, 0.7])
def test_the_score_slider_updates_counts_and_pictures(desk, report, cut):
    values = report[1]
    default = desk.run(TILES)
    assert default[0] == str(values['cut']['kept'])
    desk.run(SLIDE, cut)
    right, *wrong, covered = kept_at(values, cut)
    boxes = sum(row[0] for row in values['per_class'])
    assert desk.run(TILES)[:4] == [
        str(each) for each in (right + sum(wrong), right, sum(wrong), boxes - right)
    ]
    column = desk.run(
        "return [...document.querySelectorAll('#errors tbody tr')].map(e => e.cells[2].textContent)"
    )
    assert column == [str(each) for each in (*wrong, boxes - covered)]
    hint = "document.querySelector('#images .hint').textContent.includes('score of %s')"
    desk.until(hint % f'{cut:.3f}'[1:])
    numbers = desk.run(
        'const all = values => values.reduce((a, b) => a + b, 0);'
        "const data = JSON.parse(document.getElementById('data').textContent);"
        'return data.pictures.map(each => [each.image, shownBoxes(data, each, arguments[0]).length,'
        'all(errorCounts(data, data.images[each.image], each, arguments[0]).map(e => e[2]))])',
        cut,
    )
    for image, shown, errors in numbers:
        picture = next(each for each in values['pictures'] if each['image'] == image)
        high = [entry for entry in picture['found'] if entry[1] >= cut]
        missed = [entry for entry in picture['truths'] if entry[2] is not None and entry[2] < cut]
        assert shown == len(high)
        assert errors == sum(entry[3] >= 0 for entry in high) + len(missed)
    desk.run("document.getElementById('best').click()")
    assert desk.run(TILES) == default
    desk.until(hint % f'{values["cut"]["threshold"]:.3f}'[1:])
    assert desk.console() == []


def test_a_confusion_cell_filters_the_images(desk, report):
    values = report[1]
    row, column, _ = max(
        (cell for cell in values['confusion'] if cell[0] != cell[1]), key=lambda cell: cell[2]
    )
    desk.run(
        "const cells = document.querySelectorAll('#confusion .cell');"
        "cells[arguments[0]].dispatchEvent(new MouseEvent('click'))",
        [cell[:2] for cell in values['confusion']].index([row, column]),
    )
    wanted = [
        index
        for index, entry in enumerate(values['images'])
        if [row, column] in np.reshape(entry[6], (-1, 3))[:, :2].tolist()
    ]
    pictured = {entry['image'] for entry in values['pictures']} & set(wanted)
    assert desk.text('#found') == f'{len(wanted)} images, {len(pictured)} with pictures'
    assert desk.run('return document.activeElement.id') == 'cell'
    assert desk.run("return document.querySelectorAll('#images rect.over').length") > 0
    desk.run("document.getElementById('cell').click()")
    assert desk.text('#found').startswith(f'{len(values["images"])} images')
    desk.run(  # and with the keyboard: the first cell, true positives of the first class
        "const region = document.querySelector('#confusion .chart');"
        "for (const key of ['ArrowDown', 'Enter'])"
        "region.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
    )
    assert desk.text('#cell').startswith(f'{NAMES[0]}, found')
    desk.run("document.getElementById('cell').click()")


def test_a_picture_is_enlarged(desk):
    desk.run("document.querySelectorAll('#images .open')[1].click()")
    assert desk.run('return document.activeElement.className') == 'stage'
    wide = "document.querySelector('.stage .holder').getBoundingClientRect().width"
    before = desk.run(f'return {wide}')
    assert before > 700
    desk.click_at('.stage', 500, 300)
    desk.click_at('.stage', 500, 300)
    assert desk.run(f'return {wide}') == pytest.approx(2 * before, abs=2)
    assert desk.run("return document.querySelector('.stage').scrollWidth") > 1.9 * before
    desk.until("document.querySelector('.stage canvas').dataset.drawn === 'yes'")
    name = desk.text('#zoom-title')
    desk.run(
        "const dialog = document.querySelector('dialog');"
        "for (const key of ['0', 'PageDown'])"
        "dialog.dispatchEvent(new KeyboardEvent('keydown', {key}))"
    )
    assert desk.text('#zoom-title') != name
    label = "return document.querySelector('.stage canvas').getAttribute('aria-label')"
    assert 'ground truth' not in desk.run(label)
    desk.run("document.querySelector('dialog input').click()")
    assert 'ground truth' in desk.run(label)
    desk.run("document.querySelector('dialog').close()")
    desk.until("!document.querySelector('dialog')")
    assert desk.console() == []


def test_a_table_is_saved_as_csv(desk, report):
    text = desk.run(
        'const make = URL.createObjectURL; let blob; URL.createObjectURL = (each) => {'
        'blob = each; return make(each); };'
        "document.querySelectorAll('#summary .csv')[1].click();"
        'URL.createObjectURL = make; return blob.text()'
    )
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0][:3] == ['class', 'gt boxes', 'AP']
    assert {row[0] for row in rows[1:]} == set(NAMES)
    found = {row[0]: row[1:] for row in rows[1:]}
    for name, row in zip(NAMES, plain(report[1]['per_class'])):
        assert [float(value) if value else None for value in found[name]] == row
    assert desk.run("return csv([['=1', 'a \"b\"', null, -2.5]])") == '\'=1,"a ""b""",,-2.5\r\n'


def test_soft_edges_are_blended_as_in_python(desk):
    rng = np.random.default_rng(0)
    boxes = np.array([[20.0, 20, 60, 50], [30, 25, 36, 34], [0, 0, 90, 70]])
    positions = boxes[..., None] + np.linspace(-6, 6, 5)
    edges = EdgeBins(positions, rng.dirichlet(np.ones(5), (3, 4)))
    canvas = np.full((80, 100, 3), 128, np.float32)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.float32)
    draw_soft_edges(canvas, Boxes(boxes, np.arange(3), edges=edges), colours)
    entries = [
        dict(
            box=box.tolist(),
            colour='#{:02x}{:02x}{:02x}'.format(*colour.astype(int)),
            edges=[
                dict(start=place[0], step=3, probabilities=shares)
                for place, shares in zip(places.tolist(), probabilities.tolist())
            ],
        )
        for box, colour, places, probabilities in zip(boxes, colours, *edges)
    ]
    drawn = desk.run(
        'const pixels = new ImageData(100, 80); pixels.data.fill(128);'
        'drawing.blendEdges(pixels, arguments[0], 1); return [...pixels.data]',
        entries,
    )
    drawn = np.reshape(drawn, (80, 100, 4))[..., :3]
    # Whole numbers after each box, and tails of bins below a hundredth that are not drawn.
    np.testing.assert_allclose(drawn, canvas, atol=3)


def test_letters_on_pictures_keep_their_size_on_a_phone(report):
    with browser.Browser(390, 844, mobile=True) as phone:
        phone.open(report[0].as_uri())
        phone.until(READY)
        phone.run(
            'window.fonts_ = []; const write = CanvasRenderingContext2D.prototype.fillText;'
            'CanvasRenderingContext2D.prototype.fillText = function (...given) {'
            'fonts_.push(parseFloat(this.font) * this.canvas.clientWidth / this.canvas.width);'
            'return write.apply(this, given); };'
            "document.getElementById('images').scrollIntoView({behavior: 'instant'})"
        )
        phone.until('fonts_.length > 3')
        assert min(phone.run('return fonts_')) > 11  # px of the screen
        phone.run("document.querySelector('#images .open').click()")
        phone.until("document.querySelector('.stage canvas').dataset.drawn === 'yes'")
        assert phone.run('return innerWidth') == 390
        assert phone.console() == []
