"""Arms of the short trainings: what each study trains, how long, and what it is compared with.

A run is a study, a data set, an arm and a seed. The arm ``gfl`` of ``heads`` is shared: the studies
``scores`` and ``options`` compare with it and do not train it again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

NANODET, R18 = 'nanodet-plus-m_416_coco', 'gfl_r18_fpn_bccd'
SEEDS = (0, 1, 2)
RATE = 2e-3  # of NanoDet-Plus at four pictures a step, chosen in `tuning`
SMALL = {
    'model.backbone.stem_channels': 32,
    'model.backbone.base_channels': 32,
    'model.neck.in_channels': [64, 128, 256],
}
SHARED = ('heads', 'gfl')
HEAD_EPOCHS = {'bccd': 6, 'face_masks': 6}
HEAD_RATE = 3e-3  # chosen in `heads_tuning`; at the planned one few platelets are found so soon
HEAD_SCALES = {'face_masks': (256, 192)}  # px; the planned 416 x 320 takes three times as long
# Best priors lie outside small boxes, where ATSS's centerness has no value.
INSIDE = {'model.train_cfg.assigner.with_best_prior': False}
# px: eight of ten platelets have sides of 6 to 10, half of the digits less than 11.
TINY = {'bccd': (128, 96), 'digits': (64, 48)}
TEACHER_EPOCHS = 12


class Arm(NamedTuple):
    """What is trained, and how long."""

    name: str
    model: str
    epochs: dict[str, int]  # per data set
    published: bool = False  # weights; otherwise random ones
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed
    rate: float | None = None  # None: the planned one
    split: str = 'test'
    base: tuple[str, str] | None = None  # study and arm that it is compared with
    head: str | None = None  # config whose head takes the place of the planned one
    scales: dict[str, tuple[int, int]] = {}  # noqa: RUF012  # px, per data set; else as planned
    views: tuple[float, ...] = ()  # scales of test-time augmentation, each mirrored too
    teacher: tuple[str, str] | None = None  # study and arm of seed 0 that is learned from
    calibrated: bool = False  # calibrators are fitted on val and judged on test


class TrainingRun(NamedTuple):
    """One training."""

    study: str
    data: str
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Name of the work dir and of the result."""
        return f'{self.study}-{self.data}-{self.arm.name}-seed{self.seed}'


def studies() -> dict[str, list[Arm]]:
    """Arms of each study."""
    return dict(
        tuning=_tuning(),
        weights=_weights(),
        assigners=_assigners(),
        heads_tuning=_heads_tuning(),
        heads=_heads(),
        scores=_scores(),
        options=_options(),
        distillation=_distillation(),
    )


def arm_of(study: str, name: str) -> Arm:
    """An arm by its name.

    Raises:
        KeyError: the study or the arm is unknown.
    """
    return {arm.name: arm for arm in studies()[study]}[name]


def _tuning() -> list[Arm]:
    chosen = (
        ('rate0.0002', 2e-4, 2),
        ('rate0.001', 1e-3, 2),
        ('rate0.002', 2e-3, 2),
        ('rate0.001_long', 1e-3, 4),
        ('rate0.002_long', 2e-3, 4),
    )
    return [
        Arm(name, NANODET, {'bccd': epochs}, published=True, rate=rate, split='val')
        for name, rate, epochs in chosen
    ]


def _weights() -> list[Arm]:
    both, base = {'bccd': 3, 'face_masks': 3}, ('weights', 'r18_random')
    return [
        Arm('r18_random', R18, both),
        Arm('nanodet_random', NANODET, both, rate=RATE, base=base),
        Arm('nanodet_published', NANODET, both, published=True, rate=RATE, base=base),
    ]


def _assigners() -> list[Arm]:
    aligned = dict(_delete_=True, type='TaskAlignedAssigner', topk=13)
    plain = Arm('atss', R18, {'bccd': 4}, options=SMALL)
    return [
        plain,
        plain._replace(
            name='task_aligned',
            options=SMALL | {'model.train_cfg.assigner': aligned},
            base=('assigners', 'atss'),
        ),
    ]


def _gfl() -> Arm:
    return Arm(
        'gfl',
        R18,
        HEAD_EPOCHS,
        options=SMALL | INSIDE,
        rate=HEAD_RATE,
        scales=HEAD_SCALES,
        calibrated=True,
    )


