"""HTML file of a report, self-contained."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent / 'page'
DIGITS = 4  # significant digits; counts keep all digits
SCRIPTS = ('charts.js', 'sections.js', 'images.js', 'report.js')


def render(values: dict[str, Any]) -> str:
    """Build the page from template, styles, scripts and numbers.

    Args:
        values: Values from :func:`.analysis.analyse`, with ``pictures``.
    """
    page = (PAGE / 'report.html').read_text(encoding='utf-8')
    parts = dict(
        TITLE=html.escape(str(values['title'])),
        STYLE=(PAGE / 'report.css').read_text(encoding='utf-8'),
        DATA=embed(values),
        SCRIPT='\n'.join((PAGE / name).read_text(encoding='utf-8') for name in SCRIPTS),
    )
    for name, text in parts.items():
        before, _, after = page.partition(f'<!--{name}-->')
        page = before + text + after
    return page


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
