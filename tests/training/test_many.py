"""Tasks trained together come out as if each had been trained alone; one that fails fails alone."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.data.digest import data_facts
from adapterbank.errors import ConfigError, LabelsError, UnknownNameError, WaveformError
from adapterbank.training import many as module
from adapterbank.training.callbacks import BaseCallback
from adapterbank.training.fit import fit
from adapterbank.training.many import fit_many

LABELS = ["bass", "brass", "organ"]
TASKS = {
    "a": ("aat_ms", {}),
    "b": ("aat_ms", {"layers": [1]}),
    "c": ("joint", {"normalize": (-5.0, 3.0)}),
    "d": ("partial", {"blocks": 1}),
    "e": ("head", {"train_final_norm": True}),
    "f": ("aat_m", {"dropout": 0.3, "clip_seconds": 1.0}),
    "g": ("full", {}),
    "h": ("conformer", {"layers": [1], "reduction": 8}),
}
QUICK = {"epochs": 2, "batch_size": 5, "lr": 3e-3, "precision": "fp32", "progress": False}


def bank_of(backbone, *names):
    bank = AdapterBank(backbone)
    for name in names or TASKS:
        method, options = TASKS[name]
        bank.add_task(name, method, labels=LABELS, **options)
    return bank


def bits(bank):
    tensors = {f"base.{name}": tensor.clone() for name, tensor in bank.backbone.weights.named()}
    for name, task in bank.tasks.items():
        tensors.update({f"{name}.{key}": tensor.clone() for key, tensor in task.state_dict().items()})
    return tensors


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def assert_alike(history, alone):
    assert (history.steps, history.best_epoch, history.error) == (alone.steps, alone.best_epoch, "")
    for one, other in zip(history.epochs, alone.epochs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("order", ["task", "shared"])
@pytest.mark.parametrize("packed", [1, 10**6], ids=["each alone", "all in one matmul"])
def test_every_method_learns_in_company_what_it_learns_alone(
    order, packed, small_backbone, labelled_clips, monkeypatch
):
    # No option: only speed depends on it, and rows enough to fill a pack would make this test take minutes.
    monkeypatch.setattr(module, "PACKED_TOKENS", packed)
    options = {**QUICK, "order": order, "freq_mask": 6, "time_mask": 0.1, "crop_seconds": 0.5}
    together, apart = bank_of(small_backbone), bank_of(small_backbone)
    base = bits(AdapterBank(small_backbone))
    histories = fit_many(together, list(TASKS), labelled_clips, labelled_clips[:4], **options)
    for name in TASKS:
        assert_alike(histories[name], fit(apart, name, labelled_clips, labelled_clips[:4], **options))
        assert together.task(name).metrics == pytest.approx(apart.task(name).metrics, abs=1e-4)
        assert not together.task(name).training
        assert all(parameter.grad is None for parameter in together.task(name).parameters())
    assert not changed(base, bits(together))


def test_options_and_data_are_each_tasks_own(small_backbone, labelled_clips):
    together, apart = bank_of(small_backbone, "a", "b", "d"), bank_of(small_backbone, "a", "b", "d")
    own = {"a": {"lr": 1e-2, "batch_size": 3}, "b": {"seed": 4, "steps": 2}, "d": {"epochs": 3, "cache": "memory"}}
    data = {"a": labelled_clips, "b": labelled_clips[:7], "d": iter(labelled_clips[3:])}
    val = {"a": None, "b": labelled_clips[7:], "d": labelled_clips[:2]}
    histories = fit_many(together, own, data, val, **QUICK)
    data["d"] = labelled_clips[3:]
    for name, options in own.items():
        assert_alike(histories[name], fit(apart, name, data[name], val[name], **{**QUICK, **options}))
        assert histories[name].options["lr"] == options.get("lr", QUICK["lr"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_in_company_as_alone(precision, small_backbone, labelled_clips):
    names, options = ["a", "b", "d"], {**QUICK, "precision": precision, "freq_mask": 0, "time_mask": 0}
    together, apart = bank_of(small_backbone, *names), bank_of(small_backbone, *names)
    histories = fit_many(together, names, labelled_clips, **options)
    for name in names:
        alone = fit(apart, name, labelled_clips, **options)
        losses = [record["train/loss"] for record in histories[name].epochs]
        assert losses == pytest.approx([record["train/loss"] for record in alone.epochs], abs=0.02)


class Counted(list):
    """Clips that count how often one of them is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_clips_in_shared_order_are_read_once_for_all_tasks(small_backbone, labelled_clips):
    names = ["a", "b", "c", "d"]
    shared, apart = Counted(labelled_clips), Counted(labelled_clips)
    fit_many(bank_of(small_backbone, *names), names, shared, **QUICK, order="shared", head_start=False)
    assert shared.reads == 2 * len(labelled_clips)
    fit_many(bank_of(small_backbone, *names), names, apart, **QUICK, head_start=False)
    assert apart.reads == 4 * 2 * len(labelled_clips)


