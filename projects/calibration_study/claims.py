"""Claims of the papers on training losses, tested on the same runs in pairs.

Seeds that cut the same samples anew are not independent, so the variance of their mean is corrected
as in Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003; and as
many claims are tested at once, verdicts follow p values adjusted by Holm's procedure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from gfl_det.evaluation.comparison import holm
from projects.calibration_study.classification import Run

MUKHOTI = 'Mukhoti 2020'
WANG = 'Wang 2021'
LEVEL = 0.05  # of the two-sided paired t tests that decide, all together
Verdict = Literal['for', 'undecided', 'against']


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
    difference: float  # mean over seeds of the lower one minus the higher one: below 0 is for it
    seeds_for: int  # seeds in which it is below 0
    seeds: int
    p_value: float  # of this claim alone
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
    adjusted = holm({str(number): each.p_value for number, each in enumerate(findings)})
    return [
        each._replace(p_holm=p, verdict=_verdict(each.difference, p))
        for each, p in zip(findings, adjusted.values())
    ]


def judge(claim: Claim, runs: Sequence[Run], ratio: float = 0.0) -> Finding:
    """Compare the two losses of a claim seed by seed; arguments as for :func:`judge_all`.

    Returns:
        'for' or 'against' where a paired t test at `LEVEL` tells them apart.
    """
    from scipy.stats import t as student  # slow to import

    sides = [
        {run.seed: value_of(run, claim.measure) for run in runs if run.loss == loss}
        for loss in (claim.lower, claim.higher)
    ]
    seeds = sorted(sides[0])
    lower, higher = (np.array([side[seed] for seed in seeds]) for side in sides)
    difference = lower - higher
    mean, deviation = float(difference.mean()), float(difference.std(ddof=1))
    if np.ptp(difference) == 0:  # without any spread the sign is the answer
        p_value = float(difference[0] == 0)
    else:
        statistic = mean / (deviation * math.sqrt(1 / len(seeds) + ratio))
        p_value = float(2 * student.sf(abs(statistic), len(seeds) - 1))
    number = int((difference < 0).sum())
    return Finding(claim, mean, number, len(seeds), p_value, p_value, _verdict(mean, p_value))


def _verdict(difference: float, p_value: float) -> Verdict:
    if p_value >= LEVEL:
        return 'undecided'
    return 'for' if difference < 0 else 'against'


def finding_to_json(finding: Finding) -> dict[str, Any]:
    """A finding as plain JSON values."""
    return {**finding._asdict(), 'claim': finding.claim._asdict()}
