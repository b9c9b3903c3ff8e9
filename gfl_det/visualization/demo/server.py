"""The server of the page: four files and one question, what is in this image.

It keeps nothing on disk, answers one detection at a time, and is meant for the machine it runs on:
there is no password. Other sites cannot use it through a browser, because a request must name this
machine as its host and carry a content type that browsers ask leave for.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gfl_det.errors import DataError, SetupError
from gfl_det.visualization.demo.payload import (
    UploadLimits,
    accepted,
    decode_upload,
    describe,
    too_large,
)
from gfl_det.visualization.edges import Boxes

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.responses import FileResponse, JSONResponse
    from starlette.routing import Route
except ImportError as error:
    raise SetupError(
        f'The page needs the package {error.name}: run `pip install "gfl_det[demo]"`.'
    ) from error

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = Path(__file__).resolve().parent / 'page'
FILES = {
    '/': ('index.html', 'text/html'),
    '/demo.js': ('demo.js', 'text/javascript'),
    '/drawing.js': ('drawing.js', 'text/javascript'),
    '/style.css': ('style.css', 'text/css'),
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
SHUTDOWN_SECONDS = 5  # that a detection may still take when the server is stopped
DEFAULT_LIMITS = UploadLimits()
MAX_WAITING = 8  # uploads in memory at a time

Detect = Callable[[np.ndarray], Any]  # an RGB image -> InstanceData


class DemoServer:
    """Serves the page and answers it.

    Args:
        detect: Gives the detections of ``(H, W, 3)`` uint8 RGB.
        classes: Names, by label.
        address: Host and port to listen on; port 0 takes a free one.
        title: Of the page, the detector's name.
        limits: Of uploads.
        score_thr: Detections below it are not sent.
        level: Of the detections' intervals, where they have them.

    Raises:
        SetupError: If the address cannot be listened on.
    """

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
        self._socket = listen(address)
        self.server_address: tuple[str, int] = self._socket.getsockname()[:2]
        config = uvicorn.Config(
            self.application(),
            http='h11',
            lifespan='off',
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=SOCKET_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f'http://{self.server_address[0]}:{self.server_address[1]}/'

    def serve_forever(self) -> None:
        """Answer until :meth:`shutdown`, or Ctrl+C in the main thread."""
        self._server.run(sockets=[self._socket])

    def shutdown(self) -> None:
        """Let :meth:`serve_forever` end; to be called from another thread."""
        self._server.should_exit = True

    def server_close(self) -> None:
        """Give the address back."""
        self._socket.close()

    def application(self) -> Starlette:
        """The routes, and what holds for every request and answer."""
        routes = [
            *(Route(path, file_sender(*file)) for path, file in FILES.items()),
            Route('/info', self._info),
            Route('/detect', self._detect, methods=['POST']),
        ]
        guards = [Middleware(SecurityHeaders), Middleware(HostCheck, knows_host=self.knows_host)]
        handlers: dict[Any, Any] = {HTTPException: say_failure}
        app = Starlette(routes=routes, middleware=guards, exception_handlers=handlers)
        app.router.redirect_slashes = False  # there are no other pages than these
        return app

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
            DataError: If it is not an image, or too large.
        """
        with self.one_at_a_time:  # decoded images are the largest part: one of them at a time
            image = decode_upload(content, self.limits)
            found = self.detect(image)
        return describe(Boxes.of(found, self.score_thr), image.shape[:2], self.classes)

    async def _info(self, request: Request) -> Response:
        """What the page has to know."""
        return JSONResponse(
            dict(
                title=self.title,
                classes=self.classes,
                level=self.level,
                max_bytes=self.limits.max_bytes,
                too_large=too_large(self.limits),
                accepted=accepted(self.limits),
            )
        )

    async def _detect(self, request: Request) -> Response:
        """Detect in the image that is the request's body; refuse before it is read."""
        if request.headers.get('Content-Type') != UPLOAD_TYPE:
            text = f'Send the image file itself, as {UPLOAD_TYPE}.'
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text)
        length = request.headers.get('Content-Length', '')
        if not length.isdecimal():
            raise HTTPException(HTTPStatus.LENGTH_REQUIRED, 'Say how long the file is.')
        if int(length) > self.limits.max_bytes:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(self.limits))
        if not self.waiting.acquire(blocking=False):
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, 'Busy: try again in a moment.')
        try:
            content = await asyncio.wait_for(request.body(), SOCKET_SECONDS)
            return JSONResponse(await run_in_threadpool(self.answer, content))
        except asyncio.TimeoutError:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, 'The file did not arrive.') from None
        except DataError as error:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        except Exception as error:  # the page has to say something, and the server goes on
            print(f'{error!r}', file=sys.stderr, flush=True)
            text = f'The detector failed: {type(error).__name__}; see the terminal.'
            raise HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, text) from error
        finally:
            self.waiting.release()


def listen(address: tuple[str, int]) -> socket.socket:
    """Bind an address and listen on it.

    Raises:
        SetupError: If it is taken, or no address of this machine.
    """
    try:
        return socket.create_server(address)
    except OSError as error:
        raise SetupError(
            f'{address[0]}:{address[1]} cannot be listened on ({error.strerror or error}): '
            'choose another --port or --host.'
        ) from error


def file_sender(name: str, kind: str) -> Callable[[Request], Any]:
    """An endpoint that sends a file of the page."""

    async def send_file(request: Request) -> Response:
        return FileResponse(PAGE / name, media_type=kind)

    return send_file


async def say_failure(request: Request, failure: Any) -> Response:
    """Answer with the sentence that the page shows; 404 and 405 are Starlette's own."""
    # Without the end of the connection, a body that was not read would be taken for a request.
    headers = {**(failure.headers or {}), 'Connection': 'close'}
    return JSONResponse(dict(error=failure.detail), failure.status_code, headers)


class SecurityHeaders:
    """Adds the headers that bind a browser to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.headers = [(name.lower().encode(), text.encode()) for name, text in SECURITY.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and the answer back with the headers."""

        async def send_with_headers(message: Message) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [*message['headers'], *self.headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class HostCheck:
    """Refuses requests that name another host than this machine (DNS rebinding)."""

    def __init__(self, app: ASGIApp, knows_host: Callable[[str | None], bool]) -> None:
        self.app = app
        self.knows_host = knows_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        host = dict(scope['headers']).get(b'host')
        if self.knows_host(None if host is None else host.decode('latin1')):
            await self.app(scope, receive, send)
            return
        text = 'Open this page by the address that was printed.'
        headers = {'Connection': 'close'}
        await JSONResponse(dict(error=text), HTTPStatus.FORBIDDEN, headers)(scope, receive, send)
