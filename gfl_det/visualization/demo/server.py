"""Server of the demo page: four static files and one detection endpoint.

It writes nothing to disk, answers one detection at a time, and is meant for local use: there is no
password. Other sites cannot use it through a browser, because a request must name this machine as
host and have a content type that requires a CORS preflight. Image sizes are checked before anything
is decoded.
"""

from __future__ import annotations

import asyncio
import io
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gfl_det.errors import DataError, SetupError
from gfl_det.ops.intervals import SIDES
from gfl_det.utils.pixels import header_of, pillow_opens
from gfl_det.visualization.charts import edge_entropy, edge_spread
from gfl_det.visualization.labels import class_colours
from gfl_det.visualization.picture import Boxes

FORMATS = ['JPEG', 'PNG', 'WEBP', 'BMP']
MAX_BOXES = 100
DIGITS = 4  # for probabilities; pixel coordinates get 2


class UploadLimits(NamedTuple):
    """Size limits of uploads."""

    max_bytes: int = 10 * 2**20
    max_pixels: int = 20_000_000


def decode_upload(content: bytes, limits: UploadLimits) -> np.ndarray:
    """Decode an image and apply its EXIF orientation.

    Args:
        content: Content of the file.
        limits: Size limits.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        DataError: If the file is too large, has too many pixels according to its header (a small
            file could unpack to gigabytes), is damaged, or has an unknown format.
    """
    if len(content) > limits.max_bytes:
        raise DataError(too_large(limits))
    header = header_of(content, FORMATS)
    if header is None:
        raise DataError(f'This file is not an image: send {", ".join(FORMATS)}.')
    if header.pixels > limits.max_pixels:
        raise DataError(
            f'This image has {header.pixels / 1e6:,.3g} megapixels: send one of at most '
            f'{limits.max_pixels / 1e6:,.3g}.'
        )
    try:
        with pillow_opens(header.pixels):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            return np.array(ImageOps.exif_transpose(image).convert('RGB'))
    except Exception as error:  # a damaged file may raise anything
        raise DataError('This image is damaged or cut off: send it again.') from error


def too_large(limits: UploadLimits) -> str:
    """Message for an upload with too many bytes."""
    return f'This file is too large: send one of at most {limits.max_bytes / 2**20:.3g} MiB.'


def accepted(limits: UploadLimits) -> str:
    """Description of accepted uploads, for the page."""
    return (
        f'{", ".join(FORMATS)}; at most {limits.max_bytes / 2**20:.3g} MiB and '
        f'{limits.max_pixels / 1e6:.3g} megapixels'
    )


