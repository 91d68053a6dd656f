"""Two ways timed in turn: their order, what is counted, and that the garbage collector is left as it was."""

from __future__ import annotations

import gc

import pytest
import torch

from adapterbank.experiments.timing import Pairs, alternate, noise, timed


def test_two_ways_are_called_in_turn_and_the_warm_up_is_not_counted():
    calls = []

    def way(name):
        def measured():
            calls.append(name)
            return float(len(calls))

        return measured

    pairs = alternate(way("ours"), way("theirs"), 3, warm_up=2)
    assert calls == ["ours", "theirs"] * 5
    assert (pairs.ours, pairs.theirs) == ((5.0, 7.0, 9.0), (6.0, 8.0, 10.0))


def test_a_speedup_above_one_means_that_ours_is_faster():
    assert Pairs((1.0, 2.0), (2.0, 1.0)).speedups() == [2.0, 0.5]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_off_within_a_pair_and_afterwards_as_it_was(enabled):
    def fails():
        assert not gc.isenabled()
        raise KeyboardInterrupt

    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyboardInterrupt):
            alternate(fails, fails, 1, warm_up=0)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize(("settle", "calls"), [(False, 1), (True, 2)])
def test_a_timed_step_runs_once_or_settles_before(settle, calls):
    made = []
    assert timed(lambda: made.append(1), torch.device("cpu"), settle)() > 0
    assert len(made) == calls


def test_noise_is_the_same_every_time_and_another_in_each_clip():
    torch.manual_seed(3)
    one = noise(2, 0.1)
    torch.manual_seed(4)
    again = noise(2, 0.1)
    assert [clip.shape for clip in one] == [(1600,), (1600,)]
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], one[1])