def test_tasks_in_shared_order_get_the_same_batches(small_backbone, labelled_clips):
    heard = {"a": [], "b": []}

    class Heard(BaseCallback):
        def on_step(self, state):
            heard[state.task.name].append(state.batch)

    fit_many(
        bank_of(small_backbone, "a", "b"), ["a", "b"], labelled_clips, callbacks=[Heard()], order="shared", **QUICK
    )
    assert len(heard["a"]) == 6
    assert all(one is other for one, other in zip(heard["a"], heard["b"], strict=True))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_task_that_diverges_stops_alone_and_comes_back_as_it_was(where, small_backbone, labelled_clips):
    names = ["a", "b", "d"]
    together, apart = bank_of(small_backbone, *names), bank_of(small_backbone, *names)
    together.task("b").metrics = {"accuracy": 0.5}
    before = {key: value for key, value in bits(together).items() if key.startswith("b.")}
    own = {"a": {}, "b": {"lr": 1e30}, "d": {}}
    if where == "gradient":
        own["b"] = {}
        together.task("b").head.linear.weight.register_hook(lambda gradient: gradient * math.nan)
    histories = fit_many(together, own, labelled_clips, labelled_clips[:4], **QUICK)
    failed = histories["b"]
    assert ("gave loss nan" if where == "loss" else "gave gradient norm nan at step 0") in failed.error
    assert "The task is as it was before. Try a lower lr" in failed.error
    assert failed.best_epoch == -1
    assert not changed(before, {key: value for key, value in bits(together).items() if key.startswith("b.")})
    assert together.task("b").metrics == {"accuracy": 0.5}
    assert not together.task("b").training
    for name in ("a", "d"):
        assert_alike(histories[name], fit(apart, name, labelled_clips, labelled_clips[:4], **QUICK))


@pytest.mark.parametrize("order", ["task", "shared"])
@pytest.mark.parametrize("method", ["aat_ms", "lora", "conformer", "prompt"])
def test_a_loss_that_is_nan_stops_one_of_several_that_share_their_matmuls(
    method, order, small_backbone, labelled_clips
):
    options = {"reduction": 8} if method == "conformer" else {}
    banks = [AdapterBank(small_backbone), AdapterBank(small_backbone)]
    for bank in banks:
        for name in ("a", "b", "c"):
            bank.add_task(name, method, labels=LABELS, **options)
    together, apart = banks
    before = bits(together)
    own = {"a": {}, "b": {"lr": 1e30}, "c": {}}
    histories = fit_many(together, own, labelled_clips, **QUICK, order=order)
    assert "gave loss nan" in histories["b"].error
    assert {key.split(".")[0] for key in changed(before, bits(together))} == {"a", "c"}
    for name in ("a", "c"):
        assert_alike(histories[name], fit(apart, name, labelled_clips, **QUICK, order=order))


def test_caches_of_tasks_trained_together_lie_where_each_was_told(small_backbone, labelled_clips, tmp_path):
    bank = bank_of(small_backbone, "b", "d", "e")
    own = {"b": {"cache": "memory"}, "d": {"cache": str(tmp_path / "d")}, "e": {"cache": str(tmp_path / "e")}}
    fit_many(bank, own, labelled_clips, **QUICK)
    assert {path.parent.parent.name for path in tmp_path.glob("*/*/*.safetensors")} == {"d", "e"}


def test_clips_that_several_tasks_keep_are_read_and_computed_once(small_backbone, labelled_clips):
    bank, data = AdapterBank(small_backbone), Counted(labelled_clips)
    for name in ("one", "two", "three"):
        bank.add_task(name, "aat_ms", labels=LABELS, layers=[1])
    fit_many(bank, list(bank.tasks), data, **QUICK, cache="memory", order="shared")
    assert data.reads == 2 * len(labelled_clips)  # to name them, and to compute what is kept