def describe(boxes: Boxes, size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
    """Convert detections to plain values.

    Args:
        boxes: Boxes of an image by descending score.
        size: Height and width of the image, px.
        classes: Class names in label order.

    Returns:
        ``height``, ``width`` and ``boxes``, each with ``box`` (xyxy px), ``name``, ``colour``
        (``#rrggbb``), ``score`` and, for GFL heads, ``edges``: ``side``, ``start`` and ``step`` (px
        of the bins along the axis), ``probabilities``, ``std`` (px), ``entropy`` (nats), and
        ``interval`` (px) if results have intervals.
    """
    colours = class_colours(len(classes))
    described: list[dict[str, Any]] = []
    for index, label in enumerate(boxes.labels[:MAX_BOXES]):
        entry: dict[str, Any] = dict(
            box=np.round(boxes.boxes[index], 2).tolist(),
            name=classes[label],
            colour='#{:02x}{:02x}{:02x}'.format(*colours[label]),
        )
        if boxes.scores is not None:
            entry['score'] = round(float(boxes.scores[index]), DIGITS)
        entry['edges'] = _edges(boxes, index)
        described.append(entry)
    return dict(height=size[0], width=size[1], boxes=described)


def _edges(boxes: Boxes, index: int) -> list[dict[str, Any]]:
    if boxes.edges is None:
        return []
    one = boxes.edges.take([index])
    intervals = None if boxes.intervals is None else np.round(boxes.intervals[index], 2).tolist()
    spread, entropy = edge_spread(one)[0], edge_entropy(one)[0]
    return [
        dict(
            side=side,
            start=round(float(positions[0]), 3),
            step=round(float(positions[1] - positions[0]), 3),
            probabilities=np.round(probabilities, DIGITS).tolist(),
            std=round(float(spread[number]), 2),
            entropy=round(float(entropy[number]), 3),
            **({} if intervals is None else dict(interval=intervals[number])),
        )
        for number, (side, positions, probabilities) in enumerate(
            zip(SIDES, one.positions[0], one.probabilities[0])
        )
    ]


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
HTTP_PORT = 80  # omitted from the Host header by browsers
SOCKET_SECONDS = 30  # silent clients are disconnected after this time
SHUTDOWN_SECONDS = 5  # time for a running detection to finish on shutdown
DEFAULT_LIMITS = UploadLimits()
MAX_WAITING = 8  # maximum uploads in memory

Detect = Callable[[np.ndarray], Any]  # an RGB image -> InstanceData


class DemoServer:
    """HTTP server of the demo page.

    Args:
        detect: Function that detects in ``(H, W, 3)`` uint8 RGB.
        classes: Class names in label order.
        address: Host and port to listen on; port 0 selects a free one.
        title: Title of the page, the detector's name.
        limits: Size limits of uploads.
        score_thr: Minimum score of returned detections.
        level: Level of the intervals, if detections have any.

    Raises:
        SetupError: If the server cannot listen on the address.
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
        """URL of the page."""
        return f'http://{self.server_address[0]}:{self.server_address[1]}/'

    def serve_forever(self) -> None:
        """Serve until :meth:`shutdown`, or Ctrl+C in the main thread."""
        self._server.run(sockets=[self._socket])

    def shutdown(self) -> None:
        """Stop :meth:`serve_forever`; call it from another thread."""
        self._server.should_exit = True

    def server_close(self) -> None:
        """Release the address."""
        self._socket.close()

    def application(self) -> Starlette:
        """Build the application: routes and middleware."""
        routes = [
            *(Route(path, file_sender(*file)) for path, file in FILES.items()),
            Route('/info', self._info),
            Route('/detect', self._detect, methods=['POST']),
        ]
        guards = [Middleware(SecurityHeaders), Middleware(HostCheck, knows_host=self.knows_host)]
        handlers: dict[Any, Any] = {HTTPException: say_failure}
        app = Starlette(routes=routes, middleware=guards, exception_handlers=handlers)
        app.router.redirect_slashes = False  # unknown paths are errors
        return app

    def knows_host(self, host: str | None) -> bool:
        """Whether the Host header names this machine; another name may belong to a foreign site."""
        if self.server_address[0] not in LOOPBACK:
            return True  # on a network interface the valid names are unknown
        port = self.server_address[1]
        names = {f'{name}:{port}' for name in LOOPBACK}
        return host in names | (set(LOOPBACK) if port == HTTP_PORT else set())

    def answer(self, content: bytes) -> dict[str, Any]:
        """Decode an uploaded image and detect in it.

        Raises:
            DataError: If the upload is not an image or is too large.
        """
        with self.one_at_a_time:  # limits memory: decoded images are the largest part
            image = decode_upload(content, self.limits)
            found = self.detect(image)
        return describe(Boxes.of(found, self.score_thr), image.shape[:2], self.classes)

    async def _info(self, request: Request) -> Response:
        """Settings that the page needs."""
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
        """Detect in the request body; headers are checked before it is read."""
        if request.headers.get('Content-Type') != UPLOAD_TYPE:
            text = f'Send the image file as {UPLOAD_TYPE}.'
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text)
        length = request.headers.get('Content-Length', '')
        if not length.isdecimal():
            raise HTTPException(HTTPStatus.LENGTH_REQUIRED, 'Send a Content-Length header.')
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
        except Exception as error:  # report to the page and keep serving
            print(f'{error!r}', file=sys.stderr, flush=True)
            text = f'The detector failed: {type(error).__name__}; see the terminal.'
            raise HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, text) from error
        finally:
            self.waiting.release()


def listen(address: tuple[str, int]) -> socket.socket:
    """Bind an address and listen on it.

    Raises:
        SetupError: If the address is in use or does not belong to this machine.
    """
    try:
        return socket.create_server(address)
    except OSError as error:
        raise SetupError(
            f'Cannot listen on {address[0]}:{address[1]} ({error.strerror or error}): '
            'choose another --port or --host.'
        ) from error


def file_sender(name: str, kind: str) -> Callable[[Request], Any]:
    """Create an endpoint that sends a static file."""

    async def send_file(request: Request) -> Response:
        return FileResponse(PAGE / name, media_type=kind)

    return send_file


async def say_failure(request: Request, failure: Any) -> Response:
    """Send the error message as text for the page; 404 and 405 are Starlette's own."""
    # An unread body would be parsed as the next request if the connection stayed open.
    headers = {**(failure.headers or {}), 'Connection': 'close'}
    return JSONResponse(dict(error=failure.detail), failure.status_code, headers)


class SecurityHeaders:
    """Middleware that adds security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.headers = [(name.lower().encode(), text.encode()) for name, text in SECURITY.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request and add headers to the response."""

        async def send_with_headers(message: Message) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [*message['headers'], *self.headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class HostCheck:
    """Middleware that refuses requests for other hosts (DNS rebinding)."""

    def __init__(self, app: ASGIApp, knows_host: Callable[[str | None], bool]) -> None:
        self.app = app
        self.knows_host = knows_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward or refuse the request."""
        host = dict(scope['headers']).get(b'host')
        if self.knows_host(None if host is None else host.decode('latin1')):
            await self.app(scope, receive, send)
            return
        text = 'Open this page by the URL printed at start-up.'
        headers = {'Connection': 'close'}
        await JSONResponse(dict(error=text), HTTPStatus.FORBIDDEN, headers)(scope, receive, send)
