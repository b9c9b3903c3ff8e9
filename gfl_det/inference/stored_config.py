"""Configs that mmengine stores in checkpoints, read without executing them.

A config file is a program that the user chooses to run by naming it; the text in a checkpoint is
data. It is parsed, and only literals and ``dict(...)`` of literals are accepted, which is all that
mmengine writes. Building from it must be safe too: mmengine's registries import and call whatever
a ``type`` such as ``os.system`` names, and mmcv evaluates the type of an NMS. Only registered
models and transforms of mmdet, mmengine and gfl_det, NMS types and RoI layers are allowed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import WEIGHT_INITIALIZERS, Registry

from gfl_det.errors import CheckpointError
from gfl_det.registry import MODELS, TASK_UTILS
from gfl_det.utils.config import datasets_of, walk

SCOPES = ('mmdet', 'mmengine', 'gfl_det')
MAX_TEXT = 2_000_000  # characters; a config has about ten thousand
SUPPRESSIONS = ('nms', 'soft_nms', 'nms_match')
REGION_LAYERS = ('RoIAlign', 'RoIPool')  # layers of mmcv.ops that mmdet looks up by name
CURE = 'give the config file that it was trained with'


def stored_config(meta: Mapping[str, Any], path: str) -> Config:
    """Parse the parts of a checkpoint's config that inference needs.

    Args:
        meta: The checkpoint's ``meta``.
        path: Path of the checkpoint, for messages.

    Raises:
        CheckpointError: If there is no config, or it contains more than plain values.
    """
    text = meta.get('cfg') or meta.get('config')
    if not isinstance(text, str) or not text.strip():
        raise CheckpointError(f'The checkpoint {path} holds no config: {CURE}.')
    try:
        content = _needed(parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f'The config in {path} holds more than plain values and is not run ({error}): {CURE}.'
        ) from error
    if not isinstance(content.get('model'), dict):
        raise CheckpointError(f'The config in {path} has no model: {CURE}.')
    _check_names(content, path)
    return Config(content)


def parse(text: str) -> dict[str, Any]:
    """Parse assignments of plain values: literals, containers, and ``dict(...)`` of them.

    Raises:
        SyntaxError: If the text is not Python.
        ValueError: If the text contains anything else.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f'it has {len(text)} characters')
    values: dict[str, Any] = {}
    for line in ast.parse(text).body:
        targets = line.targets if isinstance(line, ast.Assign) else []
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            raise ValueError(f'line {line.lineno} is not an assignment to a name')
        values[targets[0].id] = _value(line.value)  # type: ignore[attr-defined]  # an Assign
    return values


def _needed(content: dict[str, Any]) -> dict[str, Any]:
    """The model, test pipeline and class names, which is all that inference uses."""
    names = [name for name in ('model', 'default_scope') if name in content]
    needed: dict[str, Any] = {name: content[name] for name in names}
    for dataset in datasets_of(content, 'test')[:1]:
        kept = {name: dataset[name] for name in ('pipeline', 'metainfo') if name in dataset}
        needed['test_dataloader'] = dict(dataset=kept)
    return needed


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id == 'dict'
        if not named or node.args or any(each.arg is None for each in node.keywords):
            raise ValueError(f'line {node.lineno} calls something')
        return {str(each.arg): _value(each.value) for each in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_value(each) for each in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError(f'line {node.lineno} unpacks a dict')
        keys = (ast.literal_eval(each) for each in node.keys if each is not None)
        return dict(zip(keys, map(_value, node.values)))
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f'line {node.lineno} holds an expression') from None


def _check_names(content: dict[str, Any], path: str) -> None:
    """Refuse parts that are not registered, and scopes whose packages would be imported."""
    register_all_modules(init_default_scope=False)
    known = _registered()
    if content.get('default_scope', 'mmdet') not in SCOPES:
        raise CheckpointError(
            f'The config in {path} has the scope {content["default_scope"]!r}: {CURE}.'
        )
    for _, node in walk(content, ''):
        kind, scope = node.get('type'), node.get('_scope_', 'mmdet')
        prefix, _, name = str(kind).rpartition('.')
        if scope not in SCOPES or prefix not in ('', *SCOPES):
            raise CheckpointError(
                f'The config in {path} asks for {kind!r}, which belongs to no package that is '
                f'loaded by default: {CURE}.'
            )
        if kind is not None and name not in known:
            raise CheckpointError(f'The config in {path} asks for {kind!r}, unknown here: {CURE}.')


def _registered() -> set[str]:
    names = {*SUPPRESSIONS, *REGION_LAYERS}
    parts = (MODELS, TASK_UTILS, MMDET_MODELS, MMDET_TASK_UTILS, MMDET_TRANSFORMS)
    for each in (*parts, WEIGHT_INITIALIZERS):
        registry: Registry | None = each
        while registry is not None:
            names.update(registry.module_dict)
            registry = registry.parent
    return names
