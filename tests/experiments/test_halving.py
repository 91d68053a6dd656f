"""Successive halving keeps the best on average."""

from __future__ import annotations

import pytest

from adapterbank.errors import ConfigError
from adapterbank.experiments.halving import Rung, halve

RUNGS = [Rung(10, 4), Rung(20, 2), Rung(40, 1)]


def test_the_best_mean_over_all_datasets_wins_and_each_rung_trains_longer():
    asked = []

    def run(setting, data, steps):
        asked.append((setting["lr"], data, steps))
        return {"a": 1.0, "b": 0.5}[data] * -abs(setting["lr"] - 3)

    settings = [{"lr": rate} for rate in (1, 2, 3, 9)]
    assert halve(settings, ["a", "b"], RUNGS, run) == [{"lr": 3}]
    assert [steps for _, _, steps in asked] == [10] * 8 + [20] * 4 + [40] * 2
    assert {rate for rate, _, steps in asked if steps == 20} == {3, 2}


def test_of_equals_the_one_that_stands_first_wins():
    assert halve([{"lr": 1}, {"lr": 2}], ["a"], [Rung(1, 2), Rung(2, 1)], lambda *_: 0.5) == [{"lr": 1}]


@pytest.mark.parametrize(
    ("settings", "datasets", "rungs"),
    [([], ["a"], [Rung(1, 1)]), ([{}], [], [Rung(1, 1)]), ([{}], ["a"], []), ([{}], ["a"], [Rung(1, 2)])],
)
def test_a_search_without_candidates_data_or_falling_rungs_is_refused(settings, datasets, rungs):
    with pytest.raises(ConfigError, match="expected at least one of each"):
        halve(settings, datasets, rungs, lambda *_: 0.0)
