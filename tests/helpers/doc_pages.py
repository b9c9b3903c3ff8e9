"""Fenced blocks of Markdown pages, and a runner that takes them in order.

What a block says in its first line decides what is done with it:

- ``python``: run, all blocks of a page in one namespace;
- ``python title="NAME.py"``: written to that file;
- ``bash``: each line is a ``gfl-det`` command that has to succeed;
- ``title="not run: REASON"``: left out;
- other languages, and none: text.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gfl_det.cli.own_data import SCRATCH_MODEL
from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT

FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]*)")?\n(?P<code>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)
NOT_RUN = 'not run: '


class Block(NamedTuple):
    """A fenced block.

    Args:
        page: of the block, below the checkout.
        line: of its fence, from 1.
        language: the first word behind the fence.
        title: what stands above the block on the site.
        code: the text between the fences.
    """

    page: str
    line: int
    language: str
    title: str
    code: str

    @property
    def is_run(self) -> bool:
        """Whether the block is code, and not marked as left out."""
        return self.language in ('bash', 'python') and not self.title.startswith(NOT_RUN)


def read_blocks(page: str) -> list[Block]:
    """Read the fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    found = [
        Block(
            page,
            text.count('\n', 0, match.start()) + 1,
            match['language'],
            match['title'] or '',
            match['code'],
        )
        for match in FENCE.finditer(text)
    ]
    assert len(found) * 2 == len(re.findall('^```', text, re.MULTILINE)), f'{page}: an open fence'
    return found


def commands(code: str) -> list[list[str]]:
    """Split a bash block into commands: a backslash joins lines, ``#`` begins a comment."""
    lines = code.replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_block(
    block: Block,
    folder: Path,
    names: dict[str, Any],
    after: Callable[[str], None] = lambda command: None,
) -> None:
    """Run a block in a folder, which has to be the current one.

    Args:
        block: of ``python`` or ``bash``.
        folder: where files are written and commands run.
        names: the namespace of the page's Python.
        after: called with the name of each command that has succeeded.
    """
    if block.title:
        # mmengine resolves the prefix in an installation alone, see test_packaging.py.
        here = block.code.replace('gfl_det::gfl/', f'{ROOT / "configs"}/')
        (folder / block.title).write_text(here)
    elif block.language == 'python':
        where = '\n' * block.line + block.code  # so that a traceback names the page's line
        exec(compile(where, str(ROOT / block.page), 'exec'), names)
    else:
        for words in commands(block.code):
            done = _run_command(words, folder)
            told = f'{block.page}:{block.line}: {shlex.join(words)}\n{done.stdout}\n{done.stderr}'
            assert done.returncode == 0, told
            after(words[1])


def _run_command(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    program, *rest = words
    assert program == 'gfl-det', f'{shlex.join(words)}: only gfl-det is run; mark the block'
    if rest[0] in ('train', 'suggest-reg-max') and '--data' in rest:
        rest += ['--model', SCRATCH_MODEL]  # the default may be fetched
    if rest[0] == 'train' and '--data' in rest:  # which plans a hundred epochs of two pictures
        rest += ['--cfg-options', 'train_cfg.max_epochs=1']
    return run_command(*rest, cwd=folder)
