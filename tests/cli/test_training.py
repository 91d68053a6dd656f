"""train: a task is in the bank when its training ends well, and the bank is as it was when it does not."""

from __future__ import annotations

import json
import warnings

import pytest

from adapterbank.bank import AdapterBank
from adapterbank.cli.training import options_of
from adapterbank.data import load_folder, standard_splits
from adapterbank.errors import ConfigError, TrainingDivergedError
from adapterbank.files import sha256
from adapterbank.training import fit as fitting

QUICK = ("--steps", 2, "--no-mlflow")


def state_of(folder):
    """Every file of a bank and what is in it."""
    return {file.name: sha256(file.read_bytes()) for file in folder.rglob("*.*") if file.suffix != ".lock"}


def test_train_makes_a_bank_with_a_task_that_the_next_command_uses(run, recordings, backbone_folder, tmp_path):
    shown = run("train", "mine", "--data", recordings, "--backbone", backbone_folder, *QUICK).stdout
    parts = standard_splits(load_folder(recordings))
    assert "36 clips, 3 classes" in shown
    assert [str(len(part)) for part in parts] == next(
        line.split()[1:] for line in shown.splitlines() if line.strip().startswith("all ")
    )
    assert "95% interval" in shown
    (command,) = (line.partition("next: adapterbank ")[2] for line in shown.splitlines() if line.startswith("next: "))
    assert "mine" in run(*command.split()).stdout
    bank = AdapterBank.load(tmp_path / "my_bank", device="cpu")
    assert bank.task("mine").labels == ("bass", "brass", "organ")
    metrics = bank.evaluate("mine", parts[2])
    assert metrics["accuracy"] == pytest.approx(AdapterBank.load("my_bank").task("mine").metrics["accuracy"])


def test_a_second_task_joins_the_bank_and_changes_no_bit_of_the_others(run, bank_folder, recordings):
    before = state_of(bank_folder)
    report = json.loads(run("train", "more", "-d", recordings, *QUICK, "--method", "prompt", "--json").stdout)
    assert report["clips"] == dict(
        zip(("train", "val", "test"), map(len, standard_splits(load_folder(recordings))), strict=True)
    )
    assert report["interval"][0] <= report["metrics"]["accuracy"] <= report["interval"][1]
    after = state_of(bank_folder)
    kept = {name: digest for name, digest in before.items() if name.endswith(".safetensors")}
    assert kept.items() <= after.items()
    assert list(AdapterBank.load(bank_folder).tasks) == ["notes", "lora_notes", "tags", "more"]


def test_an_existing_task_is_replaced_only_if_that_is_said(run, bank_folder, recordings):
    before = state_of(bank_folder)
    result = run("train", "notes", "-d", recordings, *QUICK, code=2)
    assert "--replace" in result.stderr
    assert result.stdout == ""
    assert state_of(bank_folder) == before
    run("train", "notes", "-d", recordings, *QUICK, "--replace", "--method", "head")
    bank = AdapterBank.load(bank_folder)
    assert bank.task("notes").method == "head"
    assert set(bank.tasks) == {"notes", "lora_notes", "tags"}


@pytest.mark.parametrize(("error", "code"), [(TrainingDivergedError("NaN"), 2), (KeyboardInterrupt(), 130)])
def test_a_training_that_fails_or_is_interrupted_leaves_the_bank_as_it_was(
    run, bank_folder, recordings, monkeypatch, error, code
):
    def fails(*_, **__):
        raise error

    before = state_of(bank_folder)
    monkeypatch.setattr(fitting, "fit", fails)
    result = run("train", "more", "-d", recordings, *QUICK, code=code)
    assert "Traceback" not in result.output
    assert state_of(bank_folder) == before
    run("train", "more", "-d", recordings, "--bank", "new_bank", *QUICK, code=code)
    assert not bank_folder.with_name("new_bank").exists()


