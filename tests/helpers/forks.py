"""Scripts that import gfl_det from nothing, in forks of one interpreter that has imported torch.

The imports of torch, mmengine and their like take seconds; those of gfl_det and of mmdet, which
cannot be imported without it, are what is tested.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DRIVER = """
import json, os, site, sys

import cv2, mmengine.runner, pycocotools.mask, torch._dynamo

assert 'gfl_det' not in sys.modules
for folder, where, code, words in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        os.chdir(where)
        if folder:
            sys.path.insert(0, folder)
            site.addsitedir(folder)
        sys.argv[1:] = words
        exec(compile(code, '<script>', 'exec'), {'__name__': '__main__'})
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, where
"""


class Script(NamedTuple):
    """Code, its ``sys.argv[1:]``, where it runs, and a folder of site-packages of its own."""

    code: str
    words: Sequence[object]
    cwd: Path
    site: Path | None = None


def run_scripts(python: Path | str, scripts: Sequence[Script]) -> str:
    """What the scripts print, one after the other; a failure shows it."""
    jobs = [
        (str(site) if site else None, str(cwd), code, [str(word) for word in words])
        for code, words, cwd, site in scripts
    ]
    kept = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    done = subprocess.run(
        [str(python), '-c', DRIVER, json.dumps(jobs)],
        cwd=scripts[0].cwd,
        env={**kept, 'OMP_NUM_THREADS': '1'},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
