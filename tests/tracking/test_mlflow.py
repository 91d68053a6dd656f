"""MLflow runs: one parent per sequence, one nested run per task, the same keys in each."""

import base64
import importlib.metadata
import json
import math
import shutil
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from sklearn.metrics import cohen_kappa_score

from adapterbank import __version__, evaluation, plots
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, TrainingDivergedError
from adapterbank.sequence import Stage, train_naive, train_sequence
from adapterbank.tracking.mlflow import COLUMNS, Tracker
from adapterbank.tracking.process import process_name
from adapterbank.training.callbacks import BaseCallback
from adapterbank.training.fit import fit

FIT = {"epochs": 2, "batch_size": 4, "lr": 1e-2, "precision": "fp32"}
METHODS = {"first": "aat_ms", "second": "prompt", "third": "head"}


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised, empty database: MLflow takes seconds to make one."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}")
    return file


@pytest.fixture
def store(fresh_store, tmp_path, monkeypatch):
    """The address of a store in the working folder, with nothing set in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def stages(labelled_clips):
    def stage(name, method):
        data = [(waveform, f"{name}-{label}") for waveform, label in labelled_clips]
        labels = sorted({label for _, label in data})
        return Stage(name, data[:6], data[6:9], data[6:], {"method": method, "labels": labels}, FIT)

    return [stage(name, method) for name, method in METHODS.items()]


def runs_of(store, experiment="adapterbank"):
    client = MlflowClient(store)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    tasks = {run.data.tags["task"]: run for run in found if "mlflow.parentRunId" in run.data.tags}
    return client, parents, tasks


def artifacts(client, run, folder=None):
    return sorted(entry.path for entry in client.list_artifacts(run.info.run_id, folder))


@pytest.fixture
def tracked(store, small_backbone, stages):
    bank = AdapterBank(small_backbone)
    with Tracker().sequence("demo", params={"seed": 0}, tags={"strategy": "bank"}) as parent:
        result = train_sequence(bank, stages, tracker=parent, progress=False)
    return (*runs_of(store), bank, result)


def test_a_sequence_is_one_parent_with_one_nested_run_per_task(tracked):
    _, parents, tasks, _, _ = tracked
    (parent,) = parents
    assert tasks.keys() == METHODS.keys()
    assert {run.data.tags["mlflow.parentRunId"] for run in tasks.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *tasks.values())} == {"FINISHED"}
    assert tasks["second"].info.run_name == "bank: second (prompt)"


def test_every_task_run_has_the_same_metrics_parameters_and_tags(tracked):
    _, _, tasks, _, _ = tracked
    assert all(set(COLUMNS) <= run.data.metrics.keys() for run in tasks.values())
    assert {"test/balanced_accuracy", "test/loss", "val/balanced_accuracy"} <= tasks["first"].data.metrics.keys()
    for kind in ("metrics", "params", "tags"):
        assert len({frozenset(getattr(run.data, kind)) for run in tasks.values()}) == 1
    assert {"task", "method", "backbone", "device", "primary_metric", "adapterbank", "strategy"} <= (
        tasks["first"].data.tags.keys()
    )
    assert {"method", "lr", "epochs", "batch_size", "schedule", "precision", "seed", "labels", "train_clips"} <= (
        tasks["first"].data.params.keys()
    )
    assert tasks["first"].data.tags["adapterbank"] == __version__


def test_what_a_run_says_is_what_was_measured(tracked):
    client, _, tasks, bank, result = tracked
    for column, name in enumerate(METHODS):
        run, history = tasks[name], result.histories[name]
        metrics = run.data.metrics
        assert metrics["test/score"] == metrics["test/accuracy"] == pytest.approx(result.matrix[-1][column], abs=1e-6)
        assert metrics["trainable_parameters"] == bank.trainable_parameters(name)
        expected = 100 * bank.trainable_parameters(name) / bank.backbone.num_parameters()
        assert metrics["percent_of_base"] == pytest.approx(expected, abs=1e-3)
        assert metrics["train_seconds"] == pytest.approx(history.seconds, abs=0.01)
        assert metrics["gpu_seconds"] == pytest.approx(history.gpu_seconds, abs=0.01)
        assert metrics["peak_memory_mb"] == pytest.approx(history.peak_memory_mb, abs=0.1)
        kept = history.epochs[history.best_epoch]["val/accuracy"]
        assert metrics["val/accuracy"] == metrics["val/score"] == pytest.approx(kept, abs=1e-6)
        losses = client.get_metric_history(run.info.run_id, "train/loss")
        trained = [record["train/loss"] for record in history.epochs]
        assert [point.value for point in losses] == pytest.approx(trained, abs=1e-6)
        assert [point.step for point in losses] == [0, 1]
        assert float(run.data.params["lr"]) == FIT["lr"]


def test_scores_after_every_training_are_points_of_each_tasks_own_run(tracked):
    client, _, tasks, _, result = tracked
    for column, name in enumerate(METHODS):
        points = client.get_metric_history(tasks[name].info.run_id, "test/score")
        assert {point.step: point.value for point in points} == {
            row: pytest.approx(result.matrix[row][column], abs=1e-6) for row in range(column, 3)
        }


def test_task_runs_hold_adapter_and_pictures_and_the_parent_the_matrix(tracked, small_backbone):
    client, (parent,), tasks, bank, result = tracked
    for name, run in tasks.items():
        assert artifacts(client, run) == [
            "adapter",
            "classes.json",
            "confusion_matrix.png",
            "learning_curve.png",
            "per_class.csv",
        ]
        assert artifacts(client, run, "adapter") == [f"adapter/{name}.safetensors"]
    assert artifacts(client, parent) == ["accuracy_matrix.json", "accuracy_matrix.png"]
    file = Path(tasks["first"].info.artifact_uri.removeprefix("file://")) / "adapter" / "first.safetensors"
    copy = AdapterBank(small_backbone)
    copy.import_task(file)
    assert all(
        (tensor == bank.task("first").state_dict()[key]).all()
        for key, tensor in copy.task("first").state_dict().items()
    )
    assert parent.data.metrics["average_accuracy"] == pytest.approx(result.numbers()["average_accuracy"], abs=1e-6)
    assert parent.data.metrics["bwt"] == 0.0


def test_the_saved_view_shows_columns_that_every_task_run_has(tracked):
    client, (parent,), tasks, _, _ = tracked
    tags = client.get_experiment(parent.info.experiment_id).tags
    packed = json.loads(tags["mlflow.sharedViewState.tasks"])["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    for column in state["selectedColumns"]:
        kind, name = column.rstrip("`").split(".`")
        assert kind == "attributes" or all(name in getattr(run.data, kind) for run in tasks.values())
    assert state["searchFilter"] == "tags.kind = 'task'"
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_naive_sequence_has_the_same_keys(store, small_backbone, stages):
    with Tracker().sequence("naive", tags={"strategy": "naive"}) as parent:
        train_naive(small_backbone, stages[:2], tracker=parent, progress=False)
    _, _, tasks = runs_of(store)
    assert all(set(COLUMNS) <= run.data.metrics.keys() for run in tasks.values())
    assert not any(math.isnan(run.data.metrics[key]) for run in tasks.values() for key in COLUMNS)


def test_a_resumed_task_shows_what_its_training_cost_then(store, small_backbone, stages, tmp_path):
    bank = AdapterBank(small_backbone)
    first = train_sequence(bank, stages[:1], folder=tmp_path / "bank", progress=False)
    with Tracker().sequence("again") as parent:
        train_sequence(bank, stages[:1], folder=tmp_path / "bank", resume=True, tracker=parent, progress=False)
    _, _, tasks = runs_of(store)
    assert tasks["first"].data.metrics["train_seconds"] == pytest.approx(first.histories["first"].seconds, abs=0.01)
    assert tasks["first"].data.tags["resumed"] == "True"


def test_what_was_not_measured_is_nan_so_that_the_keys_stay_the_same(store, small_bank):
    with Tracker().sequence("s") as parent, parent.task(small_bank, "notes"):
        pass
    _, _, tasks = runs_of(store)
    metrics = tasks["notes"].data.metrics
    assert {key for key in metrics if not key.startswith("system/")} == set(COLUMNS)
    assert math.isnan(metrics["test/score"])
    assert not math.isnan(metrics["percent_of_base"])


def test_one_entry_in_the_table_of_metrics_reaches_evaluation_history_tracker_and_plot(store, small_backbone, stages):
    def kappa(logits, targets):
        return cohen_kappa_score(targets, logits.argmax(dim=1))

    evaluation.register_metric(evaluation.Metric("kappa", single_label=kappa))
    try:
        bank = AdapterBank(small_backbone)
        with Tracker().sequence("demo") as parent:
            result = train_sequence(bank, stages[:1], tracker=parent, progress=False)
        measured = bank.evaluate("first", stages[0].test)["kappa"]
        found = result.evaluations["first"]
        assert measured == pytest.approx(kappa(found.logits, found.targets))
        history = result.histories["first"]
        assert all("val/kappa" in record for record in history.epochs)
        client, _, tasks = runs_of(store)
        assert tasks["first"].data.metrics["test/kappa"] == pytest.approx(measured, abs=1e-6)
        points = client.get_metric_history(tasks["first"].info.run_id, "val/kappa")
        validated = [record["val/kappa"] for record in history.epochs]
        assert [point.value for point in points][:2] == pytest.approx(validated, abs=1e-6)
        _, scores = plots.learning_curve(history.epochs).axes
        assert "val/kappa" in {line.get_label() for line in scores.get_lines()}
    finally:
        del evaluation.METRICS["kappa"]


def test_a_failed_training_ends_its_run_and_the_sequence_as_failed(store, small_backbone, stages):
    broken = Stage("second", stages[1].train, None, stages[1].test, stages[1].task_options, {"lr": 1e30, "epochs": 9})
    with pytest.raises(TrainingDivergedError), Tracker().sequence("demo") as parent:
        train_sequence(AdapterBank(small_backbone), [stages[0], broken], tracker=parent, progress=False)
    _, (parent_run,), tasks = runs_of(store)
    assert parent_run.info.status == "FAILED"
    assert {name: run.info.status for name, run in tasks.items()} == {"first": "FINISHED", "second": "FAILED"}
    assert "TrainingDivergedError" in tasks["second"].data.tags["error"]


def test_an_interrupted_run_is_marked_as_killed(store):
    with pytest.raises(KeyboardInterrupt), Tracker().sequence("demo"):
        raise KeyboardInterrupt
    assert runs_of(store)[1][0].info.status == "KILLED"


def test_the_default_store_is_in_the_working_folder_with_its_artifacts(store, tmp_path):
    with Tracker("mine").sequence("demo") as parent:
        parent.log_figure(plots.learning_curve([{"train/loss": 1.0}]), "curve.png")
    assert Tracker("mine").uri == store
    assert {entry.name for entry in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlartifacts"}
    assert list((tmp_path / "mlartifacts" / "mine").rglob("curve.png"))


def test_the_environments_store_is_respected(fresh_store, tmp_path, monkeypatch):
    elsewhere, work = tmp_path / "elsewhere", tmp_path / "work"
    elsewhere.mkdir()
    work.mkdir()
    shutil.copy(fresh_store, elsewhere / "runs.db")
    monkeypatch.chdir(work)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere / 'runs.db'}")
    with Tracker("mine").sequence("demo"):
        pass
    assert len(runs_of(f"sqlite:///{elsewhere / 'runs.db'}", "mine")[1]) == 1
    assert list(work.iterdir()) == []


def test_the_store_follows_the_working_folder(store, fresh_store, tmp_path, monkeypatch):
    with Tracker().sequence("here"):
        pass
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(fresh_store, elsewhere / "mlflow.db")
    monkeypatch.chdir(elsewhere)
    with Tracker().sequence("there"):
        pass
    for place, name in ((tmp_path, "here"), (elsewhere, "there")):
        assert [run.info.run_name for run in runs_of(f"sqlite:///{place / 'mlflow.db'}")[1]] == [name]


def test_an_argument_goes_before_the_environment(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
    assert Tracker(uri=store).uri == store


def test_mlflows_global_state_is_left_alone(store, small_bank):
    before = mlflow.get_tracking_uri()
    with Tracker().sequence("s") as parent, parent.task(small_bank, "notes"):
        assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before


def test_a_deleted_experiment_is_an_error_that_says_so(store):
    tracker = Tracker("mine")
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ConfigError, match="'mine' was deleted"):
        Tracker("mine")


def _start(uri):
    return Tracker("shared", uri).experiment_id


@pytest.mark.slow
def test_several_processes_may_start_on_a_fresh_store(tmp_path):
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        ids = list(pool.map(_start, [f"sqlite:///{tmp_path / 'mlflow.db'}"] * 3))
    assert len(set(ids)) == 1


@pytest.fixture
def parts(labelled_clips):
    return labelled_clips[:6], labelled_clips[6:9], labelled_clips[6:]


@pytest.fixture
def birds(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("birds", "prompt", labels=sorted({label for _, label in labelled_clips}))
    return bank


def test_three_lines_log_a_training_of_ones_own_with_its_adapter_file(store, birds, parts, tmp_path):
    train, val, test = parts
    with Tracker().task(birds, "birds") as run:
        history = fit(birds, "birds", train, val, callbacks=[run], progress=False, **FIT)
        evaluation = run.log_test(test)
    client, (found,), nested = runs_of(store)
    assert not nested  # a run of its own, without a parent
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "birds (prompt)"
    assert set(COLUMNS) <= found.data.metrics.keys()
    assert not any(math.isnan(found.data.metrics[key]) for key in COLUMNS)
    assert found.data.metrics["test/score"] == pytest.approx(birds.evaluate("birds", test)["accuracy"], abs=1e-6)
    assert evaluation.metrics == birds.evaluate("birds", test)
    assert found.data.metrics["cpu_seconds"] == pytest.approx(history.cpu_seconds, abs=0.01)
    assert [len(client.get_metric_history(found.info.run_id, "train/loss"))] == [len(history.epochs)]
    assert {f"{part}_clips": str(len(data)) for part, data in zip(("train", "val", "test"), parts, strict=True)} == {
        key: value for key, value in found.data.params.items() if key.endswith("_clips")
    }
    file = Path(found.info.artifact_uri.removeprefix("file://")) / "adapter" / "birds.safetensors"
    other = AdapterBank(birds.backbone)
    other.import_task(file)
    assert torch.equal(other([test[0][0]], "birds"), birds([test[0][0]], "birds"))


def test_a_task_run_of_ones_own_goes_into_a_sequence_as_well(store, birds, parts):
    tracker = Tracker()
    with tracker.sequence("mine") as sequence, tracker.task(birds, "birds", sequence=sequence) as run:
        fit(birds, "birds", parts[0], parts[1], callbacks=[run], progress=False, **FIT)
    _, (parent,), tasks = runs_of(store)
    assert tasks["birds"].data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_failed_training_of_ones_own_leaves_a_failed_run_without_adapter(store, birds, parts):
    with pytest.raises(TrainingDivergedError), Tracker().task(birds, "birds") as run:
        fit(birds, "birds", parts[0], callbacks=[run], progress=False, **{**FIT, "lr": 1e30, "epochs": 9})
    client, (found,), _ = runs_of(store)
    assert found.info.status == "FAILED"
    assert artifacts(client, found) == ["classes.json"]


def test_the_run_of_another_task_is_refused_before_the_training(store, birds, parts):
    birds.add_task("other", "head", labels=["x", "y"])
    said = "run of 'other' as a callback of a training of 'birds'"
    with pytest.raises(ConfigError, match=said), Tracker().task(birds, "other") as run:
        fit(birds, "birds", parts[0], callbacks=[run], progress=False, **FIT)


def test_what_mlflow_fails_at_is_a_warning_and_the_training_is_whole(store, birds, parts, monkeypatch):
    tracker = Tracker()

    def full(*_, **__):
        raise OSError("no space left")

    with warnings.catch_warnings(record=True) as seen, tracker.task(birds, "birds") as run:
        warnings.simplefilter("always")
        monkeypatch.setattr(tracker.client, "log_batch", full)
        history = fit(birds, "birds", parts[0], callbacks=[run], progress=False, **FIT)
    said = [str(warning.message) for warning in seen]
    assert all(text.endswith("OSError('no space left'). The training goes on.") for text in said)
    assert {text.split()[4].rstrip(":") for text in said} >= {"log_data", "log_epoch", "log_training"}
    assert history.steps == 4


def test_the_link_opens_the_page_of_machine_learning(store, small_bank, capsys):
    tracker = Tracker()
    with tracker.task(small_bank, "notes"):
        pass
    printed = capsys.readouterr()
    assert printed.out == ""
    assert tracker.link in printed.err
    assert tracker.link.startswith("http://localhost:5000/#/experiments/")
    assert "workflowType=machine_learning" in tracker.link
    assert "start MLflow's pages with: mlflow ui\n" in printed.err
    assert tracker.chart_link in printed.err
    assert "compareRunsMode=CHART" in tracker.chart_link
    assert "workflowType=machine_learning" in tracker.chart_link


def test_a_store_elsewhere_is_named_in_the_command_that_opens_it(fresh_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"--backend-store-uri sqlite:///{fresh_store}" in Tracker(uri=f"sqlite:///{fresh_store}").how_to_open()


def test_a_run_knows_its_data_classes_and_versions(tracked):
    client, _, tasks, bank, result = tracked
    for name, run in tasks.items():
        assert run.data.params["classes"] == ", ".join(bank.task(name).labels)
        file = client.download_artifacts(run.info.run_id, "classes.json")
        assert json.loads(Path(file).read_text())["classes"] == list(bank.task(name).labels)
        used = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
        assert {part: json.loads(dataset.profile)["clips"] for part, dataset in used.items()} == {
            "train": 6,
            "val": 3,
            "test": 6,
        }
        assert {dataset.digest for dataset in used.values()} == {
            run.data.params[f"{part}_digest"] for part in ("train", "val", "test")
        }
        assert run.data.tags["torch"] == importlib.metadata.version("torch")
        assert any(key.startswith("system/") for key in run.data.metrics)
        assert run.data.metrics["test/clips"] == 6
        table = Path(client.download_artifacts(run.info.run_id, "per_class.csv")).read_text()
        assert table == result.evaluations[name].as_csv()
        assert (
            run.data.metrics["test/score_low"] <= run.data.metrics["test/score"] <= run.data.metrics["test/score_high"]
        )


def test_system_metrics_can_be_left_out(store, small_bank):
    tracker = Tracker(system_metrics=False)
    with tracker.task(small_bank, "notes", show_link=False):
        pass
    _, (run,), _ = runs_of(store)
    assert not [key for key in run.data.metrics if key.startswith("system/")]


class Stopped(BaseException):
    """As if the process was told to stop."""


def stopped_in_the_second_task(store, small_backbone, stages, folder):
    """A sequence that ends in the second epoch of its second task."""

    class StopsThere(BaseCallback):
        def on_epoch(self, state):
            if state.epoch == 1:
                raise Stopped

    second = replace(stages[1], fit_options={**FIT, "callbacks": [StopsThere()]})
    with (
        pytest.raises(Stopped),
        Tracker().sequence("demo", params={"out": "a"}, run_file=folder / "runs.json") as parent,
    ):
        train_sequence(
            AdapterBank(small_backbone), [stages[0], second], folder=folder / "bank", tracker=parent, progress=False
        )


def test_a_resumed_sequence_continues_its_runs(store, small_backbone, stages, tmp_path):
    stopped_in_the_second_task(store, small_backbone, stages, tmp_path)
    client, (parent_before,), before = runs_of(store)
    statuses = {name: run.info.status for name, run in before.items()}
    assert statuses == {"first": "FINISHED", "second": "KILLED"}
    bank = AdapterBank.load(tmp_path / "bank", backbone=small_backbone)
    options = {"params": {"out": "b", "more": 1}, "run_file": tmp_path / "runs.json", "resume": True}
    with Tracker().sequence("demo again", **options) as parent:
        result = train_sequence(bank, stages, folder=tmp_path / "bank", resume=True, tracker=parent, progress=False)
    client, (parent_after,), after = runs_of(store)
    assert parent_after.info.run_id == parent_before.info.run_id
    assert {name: after[name].info.run_id for name in before} == {name: run.info.run_id for name, run in before.items()}
    assert after.keys() == METHODS.keys()
    assert {run.info.status for run in (parent_after, *after.values())} == {"FINISHED"}
    assert not any("error" in run.data.tags for run in (parent_after, *after.values()))
    assert parent_after.data.params == {"out": "a", "more": "1"}
    assert json.loads(parent_after.data.tags["resumed_with"]) == {"out": "b"}
    for name in METHODS:
        points = client.get_metric_history(after[name].info.run_id, "train/loss")
        assert [point.step for point in points] == [0, 1]  # none twice
        trained = [record["train/loss"] for record in result.histories[name].epochs]
        assert [point.value for point in points] == pytest.approx(trained, abs=1e-6)
        assert not any(math.isnan(after[name].data.metrics[key]) for key in COLUMNS)


def test_a_sequence_that_starts_anew_in_the_same_place_has_new_runs(store, small_bank, tmp_path):
    ids = []
    for _ in range(2):
        with Tracker().sequence("demo", run_file=tmp_path / "runs.json") as parent, parent.task(small_bank, "notes"):
            ids.append((parent.run_id, parent.task_runs["notes"]))
    assert len({*ids[0], *ids[1]}) == 4


def test_a_run_that_was_deleted_meanwhile_begins_anew_with_a_warning(store, tmp_path):
    with Tracker().sequence("demo", run_file=tmp_path / "runs.json") as parent:
        first = parent.run_id
    MlflowClient(store).delete_run(first)
    tracker = Tracker()
    with (
        pytest.warns(RuntimeWarning, match="is gone from .*; a new one begins"),
        tracker.sequence("demo", run_file=tmp_path / "runs.json", resume=True) as parent,
    ):
        assert parent.run_id != first


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"store": "elsewhere", "runs": {"": "abc"}}'])
def test_a_run_file_that_is_damaged_or_of_another_store_continues_nothing(store, tmp_path, damage):
    (tmp_path / "runs.json").write_text(damage)
    with Tracker().sequence("demo", run_file=tmp_path / "runs.json", resume=True) as parent:
        pass
    assert json.loads((tmp_path / "runs.json").read_text())["runs"][""] == parent.run_id


def test_the_run_of_a_process_that_was_killed_is_closed_by_the_next_tracker(store):
    gone = subprocess.run(
        [sys.executable, "-c", "from adapterbank.tracking.process import process_name as p; print(p())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    tracker = Tracker()
    client, names = MlflowClient(store), {"killed": gone, "living": process_name(), "elsewhere": "other:1/1/1"}
    for name, process in names.items():
        client.create_run(tracker.experiment_id, tags={"process": process}, run_name=name)
    Tracker()
    found = {run.info.run_name: run for run in runs_of(store)[1]}
    assert {name: run.info.status for name, run in found.items()} == {
        "killed": "KILLED",
        "living": "RUNNING",
        "elsewhere": "RUNNING",
    }
    assert "killed" in found["killed"].data.tags["error"]


@pytest.mark.slow
def test_sigterm_leaves_no_run_running(store, tmp_path):
    source = (
        "import time\nfrom adapterbank.tracking import Tracker\n"
        "with Tracker().sequence('demo'):\n    print('open', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", source], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert [run.info.status for run in runs_of(store)[1]] == ["KILLED"]
