"""The server of the page: Python's own, four files and one question, what is in this image.

It keeps nothing on disk, answers one detection at a time, and is meant for the machine it runs on:
there is no password. Other sites cannot use it through a browser, because a request must name this
machine as its host and carry a content type that browsers ask leave for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from gfl_det.errors import DataError, SetupError
from gfl_det.visualization.demo.payload import describe
from gfl_det.visualization.demo.uploads import UploadLimits, accepted, decode_upload, too_large
from gfl_det.visualization.edges import Boxes

PAGE = Path(__file__).resolve().parent / 'page'
FILES = {
    '/': ('index.html', 'text/html; charset=utf-8'),
    '/demo.js': ('demo.js', 'text/javascript; charset=utf-8'),
    '/drawing.js': ('drawing.js', 'text/javascript; charset=utf-8'),
    '/style.css': ('style.css', 'text/css; charset=utf-8'),
}
UPLOAD_TYPE = 'application/octet-stream'
SECURITY = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-store',
}
LOOPBACK = ('127.0.0.1', 'localhost')
HTTP_PORT = 80  # browsers leave it out of the host
SOCKET_SECONDS = 30  # a client that says nothing for so long is dropped
DEFAULT_LIMITS = UploadLimits()
MAX_WAITING = 8  # uploads in memory at a time

Detect = Callable[[np.ndarray], Any]  # an RGB image -> InstanceData


class DemoServer(ThreadingHTTPServer):
    """Serves the page and answers it.

    Args:
        detect: gives the detections of ``(H, W, 3)`` uint8 RGB.
        classes: names, by label.
        address: host and port to listen on; port 0 takes a free one.
        title: of the page, the detector's name.
        limits: of uploads.
        score_thr: detections below it are not sent.
        level: of the detections' intervals, where they have them.

    Raises:
        SetupError: the address cannot be listened on.
    """

    daemon_threads = True

    def __init__(
        self,
        detect: Detect,
        classes: tuple[str, ...],
        address: tuple[str, int] = ('127.0.0.1', 7860),
        *,
        title: str = 'detector',
        limits: UploadLimits = DEFAULT_LIMITS,
        score_thr: float = 0.05,
        level: float | None = None,
    ) -> None:
        self.detect = detect
        self.classes = classes
        self.title = title
        self.limits = limits
        self.score_thr = score_thr
        self.level = level
        self.one_at_a_time = threading.Lock()
        self.waiting = threading.BoundedSemaphore(MAX_WAITING)
        try:
            super().__init__(address, Handler)
        except OSError as error:
            raise SetupError(
                f'{address[0]}:{address[1]} cannot be listened on ({error.strerror or error}): '
                'choose another --port or --host.'
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f'http://{self.server_address[0]!s}:{self.server_address[1]}/'

    def knows_host(self, host: str | None) -> bool:
        """Whether a request names this machine; another name could be a foreign site's."""
        if self.server_address[0] not in LOOPBACK:
            return True  # whoever listens to the network has names that are not known here
        port = self.server_address[1]
        names = {f'{name}:{port}' for name in LOOPBACK}
        return host in names | (set(LOOPBACK) if port == HTTP_PORT else set())

    def answer(self, content: bytes) -> dict[str, Any]:
        """What is in an uploaded image.

        Raises:
            DataError: it is no image, or too large.
        """
        with self.one_at_a_time:  # decoded images are the largest part: one of them at a time
            image = decode_upload(content, self.limits)
            found = self.detect(image)
        return describe(Boxes.of(found, self.score_thr), image.shape[:2], self.classes)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: DemoServer
    timeout = SOCKET_SECONDS
    server_version = 'gfl_det'
    sys_version = ''

    def do_GET(self) -> None:
        """Send a file of the page, or what the page has to know."""
        if not self.server.knows_host(self.headers.get('Host')):
            self._fail(HTTPStatus.FORBIDDEN, 'Open this page by the address that was printed.')
        elif self.path == '/info':
            self._send_json(HTTPStatus.OK, self._info())
        elif self.path in FILES:
            name, kind = FILES[self.path]
            self._send(HTTPStatus.OK, (PAGE / name).read_bytes(), kind)
        else:
            self._fail(HTTPStatus.NOT_FOUND, 'There is no such page.')

    def do_POST(self) -> None:
        """Detect in the image that is the request's body."""
        if not self.server.knows_host(self.headers.get('Host')):
            return self._fail(HTTPStatus.FORBIDDEN, 'Open this page by the printed address.')
        if self.path != '/detect':
            return self._fail(HTTPStatus.NOT_FOUND, 'There is no such page.')
        if self.headers.get('Content-Type') != UPLOAD_TYPE:
            text = f'Send the image file itself, as {UPLOAD_TYPE}.'
            return self._fail(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text)
        length = self.headers.get('Content-Length', '')
        if not length.isdecimal():
            return self._fail(HTTPStatus.LENGTH_REQUIRED, 'Say how long the file is.')
        if int(length) > self.server.limits.max_bytes:
            text = too_large(self.server.limits)
            return self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        if not self.server.waiting.acquire(blocking=False):
            return self._fail(HTTPStatus.SERVICE_UNAVAILABLE, 'Busy: try again in a moment.')
        try:
            self._detect(self.rfile.read(int(length)))
        finally:
            self.server.waiting.release()

    def _detect(self, content: bytes) -> None:
        try:
            answer = self.server.answer(content)
        except DataError as error:
            self._fail(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except Exception as error:  # the page has to say something, and the server goes on
            self.log_error('%r', error)
            text = f'The detector failed: {type(error).__name__}; see the terminal.'
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, text)
        else:
            self._send_json(HTTPStatus.OK, answer)

    def _info(self) -> dict[str, Any]:
        limits = self.server.limits
        return dict(
            title=self.server.title,
            classes=self.server.classes,
            level=self.server.level,
            max_bytes=limits.max_bytes,
            too_large=too_large(limits),
            accepted=accepted(limits),
        )

    def _fail(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # a body that was not read would be taken for a request
        self._send_json(status, dict(error=text))

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content, separators=(',', ':')).encode()
        self._send(status, body, 'application/json')

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in SECURITY.items():
            self.send_header(name, value)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged; faults are, by :meth:`log_error`."""

    def log_error(self, format: str, *args: Any) -> None:
        """Tell the terminal of a fault."""
        super().log_message(format, *args)
