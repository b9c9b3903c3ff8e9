"""The demo's server: what it takes, what it refuses, and that it goes on after faults."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from PIL import Image

from gfl_det.cli import demo as command
from gfl_det.errors import DataError, SetupError
from gfl_det.registry import MODELS
from gfl_det.utils.config import load_config
from gfl_det.visualization import Boxes, class_colours
from gfl_det.visualization.demo.server import (
    MAX_BOXES,
    MAX_WAITING,
    UPLOAD_TYPE,
    DemoServer,
    UploadLimits,
    decode_upload,
    describe,
)
from tests.helpers.commands import run_tool, running_tool
from tests.helpers.tiny_project import TINY_CONFIG

LIMITS = UploadLimits(max_bytes=200_000, max_pixels=40_000)


def picture(kind: str = 'PNG', size: tuple[int, int] = (80, 60), **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2] = (255, 0, 0)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def found_in(image: np.ndarray) -> InstanceData:
    """One sure box in the left half, and a poor one."""
    height, width = image.shape[:2]
    logits = torch.full((2, 4, 5), -20.0)
    logits[0, :, 2] = 20
    return InstanceData(
        edge_low=torch.full((2, 4), 1.5),
        edge_high=torch.full((2, 4), 2.5),
        bboxes=torch.tensor([[4.0, 6, 36, 38], [0, 0, width, height]]),
        labels=torch.tensor([1, 0]),
        scores=torch.tensor([0.75, 0.01]),
        edge_logits=logits,
        bin_widths=torch.full((2, 4), 8.0),
        prior_centres=torch.tensor([[20.0, 22], [0, 0]]),
    )


class TestUploads:
    @pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'BMP'])
    def test_known_formats(self, kind):
        image = decode_upload(picture(kind), LIMITS)
        assert image.shape == (60, 80, 3)
        assert image.dtype == np.uint8
        assert image[30, 10, 0] > 230  # red, not blue
        assert image[30, 70].max() < 25

    def test_pictures_of_phones_are_turned_upright(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held upright: turn by a quarter clockwise
        image = decode_upload(picture('JPEG', exif=exif), LIMITS)
        assert image.shape == (80, 60, 3)
        assert image[10, 30, 0] > 230
        assert image[70, 30, 0] < 25

    @pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGBA', '1', 'I;16'])
    def test_every_mode_becomes_rgb(self, mode):
        buffer = io.BytesIO()
        Image.new(mode, (20, 10)).save(buffer, 'PNG')
        assert decode_upload(buffer.getvalue(), LIMITS).shape == (10, 20, 3)

    def test_a_decompression_bomb_is_refused_by_its_header(self):
        # 30,000 x 30,000 pixels in a few bytes: there is not even data to unfold.
        header = struct.pack('>IIBBBBB', 30000, 30000, 8, 2, 0, 0, 0)
        chunks = b''
        for name, data in ((b'IHDR', header), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')):
            checksum = struct.pack('>I', zlib.crc32(name + data))
            chunks += struct.pack('>I', len(data)) + name + data + checksum
        bomb = b'\x89PNG\r\n\x1a\n' + chunks
        with pytest.raises(DataError, match='900 megapixels: send'):
            decode_upload(bomb, LIMITS)
        with pytest.raises(DataError, match='damaged'):  # it may be that large, and was decoded
            decode_upload(bomb, LIMITS._replace(max_pixels=10**9))
        with pytest.raises(DataError, match=r'0\.06 megapixels.* 0\.04'):
            decode_upload(picture(size=(300, 200)), LIMITS)

    @pytest.mark.parametrize(
        ('content', 'said'),
        [
            (b'', 'not an image'),
            (b'hello', 'not an image'),
            (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not an image'),
            (b'GIF89a' + bytes(40), 'not an image'),
            (picture()[:-60], 'damaged'),
            (picture('JPEG')[:300], 'not an image|damaged'),
            (bytes(200_001), r'at most 0\.19'),
        ],
    )
    def test_other_files_than_images(self, content, said):
        with pytest.raises(DataError, match=said):
            decode_upload(content, LIMITS)


class TestPayload:
    def test_numbers_of_a_box(self):
        boxes = Boxes.of(found_in(np.zeros((60, 80, 3))), 0.05)
        content = json.loads(json.dumps(describe(boxes, (60, 80), ('cat', 'dog'))))
        (box,) = content.pop('boxes')
        assert content == {'height': 60, 'width': 80}
        assert (box['box'], box['name'], box['score']) == ([4, 6, 36, 38], 'dog', 0.75)
        assert box['colour'] == '#{:02x}{:02x}{:02x}'.format(*class_colours(2)[1])
        assert [edge['side'] for edge in box['edges']] == ['left', 'top', 'right', 'bottom']
        left, _, _, bottom = box['edges']
        assert (left['start'], left['step']) == (20, -8)
        assert (bottom['start'], bottom['step']) == (22, 8)
        assert left['probabilities'] == [0, 0, 1, 0, 0]
        assert (left['std'], left['entropy'], left['interval']) == (0, 0, [1.5, 2.5])

    def test_other_heads_and_many_boxes(self):
        boxes = Boxes(np.zeros((300, 4)), np.zeros(300, np.int64), np.ones(300))
        content = describe(boxes, (9, 9), ('a',))
        assert len(content['boxes']) == MAX_BOXES
        assert content['boxes'][0]['edges'] == []
        assert describe(Boxes(np.empty((0, 4)), np.empty(0, np.int64)), (9, 9), ())['boxes'] == []


@pytest.fixture
def server() -> Iterator[DemoServer]:
    demo = DemoServer(found_in, ('cat', 'dog'), ('127.0.0.1', 0), title='pets', limits=LIMITS)
    thread = threading.Thread(target=demo.serve_forever)
    thread.start()
    yield demo
    demo.shutdown()
    thread.join()
    demo.server_close()


def ask(
    server: DemoServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=120)
    given = {name.replace('_', '-'): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def upload(server: DemoServer, body: bytes, **headers: str) -> tuple[int, dict]:
    response, content = ask(
        server, 'POST', '/detect', body, **{'Content_Type': UPLOAD_TYPE, **headers}
    )
    return response.status, json.loads(content)


class TestServer:
    def test_it_serves_its_files_and_nothing_else(self, server):
        for path in ('/', '/demo.js', '/drawing.js', '/style.css', '/info'):
            response, content = ask(server, 'GET', path)
            assert response.status == 200
            assert len(content) > 50
            policy = response.headers['Content-Security-Policy']
            assert "default-src 'none'" in policy
            assert 'http' not in policy  # nothing from elsewhere
            assert response.headers['X-Content-Type-Options'] == 'nosniff'
            assert b'http://' not in content.replace(b'http://www.w3.org', b'')
            assert b'https://' not in content
        for path in ('/server.py', '/../server.py', '/page/demo.js', '//etc/passwd', '/demo.js/'):
            response, content = ask(server, 'GET', path)
            assert response.status == 404
            assert "default-src 'none'" in response.headers['Content-Security-Policy']
            assert json.loads(content)['error']
        information = json.loads(ask(server, 'GET', '/info')[1])
        assert information['title'] == 'pets'
        assert information['max_bytes'] == 200_000

    def test_an_image_is_answered(self, server):
        status, answer = upload(server, picture())
        expected = describe(
            Boxes.of(found_in(np.zeros((60, 80, 3))), 0.05), (60, 80), ('cat', 'dog')
        )
        assert (status, answer) == (200, expected)

    def test_refusals(self, server):
        assert upload(server, b'hello')[0] == 422
        status, answer = upload(server, picture(size=(300, 200)))
        assert status == 422
        assert '0.06 megapixels' in answer['error']
        assert upload(server, picture(), Content_Type='image/png')[0] == 415
        assert ask(server, 'POST', '/other', b'x', Content_Type=UPLOAD_TYPE)[0].status == 404
        assert ask(server, 'PUT', '/detect', b'x')[0].status == 405
        assert upload(server, picture())[0] == 200

    def test_a_large_upload_is_refused_unread(self, server):
        # Only the announcement is sent: an answer means that the body was not waited for.
        status, answer = upload(server, b'', Content_Length=str(10**12))
        assert status == 413
        assert answer['error'] == 'This file is too large: send one of at most 0.191 MiB.'
        for length in ('-5', 'many', '1e3', ''):  # no HTTP at all
            response, _ = ask(
                server, 'POST', '/detect', b'', Content_Type=UPLOAD_TYPE, Content_Length=length
            )
            assert response.status == 400
        chunked = dict(Content_Type=UPLOAD_TYPE, Transfer_Encoding='chunked')
        assert ask(server, 'POST', '/detect', b'0\r\n\r\n', **chunked)[0].status == 411
        assert upload(server, picture())[0] == 200

    @pytest.mark.parametrize('host', ['evil.example', 'evil.example:80', '127.0.0.1', '', 'x:1:2'])
    def test_other_names_of_this_machine_are_refused(self, server, host):
        # A foreign site whose name was made to lead here (DNS rebinding).
        assert ask(server, 'GET', '/', Host=host)[0].status == 403
        assert upload(server, picture(), Host=host)[0] == 403

    def test_localhost_is_this_machine(self, server):
        port = server.server_address[1]
        assert ask(server, 'GET', '/', Host=f'localhost:{port}')[0].status == 200

    def test_a_foreign_page_may_not_ask(self, server):
        # Browsers ask with OPTIONS before they send this content type for another site.
        response, _ = ask(server, 'OPTIONS', '/detect', Origin='http://evil.example')
        assert response.status == 405
        assert not [name for name in response.headers if name.startswith('Access-Control')]

    def test_a_fault_of_the_detector_is_told_and_survived(self, server, capfd):
        server.detect = lambda image: 1 / 0
        status, answer = upload(server, picture())
        assert status == 500
        assert 'ZeroDivisionError' in answer['error']
        assert 'ZeroDivisionError' in capfd.readouterr().err
        server.detect = found_in
        assert upload(server, picture())[0] == 200

    def test_one_detection_at_a_time_and_few_in_wait(self, server):
        running, most, lock = [0], [0], threading.Lock()
        started, go = threading.Event(), threading.Event()

        def slow(image: np.ndarray) -> InstanceData:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            started.set()
            assert go.wait(60)
            with lock:
                running[0] -= 1
            return found_in(image)

        server.detect = slow
        statuses: list[int] = []
        waiting = [
            threading.Thread(target=lambda: statuses.append(upload(server, picture())[0]))
            for _ in range(MAX_WAITING)
        ]
        for thread in waiting:
            thread.start()
        assert started.wait(60)
        while server.waiting._value:  # until all of them wait
            threading.Event().wait(0.01)
        assert upload(server, picture())[0] == 503
        go.set()
        for thread in waiting:
            thread.join()
        assert statuses == [200] * MAX_WAITING
        assert most == [1]

    def test_a_taken_port_is_named(self, server):
        port = server.server_address[1]
        with pytest.raises(SetupError, match=f'127.0.0.1:{port} '):
            DemoServer(found_in, (), ('127.0.0.1', port))


def test_the_command_line_listens_here_alone():
    args = command.parse_arguments(['x.pth'])
    assert (args.host, args.port) == ('127.0.0.1', 7860)
    assert (args.max_mb, args.max_megapixels) == (10, 20)


def test_the_tool_serves_a_detector(tmp_path):
    (tmp_path / 'tiny.py').write_text(TINY_CONFIG)
    cfg = load_config(str(tmp_path / 'tiny.py'))
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    meta = {'dataset_meta': {'classes': ('blue', 'green')}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, tmp_path / 'noise.pth')

    words = ('noise.pth', '--config', 'tiny.py', '--port', '0', '--max-megapixels', '0.04')
    with running_tool('demo_web', *words, cwd=tmp_path, DISPLAY='') as (tool, said):
        end = time.monotonic() + 60
        while not (told := re.search(r'^open http://127.0.0.1:(\d+)/', said.read_text(), re.M)):
            assert tool.is_alive()
            assert time.monotonic() < end
            time.sleep(0.1)
        port = int(told[1])
        here = SimpleNamespace(server_address=('127.0.0.1', port))
        status, answer = upload(here, picture())
        assert status == 200
        assert (answer['height'], answer['width']) == (60, 80)
        assert len(answer['boxes']) > 0  # noise has scores around .5 everywhere
        for box in answer['boxes']:
            assert box['name'] in ('blue', 'green')
            assert [len(edge['probabilities']) for edge in box['edges']] == [17] * 4
        assert upload(here, picture(size=(300, 200)))[0] == 422
        taken = run_tool(
            *('demo_web', 'noise.pth', '--config', 'tiny.py', '--port', port), cwd=tmp_path
        )
        assert taken.returncode == 1
        assert f'listen on 127.0.0.1:{port} ' in taken.stderr
        os.kill(tool.pid, signal.SIGINT)
        tool.join(60)
        assert tool.exitcode == 0
