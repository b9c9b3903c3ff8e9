"""The weights that a training starts from: whether they are here or can be fetched."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from mmengine.config import Config

from gfl_det.compat.pretrained import resolve
from gfl_det.errors import CheckpointError
from gfl_det.utils.config import Node, is_remote, walk

CONNECT_SECONDS = 5  # for the connection
ANSWER_SECONDS = 8  # for all of it: a resolver without network may not keep the first limit
GONE = (404, 410)  # other refusals, of HEAD requests for instance, still come from a live host

HELP = """\
Fetch it on a machine with network and put it at that path (a proxy in https_proxy is used).
Or train from random weights: add --from-scratch (needs a schedule several times as long)
Without any download: `make demo` trains a small model from random weights."""


def check_weights(cfg: Config) -> None:
    """Check that each pretrained checkpoint is on disk, or that its host answers.

    Args:
        cfg: The config; ``init_cfg=dict(type='Pretrained')`` anywhere in the model, ``load_from``.

    Raises:
        CheckpointError: A file is neither here nor to be had. The message says which, where it
            belongs, and how to do without.
    """
    wanted = [(path, init['checkpoint']) for path, init in pretrained_parts(cfg.model)]
    if cfg.get('load_from'):
        wanted.append(('load_from', cfg.load_from))
    problems = []
    for part, checkpoint in wanted:
        weights = resolve(checkpoint)
        if weights.cached:
            continue
        reason = unreachable(weights.url) if weights.url else 'there is no such file'
        if reason is None:
            continue
        lines = [f'the weights {checkpoint} of {part} are not on this machine: {reason}.']
        lines += [f'File: {os.path.basename(weights.path)}']
        lines += [f'From: {weights.url}'] if weights.url else []
        problems.append('\n'.join([*lines, f'Belongs at: {weights.path}']))
    if problems:
        raise CheckpointError('\n'.join([*problems, HELP]))


def pretrained_parts(model: Node) -> Iterator[tuple[str, Node]]:
    """Yield the dotted path of each model part with pretrained weights, and its ``init_cfg``."""
    for path, node in walk(model, 'model'):
        if path.startswith('model.teacher_config'):  # its checkpoint replaces what it starts from
            continue
        inits = node.get('init_cfg')
        for init in inits if isinstance(inits, (list, tuple)) else [inits]:
            if isinstance(init, dict) and init.get('type') in ('Pretrained', 'PretrainedInit'):
                yield path, init


def unreachable(url: str) -> str | None:
    """Say why a file cannot be fetched; None where its host answers. Proxies are used."""
    if not is_remote(url) or urlsplit(url).scheme not in ('http', 'https'):
        return None  # storage clients have their own ways
    host = urlsplit(url).hostname
    outcome: list[str | None] = []
    # A daemon: a resolver that hangs must not keep the program from ending.
    thread = threading.Thread(target=lambda: outcome.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    reason = outcome[0] if outcome else f'no answer in {ANSWER_SECONDS} seconds'
    return reason and f'{host} cannot be reached or does not have it ({reason})'


def _ask(url: str) -> str | None:
    request = urllib.request.Request(url, method='HEAD')
    try:
        with urllib.request.build_opener().open(request, timeout=CONNECT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f'HTTP status {error.code}' if error.code in GONE else None
    except (OSError, ValueError) as error:
        return str(getattr(error, 'reason', error))
