"""The share of repeated work: formula, limit and simulation agree."""

from __future__ import annotations

import pytest

from projects.scale.repeated_work import main, repeated_share, simulated_share


@pytest.mark.parametrize('ratio', [0.1, 1.0])
def test_the_simulation_gives_what_the_formula_says(ratio):
    assert simulated_share(ratio, 1.0) == pytest.approx(repeated_share(ratio, 1.0), rel=0.1)


def test_short_shards_repeat_half_of_one_per_failure():
    assert repeated_share(1.0, 1e4) == pytest.approx(0.5e-4, rel=1e-3)


def test_the_table_has_a_row_per_setting(capsys):
    main(['--sizes', '256', '1000', '--mtbf-hours', '1'])
    assert len(capsys.readouterr().out.splitlines()) == 3