def test_what_another_program_saved_meanwhile_is_kept(run, bank_folder, recordings, monkeypatch):
    real = fitting.fit

    def meanwhile(*arguments, **options):
        run("remove", "tags", "--yes")
        run("export", "notes", "notes.safetensors")
        run("import", "notes.safetensors", "--name", "theirs")
        return real(*arguments, **options)

    monkeypatch.setattr(fitting, "fit", meanwhile)
    run("train", "more", "-d", recordings, *QUICK)
    assert set(AdapterBank.load(bank_folder).tasks) == {"notes", "lora_notes", "theirs", "more"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "nix"), "nix"),
        (("--data", "DATA", "--method", "aat_mz"), "Did you mean 'aat_m"),
        (("--data", "DATA", "--method-option", "ratio"), "expected KEY=VALUE"),
        (("--data", "DATA", "--method-option", "ratoi=2"), "ratio"),
        (("--data", "DATA", "--method-option", "ratio=-2"), "ratio"),
        (("--data", "DATA", "--lr", "-1"), "got --lr -1"),
        (("--data", "DATA", "--epochs", "0"), "got --epochs 0"),
        (("--data", "DATA", "--clip-seconds", "-1"), "got --clip-seconds -1"),
        (("--data", "DATA", "--device", "tpu9"), "got --device tpu9"),
        (("--data", "DATA", "--backbone", "ast-mini-2"), "share its backbone"),
        (("--data", "DATA", "--test-fold", "1"), "no folds"),
        ((), "--data"),
    ],
)
def test_wrong_usage_is_refused_and_changes_nothing(run, bank_folder, recordings, arguments, said):
    before = state_of(bank_folder)
    given = [recordings if argument == "DATA" else argument for argument in arguments]
    result = run("train", "more", *given, *QUICK, code=2)
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert state_of(bank_folder) == before


def test_what_can_be_checked_without_the_clips_is_checked_before_they_are_read(
    run, bank_folder, recordings, monkeypatch, tmp_path
):
    """Whatever is wrong with an argument is said in place of what is wrong with the data."""
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong = {
        "'aat_mz'": ("--method", "aat_mz"),
        "--lr -1": ("--lr", "-1"),
        "tpu9": ("--device", "tpu9"),
        "share its backbone": ("--backbone", "ast-mini-2"),
        "a file": ("--bank", "file/bank"),
        "--batch-size 0": ("--batch-size", "0"),
        "ignore": ("--on-error", "ignore"),
    }
    (tmp_path / "file").write_text("")
    for said, arguments in wrong.items():
        assert said in run("train", "more", "-d", empty, *arguments, *QUICK, code=2).stderr
    assert "My Task" in run("train", "My Task", "-d", empty, *QUICK, code=2).stderr


def test_a_name_that_no_task_can_have_is_refused(run, recordings, backbone_folder, tmp_path):
    assert "My Task" in run("train", "My Task", "-d", recordings, *QUICK, "--backbone", backbone_folder, code=2).stderr
    assert not (tmp_path / "my_bank").exists()


def test_options_of_methods_are_read_as_python_writes_them():
    given = ["ratio=0.5", "layers=[0, 1]", "prompt.tokens=24", "prompt.init=zeros", "gate=true"]
    assert options_of(given) == {
        "ratio": 0.5, "layers": [0, 1], "prompt": {"tokens": 24, "init": "zeros"}, "gate": True,
    }  # fmt: skip
    for wrong in (["ratio"], ["=2"], ["a=1", "a=2"], ["prompt=1", "prompt.tokens=2"]):
        with pytest.raises(ConfigError):
            options_of(wrong)


def test_a_training_is_logged_to_mlflow_unless_that_is_declined(run, bank_folder, recordings, tmp_path):
    from adapterbank.tracking import Tracker

    assert "mlflow ui" in run("train", "more", "-d", recordings, "--steps", 1, "--method", "head").stdout
    tracker = Tracker()
    (found,) = tracker.client.search_runs([tracker.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.tags["task"] == "more"
    assert "test/accuracy" in found.data.metrics
    assert "mlflow" not in run("train", "other", "-d", recordings, *QUICK).stdout.lower()
    assert len(tracker.client.search_runs([tracker.experiment_id])) == 1


def test_an_mlflow_that_fails_costs_no_training(run, bank_folder, recordings, monkeypatch):
    from adapterbank.tracking import mlflow

    def broken(*_):
        raise OSError("no disk")

    monkeypatch.setattr(mlflow, "Tracker", broken)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("train", "more", "-d", recordings, "--steps", 1, "--method", "head")
    assert "warning: MLflow failed: OSError('no disk'). The training goes on without it." in result.stderr
    assert "more" in AdapterBank.load(bank_folder).tasks
