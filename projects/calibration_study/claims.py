"""Claims of the papers on training losses, tested on the same runs in pairs.

Seeds that cut the same samples anew are not independent, so the variance of their mean is corrected
as in Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003; and as
many claims are tested at once, verdicts follow p values adjusted by Holm's procedure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gfl_det.evaluation.comparison import holm
from projects.calibration_study.classification import Run
from projects.calibration_study.tables import PairedMean, Verdict, paired, verdict

MUKHOTI = 'Mukhoti 2020'
WANG = 'Wang 2021'


class Claim(NamedTuple):
    """That a measure is lower with one loss than with another."""

    source: str
    measure: str  # 'error', 'distance of T from 1', or one of MEASURES with 'before' or 'after'
    lower: str
    higher: str

    def __str__(self) -> str:
        return f'{self.measure}: {self.lower} < {self.higher}'


class Finding(NamedTuple):
    """A claim with what the runs say."""

    claim: Claim
    difference: PairedMean  # of the lower one minus the higher one: below 0 is for the claim
    seeds_for: int  # seeds in which it is below 0
    seeds: int
    p_holm: float  # adjusted for all claims that are tested together
    verdict: Verdict


CLAIMS = (
    Claim(MUKHOTI, 'ECE before', 'Brier', 'CE'),
    Claim(MUKHOTI, 'ECE before', 'MMCE', 'CE'),
    Claim(MUKHOTI, 'ECE before', 'FL-3', 'CE'),
    Claim(MUKHOTI, 'ECE before', 'FLSD-53', 'CE'),
    Claim(MUKHOTI, 'ECE before', 'FLSD-53', 'FL-3'),
    Claim(MUKHOTI, 'NLL before', 'FLSD-53', 'CE'),
    Claim(MUKHOTI, 'distance of T from 1', 'FLSD-53', 'CE'),
    Claim(MUKHOTI, 'ECE after', 'FLSD-53', 'CE'),
    Claim(MUKHOTI, 'error', 'FLSD-53', 'CE'),
    Claim(WANG, 'ECE before', 'LS-.05', 'CE'),
    Claim(WANG, 'ECE after', 'CE', 'LS-.05'),
    Claim(WANG, 'ECE after', 'CE', 'FL-3'),
    Claim(WANG, 'NLL after', 'CE', 'LS-.05'),
    Claim(WANG, 'NLL after', 'CE', 'FL-3'),
    Claim(WANG, 'ECE before', 'CE', 'IFL-1.5'),
    Claim(WANG, 'ECE after', 'IFL-1.5', 'CE'),
    Claim(WANG, 'NLL after', 'IFL-1.5', 'CE'),
)

# CIFAR-10, ResNet-50, one training each of 350 epochs on 45,000 pictures, temperatures by the least
# ECE of 5,000 others; from the README of the authors' code.
_LOSSES = ('CE', 'Brier', 'MMCE', 'LS-.05', 'FL-3', 'FLSD-53')
_TEMPERATURES = (2.5, 1.1, 2.6, 0.9, 1.1, 1.1)
PUBLISHED = {
    'error': dict(zip(_LOSSES, (0.0495, 0.0500, 0.0499, 0.0529, 0.0525, 0.0498))),
    'ECE before': dict(zip(_LOSSES, (0.0435, 0.0182, 0.0456, 0.0296, 0.0148, 0.0155))),
    'ECE after': dict(zip(_LOSSES, (0.0135, 0.0108, 0.0119, 0.0167, 0.0142, 0.0095))),
    'distance of T from 1': {
        loss: abs(math.log(value)) for loss, value in zip(_LOSSES, _TEMPERATURES)
    },
}


def value_of(run: Run, measure: str) -> float:
    """A measure of a run under the name that claims use.

    Raises:
        KeyError: the name is unknown.
    """
    if measure == 'error':
        return run.error
    if measure == 'distance of T from 1':
        return abs(math.log(run.temperature))
    name, when = measure.split()
    return {'before': run.before, 'after': run.after}[when][name]


def judge_all(claims: Sequence[Claim], runs: Sequence[Run], ratio: float = 0.0) -> list[Finding]:
    """Judge claims that are tested together.

    Args:
        claims: of losses that the runs have.
        runs: at least two seeds of each loss.
        ratio: judged samples over training samples, where seeds cut the same samples anew; 0 for
            independent seeds.
    """
    findings = [judge(claim, runs, ratio) for claim in claims]
    adjusted = holm({str(number): each.difference.p for number, each in enumerate(findings)})
    return [
        each._replace(p_holm=p, verdict=verdict(each.difference.mean, p))
        for each, p in zip(findings, adjusted.values())
    ]


def judge(claim: Claim, runs: Sequence[Run], ratio: float = 0.0) -> Finding:
    """Compare the two losses of a claim seed by seed; arguments as for :func:`judge_all`."""
    lower, higher = (
        {run.seed: value_of(run, claim.measure) for run in runs if run.loss == loss}
        for loss in (claim.lower, claim.higher)
    )
    differences = [lower[seed] - higher[seed] for seed in sorted(lower)]
    found = paired(differences, ratio)
    seeds_for = sum(each < 0 for each in differences)
    decided = verdict(found.mean, found.p)
    return Finding(claim, found, seeds_for, len(differences), found.p, decided)


def published(claim: Claim) -> str:
    """The two values of the paper's own table; empty where we know of none."""
    values = PUBLISHED.get(claim.measure, {}) if claim.source == MUKHOTI else {}
    # A weight that was tuned is part of a name: MMCE-2.
    losses = ['MMCE' if loss.startswith('MMCE') else loss for loss in (claim.lower, claim.higher)]
    if not set(losses) <= values.keys():
        return ''
    return ' / '.join(f'{values[loss]:.3g}'[1:] for loss in losses)


def finding_to_json(finding: Finding) -> dict[str, Any]:
    """A finding as plain JSON values."""
    parts = dict(claim=finding.claim._asdict(), difference=finding.difference._asdict())
    return {**finding._asdict(), **parts}
