"""The review page in headless Chromium: keyboard, kinds, decisions, no request to anywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from gfl_det.evaluation.label_errors import find_label_errors, suspect_entries
from gfl_det.visualization.report.review import ReviewData, review_page
from tests.helpers import browser, label_scenes

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or '')

PRESS = (
    "document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}));"
    "return document.getElementById('progress').textContent"
)


@pytest.fixture(scope='module')
def page(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp('review')
    scene = label_scenes.make_scene()
    gts = scene.gts._replace(class_names=['cat', '<img src=x onerror=alert(1)>', 'cow'])
    sizes = np.full((label_scenes.IMAGES, 2), label_scenes.SIDE, float)
    suspects = find_label_errors(gts, scene.found, sizes, least=0.05)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'a.png'), cv2.GaussianBlur(noise, (0, 0), 2))
    entries = suspect_entries(suspects, gts, list(range(len(gts.image))))
    names = [f'{each}.png' for each in gts.image_ids]
    data = ReviewData('Suspects', 'labels.json', 'ab12', gts, names, scene.found, suspects, entries)
    path = folder / 'review.html'
    path.write_text(review_page(data, [folder / 'a.png'] * len(names), 100))
    return path, entries


@pytest.fixture
def desk(page) -> Iterator[browser.Browser]:
    with browser.Browser(1280, 900) as window:
        window.open(page[0].as_uri())
        window.until("document.documentElement.dataset.ready === 'yes'")
        yield window


def test_going_through_by_keyboard(desk, page) -> None:
    entries = page[1]
    desk.until("document.querySelectorAll('#one canvas[data-drawn=yes]').length === 2")
    different = desk.run(
        "const [a, b] = [...document.querySelectorAll('#one canvas')].map((each) =>"
        ' each.toDataURL()); return a !== b'
    )
    assert different
    assert desk.run(PRESS, 't') == f'1 of {len(entries)} decided'
    assert desk.run(PRESS, 'K') == f'2 of {len(entries)} decided'
    desk.run(PRESS, 'ArrowLeft')
    pressed = "return document.getElementById('keep').getAttribute('aria-pressed')"
    assert desk.run(pressed) == 'true'
    desk.click('#mark')  # another decision in the place of the first
    saved = json.loads(desk.run('return window.decisions()'))
    assert (saved['annotations'], saved['sha256']) == ('labels.json', 'ab12')
    assert saved['decisions'] == [
        {**entries[0], 'decision': 'take'},
        {**entries[1], 'decision': 'mark'},
    ]
    assert desk.console() == []
    assert desk.run("return performance.getEntriesByType('resource').length") == 0


def test_kinds_names_and_the_file(desk, page, tmp_path) -> None:
    settings = dict(behavior='allow', downloadPath=str(tmp_path))
    desk.command('Page.setDownloadBehavior', settings)
    desk.run(
        "const s = document.getElementById('kind'); s.value = 'missing';"
        "s.dispatchEvent(new Event('change'))"
    )
    assert ': missing, probability' in desk.text('#one h2')
    rows = desk.run("return document.querySelectorAll('#all tbody tr').length")
    assert rows == sum(each['kind'] == 'missing' for each in page[1])
    assert desk.run("return document.querySelectorAll('img[src=x]').length") == 0
    desk.run(PRESS, 'm')
    desk.click('#save')
    path = tmp_path / 'decisions.json'
    end = time.monotonic() + 20
    while not path.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    assert [each['decision'] for each in json.loads(path.read_text())['decisions']] == ['mark']
