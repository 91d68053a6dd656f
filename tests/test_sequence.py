"""Tasks in sequence: the bank changes no bit of an earlier task, the naive model does."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, InterferenceError, NameTakenError, TrainingDivergedError
from adapterbank.evaluation import evaluate_task
from adapterbank.sequence import Stage, comparison_table, matrix_table, train_naive, train_sequence
from adapterbank.training.fit import fit

METHODS = {"first": "aat_ms", "second": "joint", "third": "partial"}
FIT = {"epochs": 2, "batch_size": 4, "lr": 1e-2, "precision": "fp32"}


@pytest.fixture
def stages(labelled_clips):
    """Three tasks of three methods on the same clips under other class names."""

    def stage(name, method):
        data = [(waveform, f"{name}-{label}") for waveform, label in labelled_clips]
        labels = sorted({label for _, label in data})
        return Stage(name, data[:6], data[6:9], data[6:], {"method": method, "labels": labels}, FIT)

    return [stage(name, method) for name, method in METHODS.items()]


@pytest.fixture
def bank(small_backbone):
    return AdapterBank(small_backbone)


class Watcher:
    """A tracker that keeps the evaluations of every step."""

    def __init__(self):
        self.steps = []

    def task(self, bank, task, **options):
        return nullcontext(self)

    def log_scores(self, evaluations, bank, step):
        self.steps.append(evaluations)

    def ignore(self, *args):
        pass

    log_epoch = log_training = log_test = log_adapter = log_result = ignore


def run(bank, stages, **options):
    return train_sequence(bank, stages, progress=False, **options)


def test_earlier_logits_are_the_same_bits_after_every_later_training(bank, stages):
    result = run(bank, stages)
    assert [bank.task(name).method for name in METHODS] == list(METHODS.values())
    for stage in stages:
        now = evaluate_task(bank.backbone, bank.task(stage.name), stage.test, batch_size=FIT["batch_size"])
        assert torch.equal(now.logits, result.evaluations[stage.name].logits)


def test_a_sequence_gives_each_task_the_bits_that_training_it_alone_gives(bank, stages, small_backbone):
    run(bank, stages)
    alone = AdapterBank(small_backbone)
    last = stages[-1]
    alone.add_task(last.name, **last.task_options)
    fit(alone, last.name, last.train, last.val, progress=False, **FIT)
    for key, tensor in alone.task(last.name).state_dict().items():
        assert torch.equal(tensor, bank.task(last.name).state_dict()[key])


def test_the_matrix_is_null_above_its_diagonal_and_measured_below(bank, stages):
    result = run(bank, stages)
    assert result.tasks == list(METHODS)
    for i, row in enumerate(result.matrix):
        assert len(row) == 3
        assert [value is None for value in row] == [j > i for j in range(3)]
    assert json.loads(json.dumps(result.to_json()))["matrix"] == result.matrix


def test_the_last_row_equals_an_independent_evaluation(bank, stages):
    result = run(bank, stages)
    assert result.matrix[-1] == [bank.evaluate(stage.name, stage.test)["accuracy"] for stage in stages]
    assert result.numbers()["bwt"] == 0.0
    assert result.numbers()["forgetting"] == 0.0
    assert result.numbers()["average_accuracy"] == pytest.approx(sum(result.matrix[-1]) / 3)


def test_the_least_change_of_an_earlier_task_is_an_error_that_names_both(bank, stages):
    class Meddling(list):
        """Training data that changes another task when it is read."""

        def __getitem__(self, index):
            bank.task("first").head.linear.bias.data[0] += 1e-5
            return super().__getitem__(index)

    stages[1] = replace(stages[1], train=Meddling(stages[1].train))
    with pytest.raises(InterferenceError, match="'second' changed the test logits of 'first'"):
        run(bank, stages)


def test_the_naive_model_shares_one_body_and_forgets(small_backbone, stages):
    before = {name: tensor.clone() for name, tensor in small_backbone.weights.named()}
    watcher = Watcher()
    result = train_naive(small_backbone, stages, tracker=watcher, progress=False)
    assert [list(found) for found in watcher.steps] == [["first"], ["first", "second"], list(METHODS)]
    for name in ("first", "second"):
        after_own_training = result.evaluations[name].logits
        assert not torch.equal(after_own_training, watcher.steps[-1][name].logits)
    assert result.strategy == "naive"
    assert all(history.options["epochs"] == 2 for history in result.histories.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_backbone.weights.named())


def test_naive_options_replace_those_of_the_stages(small_backbone, stages):
    result = train_naive(small_backbone, stages[:1], fit_options={"epochs": 1, "lr": 1e-4}, progress=False)
    options = result.histories["first"].options
    assert (options["epochs"], options["lr"], options["batch_size"]) == (1, 1e-4, 4)


def test_a_resumed_sequence_trains_only_what_is_missing(bank, stages, small_backbone, tmp_path):
    class Read(list):
        """Training data that counts how often it is read."""

        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    whole = run(AdapterBank(small_backbone), stages)
    run(bank, stages[:2], folder=tmp_path)
    stages = [replace(stage, train=Read(stage.train)) for stage in stages]
    resumed = run(AdapterBank.load(tmp_path, backbone=small_backbone), stages, folder=tmp_path, resume=True)
    assert [stage.train.reads > 0 for stage in stages] == [False, False, True]
    assert resumed.matrix == whole.matrix
    for name in METHODS:
        assert torch.equal(resumed.evaluations[name].logits, whole.evaluations[name].logits)
        assert resumed.histories[name].epochs == whole.histories[name].epochs
    assert list(AdapterBank.load(tmp_path, backbone=small_backbone).tasks) == list(METHODS)


def test_a_lost_history_costs_a_resumed_run_nothing_else(bank, stages, tmp_path):
    run(bank, stages[:1], folder=tmp_path)
    (tmp_path / "histories" / "first.json").write_text("{cut")
    assert run(bank, stages[:1], folder=tmp_path, resume=True).histories == {"first": None}


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("method", "prompt"),
        ("seed", 3),
        ("labels", ["x", "y", "z"]),
        ("head", "linear"),
        ("pooling", "mean"),
        ("normalize", (-4.0, 3.0)),
    ],
)
def test_resuming_with_other_options_is_refused(bank, stages, key, other):
    first = stages[0]
    run(bank, [first])
    changed = Stage("first", first.train, first.val, first.test, {**first.task_options, key: other}, FIT)
    with pytest.raises(ConfigError, match=f"'first' with {key}="):
        run(bank, [changed], resume=True)


def test_a_training_that_fails_leaves_the_finished_tasks(bank, stages, tmp_path):
    broken = Stage("second", stages[1].train, None, stages[1].test, stages[1].task_options, {"lr": 1e30, "epochs": 9})
    with pytest.raises(TrainingDivergedError):
        run(bank, [stages[0], broken], folder=tmp_path)
    assert list(bank.tasks) == ["first"]
    assert list(AdapterBank.load(tmp_path, backbone=bank.backbone).tasks) == ["first"]


def test_an_interrupt_while_a_run_is_opened_leaves_no_untrained_task(bank, stages):
    class Interrupted(Watcher):
        def task(self, *args, **options):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bank, stages, tracker=Interrupted())
    assert not bank.tasks


@pytest.mark.parametrize("strategy", ["bank", "naive"])
def test_a_tracker_in_place_of_its_run_is_refused_before_anything_is_trained(strategy, bank, stages, small_backbone):
    class NotOpened:
        def sequence(self, name):
            raise AssertionError

    train = train_sequence if strategy == "bank" else train_naive
    with pytest.raises(ConfigError, match=r"no task, log_scores, log_result;.*as parent.*tracker=parent"):
        train(bank if strategy == "bank" else small_backbone, stages, tracker=NotOpened(), progress=False)
    assert not bank.tasks


def test_a_task_that_exists_is_not_overwritten(bank, stages):
    run(bank, stages[:1])
    with pytest.raises(NameTakenError, match="'first' exists"):
        run(bank, stages[:1])


@pytest.mark.parametrize("which", [[], [0, 0]])
def test_an_empty_or_doubled_sequence_is_refused(bank, stages, which):
    with pytest.raises(ConfigError, match="each once"):
        run(bank, [stages[i] for i in which])


def test_the_tables_hold_every_task_and_number(bank, stages, small_backbone):
    results = [run(bank, stages), train_naive(small_backbone, stages, progress=False)]
    assert [len(column._cells) for column in matrix_table(results[0]).columns] == [3, 3, 3, 3]
    names = comparison_table(results).columns[0]._cells
    assert names == [*METHODS, "average_accuracy", "bwt", "forgetting", "seconds of training"]
