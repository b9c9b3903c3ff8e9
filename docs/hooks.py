"""What mkdocs does not do by itself: docstrings name code as ``:class:`.module.Name```."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r':(class|func|meth|attr|data|exc|mod):<code>~?\.*([\w.]+)</code>')


def on_page_content(html: str, **_: Any) -> str:
    """Show the name alone: of a module its path, of all else the last part."""
    return ROLE.sub(_shown, html)


def _shown(match: re.Match[str]) -> str:
    role, name = match.groups()
    return f'<code>{name if role == "mod" else name.rpartition(".")[2]}</code>'
