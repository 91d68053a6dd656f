"""evaluate and compare."""

from __future__ import annotations

import json
import shutil

import pytest

from adapterbank.bank import AdapterBank
from adapterbank.data import load_folder, standard_splits
from adapterbank.mislabels import probable_mislabels


def test_evaluate_gives_the_metrics_of_the_bank_on_the_part_asked_for(run, bank_folder, recordings):
    bank = AdapterBank.load(bank_folder, device="cpu")
    dataset = load_folder(recordings)
    parts = dict(zip(("train", "val", "test"), standard_splits(dataset), strict=True), all=dataset)
    for split in ("test", "all"):
        (record,) = json.loads(run("evaluate", "-d", recordings, "-t", "notes", "--split", split, "--json").stdout)
        expected = bank.evaluate("notes", parts[split])
        assert (record["clips"], record["split"]) == (len(parts[split]), split)
        assert record["metrics"] == pytest.approx(dict(expected), abs=1e-5)
        assert record["interval"] == pytest.approx(expected.interval, abs=1e-5)
    shown = run("evaluate", "-d", recordings, "-t", "notes").stdout
    assert all(word in shown for word in ("accuracy", "bass", "brass", "organ"))
    row = run("evaluate", "-d", recordings, "-t", "notes", "--csv").stdout.splitlines()
    assert row[0].startswith("task,split,clips,accuracy")
    assert row[1].startswith("notes,test,")


def test_data_with_other_classes_is_refused(run, bank_folder, recordings, tmp_path):
    other = tmp_path / "other" / "cat"
    other.mkdir(parents=True)
    for file in (recordings / "bass").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    result = run("evaluate", "-d", other.parent, "-t", "notes", "--split", "all", code=2)
    assert "cat" in result.stderr
    assert "Traceback" not in result.output
    assert "expected one of" in run("evaluate", "-d", recordings, "-t", "notes", "--split", "x", code=2).stderr


def test_compare_shows_two_tasks_side_by_side(run, bank_folder):
    shown = run("compare", "notes", "lora_notes").stdout
    assert "aat_ms" in shown
    assert "lora" in shown
    both = json.loads(run("compare", "notes", "lora_notes", "--json").stdout)
    assert both["difference"] is None
    assert [fact["task"] for fact in both["tasks"]] == ["notes", "lora_notes"]
    assert "unknown task 'nix'" in run("compare", "notes", "nix", code=2).stderr


def test_compare_tests_both_on_the_same_clips(run, bank_folder, recordings):
    bank, dataset = AdapterBank.load(bank_folder, device="cpu"), load_folder(recordings)
    scores = [bank.evaluate(name, dataset)["accuracy"] for name in ("notes", "lora_notes")]
    found = json.loads(run("compare", "notes", "lora_notes", "-d", recordings, "--split", "all", "--json").stdout)
    difference = found["difference"]
    assert difference["value"] == pytest.approx(scores[0] - scores[1], abs=1e-6)
    assert difference["low"] <= difference["value"] <= difference["high"]
    same = json.loads(run("compare", "notes", "notes", "-d", recordings, "--split", "all", "--json").stdout)
    assert [same["difference"][key] for key in ("low", "value", "high")] == [0, 0, 0]
    assert "95% interval" in run("compare", "notes", "lora_notes", "-d", recordings, "--split", "all").stdout
    assert "other classes" in run("compare", "notes", "tags", "-d", recordings, code=2).stderr


def test_check_lists_what_is_wrong_with_a_folder(run, bank_folder, recordings, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(recordings, folder)
    assert "36" in run("check", folder).stdout
    (folder / "bass" / "broken.wav").write_text("?")
    found = json.loads(run("check", folder, "--json", code=1).stdout)
    assert any(row["problem"] and row["file"].endswith("broken.wav") for row in found)
    assert "broken.wav" in run("check", folder, code=1).stdout
    doubted = json.loads(run("check", recordings, "-t", "notes", "--json").stdout)
    bank = AdapterBank.load(bank_folder, device="cpu")
    expected = probable_mislabels(bank, "notes", load_folder(recordings))
    assert sum("heard as" in row["detail"] for row in doubted) == len(expected) > 0
    assert "nix" in run("check", "nix", code=2).stderr


@pytest.mark.filterwarnings("always::adapterbank.errors.CalibrationWarning")  # a task of random values knows nothing
def test_calibrate_stores_with_the_task_what_the_bank_finds(run, bank_folder, recordings):
    run("train", "fresh", "-d", recordings, "--method", "head", "--steps", 20, "--lr", 0.03, "--no-mlflow")
    expected = AdapterBank.load(bank_folder, device="cpu").calibrate("fresh", load_folder(recordings))
    found = json.loads(run("calibrate", "-d", recordings, "-t", "fresh", "--split", "all", "--json").stdout)
    assert found["temperature"] == pytest.approx(expected.temperature, rel=1e-3)
    after = AdapterBank.load(bank_folder, device="cpu")
    assert after.task("fresh").calibration.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert after.task("tags").calibration is None
    assert "temperature" in run("calibrate", "-d", recordings, "-t", "notes").stdout
    manifest = (bank_folder / "manifest.json").read_bytes()
    assert "nix" in run("calibrate", "-d", "nix", "-t", "notes", code=2).stderr
    assert (bank_folder / "manifest.json").read_bytes() == manifest
