"""A store of objects on the loopback that speaks as much S3 as reading needs: list, head, get."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

DATE = 'Sun, 29 Nov 2026 00:00:00 GMT'


class _Handler(BaseHTTPRequestHandler):
    objects: dict[str, bytes]  # of a bucket and key

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        if 'list-type' in query:
            self._list(unquote(parts.path).strip('/'), query.get('prefix', [''])[0])
        else:
            self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        content = self.objects.get(unquote(urlsplit(self.path).path).strip('/'))
        if content is None:
            self._send(404, b'<Error><Code>NoSuchKey</Code></Error>', with_body)
            return
        span = self.headers.get('Range')
        if span is None:
            self._send(200, content, with_body)
            return
        begin, end = span.removeprefix('bytes=').split('-')
        last = min(int(end or len(content) - 1), len(content) - 1)
        self._send(206, content[int(begin) : last + 1], with_body, f'{begin}-{last}/{len(content)}')

    def _list(self, bucket: str, prefix: str) -> None:
        keys = sorted(key.removeprefix(f'{bucket}/') for key in self.objects)
        entries = ''.join(
            f'<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[f"{bucket}/{key}"])}</Size>'
            '<LastModified>2026-11-29T00:00:00.000Z</LastModified></Contents>'
            for key in keys
            if key.startswith(prefix)
        )
        text = (
            f'<?xml version="1.0"?><ListBucketResult><Name>{bucket}</Name>'
            f'<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>'
        )
        self._send(200, text.encode(), True)

    def _send(self, status: int, body: bytes, with_body: bool, span: str | None = None) -> None:
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.send_header('Last-Modified', DATE)
        self.send_header('ETag', '"0"')
        if span is not None:
            self.send_header('Content-Range', f'bytes {span}')
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def serving(objects: dict[str, bytes]) -> Iterator[str]:
    """Serve objects by ``bucket/key``; yields the options to put behind an ``s3://`` address."""
    handler = type('Handler', (_Handler,), dict(objects=objects))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f'?scheme=http&endpoint_override=127.0.0.1:{server.server_port}&region=us-east-1'
    finally:
        server.shutdown()
        server.server_close()
