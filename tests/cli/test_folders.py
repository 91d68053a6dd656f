"""Commands on a folder of clips: files that no option reads, deeper folders, folds."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from adapterbank.bank import AdapterBank
from adapterbank.data import load_folder

QUICK = ("--steps", 2, "--no-mlflow", "--method", "head")
READING = {
    "train": ("train", "more", *QUICK, "--data"),
    "evaluate": ("evaluate", "-t", "notes", "--data"),
    "calibrate": ("calibrate", "-t", "notes", "--data"),
    "compare": ("compare", "notes", "lora_notes", "--data"),
    "check": ("check",),
}
calm = pytest.mark.filterwarnings("ignore::adapterbank.errors.CalibrationWarning")


@pytest.fixture
def broken(recordings, tmp_path):
    """The recordings with one file that libsndfile does not decode and one that is no audio."""
    folder = tmp_path / "broken"
    shutil.copytree(recordings, folder)
    (folder / "bass" / "phone.m4a").write_bytes(b"....")
    (folder / "organ" / "bad.wav").write_text("?")
    return folder


@calm
@pytest.mark.parametrize("command", READING)
def test_clips_that_cannot_be_read_are_left_out_if_that_is_said(run, bank_folder, broken, command):
    refused = run(*READING[command], broken, code=2)
    assert "phone.m4a" in refused.stderr
    assert "--on-error skip" in refused.stderr
    assert "on_error" not in refused.stderr
    assert refused.stdout == ""
    done = run(*READING[command], broken, "--on-error", "skip", code=1)
    assert "phone.m4a" in done.stderr
    assert "bad.wav" in done.stdout + done.stderr


def test_what_was_trained_without_broken_clips_is_in_the_bank(run, bank_folder, broken):
    report = json.loads(run(*READING["train"], broken, "--on-error", "skip", "--json", code=1).stdout)
    assert sum(report["clips"].values()) == 36
    assert "more" in AdapterBank.load(bank_folder).tasks


@calm
@pytest.mark.parametrize("command", READING)
def test_clips_of_deeper_folders_are_read_if_that_is_said(run, bank_folder, recordings, tmp_path, command):
    folder = tmp_path / "deep"
    for place, file in enumerate(sorted(recordings.rglob("*.ogg"))):
        into = folder / file.parent.name / f"player{place % 6}"
        into.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, into)
    refused = run(*READING[command], folder, code=2)
    assert "pass --recursive" in refused.stderr
    run(*READING[command], folder, "--recursive", code=0)


def test_evaluate_tests_on_the_fold_that_train_left_out(run, bank_folder, recordings, tmp_path):
    files = sorted(recordings.rglob("*.ogg"))
    with open(tmp_path / "folds.csv", "w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle)
        rows.writerow(["filename", "label", "fold"])
        rows.writerows([file, file.parent.name, place % 4] for place, file in enumerate(files))
    expected = AdapterBank.load(bank_folder, device="cpu").evaluate(
        "notes", load_folder(tmp_path / "folds.csv", folds=1)
    )
    asked = ("evaluate", "-d", "folds.csv", "-t", "notes", "--test-fold", 1, "--json")
    (found,) = json.loads(run(*asked).stdout)
    assert found["metrics"] == pytest.approx(dict(expected), abs=1e-5)


@pytest.mark.parametrize("command", READING)
def test_a_wrong_way_of_reading_is_refused(run, bank_folder, recordings, command):
    result = run(*READING[command], recordings, "--on-error", "ignore", code=2)
    assert "got --on-error ignore, expected 'raise' or 'skip'" in result.stderr
    assert result.stdout == ""
