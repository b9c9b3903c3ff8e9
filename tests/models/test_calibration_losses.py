"""Modules of the losses that bear on calibration: equations, mmdet's classes, heads, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.losses import FocalLoss as MMDetFocalLoss
from mmdet.models.losses import QualityFocalLoss as MMDetQFL
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.models.losses import (
    BrierLoss,
    FocalLoss,
    InverseFocalLoss,
    LabelSmoothingLoss,
    MMCELoss,
    QualityFocalLoss,
    functional,
)
from gfl_det.registry import MODELS

ALL = (FocalLoss, InverseFocalLoss, BrierLoss, LabelSmoothingLoss, MMCELoss)
NUMBER, CLASSES = 40, 3


def logits(dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(NUMBER, CLASSES, dtype=dtype) * 3).requires_grad_()


def labels() -> Tensor:
    return torch.randint(0, CLASSES + 1, (NUMBER,))  # the last is background


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


class TestFocalLossIsMMDets:
    @pytest.mark.parametrize('gamma', [0.0, 1.5, 2.0])
    @pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
    def test_with_labels(self, gamma: float, reduction: str) -> None:
        pred, target, weight = logits(), labels(), torch.rand(NUMBER)
        arguments = dict(gamma=gamma, alpha=0.3, reduction=reduction, loss_weight=1.7)
        ours, theirs = FocalLoss(**arguments), MMDetFocalLoss(**arguments)
        for call in (
            dict(),
            dict(weight=weight),
            dict(weight=torch.rand(NUMBER, CLASSES)),
            dict(weight=torch.rand(NUMBER * CLASSES)),
            dict(weight=weight, avg_factor=7.0) if reduction == 'mean' else dict(),
            dict(reduction_override='sum'),
        ):
            found, wanted = ours(pred, target, **call), theirs(pred, target, **call)
            torch.testing.assert_close(found, wanted.double())
            torch.testing.assert_close(
                gradient(found.sum(), pred), gradient(wanted.sum(), pred).double()
            )

    def test_with_qualities_it_is_quality_focal_loss(self) -> None:
        pred, target = logits(), (labels(), torch.rand(NUMBER))
        ours = FocalLoss(alpha=None)(pred, target, weight=torch.ones(NUMBER), avg_factor=5.0)
        for other in (QualityFocalLoss(), MMDetQFL()):
            wanted = other(pred, target, weight=torch.ones(NUMBER), avg_factor=5.0)
            torch.testing.assert_close(ours, wanted.double(), rtol=1e-6, atol=1e-8)

    def test_dense_targets(self) -> None:
        pred, target, quality = logits(), labels(), torch.rand(NUMBER)
        dense = torch.zeros(NUMBER, CLASSES + 1).scatter(1, target[:, None], quality[:, None])
        for alpha in (None, 0.25):
            loss = FocalLoss(alpha=alpha)
            torch.testing.assert_close(
                loss(pred, dense[:, :CLASSES]), loss(pred, (target, quality))
            )


class TestEquations:
    """Each module against its equation, the dense target written out."""

    def dense(self, target: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.zeros(NUMBER, CLASSES, dtype=torch.float64)
        positive = torch.zeros(NUMBER, CLASSES, dtype=torch.bool)
        for row, (label, value) in enumerate(zip(target.tolist(), quality.tolist())):
            if label < CLASSES:
                rows[row, label], positive[row, label] = value, True
        return rows, positive

    def check(self, loss, equation, hard: bool = True) -> None:
        pred, target, quality = logits(), labels(), torch.rand(NUMBER)
        y, positive = self.dense(target, quality)
        y[positive.nonzero()[0].tolist()[0]] *= 0  # a positive of quality 0 is no negative
        quality[positive.nonzero()[0][0]] = 0
        cases = [((target, quality), y)]
        if hard:
            cases.append((target, positive.double()))
        for given, dense in cases:
            found = loss(pred, given, reduction_override='none')
            torch.testing.assert_close(found, equation(pred, dense, positive))

    def test_flsd(self) -> None:
        def equation(z: Tensor, y: Tensor, positive: Tensor) -> Tensor:
            distance = (z.sigmoid() - y).abs()
            gamma = torch.where(1 - distance < 0.2, 5.0, 3.0)
            return distance**gamma * F.binary_cross_entropy(z.sigmoid(), y, reduction='none')

        self.check(FocalLoss(alpha=None, gammas=(5, 3)), equation)

    def test_alpha_marks_the_assigned_class_even_at_quality_0(self) -> None:
        def equation(z: Tensor, y: Tensor, positive: Tensor) -> Tensor:
            alpha = torch.where(positive, 0.3, 0.7)
            entropy = F.binary_cross_entropy(z.sigmoid(), y, reduction='none')
            return alpha * (z.sigmoid() - y) ** 2 * entropy

        self.check(FocalLoss(alpha=0.3), equation)

    def test_inverse(self) -> None:
        def parts(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            distance = (z.sigmoid() - y).abs()
            entropy = F.binary_cross_entropy(z.sigmoid(), y, reduction='none')
            return distance, entropy, (2 - distance) ** 1.5 * entropy

        def positives(z: Tensor, y: Tensor, positive: Tensor) -> Tensor:
            distance, entropy, inverse = parts(z, y)
            return torch.where(positive, inverse, distance**2 * entropy)

        def everywhere(z: Tensor, y: Tensor, positive: Tensor) -> Tensor:
            return torch.where(positive, 0.4, 0.6) * parts(z, y)[2] / 2**1.5

        self.check(InverseFocalLoss(), positives)
        self.check(InverseFocalLoss(negatives='inverse', alpha=0.4), everywhere)

    def test_brier(self) -> None:
        self.check(BrierLoss(), lambda z, y, positive: (z.sigmoid() - y) ** 2)

    @pytest.mark.parametrize('beta', [0.0, 2.0])
    def test_label_smoothing_of_positives_alone(self, beta: float) -> None:
        def equation(z: Tensor, y: Tensor, positive: Tensor) -> Tensor:
            smooth = torch.where(positive, 0.9 * y + 0.05, y)
            entropy = F.binary_cross_entropy(z.sigmoid(), smooth, reduction='none')
            return (z.sigmoid() - smooth).abs() ** beta * entropy

        self.check(LabelSmoothingLoss(smoothing=0.1, beta=beta), equation)


class TestClassifiers:
    def test_each_is_its_equation(self) -> None:
        pred, target = logits(), torch.randint(0, CLASSES, (NUMBER,))
        logs = functional.true_log_probability(pred, target)
        onehot = F.one_hot(target, CLASSES)
        flsd = torch.where(logs.exp() < 0.2, 5.0, 3.0)
        auto = functional.automatic_gamma(0.25)
        smooth = F.cross_entropy(pred, target, label_smoothing=0.05, reduction='none')
        for loss, wanted in (
            (FocalLoss(False, gamma=3), -((1 - logs.exp()) ** 3) * logs),
            (FocalLoss(False, gammas=(5, 3)), -((1 - logs.exp()) ** flsd) * logs),
            (FocalLoss(False, p0=0.25), -((1 - logs.exp()) ** auto) * logs),
            (InverseFocalLoss(False, gamma=2), -((1 + logs.exp()) ** 2) * logs),
            (BrierLoss(False), ((onehot - pred.softmax(1)) ** 2).sum(1)),
            (LabelSmoothingLoss(False), smooth),
        ):
            found = loss(pred, target, reduction_override='none')
            torch.testing.assert_close(found, wanted)
            torch.testing.assert_close(loss(pred, target), wanted.mean())
            weight = torch.rand(NUMBER, dtype=torch.float64)
            torch.testing.assert_close(
                loss(pred, target, weight, avg_factor=3.0), (wanted * weight).sum() / 3
            )

    def test_detached_weights_change_the_gradient_alone(self) -> None:
        pred, target = logits(), torch.randint(0, CLASSES, (NUMBER,))
        for kind in (FocalLoss, InverseFocalLoss):
            passing, detached = (kind(False, 2.0, detach_weight=flag) for flag in (False, True))
            first, second = passing(pred, target), detached(pred, target)
            torch.testing.assert_close(first, second)
            assert (gradient(first, pred) - gradient(second, pred)).abs().max() > 1e-3

    def test_gamma_of_p0_is_bounded(self) -> None:
        assert FocalLoss(p0=0.25).gammas == (pytest.approx(3.0702271),)
        assert FocalLoss(p0=0.01).gammas == (5.0,)
        assert FocalLoss(p0=0.01, max_gamma=1e3).gammas == (pytest.approx(253.67, abs=0.01),)
        assert FocalLoss(p0=0.7).gammas == (0.0,)


def mmce_by_loops(confidence: list, correct: list) -> float:
    total = 0.0
    for (a, right_a), (b, right_b) in itertools.product(zip(confidence, correct), repeat=2):
        total += (right_a - a) * (right_b - b) * math.exp(-abs(a - b) / 0.4)
    return total / len(confidence) ** 2


class TestMMCE:
    confidence = torch.tensor([0.9, 0.8, 0.6, 0.35, 0.5], dtype=torch.float64)
    correct = torch.tensor([True, False, True, False, False])

    def test_equation(self) -> None:
        found = functional.mmce(self.confidence, self.correct)
        pair = self.confidence.tolist(), [float(each) for each in self.correct]
        assert found.item() == pytest.approx(mmce_by_loops(*pair))

    def test_weighted_equation(self) -> None:
        right = [(1 - c) for c, r in zip(self.confidence.tolist(), self.correct) if r]
        wrong = [c for c, r in zip(self.confidence.tolist(), self.correct) if not r]
        known = [(1 - gap, gap) for gap in right], [(c, c) for c in wrong]

        def mean(first: list, second: list) -> float:
            pairs = list(itertools.product(first, second))
            terms = [g * h * math.exp(-abs(a - b) / 0.4) for (a, g), (b, h) in pairs]
            return sum(terms) / len(pairs)

        total = mean(known[0], known[0]) + mean(known[1], known[1]) - 2 * mean(*known)
        found = functional.weighted_mmce(self.confidence, self.correct)
        assert found.item() == pytest.approx(math.sqrt(total + 1e-10))
        published = functional.weighted_mmce(self.confidence, self.correct, as_published=True)
        assert 0 < published < found / 2

    def test_perfect_confidence_and_one_sided_batches(self) -> None:
        sure = torch.tensor([1.0, 0.0], requires_grad=True)
        assert functional.mmce(sure, torch.tensor([True, False])).item() == 0
        for correct in (torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)):
            some = torch.tensor([0.7, 0.4], requires_grad=True)
            value = functional.weighted_mmce(some, correct)
            assert value.item() == 0
            assert torch.autograd.grad(value, some)[0].tolist() == [0, 0]
        nothing = torch.zeros(0)
        assert functional.mmce(nothing, nothing).item() == 0
        assert functional.weighted_mmce(nothing, nothing > 0).item() == 0

    def test_subset_of_positives_and_as_many_negatives(self) -> None:
        scores = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.2, 0.6])
        positive = torch.tensor([True, False, True, False, False, False])
        assert functional.paired_subset(scores, positive).tolist() == [2, 0, 1, 3]
        assert functional.paired_subset(scores, positive, limit=2).tolist() == [2, 1]
        assert functional.paired_subset(scores, positive[[1, 1, 1, 1, 1, 1]]).tolist() == []
        assert functional.paired_subset(scores, ~positive).tolist() == [
            1,
            3,
            5,
            4,
            2,
            0,
        ]

    @pytest.mark.parametrize('weighted', [False, True])
    def test_module_of_a_classifier(self, weighted: bool) -> None:
        pred, target = logits(), torch.randint(0, CLASSES, (NUMBER,))
        loss = MMCELoss(False, mmce_weight=4, loss_weight=0.5, weighted=weighted)
        confidence, guess = pred.softmax(1).max(1)
        measure = functional.weighted_mmce if weighted else functional.mmce
        error = measure(confidence, guess == target)
        wanted = 0.5 * (F.cross_entropy(pred, target) + 4 * error)
        torch.testing.assert_close(loss(pred, target), wanted)
        total = loss(pred, target, reduction_override='sum')
        torch.testing.assert_close(total, NUMBER * wanted)

    def test_samples_of_weight_0_take_no_part(self) -> None:
        pred, target = logits(), torch.randint(0, CLASSES, (NUMBER,))
        weight = (torch.arange(NUMBER) % 2).double()
        odd = weight > 0
        for loss in (MMCELoss(False), MMCELoss()):
            found = loss(pred, target, weight, avg_factor=NUMBER / 2)
            wanted = loss(pred[odd], target[odd], avg_factor=NUMBER / 2)
            torch.testing.assert_close(found, wanted)

    def test_module_of_a_detector(self) -> None:
        pred, target = logits(), (labels(), torch.rand(NUMBER))
        scores, flat = pred.sigmoid().flatten(), torch.zeros(NUMBER * CLASSES, dtype=torch.float64)
        chosen = []
        for row, (label, quality) in enumerate(zip(*(each.tolist() for each in target))):
            if label < CLASSES:
                flat[row * CLASSES + label] = quality
                chosen.append(row * CLASSES + label)
        others = [
            index for index in scores.argsort(descending=True).tolist() if index not in chosen
        ]
        chosen += others[: len(chosen)]
        error = mmce_by_loops(scores[chosen].tolist(), flat[chosen].tolist())
        base = QualityFocalLoss()(pred, target, avg_factor=9.0)
        found = MMCELoss(mmce_weight=3)(pred, target, avg_factor=9.0)
        assert (found - base).item() == pytest.approx(3 * error, abs=1e-7)


class TestCommon:
    @pytest.mark.parametrize('kind', ALL)
    @pytest.mark.parametrize('sigmoid', [True, False])
    def test_nothing_assigned_and_nothing_at_all(self, kind: type, sigmoid: bool) -> None:
        loss = kind(use_sigmoid=sigmoid)
        for number in (0, 5):
            pred = torch.randn(number, CLASSES, requires_grad=True)
            target = torch.full((number,), CLASSES if sigmoid else 0)
            value = loss(pred, target, weight=torch.zeros(number), avg_factor=1.0)
            assert value.item() == 0
            assert torch.equal(gradient(value, pred), torch.zeros(number, CLASSES))

    @pytest.mark.parametrize('kind', ALL)
    @pytest.mark.parametrize('sigmoid', [True, False])
    def test_half_precision_is_computed_in_float32(self, kind: type, sigmoid: bool) -> None:
        pred = logits(torch.float32).detach().bfloat16().requires_grad_()
        target = torch.randint(0, CLASSES, (NUMBER,))
        found = kind(use_sigmoid=sigmoid)(pred, target)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, kind(use_sigmoid=sigmoid)(pred.float(), target))
        assert gradient(found, pred).dtype == torch.bfloat16

    @pytest.mark.parametrize('kind', ALL)
    def test_they_are_registered_under_our_scope(self, kind: type) -> None:
        from mmdet.registry import MODELS as MMDET_MODELS

        assert MODELS.get(kind.__name__) is kind
        assert MMDET_MODELS.get(f'gfl_det.{kind.__name__}') is kind
        assert MMDET_MODELS.get('FocalLoss') is MMDetFocalLoss

    @pytest.mark.parametrize(
        'loss',
        [
            dict(type='gfl_det.FocalLoss', alpha=None, gammas=(5, 3)),
            dict(type='gfl_det.FocalLoss', alpha=None, p0=0.2, detach_weight=True),
            dict(type='gfl_det.InverseFocalLoss'),
            dict(type='gfl_det.BrierLoss'),
            dict(type='gfl_det.LabelSmoothingLoss'),
            dict(type='gfl_det.MMCELoss'),
        ],
    )
    @pytest.mark.parametrize('head', ['GFLHead', 'ATSSHead', 'RetinaHead'])
    def test_heads_of_mmdet_train_with_them(self, loss: dict, head: str) -> None:
        losses = train_step(head, loss)
        assert all(torch.isfinite(value).all() for value in losses['loss_cls'])
        assert sum(value.sum() for value in losses['loss_cls']) > 0

    @pytest.mark.parametrize(
        ('build', 'words'),
        [
            (lambda: FocalLoss(gamma=-1), 'at least 0'),
            (lambda: FocalLoss(p0=0.2, gammas=(5, 3)), 'not both'),
            (lambda: FocalLoss(gammas=(5, 3, 2)), 'one fewer than'),
            (lambda: FocalLoss(gammas=(5, 3, 2), thresholds=(0.5, 0.2)), 'ascending'),
            (lambda: FocalLoss(p0=0), r'in \(0, 1\)'),
            (lambda: FocalLoss(alpha=2), r'alpha must be .*not 2'),
            (lambda: FocalLoss(activated=True), 'takes logits'),
            (lambda: FocalLoss(reduction='max'), "not 'max'"),
            (lambda: InverseFocalLoss(gamma=3.6), 'detach_weight=True'),
            (lambda: InverseFocalLoss(gamma=-0.1), 'at least 0'),
            (lambda: InverseFocalLoss(negatives='none'), "not 'none'"),
            (lambda: LabelSmoothingLoss(smoothing=1), r'smoothing must be .*not 1'),
            (lambda: MMCELoss(weighted=True), 'weighted=True'),
            (lambda: MMCELoss(reduction='none')(torch.zeros(1, 2), torch.zeros(1)), 'MMCELoss'),
            (
                lambda: BrierLoss(False)(torch.zeros(2, 2), (torch.zeros(2), torch.zeros(2))),
                'set use_sigmoid=True',
            ),
            (lambda: BrierLoss()(torch.zeros(2, 2), torch.zeros(2, 3)), 'shape of the scores'),
        ],
    )
    def test_refused(self, build, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            build()

    def test_inverse_focal_with_a_detached_weight_takes_any_gamma(self) -> None:
        assert InverseFocalLoss(gamma=5, detach_weight=True).gamma == 5


def train_step(name: str, loss: dict) -> dict:
    """Losses of a small head of mmdet on two images, one of them without gt boxes."""
    from mmdet.registry import MODELS as MMDET_MODELS

    anchors = dict(
        type='AnchorGenerator',
        ratios=[1.0],
        octave_base_scale=8,
        scales_per_octave=1,
        strides=[8, 16],
    )
    assigner = dict(type='ATSSAssigner', topk=9)
    if name == 'RetinaHead':
        assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)
    config = dict(
        type=name,
        num_classes=CLASSES,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=anchors,
        loss_cls=loss,
        train_cfg=dict(assigner=assigner, allowed_border=-1, pos_weight=-1),
    )
    if name == 'RetinaHead':
        config['train_cfg']['sampler'] = dict(type='PseudoSampler')
    else:
        config.update(norm_cfg=dict(type='GN', num_groups=4), loss_bbox=dict(type='GIoULoss'))
    head = MMDET_MODELS.build(config)
    features = [torch.randn(2, 8, size, size) for size in (16, 8)]
    gts = [
        InstanceData(
            bboxes=torch.tensor([[10.0, 12, 80, 90], [60, 50, 120, 118]]),
            labels=torch.tensor([0, 2]),
        ),
        InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
    ]
    meta = dict(img_shape=(128, 128), pad_shape=(128, 128))
    return head.loss_by_feat(*head(features), gts, [meta, meta])
