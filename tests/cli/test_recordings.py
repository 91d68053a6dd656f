"""scan: the events of `bank.scan`, in every form, and what is left out of a broken recording."""

from __future__ import annotations

import csv
import io
import json
import warnings

import numpy as np
import pytest
import soundfile

from adapterbank.audio.read import read_audio
from adapterbank.bank import AdapterBank


@pytest.fixture
def recording(recordings, tmp_path):
    """Eight clips one behind the other: about ten seconds."""
    waves = [read_audio(file).numpy() for file in sorted(recordings.rglob("*.ogg"))[::5]]
    soundfile.write(tmp_path / "day.wav", np.concatenate(waves), 16_000)
    return tmp_path / "day.wav"


def test_scan_gives_the_events_of_the_bank_in_every_form(run, bank_folder, recording, tmp_path):
    bank = AdapterBank.load(bank_folder, device="cpu")
    expected = bank.scan(recording, ["notes", "tags"], window=1.0, hop=0.5, progress=False).events(merge_gap=0.2)
    asked = ("scan", recording, "-t", "notes", "-t", "tags", "--window", 1, "--hop", 0.5, "--merge-gap", 0.2)
    events = json.loads(run(*asked, "--json").stdout)
    assert [(e["task"], e["label"], e["onset"], e["offset"]) for e in events] == [
        (e.task, e.label, pytest.approx(e.onset, abs=1e-3), pytest.approx(e.offset, abs=1e-3)) for e in expected
    ]
    assert [float(row["score"]) for row in csv.DictReader(io.StringIO(run(*asked, "--csv").stdout))] == pytest.approx(
        [event.score for event in expected], abs=1e-4
    )
    run(*asked, "-o", "day.csv", "-o", "day.txt", "-o", "day.png", "-o", "day.json")
    assert len((tmp_path / "day.txt").read_text(encoding="utf-8").splitlines()) == len(expected)
    assert (tmp_path / "day.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "day.json").read_text(encoding="utf-8")) == events
    assert "windows of 1 s" in run(*asked).stdout
    assert "in 1 window of 60 s" in run("scan", recording, "-t", "notes", "--window", 60).stdout


def test_without_a_window_it_is_that_of_the_training(run, bank_folder, recording, recordings):
    run("train", "more", "-d", recordings, "--steps", 1, "--no-mlflow", "--method", "head")
    lengths = [len(wave) / 16_000 for wave in (read_audio(file) for file in recordings.rglob("*.ogg"))]
    bank = AdapterBank.load(bank_folder, device="cpu")
    known = bank.task("more").trained_clip_seconds
    assert min(lengths) <= known <= max(lengths)
    assert f"windows of {known:g} s" in run("scan", recording, "-t", "more").stdout
    assert "windows of 5 s" in run("scan", recording, "-t", "notes").stdout
    assert f"{known}" in run("info", "more").stdout


def test_a_recording_that_breaks_is_answered_up_to_there_with_code_1(run, bank_folder, recording):
    samples, rate = soundfile.read(recording, dtype="float32")
    samples[len(samples) // 2] = np.nan
    soundfile.write(recording, samples, rate, subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("scan", recording, "-t", "notes", "--window", 1, "--json", code=1)
    assert json.loads(result.stdout)
    assert "warning" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nix.wav",), "nix.wav"),
        (("recordings",), "got the folder recordings, expected one recording"),
        (("day.wav", "--hop", "0"), "got --hop 0.0, expected at least 0.01 seconds; left out"),
        (("day.wav", "--threshold", "1.5"), "got --threshold 1.5"),
        (("day.wav", "-t", "nots"), "Did you mean 'notes'"),
        (("day.wav", "-o", "day.mp4"), "expected a name that ends in"),
        (("day.wav", "-o", "nix/day.csv"), "does not exist"),
        (("day.wav", "--window", "1000"), "window"),
        (("day.wav", "--bank", "nix"), "there is no bank"),
    ],
)
def test_wrong_usage_ends_with_code_2(run, bank_folder, recording, tmp_path, arguments, said):
    (tmp_path / "recordings").mkdir()
    result = run("scan", *arguments, code=2)
    assert said in result.stderr
    assert "Traceback" not in result.output
