"""Registered shells of the focal family; :mod:`.score_loss` says what they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gfl_det.models.losses import focal_functional
from gfl_det.models.losses.modules import Reduction
from gfl_det.models.losses.score_losses import ScoreLoss, balanced, checked_alpha
from gfl_det.registry import MODELS


@MODELS.register_module()
class FocalLoss(ScoreLoss):
    """Focal loss and, of qualities, Quality Focal Loss; in MMDetection's place with its arguments.

    Gamma is one of three: ``gamma`` itself; that of ``p0``, at which its gradient is that of cross
    entropy; or ``gammas`` by the probability given to the truth, as in FLSD-53: ``gammas=(5, 3),
    thresholds=(0.2,)``.

    Args:
        use_sigmoid: scores are sigmoids, one a class, and not a softmax.
        gamma: focusing parameter, at least 0.
        alpha: weight of positives with sigmoids, against 1 - alpha of negatives; None for no
            weights, as in Quality Focal Loss.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: factor of the result.
        activated: must be False; kept so that mmdet's configs fit.
        detach_weight: let no gradient through the weight, which moves the optimum.
        p0: probability in (0, 1), from .5 on cross entropy.
        max_gamma: bound of the gamma of ``p0``, which grows without one as p0 goes to 0.
        gammas: gamma below the first threshold, between the first and the second, and so on.
        thresholds: of the probability, ascending, one fewer than gammas.

    Raises:
        ValueError: an argument is out of range, or ``p0`` and ``gammas`` are both given.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float | None = 0.25,
        reduction: Reduction = 'mean',
        loss_weight: float = 1.0,
        activated: bool = False,
        *,
        detach_weight: bool = False,
        p0: float | None = None,
        max_gamma: float = 5.0,
        gammas: Sequence[float] | None = None,
        thresholds: Sequence[float] = (0.2,),
    ) -> None:
        super().__init__(use_sigmoid, reduction, loss_weight)
        if activated:
            raise ValueError('gfl_det.FocalLoss takes logits: leave activated=False')
        if p0 is not None and gammas is not None:
            raise ValueError('give p0 or gammas to FocalLoss, not both')
        if p0 is not None:
            gamma = min(focal_functional.automatic_gamma(p0), max_gamma)
        steps = (gamma,) if gammas is None else tuple(gammas)
        edges = () if gammas is None else tuple(thresholds)
        if not all(step >= 0 for step in steps):
            raise ValueError(f'gamma of FocalLoss is at least 0, not {steps}')
        if len(edges) != len(steps) - 1 or list(edges) != sorted(edges):
            raise ValueError(
                f'FocalLoss needs ascending thresholds, one fewer than {steps}, not {edges}'
            )
        self.alpha = checked_alpha(alpha)
        self.detach_weight = detach_weight
        self.gammas: tuple[float, ...] = steps
        self.thresholds: tuple[float, ...] = edges

    def set_gamma(self, gamma: float) -> None:
        """Take one gamma for all samples from now on.

        Raises:
            ValueError: it is negative.
        """
        if not gamma >= 0:
            raise ValueError(f'gamma of FocalLoss is at least 0, not {gamma!r}')
        self.gammas, self.thresholds = (gamma,), ()

    def _gamma(self, probability: Tensor) -> float | Tensor:
        if not self.thresholds:
            return self.gammas[0]
        return focal_functional.gamma_by_sample(probability, self.gammas, self.thresholds)

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        likeness = 1 - (quality - logits.sigmoid()).abs()
        gamma = self._gamma(likeness)
        loss = focal_functional.quality_focal(logits, quality, gamma, self.detach_weight)
        return balanced(loss, positive, self.alpha)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logs = focal_functional.true_log_probability(logits, labels)
        return focal_functional.focal_loss(logs, self._gamma(logs.exp()), self.detach_weight)


@MODELS.register_module()
class InverseFocalLoss(ScoreLoss):
    """Inverse focal loss, which rewards confidence; to be followed by post-hoc calibration.

    With a gradient in the weight and gamma 2, a chance of .5 has two optima and none between them;
    up to 1.5 there is one.

    Args:
        use_sigmoid: scores are sigmoids, one a class, and not a softmax.
        gamma: at least 0; at most 3.59 with a gradient in the weight.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: factor of the result.
        detach_weight: let no gradient through the weight.
        negatives: with sigmoids, what negatives get: 'focal', Quality Focal Loss; or 'inverse', the
            same as positives, and all of it times 2^-gamma, lest easy negatives outweigh the rest.
        beta: focusing parameter of the negatives' Quality Focal Loss.
        alpha: weight of positives with sigmoids, against 1 - alpha of negatives; None for none.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 1.5,
        reduction: Reduction = 'mean',
        loss_weight: float = 1.0,
        *,
        detach_weight: bool = False,
        negatives: Literal['focal', 'inverse'] = 'focal',
        beta: float = 2.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__(use_sigmoid, reduction, loss_weight)
        focal_functional.check_inverse_gamma(gamma, detach_weight)
        if negatives not in ('focal', 'inverse'):
            raise ValueError(f"negatives get 'focal' or 'inverse' loss, not {negatives!r}")
        self.gamma, self.beta, self.negatives = gamma, beta, negatives
        self.detach_weight = detach_weight
        self.alpha = checked_alpha(alpha)

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        loss = focal_functional.quality_inverse_focal(
            logits, quality, self.gamma, self.detach_weight
        )
        if self.negatives == 'inverse':
            loss = loss * 2**-self.gamma
        else:
            loss = torch.where(
                positive, loss, focal_functional.quality_focal(logits, quality, self.beta)
            )
        return balanced(loss, positive, self.alpha)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logs = focal_functional.true_log_probability(logits, labels)
        return focal_functional.inverse_focal_loss(logs, self.gamma, self.detach_weight)
