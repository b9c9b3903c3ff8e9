"""The demo's page in a browser: drop, look, click; the real tool with a detector of noise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from PIL import Image

from gfl_det.visualization import Boxes, class_colours
from gfl_det.visualization.demo.server import DemoServer, UploadLimits, describe
from gfl_det.visualization.picture import edge_opacity
from tests.helpers import browser

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or '')

CLASSES = ('cat', '<b>dog</b>')  # a name is text, whatever it holds


def found_in(image: np.ndarray) -> InstanceData:
    generator = torch.Generator().manual_seed(0)
    return InstanceData(
        bboxes=torch.tensor([[20.0, 30, 120, 150], [60, 60, 100, 100], [150, 20, 290, 180]]),
        labels=torch.tensor([0, 1, 1]),
        scores=torch.tensor([0.9, 0.6, 0.4]),
        edge_logits=3 * torch.randn(3, 4, 17, generator=generator),
        bin_widths=torch.full((3, 4), 8.0),
        edge_low=torch.full((3, 4), 60.0),
        edge_high=torch.full((3, 4), 76.0),
        prior_centres=torch.tensor([[70.0, 90], [80, 80], [220, 100]]),
    )


@pytest.fixture(scope='module')
def server() -> Iterator[DemoServer]:
    demo = DemoServer(
        found_in,
        CLASSES,
        ('127.0.0.1', 0),
        title='pets',
        limits=UploadLimits(max_bytes=500_000),
        level=0.9,
    )
    thread = threading.Thread(target=demo.serve_forever)
    thread.start()
    yield demo
    demo.shutdown()
    thread.join()
    demo.server_close()


@pytest.fixture(scope='module')
def desk(server) -> Iterator[browser.Browser]:
    with browser.Browser(1280, 900) as window:
        window.open(server.url)
        yield window


@pytest.fixture(scope='module')
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('images') / 'grey.png'
    Image.new('RGB', (320, 200), (120, 120, 120)).save(path)
    return path


def show(window: browser.Browser, path: Path) -> None:
    window.choose_file('#file', path)
    window.until("!document.getElementById('canvas').hidden")
    window.until("document.getElementById('status').textContent === ''")


def pixel(window: browser.Browser, x: float, y: float) -> list[int]:
    """The colour of the canvas at a place in the image."""
    return window.run(
        "const c = document.getElementById('canvas'); const at = [...arguments];"
        'const [x, y] = at.map(value => value * c.width / 320);'
        "return [...c.getContext('2d').getImageData(x, y, 1, 1).data]",
        x,
        y,
    )[:3]


def test_the_page_says_what_it_takes(desk):
    desk.until("document.title === 'pets - gfl_det'")
    assert 'Drop an image here' in desk.text('#drop')
    assert 'JPEG, PNG, WEBP, BMP' in desk.text('#drop')


def test_an_image_shows_its_boxes(desk, image):
    show(desk, image)
    assert desk.text('#count') == '3 boxes'
    names = desk.run(
        "return [...document.querySelectorAll('#list button')].map(b => b.textContent)"
    )
    assert names == ['cat 0.90', '<b>dog</b> 0.60', '<b>dog</b> 0.40']
    blue = class_colours(2)[1].tolist()
    assert pixel(desk, 220, 180) == blue  # on the lower line of the third box
    assert pixel(desk, 10, 195) == [120, 120, 120]


def test_a_click_shows_the_edges_of_the_smallest_box_there(desk, image):
    show(desk, image)
    scale = desk.run("return document.getElementById('canvas').clientWidth") / 320
    desk.click_at('#canvas', 80 * scale, 80 * scale)  # in the first box and in the second
    assert '<b>dog</b>, score 0.60' in desk.text('#chosen')
    assert desk.run("return document.querySelectorAll('#chosen svg').length") == 4
    expected = describe(Boxes.of(found_in(np.zeros(1))), (200, 320), CLASSES)['boxes'][1]['edges']
    charts = desk.run(
        "return [...document.querySelectorAll('#chosen svg')].map(chart =>"
        "[...chart.querySelectorAll('.bar')].map(bar => Number(bar.getAttribute('height'))))"
    )
    for edge, heights in zip(expected, charts):
        probabilities = edge['probabilities'] if edge['step'] > 0 else edge['probabilities'][::-1]
        np.testing.assert_allclose(np.array(heights) / 72, probabilities, atol=1e-3)
    assert f'{expected[0]["std"]:.1f} px' in desk.text('#chosen')
    assert 'Bracket: the 90 % interval' in desk.text('#chosen')
    wide = desk.run(
        "const box = document.querySelector('#chosen .interval').getBBox(); return box.width"
    )
    assert wide == pytest.approx((76 - 60) / 8 * 298 / 17, rel=1e-3)  # two bins of 17 in 298 units
    desk.click_at('#canvas', 310 * scale, 10 * scale)  # on nothing
    assert 'Click a box' in desk.text('#chosen')


def test_boxes_can_be_chosen_by_keyboard_from_the_list(desk, image):
    show(desk, image)
    desk.run("document.querySelectorAll('#list button')[2].click()")
    assert 'score 0.40' in desk.text('#chosen')
    active = desk.run('return document.activeElement.textContent')
    assert active == '<b>dog</b> 0.40'
    assert desk.run("return document.activeElement.getAttribute('aria-pressed')") == 'true'


def test_the_slider_hides_poor_boxes(desk, image):
    show(desk, image)
    slide = (
        "const s = document.getElementById('threshold'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))"
    )
    desk.run(slide, 0.5)
    assert desk.text('#count') == '2 boxes'
    assert pixel(desk, 220, 180) == [120, 120, 120]
    desk.run(slide, 0.95)
    assert 'No box has this score' in desk.text('#chosen')
    desk.run(slide, 0.3)
    assert desk.text('#count') == '3 boxes'


def test_edges_are_as_soft_as_in_python(desk):
    boxes = Boxes.of(found_in(np.zeros(1)))
    entries = describe(boxes, (200, 320), CLASSES)['boxes']
    for index, entry in enumerate(entries):
        drawn = desk.run(
            "const {edgeOpacity} = await import('./drawing.js');"
            'return edgeOpacity(arguments[0], 1, 320, 200)',
            entry,
        )
        opacity = np.array(drawn['opacity'])
        whole = np.zeros((200, 320))
        rows, columns = opacity.shape
        whole[drawn['top'] : drawn['top'] + rows, drawn['left'] : drawn['left'] + columns] = opacity
        expected = edge_opacity(boxes.edges, index, np.arange(320) + 0.5, np.arange(200) + 0.5)
        # Beyond what is drawn lie tails of bins below a hundredth each.
        np.testing.assert_allclose(whole, expected, atol=0.03)
        inside = np.s_[drawn['top'] : drawn['top'] + rows, drawn['left'] : drawn['left'] + columns]
        np.testing.assert_allclose(opacity, expected[inside], atol=1e-3)


def test_a_dropped_image_is_taken(desk, image):
    desk.open(desk.run('return location.href'))
    desk.run(
        'const blob = await new Promise((done) => { const c = document.createElement("canvas");'
        'c.width = 320; c.height = 200; c.toBlob(done); });'
        'const data = new DataTransfer(); data.items.add(new File([blob], "x.png"));'
        'document.getElementById("drop").dispatchEvent('
        'new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}))'
    )
    desk.until("!document.getElementById('canvas').hidden")
    assert desk.text('#count') == '3 boxes'


def test_refusals_are_sentences_and_the_page_goes_on(desk, image, tmp_path):
    show(desk, image)
    assert desk.console() == []  # of everything so far
    text = tmp_path / 'notes.png'
    text.write_text('no image')
    desk.choose_file('#file', text)
    desk.until("document.getElementById('status').className === 'error'")
    assert desk.text('#status') == 'This file is not an image: send JPEG, PNG, WEBP, BMP.'
    large = tmp_path / 'large.png'
    large.write_bytes(bytes(600_000))
    desk.choose_file('#file', large)
    desk.until("document.getElementById('status').textContent.includes('too large')")
    show(desk, image)
    assert desk.text('#status') == ''
    complaints = [line for line in desk.console() if '422' not in line]  # the refused upload
    assert complaints == []


def test_nothing_is_fetched_from_elsewhere(desk, server):
    fetched = desk.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert fetched
    assert all(name.startswith((server.url, 'data:')) for name in fetched)


def test_on_a_phone_nothing_is_wider_than_the_screen(server, image):
    with browser.Browser(390, 844, mobile=True) as phone:
        phone.open(server.url)
        phone.until("document.title === 'pets - gfl_det'")
        show(phone, image)
        phone.run("document.querySelector('#list button').click()")
        wide = phone.run('return document.documentElement.scrollWidth')
        assert wide <= phone.run('return innerWidth') == 390
        rows = phone.run(
            "return ['canvas', 'side'].map(id => document.getElementById(id))"
            '.map(element => element.getBoundingClientRect())'
            '.map(box => [box.left, box.top, box.right, box.bottom])'
        )
        assert rows[0][3] <= rows[1][1]  # the numbers are below the image
        assert phone.console() == []
