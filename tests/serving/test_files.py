"""Answers about many files: every file in its place, with what the bank itself says of it, in bounded memory."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import soundfile
import torch

from adapterbank.audio.read import read_audio
from adapterbank.data import demo_tasks
from adapterbank.errors import AudioFileError, ConfigError, DatasetError, WaveformError
from adapterbank.serving import files as serving
from adapterbank.serving.files import answer_files, find_audio, over_files


@pytest.fixture
def recordings(tmp_path):
    """Seven real recordings under names that sort otherwise than they were written."""
    chosen = [sorted(folder.glob("*.ogg"))[place] for place in (0, 9, 21) for folder in demo_tasks().values()][:7]
    for place, file in enumerate(chosen):
        (tmp_path / f"{(place * 3) % 7}{file.suffix}").write_bytes(file.read_bytes())
    return tmp_path


def test_every_file_gets_what_the_bank_says_of_it_whatever_the_batches_and_threads(small_bank, recordings):
    files = find_audio([recordings])
    tasks = [small_bank.task(name) for name in ("notes", "tones")]
    expected = {
        (file, name): small_bank.predict([read_audio(file)], name)[0].probabilities
        for file in files
        for name in ("notes", "tones")
    }
    for batch_size, threads in ((1, 1), (3, 2), (16, 4)):
        answers = list(answer_files(small_bank.backbone, tasks, files, batch_size=batch_size, threads=threads))
        assert [answer.file for answer in answers] == files
        for answer in answers:
            assert answer.error is None
            for name, prediction in answer.predictions.items():
                assert prediction.probabilities == pytest.approx(expected[answer.file, name], abs=1e-5)


def test_a_broken_file_keeps_its_place_and_costs_no_other_its_answer(small_bank, recordings):
    (recordings / "3.ogg").write_bytes((recordings / "3.ogg").read_bytes()[:-900])
    (recordings / "9.wav").write_text("no audio")
    files = [*find_audio([recordings]), recordings / "absent.wav"]
    answers = list(answer_files(small_bank.backbone, [small_bank.task("notes")], files, batch_size=4))
    assert [answer.file.name for answer in answers if answer.error] == ["3.ogg", "9.wav", "absent.wav"]
    assert all(isinstance(answer.error, AudioFileError) for answer in answers if answer.error)
    assert all(set(answer.predictions) == {"notes"} for answer in answers if not answer.error)
    assert len(answers) == 9


def test_a_clip_that_a_batch_cannot_run_is_found_and_named(recordings):
    files = find_audio([recordings])
    bad = len(read_audio(files[2]))

    def compute(waveforms):
        if any(len(wave) == bad for wave in waveforms):
            raise WaveformError("too odd")
        return [len(wave) for wave in waveforms]

    outcomes = list(over_files(files, compute, batch_size=5))
    assert [str(outcome.error) for outcome in outcomes if outcome.error] == ["too odd"]
    assert [outcome.result for outcome in outcomes if not outcome.error] == [
        len(read_audio(file)) for file in files if file != files[2]
    ]


def test_an_error_that_is_not_about_a_clip_is_raised(small_bank, recordings):
    task = small_bank.task("notes")
    with pytest.raises(ConfigError, match="twice"):
        next(answer_files(small_bank.backbone, [task, task], find_audio([recordings])))
    with pytest.raises(ConfigError, match="batch_size=0"):
        next(over_files([], len, batch_size=0))


def test_no_more_than_two_batches_are_read_ahead_and_nothing_is_read_after_the_end(tmp_path, monkeypatch):
    read, open_ = [], threading.Event()
    monkeypatch.setattr(serving, "one_clip", lambda file: (read.append(file) or torch.ones(400), 16_000))
    names = [tmp_path / str(number) for number in range(100)]
    outcomes = over_files(iter(names), lambda waves: [open_.wait(0.05)] * len(waves), batch_size=4, threads=2)
    next(outcomes)
    assert len(read) <= 8
    outcomes.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_audio")]
    assert len(read) <= 8


# -- which files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """Recordings at several depths, among files that are none."""
    for name in ("b.wav", "a.WAV", "day1/c.wav", "day1/deep/d.flac", ".hidden/e.wav", ".f.wav", "day2/g.m4a"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".m4a", ".WAV")):
            file.write_bytes(b"...")
        else:
            soundfile.write(file, np.zeros(800, np.float32), 16_000)
    (tmp_path / "notes.txt").write_text("?")
    return tmp_path


def found(tree, *places):
    return [file.relative_to(tree).as_posix() for file in find_audio(places)]


def test_a_folder_stands_for_all_recordings_below_it_also_those_that_cannot_be_read(tree):
    assert found(tree, tree) == ["a.WAV", "b.wav", "day1/c.wav", "day1/deep/d.flac", "day2/g.m4a"]


def test_patterns_files_and_folders_are_taken_in_order_and_each_file_once(tree):
    assert found(tree, tree / "b.wav", f"{tree}/**/*.wav", tree) == [
        "b.wav", "day1/c.wav", "a.WAV", "day1/deep/d.flac", "day2/g.m4a",
    ]  # fmt: skip
    assert found(tree, f"{tree}/day?") == ["day1/c.wav", "day1/deep/d.flac", "day2/g.m4a"]


def test_a_named_file_stays_even_if_it_is_absent_or_has_another_suffix(tree):
    assert found(tree, tree / "notes.txt", tree / "nix.wav") == ["notes.txt", "nix.wav"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tree):
    (tree / "day1").rename(tree / "day[1]")
    assert found(tree, tree / "day[1]" / "c.wav") == ["day[1]/c.wav"]
    assert found(tree, tree / "day[1]") == ["day[1]/c.wav", "day[1]/deep/d.flac"]


@pytest.mark.parametrize(
    ("place", "said"), [("*.mp3", "matches nothing"), ("*.txt", "matches 1 file, but no audio"), ("nix/", "nix")]
)
def test_what_means_no_file_is_refused(tree, place, said):
    with pytest.raises(DatasetError, match=said):
        find_audio([f"{tree}/{place}"])
    (tree / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no audio"):
        find_audio([tree / "empty", tree])
