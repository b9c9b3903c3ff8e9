"""Text of a plan's config: short and readable, to be edited by the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

from gfl_det.datasets.formats.pictures import DataPart, OwnData
from gfl_det.engine.own_data.plan import TrainingPlan, edit_pyramid
from gfl_det.engine.preflight.agreement import class_counts, pretrained_parts
from gfl_det.engine.reach.measure import PriorPyramid, head_of
from gfl_det.errors import ConfigError

HEAD = '''\
"""{name}: {sizes}. Planned by gfl-det train --data.

Edit it, then: gfl-det train {work_dir}
"""

_base_ = {base!r}

work_dir = {work_dir!r}
data_root = {root!r}
classes = {classes}
max_epochs = {epochs}
batch_size = {batch}

data = dict(
    _delete_=True,
    type='gfl_det.CocoDataset',
    data_root=data_root,
    metainfo=dict(classes=classes),
)
'''
PIPELINES = """\
image_scale = {scale}  # px; the ratio of a picture is kept

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),  # left and right: none where a mirror changes the class
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
"""
DATA = """\
{split}_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        **data,
        ann_file={file!r},
        data_prefix=dict(img={folder!r}),
{mode}        pipeline={pipeline},
    ),
)
"""
EVALUATOR = """\
{split}_evaluator = dict(
    _delete_=True,
    type='gfl_det.CocoMetric',
    metric='bbox',
    ann_file={file},
)
"""
SCHEDULE = """\
optim_wrapper = dict(optimizer=dict(lr={rate:g}))
auto_scale_lr = dict(base_batch_size=batch_size)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end={warm_up}),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min_ratio=0.02,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval={interval})
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=1, max_keep_ckpts=1, save_best='coco/bbox_mAP', rule='greater'),
)
"""


def config_text(data: OwnData, plan: TrainingPlan, name: str, work_dir: Path) -> str:
    """Write the config of a plan.

    Args:
        data: Data set whose splits are in files.
        plan: Plan for the data set.
        name: Name of the data set.
        work_dir: Folder of logs and checkpoints.
    """
    root = str((data.source if data.source.is_dir() else data.source.parent).absolute())
    sizes = f'{len(data.parts["train"].dataset["images"])} pictures to train on'
    blocks = [
        HEAD.format(
            name=name.replace('"', "'").replace('\\', '/'),
            sizes=sizes,
            base=plan.start.base,
            work_dir=str(work_dir),
            root=root + '/',
            classes=_literal(tuple(data.classes)),
            epochs=plan.epochs,
            batch=plan.batch,
        )
    ]
    if plan.start.weights:
        blocks.insert(1, f'load_from = {plan.start.weights!r}\n')
    if plan.scale:
        blocks.append(PIPELINES.format(scale=plan.scale))
    blocks.append(f'model = {_literal(_model(data, plan))}\n')
    parts = dict(data.parts)
    for split in ('train', 'val', 'test'):
        if split in parts:
            blocks[-1] += _data(split, parts[split], root, plan.scale is not None)
        else:
            blocks[-1] += 'test_dataloader = val_dataloader\n'
    for split in ('val', 'test'):
        if split in parts:
            file = _below(parts[split].file, root)
            below = file if Path(file).is_absolute() else None
            text = repr(below) if below else f'data_root + {file!r}'
            blocks[-1] += EVALUATOR.format(split=split, file=text)
        else:
            blocks[-1] += 'test_evaluator = val_evaluator\n'
    blocks.append(SCHEDULE.format(rate=plan.rate, warm_up=plan.warm_up, interval=plan.val_interval))
    return '\n'.join(blocks)


def _data(split: str, part: DataPart, root: str, own_pipeline: bool) -> str:
    kind = 'train' if split == 'train' else 'test'
    folder = _below(part.folder, root)
    return DATA.format(
        split=split,
        file=_below(part.file, root),
        folder='' if folder == '.' else f'{folder}/',
        mode='' if split == 'train' else '        test_mode=True,\n',
        pipeline=f'{kind}_pipeline' if own_pipeline else f'_base_.{kind}_pipeline',
    )


def _below(path: Path | None, root: str) -> str:
    """Return a path relative to the data root if it lies below it."""
    assert path is not None
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _model(data: OwnData, plan: TrainingPlan) -> dict[str, Any]:
    """Return the changes to the model: classes, pyramid, and removal of unavailable weights."""
    model = plan.start.cfg.model
    edits: dict[str, Any] = {}
    for path, _ in class_counts(model):
        if any(key.isdigit() for key in path.split('.')):
            raise ConfigError(
                f'{plan.start.name} has heads in a list ({path}), which --data does not set: write '
                'a config.'
            )
        _set(edits, f'{path}.num_classes', len(data.classes))
    if plan.start.scratch or plan.start.weights is not None:
        for path, _ in pretrained_parts(model):
            part = _at(model, path)
            _set(edits, f'{path}.init_cfg', None)
            if plan.start.weights is None:
                for key, trained in (('frozen_stages', -1), ('norm_eval', False)):
                    if key in part:
                        _set(edits, f'{path}.{key}', trained)
    pyramid, reg_max, best_prior, _ = plan.pyramid
    if reg_max is not None:
        _set(edits, 'model.bbox_head.reg_max', reg_max)
    if best_prior:
        _set(edits, 'model.train_cfg.assigner.with_best_prior', True)
    if pyramid is not None:
        found = head_of(model, plan.start.name)
        now = PriorPyramid(tuple(found['strides']), found['anchor_scale'], found['pad'])
        for key, values in (edit_pyramid(model, now, pyramid) or {}).items():
            for name, value in values.items():
                _set(edits, f'model.{key}.{name}', value)
        if pyramid != now:
            generator = 'model.bbox_head.anchor_generator'
            _set(edits, f'{generator}.strides', list(pyramid.strides))
            _set(edits, f'{generator}.octave_base_scale', pyramid.scale)
    return edits.get('model', {})


def _set(edits: dict[str, Any], path: str, value: Any) -> None:
    *keys, last = path.split('.')
    for key in keys:
        edits = edits.setdefault(key, {})
    edits[last] = value


def _at(model: Any, path: str) -> Any:
    for key in path.split('.')[1:]:
        model = model[int(key)] if isinstance(model, (list, tuple)) else model[key]
    return model


def _literal(value: Any, indent: int = 0) -> str:
    """Format a value in config style: ``dict(key=...)``, over several lines if long."""
    if not isinstance(value, Mapping):
        return pformat(value, width=max(40, 96 - indent), compact=True)
    items = [f'{key}={_literal(each, indent + 4)}' for key, each in value.items()]
    line = f'dict({", ".join(items)})'
    if indent + len(line) <= 88 and '\n' not in line:
        return line
    space = ' ' * (indent + 4)
    return 'dict(\n' + ''.join(f'{space}{item},\n' for item in items) + ' ' * indent + ')'