def _heads_tuning() -> list[Arm]:
    """Learning rates of a short training of `gfl`, judged on val."""
    plain = Arm('rate0.001', R18, {'bccd': HEAD_EPOCHS['bccd']}, options=SMALL, split='val')
    base = ('heads_tuning', plain.name)
    return [plain, plain._replace(name='rate0.003', rate=HEAD_RATE, base=base)]


def _heads() -> list[Arm]:
    """Three heads from random weights, all else alike."""
    others = [
        _gfl()._replace(name=name, head=f'calibration/{name}_r18_fpn_bccd.py', base=SHARED)
        for name in ('atss', 'retinanet')
    ]
    return [_gfl(), *others]


def _on_bccd(name: str, options: dict[str, Any]) -> Arm:
    epochs = {'bccd': HEAD_EPOCHS['bccd']}
    return _gfl()._replace(name=name, epochs=epochs, options=SMALL | options, base=SHARED)


def _score_loss(name: str, kind: str, **settings: Any) -> Arm:
    loss = dict(_delete_=True, type=f'gfl_det.{kind}', **settings)
    return _on_bccd(name, {'model.bbox_head.loss_cls': loss})


def _scores() -> list[Arm]:
    """GFLv2, and losses in the place of Quality Focal Loss (settings of configs/calibration)."""
    steps = dict(alpha=None, gammas=(5, 3), thresholds=(0.2,))
    return [
        _on_bccd('gflv2', {'model.bbox_head.type': 'gfl_det.GFLv2Head'}),
        _score_loss('flsd', 'FocalLoss', **steps),
        _score_loss('inverse', 'InverseFocalLoss', gamma=1.5),
        _score_loss('brier', 'BrierLoss'),
        _score_loss('smooth', 'LabelSmoothingLoss', smoothing=0.05),
    ]


def _options() -> list[Arm]:
    """Options of the package that a user may wonder about."""
    # Averages over the last 50 steps or so of 312, and over fewer at first.
    average = dict(
        type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.02, gamma=20, update_buffers=True
    )
    tiny = _on_bccd('tiny', {})._replace(scales=TINY, base=None)
    digits = tiny._replace(name='tiny_digits', epochs={'digits': 6}, split='val', calibrated=False)
    best = SMALL | {'model.train_cfg.assigner.with_best_prior': True}
    plain = _on_bccd('', {})
    return [
        _score_loss('varifocal', 'VarifocalLoss', use_sigmoid=True),
        _on_bccd('ema', {'custom_hooks': [dict(average, priority=49)]}),
        plain._replace(name='tta_mirror', views=(1.0,)),
        plain._replace(name='tta_scales', views=(0.75, 1.0, 1.25)),
        tiny,
        tiny._replace(name='tiny_best_prior', options=best, base=('options', tiny.name)),
        digits,
        digits._replace(name='tiny_digits_best_prior', options=best, base=('options', digits.name)),
    ]


def _distillation() -> list[Arm]:
    """A student of half the width and what it learns from a teacher of the whole."""
    teacher = Arm('teacher', R18, {'bccd': TEACHER_EPOCHS}, rate=HEAD_RATE)
    alone = ('distillation', 'alone')

    def student(name: str, **weights: float) -> Arm:
        terms = {
            f'loss_{term}': dict(
                type='gfl_det.DistillationLoss', loss_weight=weight, T=2 if term == 'kd' else 10
            )
            for term, weight in weights.items()
        }
        head = dict(type='gfl_det.LDHead', **terms)
        options = {f'model.bbox_head.{key}': value for key, value in head.items()}
        options['model.type'] = 'gfl_det.KnowledgeDistillationDetector'
        arm = _on_bccd(name, options)
        return arm._replace(teacher=('distillation', 'teacher'), base=alone, calibrated=False)

    return [
        teacher,
        _on_bccd(alone[1], {})._replace(base=None, calibrated=False),
        student('ld0.05', ld=0.05),
        student('ld0.25', ld=0.25),
        student('ld0.05_region', ld=0.05, ld_vlr=0.05),
        student('ld0.05_region_kd', ld=0.05, ld_vlr=0.05, kd=0.5),
        student('ld0_kd', ld=0.0, kd=0.5),
    ]
