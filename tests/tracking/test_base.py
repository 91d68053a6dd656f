"""A tracker of one's own: what train_sequence and fit_many need, and nothing that they do not."""

import json
from contextlib import contextmanager

import pytest

from adapterbank.bank import AdapterBank
from adapterbank.sequence import Stage, train_sequence
from adapterbank.tracking.facts import epoch_metrics, evaluation_metrics
from adapterbank.training.many import fit_many

FIT = {"epochs": 2, "batch_size": 4, "lr": 1e-2, "precision": "fp32"}


class JsonLines:
    """A tracker in twenty lines: each event is one JSON object in a file. It is also the run of its sequence."""

    def __init__(self, path):
        self.path = path

    def write(self, event, **values):
        with self.path.open("a", encoding="utf-8") as file:
            print(json.dumps({"event": event, **values}), file=file)

    @contextmanager
    def sequence(self, name, *, params=None, tags=None):
        self.write("sequence", name=name)
        yield self
        self.write("end")

    @contextmanager
    def task(self, bank, task, *, params=None, tags=None):
        yield JsonTask(self, bank.task(task))

    def log_scores(self, evaluations, bank, step):
        self.write("scores", step=step, tasks=list(evaluations))

    def log_result(self, result):
        self.write("result", **result.to_json())


class JsonTask:
    """The run of one task."""

    def __init__(self, lines, task):
        self.lines, self.owner = lines, task

    def log_epoch(self, epoch, record):
        self.lines.write("epoch", task=self.owner.name, epoch=epoch, **epoch_metrics(self.owner, record))

    def log_training(self, history):
        self.lines.write("training", task=self.owner.name, steps=history.steps, lr=history.options["lr"])

    def log_test(self, evaluation, step=0):
        self.lines.write("test", task=self.owner.name, **evaluation_metrics(self.owner, evaluation))

    def log_adapter(self):
        self.lines.write("adapter", task=self.owner.name, bytes=self.owner.num_bytes())


@pytest.fixture
def data(labelled_clips):
    return labelled_clips[:6], labelled_clips[6:9], labelled_clips[6:]


@pytest.fixture
def log(tmp_path):
    return JsonLines(tmp_path / "log.jsonl")


def read(log):
    return [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]


def test_a_tracker_of_ones_own_follows_a_sequence(small_backbone, data, log):
    labels = sorted({label for part in data for _, label in part})
    stages = [Stage(name, *data, {"method": "prompt", "labels": labels}, FIT) for name in ("first", "second")]
    with log.sequence("mine") as run:
        result = train_sequence(AdapterBank(small_backbone), stages, tracker=run, progress=False)
    entries = read(log)
    of_task = ["epoch", "epoch", "training", "test", "adapter", "scores"]
    assert [entry["event"] for entry in entries] == ["sequence", *of_task, *of_task, "result", "end"]
    (last,) = (entry for entry in entries if entry["event"] == "result")
    assert last["matrix"] == result.matrix
    first = next(entry for entry in entries if entry["event"] == "test")
    assert first["test/score"] == first["test/accuracy"] == result.matrix[0][0]
    epochs = [entry for entry in entries if entry["event"] == "epoch" and entry["task"] == "second"]
    assert [entry["val/score"] for entry in epochs] == [e["val/accuracy"] for e in result.histories["second"].epochs]


def test_a_tracker_of_ones_own_follows_tasks_that_are_trained_at_once(small_backbone, data, log):
    labels = sorted({label for part in data for _, label in part})
    bank = AdapterBank(small_backbone)
    for name in ("first", "second"):
        bank.add_task(name, "prompt", labels=labels)
    train, val, _ = data
    with log.sequence("mine") as run:
        histories = fit_many(bank, ["first", "second"], train, val, tracker=run, progress=False, **FIT)
    trained = [entry for entry in read(log) if entry["event"] == "training"]
    assert {entry["task"]: entry["steps"] for entry in trained} == {n: h.steps for n, h in histories.items()}


def test_the_metrics_of_a_task_are_named_by_the_table_and_nan_is_left_out(small_bank):
    task = small_bank.task("notes")
    record = {"train/loss": 1.0, "lr": 0.1, "val/accuracy": 0.5, "val/loss": float("nan"), "val/unknown": 3.0}
    assert epoch_metrics(task, record) == {"train/loss": 1.0, "val/accuracy": 0.5, "val/score": 0.5}
    assert epoch_metrics(task, {"train/loss": 1.0}) == {"train/loss": 1.0}
