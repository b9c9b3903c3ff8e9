"""HTML file of a report, self-contained."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent / 'page'
DIGITS = 4  # significant digits; counts keep all digits
# Soft edges are drawn by the demo page's module, inlined as an object of this name.
DRAWING = PAGE.parent.parent / 'demo' / 'page' / 'drawing.js'
SCRIPTS = ('charts.js', 'sections.js', 'pictures.js', 'images.js', 'report.js')


def render(values: dict[str, Any]) -> str:
    """Build the page from body, styles, scripts and numbers.

    Args:
        values: Values from :func:`.analysis.analyse`, with ``pictures``.
    """
    return fill_page('report.html', ('report.css',), SCRIPTS, values)


def fill_page(
    body: str, styles: Sequence[str], scripts: Sequence[str], values: dict[str, Any]
) -> str:
    """Build a page from files in :data:`PAGE` and the values that its scripts read."""
    page = _text('frame.html')
    parts = dict(
        BODY=_text(body).rstrip('\n'),
        TITLE=html.escape(str(values['title'])),
        STYLE='\n'.join(map(_text, styles)),
        DATA=embed(values),
        SCRIPT='\n'.join([module_as_object(DRAWING), *map(_text, scripts)]),
    )
    for name, text in parts.items():
        before, _, after = page.partition(f'<!--{name}-->')
        page = before + text + after
    return page


def _text(name: str) -> str:
    return (PAGE / name).read_text(encoding='utf-8')


def module_as_object(path: Path) -> str:
    """Script that defines an object, named like the file, with the exports of a module.

    Pages opened from a file cannot import modules.
    """
    text = path.read_text(encoding='utf-8')
    names = re.findall(r'^export (?:const|function) (\w+)', text, re.MULTILINE)
    body = re.sub(r'^export ', '', text, flags=re.MULTILINE)
    return f'const {path.stem} = (() => {{\n{body}\nreturn {{{", ".join(names)}}};\n}})();'


def embed(values: Any) -> str:
    """JSON for a script element, in which no text ends the element or opens a comment."""
    text = json.dumps(plain(values), separators=(',', ':'), allow_nan=False)  # ASCII only
    for sign in '<>&':
        text = text.replace(sign, f'\\u{ord(sign):04x}')
    return text


def plain(values: Any) -> Any:
    """Arrays as lists, floats rounded to `DIGITS`, NaN and infinite values as None."""
    if isinstance(values, dict):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    if isinstance(values, (bool, np.bool_)):
        return bool(values)
    if isinstance(values, np.integer):
        return int(values)
    if isinstance(values, (float, np.floating)):
        return float(f'{values:.{DIGITS}g}') if math.isfinite(values) else None
    return values
