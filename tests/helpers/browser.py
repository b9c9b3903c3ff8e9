"""A browser for tests: headless Chromium through its driver, by the W3C WebDriver protocol.

Needs the programs chromium and chromedriver (Debian: chromium, chromium-driver) and no package.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
ELEMENT = 'element-6066-11e4-a52e-4f735466cecf'  # the protocol's name of a reference
PATIENCE = 60  # seconds until something must have happened; machines of CI are busy


def missing() -> str | None:
    """Say what keeps a browser from being started; None if nothing does."""
    if not any(map(shutil.which, BROWSERS)):
        return 'there is no Chromium (Debian: apt-get install chromium chromium-driver)'
    if not shutil.which('chromedriver'):
        return 'there is no chromedriver (Debian: apt-get install chromium-driver)'
    return None


class Browser:
    """A window of headless Chromium; use it in a ``with``."""

    def __init__(self, width: int = 1280, height: int = 900, mobile: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            ['chromedriver', f'--port={port}'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._base = f'http://127.0.0.1:{port}'
        try:
            self._wait_for_driver()
            self._base += '/session/' + self._start(width, height, mobile)
        except BaseException:
            self._driver.kill()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._call('DELETE', '')
        finally:
            self._driver.kill()
            self._driver.wait()

    def open(self, url: str) -> None:
        self._call('POST', '/url', url=url)
        # On a busy machine the driver may return before the page's scripts have run.
        self.until("document.readyState === 'complete'")

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript, the body of an async function, and give what it returns."""
        body = (
            'const given = [...arguments]; const done = given.pop();'
            f'(async function () {{{script}}}).apply(null, given)'
            '.then(done, (error) => done({failed: String(error)}))'
        )
        value = self._call('POST', '/execute/async', script=body, args=list(arguments))
        assert not (isinstance(value, dict) and 'failed' in value), value
        return value

    def until(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(f'return {condition}')):
            assert time.monotonic() < end, f'never true: {condition}'
            time.sleep(0.05)
        return value

    def choose_file(self, selector: str, path: Path) -> None:
        element = self._find(selector)
        self._call('POST', f'/element/{element}/value', text=str(path))

    def click(self, selector: str) -> None:
        self._call('POST', f'/element/{self._find(selector)}/click')

    def click_at(self, selector: str, x: float, y: float) -> None:
        """Click at a place in an element, CSS px from its upper left corner."""
        box = self.run(
            'const element = document.querySelector(arguments[0]);'
            "element.scrollIntoView({block: 'nearest'});"
            'const place = element.getBoundingClientRect(); return [place.left, place.top]',
            selector,
        )
        mouse = dict(type='pointer', id='mouse', parameters=dict(pointerType='mouse'))
        mouse['actions'] = [
            dict(type='pointerMove', duration=0, x=round(box[0] + x), y=round(box[1] + y)),
            dict(type='pointerDown', button=0),
            dict(type='pointerUp', button=0),
        ]
        self._call('POST', '/actions', actions=[mouse])

    def text(self, selector: str) -> str:
        return self._call('GET', f'/element/{self._find(selector)}/text')

    def console(self) -> list[str]:
        """What the page complained of since it was last asked."""
        entries = self._call('POST', '/se/log', type='browser')
        return [entry['message'] for entry in entries if entry['level'] in ('SEVERE', 'WARNING')]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call('GET', '/screenshot')))

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        """Send a command of the DevTools protocol."""
        return self._call('POST', '/goog/cdp/execute', cmd=name, params=parameters)

    def _find(self, selector: str) -> str:
        found = self._call('POST', '/element', using='css selector', value=selector)
        return found[ELEMENT]

    def _start(self, width: int, height: int, mobile: bool) -> str:
        options: dict[str, Any] = dict(
            # Root has no sandbox, and a container little shared memory.
            args=[
                *('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'),
                *(f'--window-size={width},{height}', '--hide-scrollbars', '--lang=en'),
            ]
        )
        if mobile:
            metrics = dict(width=width, height=height, pixelRatio=2, touch=True, mobile=True)
            options['mobileEmulation'] = dict(deviceMetrics=metrics)
        always = {'goog:chromeOptions': options, 'goog:loggingPrefs': dict(browser='ALL')}
        answer = self._call('POST', '/session', capabilities=dict(alwaysMatch=always))
        return answer['sessionId']

    def _wait_for_driver(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self._call('GET', '/status')
                return
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < end, 'chromedriver does not start'
                time.sleep(0.05)

    def _call(self, method: str, path: str, **body: Any) -> Any:
        request = urllib.request.Request(self._base + path, method=method)
        data = json.dumps(body).encode() if method == 'POST' else None
        request.add_header('Content-Type', 'application/json')
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, data, timeout=2 * PATIENCE) as response:
                return json.loads(response.read())['value']
        except urllib.error.HTTPError as error:
            raise AssertionError(json.loads(error.read())['value']['message']) from None
