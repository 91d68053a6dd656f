"""predict, ask and embed: what the library says, in three forms, whatever is among the files."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from adapterbank.audio.read import read_audio
from adapterbank.bank import AdapterBank
from adapterbank.cli import options
from adapterbank.task.calibration import Calibration


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def bank(bank_folder):
    return AdapterBank.load(bank_folder, device="cpu")


def test_predict_says_in_csv_and_json_what_the_bank_says(run, bank, clips):
    files = sorted(clips.iterdir())
    rows = rows_of(run("predict", clips, "--task", "notes", "--csv", "--top", 2).stdout)
    records = json.loads(run("predict", clips, "--task", "notes", "--json").stdout)
    assert [row["file"] for row in rows] == [record["file"] for record in records] == [str(file) for file in files]
    for file, row, record in zip(files, rows, records, strict=True):
        (expected,) = bank.predict([read_audio(file)], "notes")
        assert (row["label"], row["label_2"], row["error"]) == (*expected.labels[:2], "")
        assert [float(row["probability"]), float(row["probability_2"])] == pytest.approx(
            expected.probabilities[:2], abs=1e-4
        )
        assert record["label_3"] == expected.labels[2]
        assert "error" not in record


def test_a_person_sees_a_table_with_the_classes_of_one_file_and_a_line_for_each_of_several(run, bank, clips):
    one, *others = sorted(clips.iterdir())
    (expected,) = bank.predict([read_audio(one)], "notes")
    shown = run("predict", one, "--task", "notes").stdout
    assert str(one) in shown
    assert all(f"{value:.3f}" in shown for value in expected.probabilities)
    assert "█" in shown
    many = run("predict", "clips/*", "-t", "notes", "--top", 1).stdout
    assert all(file.name in many for file in (one, *others))


def test_ask_answers_all_tasks_at_once_or_those_asked_for(run, bank, clips):
    rows = rows_of(run("ask", clips, "--csv", "--top", 1).stdout)
    files = sorted(clips.iterdir())
    assert [(row["file"], row["task"]) for row in rows] == [(str(f), name) for f in files for name in bank.tasks]
    for row in rows:
        (expected,) = bank.predict([read_audio(row["file"])], row["task"])
        assert row["label"] == expected.labels[0]
    two = json.loads(run("ask", files[0], "-t", "tags", "-t", "notes", "--json").stdout)
    assert [record["task"] for record in two] == ["tags", "notes"]
    assert "lora_notes" in run("ask", clips).stdout


def test_a_broken_clip_is_named_and_the_others_are_answered_with_exit_code_1(run, bank_folder, clips):
    (clips / "b.wav").write_text("no audio")
    (clips / "c.m4a").write_bytes(b"....")
    good = len(list(clips.glob("*.ogg")))
    result = run("predict", clips, "--task", "notes", "--csv", code=1)
    rows = rows_of(result.stdout)
    assert [row["file"].rpartition("/")[2] for row in rows if row["error"]] == ["b.wav", "c.m4a"]
    assert sum(bool(row["label"]) for row in rows) == good
    assert "b.wav" in result.stderr
    assert f"2 of {good + 2} clips failed" in result.stderr
    shown = run("predict", clips, "--task", "notes", code=1)
    assert "Traceback" not in shown.output
    records = json.loads(run("embed", clips, "--json", code=1).stdout)
    assert sum("error" in record for record in records) == 2


def test_if_all_clips_fail_nothing_is_answered_and_the_code_is_1(run, bank_folder, tmp_path):
    (tmp_path / "b.wav").write_text("no audio")
    assert rows_of(run("predict", "b.wav", "-t", "notes", "--csv", code=1).stdout)[0]["label"] == ""
    assert json.loads(run("ask", "b.wav", "--json", code=1).stdout)[0]["file"] == "b.wav"
    run("predict", "b.wav", "-t", "notes", code=1)
    run("embed", "b.wav", "-o", "f.npz", code=1)


def test_a_threshold_leaves_out_classes_and_may_leave_none(run, bank_folder, clips):
    file = sorted(clips.iterdir())[0]
    assert "none" in run("predict", file, "-t", "notes", "--threshold", 1).stdout
    assert "none" in run("ask", clips, "--threshold", 1).stdout
    (row,) = rows_of(run("predict", file, "-t", "notes", "--threshold", 1, "--csv").stdout)
    assert (row["label"], row["error"]) == ("", "")
    everything = json.loads(run("predict", file, "-t", "tags", "--threshold", 0, "--json").stdout)
    assert {"label", "label_2"} <= everything[0].keys()


@pytest.mark.parametrize("threshold", [0.0, 0.34, 0.5, 0.9, None])
@pytest.mark.parametrize("task", ["notes", "tags"])
def test_a_threshold_gives_the_labels_that_the_bank_gives(run, bank, clips, task, threshold):
    said = options.OWN if threshold is None else threshold
    records = json.loads(run("predict", clips, "-t", task, "--threshold", said, "--json").stdout)
    for record in records:
        (expected,) = bank.predict(record["file"], task, threshold=threshold)
        shown = [value for key, value in record.items() if key.startswith("label") and value]
        assert tuple(shown) == expected.present[:3]
        assert (record["label"] or None) == expected.label


def test_a_label_as_probable_as_the_threshold_is_not_given_as_in_python(run, bank, clips):
    file = sorted(clips.iterdir())[0]
    (expected,) = bank.predict(str(file), "notes")
    (record,) = json.loads(run("predict", file, "-t", "notes", "--threshold", expected.confidence, "--json").stdout)
    assert record["label"] == ""
    assert "none" in run("predict", file, "-t", "notes", "--threshold", expected.confidence).stdout


def test_thresholds_that_were_calibrated_are_those_of_a_task(run, bank, bank_folder, clips):
    bank.task("tags").calibration = Calibration(1.0, (0.999, 0.0))
    bank.save(bank_folder)
    for record in json.loads(run("ask", clips, "-t", "tags", "--threshold", "own", "--json").stdout):
        (expected,) = bank.predict(record["file"], "tags")
        assert record["label"] == expected.label == "low"
    for wrong in ("2", "-0.1", "nan", "high"):
        result = run("predict", clips, "-t", "tags", f"--threshold={wrong}", code=2)
        assert f"got --threshold {wrong}, expected a probability from 0 to 1, or own" in result.stderr


def test_output_goes_to_a_file_whose_name_says_the_format(run, bank_folder, clips, tmp_path):
    printed = run("predict", clips, "-t", "notes", "--csv").stdout
    assert run("predict", clips, "-t", "notes", "-o", "a.csv").stdout == ""
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == printed
    run("ask", clips, "-o", "a.json")
    assert len(json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))) == 3 * len(list(clips.iterdir()))
    for name, said in (("a.xlsx", "expected a name that ends in"), ("nix/a.csv", "does not exist")):
        assert said in run("predict", clips, "-t", "notes", "-o", name, code=2).stderr


def test_embed_gives_the_features_of_the_backbone(run, bank, clips, tmp_path):
    files = sorted(clips.iterdir())
    expected = bank.embed([read_audio(file) for file in files]).numpy()
    run("embed", clips, "-o", "f.npz")
    stored = np.load(tmp_path / "f.npz")
    assert stored["files"].tolist() == [str(file) for file in files]
    np.testing.assert_allclose(stored["features"], expected, atol=1e-5)
    rows = rows_of(run("embed", clips, "--csv").stdout)
    np.testing.assert_allclose([[float(row[f"f{i}"]) for i in range(48)] for row in rows], expected, atol=1e-5)
    assert "48" in run("embed", files[0]).stdout
    assert "unknown pooling" in run("embed", clips, "--pooling", "max", code=2).stderr


def test_embed_needs_no_bank(run, clips, backbone_folder):
    records = json.loads(run("embed", clips, "--backbone", backbone_folder, "--json").stdout)
    assert {len(record["features"]) for record in records} == {48}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("predict", "clips", "--task", "nots"), "Did you mean 'notes'"),
        (("predict", "clips"), "say which with --task: notes, lora_notes, tags"),
        (("predict", "clips", "-t", "notes", "--bank", "nix"), "there is no bank at nix"),
        (("ask", "clips", "--bank", "nix"), "adapterbank train NAME --data FOLDER --bank nix"),
        (("predict", "clips/*.mp3", "-t", "notes"), "matches nothing"),
        (("predict", "my_bank", "-t", "notes"), "holds no audio"),
        (("predict", "nix.wav", "-t", "notes"), "got nix.wav, which does not exist"),
        (("predict", "clips", "-t", "notes", "--csv", "--json"), "choose one"),
        (("predict", "clips", "-t", "notes", "--device", "tpu9"), "got --device tpu9, which cannot be used here"),
        (("ask", "clips", "-t", "nix"), "unknown task 'nix'"),
        (("predict", "clips", "-t", "notes", "--precision", "fp8"), "unknown precision 'fp8'"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_one_message(run, bank_folder, clips, arguments, said):
    result = run(*arguments, code=2)
    assert said in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_the_only_task_of_a_bank_needs_no_name(run, bank_folder, clips):
    for name in ("lora_notes", "tags"):
        run("remove", name, "--yes")
    assert "notes" in run("predict", clips, "--csv").stdout


def test_labels_and_files_that_look_like_markup_are_shown_as_they_are(run, bank_folder, clips):
    sorted(clips.iterdir())[0].rename(clips / "[red]dog.ogg")
    shown = run("predict", "clips", "-t", "notes").stdout  # a long path would be folded inside the name
    assert "[red]dog.ogg" in shown


def test_a_lower_precision_gives_nearly_the_same_probabilities(run, bank_folder, clips):
    exact, rounded = (
        json.loads(run("predict", clips, "-t", "notes", "--json", "--precision", precision).stdout)
        for precision in ("fp32", "bf16")
    )
    assert exact != rounded
    for one, other in zip(exact, rounded, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=0.05)
