"""A tracker that fails: a warning that names the call, and the training it was told of is whole."""

from __future__ import annotations

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, TrainingDivergedError
from adapterbank.sequence import Stage, train_naive, train_sequence
from adapterbank.training.fit import fit
from adapterbank.training.many import fit_many
from adapterbank.training.tracked import TrackedTask

LABELS = ["bass", "brass", "organ"]
PLAIN = {"epochs": 2, "batch_size": 6, "lr": 5e-3, "precision": "fp32"}
TASK_CALLS = ("task", "__enter__", "log_epoch", "log_training", "__exit__")
SEQUENCE_CALLS = (*TASK_CALLS, "log_test", "log_adapter", "log_scores", "log_result")
NAMED = {"__enter__": "task", "__exit__": "the end of the run"}  # by what a warning names them


class Broken:
    """A tracker, and the run of each task, that raises in one of its methods."""

    def __init__(self, broken, error=OSError):
        self.broken, self.error, self.called = broken, error, []

    def _call(self, name):
        self.called.append(name)
        if name == self.broken:
            raise self.error("no space left")

    def task(self, bank, task, **known):
        self._call("task")
        return self

    def __enter__(self):
        self._call("__enter__")
        return self

    def __exit__(self, kind, error, where):
        self._call("__exit__")
        return True  # a tracker may hide no error of a training

    def log_epoch(self, epoch, record):
        self._call("log_epoch")

    def log_training(self, history):
        self._call("log_training")

    def log_test(self, evaluation, step=0):
        self._call("log_test")

    def log_adapter(self):
        self._call("log_adapter")

    def log_scores(self, evaluations, bank, step):
        self._call("log_scores")

    def log_result(self, result):
        self._call("log_result")


@pytest.fixture
def bank(small_backbone):
    bank = AdapterBank(small_backbone)
    for name, method in (("a", "aat_ms"), ("b", "head")):
        bank.add_task(name, method, labels=LABELS)
    return bank


@pytest.fixture
def stages(labelled_clips):
    options = {"method": "prompt", "labels": LABELS}
    return [Stage(name, labelled_clips[:6], None, labelled_clips[6:], options, PLAIN) for name in ("a", "b")]


def warned(call):
    return pytest.warns(RuntimeWarning, match=f"the tracker failed in {NAMED.get(call, call)}: OSError")


@pytest.mark.parametrize("call", TASK_CALLS)
def test_fit_many_trains_to_the_end_whatever_its_tracker_fails_at(call, bank, small_backbone, labelled_clips):
    tracker = Broken(call)
    with warned(call):
        histories = fit_many(bank, ["a", "b"], labelled_clips, tracker=tracker, progress=False, **PLAIN)
    assert call in tracker.called
    for name, method in (("a", "aat_ms"), ("b", "head")):
        assert (histories[name].steps, histories[name].error) == (4, "")
        alone = AdapterBank(small_backbone)
        alone.add_task(name, method, labels=LABELS)
        fit(alone, name, labelled_clips, progress=False, **PLAIN)
        for key, tensor in alone.task(name).state_dict().items():
            torch.testing.assert_close(bank.task(name).state_dict()[key], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("call", SEQUENCE_CALLS)
def test_a_sequence_comes_to_the_same_whatever_its_tracker_fails_at(call, small_backbone, stages):
    tracker, followed = Broken(call), AdapterBank(small_backbone)
    with warned(call):
        result = train_sequence(followed, stages, tracker=tracker, progress=False)
    assert call in tracker.called
    assert result.matrix == train_sequence(AdapterBank(small_backbone), stages, progress=False).matrix
    assert list(followed.tasks) == ["a", "b"]


def test_the_naive_sequence_goes_on_as_well(small_backbone, stages):
    with warned("log_epoch"):
        result = train_naive(small_backbone, stages, tracker=Broken("log_epoch"), progress=False)
    assert result.tasks == ["a", "b"]


@pytest.mark.parametrize("call", ["task", "log_epoch", "log_training"])
def test_an_interrupt_in_a_tracker_ends_the_trainings(call, bank, labelled_clips):
    before = {key: tensor.clone() for key, tensor in bank.task("a").state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        fit_many(bank, ["a"], labelled_clips, tracker=Broken(call, KeyboardInterrupt), progress=False, **PLAIN)
    assert all(torch.equal(before[key], tensor) for key, tensor in bank.task("a").state_dict().items())


def test_no_tracker_hides_the_error_of_a_training(small_backbone, stages):
    diverging = Stage("a", stages[0].train, None, stages[0].test, stages[0].task_options, {**PLAIN, "lr": 1e30})
    bank = AdapterBank(small_backbone)
    with pytest.raises(TrainingDivergedError):
        train_sequence(bank, [diverging], tracker=Broken(None), progress=False)
    with warned("__exit__"), pytest.raises(TrainingDivergedError):
        train_sequence(bank, [diverging], tracker=Broken("__exit__"), progress=False)
    assert not bank.tasks


def test_a_run_that_is_closed_twice_is_told_once(bank):
    tracker = Broken(None)
    run = TrackedTask(tracker, bank, "a", params={}, tags={}).__enter__()
    for _ in range(2):
        run.__exit__(None, None, None)
    assert tracker.called.count("__exit__") == 1


def test_a_tracker_in_place_of_its_run_is_refused(bank, labelled_clips):
    class NotOpened:
        def sequence(self, name):
            raise AssertionError

    with pytest.raises(
        ConfigError, match=r"which has no task;.*with tracker.sequence\(name\) as parent.*tracker=parent"
    ):
        fit_many(bank, ["a"], labelled_clips, tracker=NotOpened(), progress=False, **PLAIN)