def test_nothing_that_one_task_does_changes_a_bit_of_the_others_in_its_batch(small_backbone, labelled_clips):
    states = []
    for rate in (1e-3, 1e-1):
        bank = bank_of(small_backbone, "a", "b", "h")
        bank.add_task("other", "aat_ms", labels=LABELS)
        fit_many(bank, {"a": {}, "other": {"lr": rate}, "b": {}, "h": {}}, labelled_clips, **QUICK, order="shared")
        states.append(bits(bank))
    assert {key.split(".")[0] for key in changed(*states)} == {"other"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_any_other_error_gives_all_tasks_back(error, small_backbone, labelled_clips):
    bank = bank_of(small_backbone, "a", "b")
    before = bits(bank)

    def stop(task, epoch, record):
        if (task, epoch) == ("b", 1):
            raise error

    with pytest.raises(error):
        fit_many(bank, {"a": {"epochs": 1}, "b": {}}, labelled_clips, on_epoch=stop, **QUICK)
    assert not changed(before, bits(bank))
    assert not any(task.training for task in bank.tasks.values())


@pytest.mark.parametrize(
    ("tasks", "train", "options", "error", "message"),
    [
        ([], [], {}, ConfigError, r"got the tasks \[\], expected at least one"),
        (["a", "a"], [], {}, ConfigError, "each once"),
        (["a", "x"], [], {}, UnknownNameError, "unknown task 'x'. .*Known: a, b"),
        ({"a": {"rate": 1}}, [], {}, UnknownNameError, "unknown option of fit 'rate'"),
        (["a"], [], {"order": "random"}, UnknownNameError, "unknown order 'random'. .*Known: shared, task"),
        (["a", "b"], {"a": []}, {}, ConfigError, r"got data for \['a'\], expected it for each task: \['a', 'b'\]"),
        (["a"], [(torch.zeros(900), "dog")], {}, LabelsError, "label 'dog'"),
        (["a"], [(torch.full((900,), math.nan), 0)], {}, WaveformError, "NaN"),
    ],
)
@pytest.mark.filterwarnings("ignore::adapterbank.errors.UntrainedClassesWarning")
def test_what_cannot_work_is_refused_and_changes_nothing(tasks, train, options, error, message, small_backbone):
    bank = bank_of(small_backbone, "a", "b")
    before = bits(bank)
    with pytest.raises(error, match=message):
        fit_many(bank, tasks, train, **{**QUICK, **options})
    assert not changed(before, bits(bank))


def test_times_are_shared_out_and_epochs_reported_per_task(small_backbone, labelled_clips, capsys):
    seen = []
    bank = bank_of(small_backbone, "a", "e")
    options = {**QUICK, "progress": True}
    histories = fit_many(
        bank, {"a": {"steps": 2}, "e": {}}, labelled_clips, on_epoch=lambda *x: seen.append(x), **options
    )
    assert [entry[:2] for entry in seen] == [("a", 0), ("e", 0), ("e", 1)]
    assert histories["e"].seconds == pytest.approx(3 * histories["a"].seconds)  # 6 steps, and 2
    shown = capsys.readouterr().out
    assert "a (aat_ms)" in shown
    assert "e (head)" in shown


def test_each_task_has_a_run_and_that_of_a_stopped_one_is_failed(small_backbone, labelled_clips, tmp_path):
    mlflow = pytest.importorskip("adapterbank.tracking.mlflow")
    tracker = mlflow.Tracker("many", f"sqlite:///{tmp_path / 'runs.db'}")
    bank = bank_of(small_backbone, "a", "b")
    with tracker.sequence("both") as sequence:
        fit_many(bank, {"a": {}, "b": {"lr": 1e30}}, labelled_clips, tracker=sequence, **QUICK)
    runs = {name: tracker.client.get_run(run) for name, run in sequence.task_runs.items()}
    assert {name: run.info.status for name, run in runs.items()} == {"a": "FINISHED", "b": "FAILED"}
    assert runs["a"].data.metrics["train_seconds"] > 0
    assert runs["a"].data.params["train_clips"] == "12"
    assert "TrainingDivergedError" in runs["b"].data.tags["error"]


class OwnRun:
    """A run of a tracker that inherits from nothing: it writes down what it is told."""

    def __init__(self, calls):
        self.calls = calls

    def __enter__(self):
        self.calls.append("open")
        return self

    def __exit__(self, kind, error, at):
        self.calls.append("closed" if kind is None else kind.__name__)

    def log_epoch(self, epoch, record):
        self.calls.append((epoch, sorted(record)))

    def log_training(self, history):
        self.calls.append((history.steps, history.seconds > 0))


class OwnTracker:
    def __init__(self):
        self.calls = {}

    def task(self, bank, task, *, params=None, tags=None):
        self.calls[task] = [(bank.task(task).method, dict(params), dict(tags))]
        return OwnRun(self.calls[task])


@pytest.mark.parametrize("interrupted", [False, True])
def test_any_tracker_is_told_of_epochs_and_of_the_end(interrupted, small_backbone, labelled_clips):
    def stop(task, epoch, record):
        if interrupted and (task, epoch) == ("a", 1):
            raise KeyboardInterrupt

    tracker, bank = OwnTracker(), bank_of(small_backbone, "a", "b")
    own = {"a": {}, "b": {"lr": 1e30}}
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        fit_many(bank, own, labelled_clips, labelled_clips[:4], tracker=tracker, on_epoch=stop, **QUICK)
    facts = data_facts(train=labelled_clips, val=labelled_clips[:4])
    opened = ("aat_ms", facts, {"strategy": "fit_many"})
    record = ["lr", "train/loss", "val/accuracy", "val/balanced_accuracy", "val/loss", "val/macro_f1"]
    end = ["KeyboardInterrupt"] if interrupted else [(6, True), "closed"]
    assert tracker.calls["a"] == [opened, "open", (0, record), (1, record), *end]
    assert tracker.calls["b"] == [opened, "open", "TrainingDivergedError"]


def test_tasks_that_keep_the_same_activations_compute_them_once(small_backbone, labelled_clips):
    bank, data = bank_of(small_backbone, "b", "d"), Counted(labelled_clips)
    bank.add_task("again", "lora", labels=LABELS, layers=[1])
    fit_many(bank, ["b", "d", "again"], data, cache="memory", **QUICK)
    assert data.reads == 2 * len(labelled_clips)
