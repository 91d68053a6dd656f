"""What `check` finds: each kind is planted by hand among sounds that have none of it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from adapterbank.data import DatasetReport, FolderDataset, check_splits, demo_tasks, load_folder, standard_splits
from adapterbank.data.check import (
    ACROSS_SPLITS,
    CLIPPED,
    DUPLICATE,
    FEW,
    LONG,
    SHARED_GROUP,
    SHORT,
    SILENT,
    TWO_LABELS,
    UNREADABLE,
    UNTRAINED,
)
from adapterbank.errors import ConfigError

RATE = 16_000


def noise(seed: int, seconds: float = 0.5) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 0.1


def write(root: Path, name: str, samples: npt.NDArray[np.float64], rate: int = RATE, **options: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(root / name, samples, rate, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six sound clips of two classes."""
    for place, name in enumerate(f"{label}/{i}.wav" for label in ("cat", "dog") for i in range(3)):
        write(tmp_path, name, noise(place))
    return tmp_path


def check(root: Path | FolderDataset, **options: object) -> DatasetReport:
    dataset = root if isinstance(root, FolderDataset) else load_folder(root)
    return dataset.check(progress=False, min_clips=2, **options)  # type: ignore[arg-type]


def names(report: DatasetReport, kind: str) -> list[str]:
    return [row.file.name for row in report.of(kind) if row.file]


def test_a_sound_dataset_has_an_empty_report(root: Path) -> None:
    report = check(root)
    assert report.rows == ()
    assert report.ok
    assert str(report) == f"{root.name}: 6 clips, nothing found."


def test_every_unreadable_clip_is_listed_with_its_reason(root: Path) -> None:
    (root / "cat" / "0.wav").write_bytes((root / "cat" / "0.wav").read_bytes()[:-1000])
    (root / "dog" / "1.wav").write_bytes(b"no audio")
    (root / "dog" / "2.wav").write_bytes(b"")
    report = check(root)
    assert not report.ok
    assert [row.file for row in report.problems] == [
        root / "cat" / "0.wav",
        root / "dog" / "1.wav",
        root / "dog" / "2.wav",
    ]
    assert {row.kind for row in report.problems} == {UNREADABLE}
    for reason, row in zip(("is cut", "cannot be decoded", "is empty"), report.rows, strict=True):
        assert reason in row.detail
    assert str(root / "dog" / "2.wav") in str(report)


def test_copies_are_found_under_other_names_containers_lengths_of_silence_and_sample_formats(root: Path) -> None:
    whole = np.rint(noise(50) * 32768) / 32768  # what 16 bit hold
    write(root, "cat/first.wav", whole)
    write(root, "cat/in_flac.flac", whole, subtype="PCM_24")
    write(root, "cat/in_float.wav", whole, subtype="FLOAT")
    write(root, "cat/padded.wav", np.pad(whole, (300, 900)))
    write(root, "cat/stereo.au", np.stack([whole, whole], axis=1))
    write(root, "cat/louder.wav", whole * 1.1)
    report = check(root)
    assert names(report, DUPLICATE) == ["in_flac.flac", "in_float.wav", "padded.wav", "stereo.au"]
    assert {row.other for row in report.of(DUPLICATE)} == {root / "cat" / "first.wav"}
    assert report.ok


def test_a_copy_under_another_label_is_a_problem(root: Path) -> None:
    write(root, "dog/copy.wav", noise(0))
    (row,) = check(root).rows
    assert (row.kind, row.label, row.other) == (TWO_LABELS, "dog", root / "cat" / "0.wav")
    assert row.problem
    assert "'cat'" in row.detail


@pytest.mark.parametrize("by", ["split", "fold"])
def test_a_copy_across_splits_or_folds_is_a_problem(tmp_path: Path, by: str) -> None:
    for place in range(4):
        write(tmp_path, f"{place}.wav", noise(place % 3))  # the last is the first
    parts = ("train", "train", "test", "test") if by == "split" else (1, 1, 2, 2)
    lines = [f"{i}.wav,{'ab'[i % 2] if i < 3 else 'a'},{part}" for i, part in enumerate(parts)]
    (tmp_path / "metadata.csv").write_text("\n".join([f"file,label,{by}", *lines]))
    (row,) = check(tmp_path).of(ACROSS_SPLITS)
    assert (row.file, row.other) == (tmp_path / "3.wav", tmp_path / "0.wav")


def test_drawn_parts_can_be_checked_against_each_other(root: Path) -> None:
    write(root, "dog/copy.wav", noise(4))
    dataset = load_folder(root)
    place = [file.name for file in dataset.files].index("copy.wav")
    others = [i for i in range(len(dataset)) if i != place]
    train, test = dataset.subset(indices=others), dataset.subset(indices=[place])
    report = check_splits(train, test=test, progress=False)
    assert [row.other.name for row in report.of(ACROSS_SPLITS) if row.other] == ["1.wav"]
    assert not check_splits(train, progress=False).of(ACROSS_SPLITS)


def test_a_speaker_on_both_sides_is_told_once(tmp_path: Path) -> None:
    for place in range(4):
        write(tmp_path, f"{place}.wav", noise(place))
    lines = "0.wav,a,train,ann\n1.wav,b,train,bob\n2.wav,a,test,ann\n3.wav,b,test,ann\n"
    (tmp_path / "metadata.csv").write_text(f"file,label,split,speaker\n{lines}")
    (row,) = check(tmp_path).of(SHARED_GROUP)
    assert "'ann'" in row.detail
    assert not row.problem


def test_silent_short_long_and_clipped_clips_are_found(root: Path) -> None:
    write(root, "cat/silent.wav", np.zeros(RATE))
    write(root, "cat/offset.wav", np.full(RATE, 0.25))
    write(root, "cat/quiet.wav", noise(60) * 0.01)
    write(root, "cat/short.wav", noise(61, 0.006))
    write(root, "dog/long.wav", noise(62, 12.0))
    write(root, "dog/clipped.wav", np.clip(noise(63) * 30, -1, 1) * 0.99)
    write(root, "dog/tone.wav", np.sin(np.arange(44_100) * 2 * np.pi * 30 / 44_100), rate=44_100)
    report = check(root)
    assert names(report, SILENT) == ["offset.wav", "silent.wav"]
    assert names(report, SHORT) == ["short.wav"]
    assert names(report, LONG) == ["long.wav"]
    assert names(report, CLIPPED) == ["clipped.wav"]
    assert set(report.counts) == {SILENT, SHORT, LONG, CLIPPED}  # digital silence is no copy of other silence
    assert not check(root, min_seconds=0.001, max_seconds=100.0).of(SHORT)


def test_small_and_untrained_classes_are_named(tmp_path: Path) -> None:
    for place in range(4):
        write(tmp_path, f"{place}.wav", noise(place))
    (tmp_path / "metadata.csv").write_text(
        "file,label,split\n0.wav,a,train\n1.wav,a,train\n2.wav,b,test\n3.wav,a,test\n"
    )
    report = check(tmp_path)
    assert [(row.kind, row.label) for row in report.rows] == [(UNTRAINED, "b"), (FEW, "b")]


def test_a_report_goes_into_a_csv(root: Path, tmp_path: Path) -> None:
    write(root, "dog/copy, of.wav", noise(0))
    report = check(root)
    report.to_csv(tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert (row["kind"], row["problem"], row["file"]) == (TWO_LABELS, "1", str(root / "dog" / "copy, of.wav"))


@pytest.mark.parametrize("options", [{"min_seconds": 0}, {"max_seconds": "60"}, {"min_clips": -1}, {"min_clips": True}])
def test_options_that_cannot_work_are_refused(root: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        load_folder(root).check(progress=False, **options)  # type: ignore[arg-type]


def test_a_check_changes_nothing(root: Path) -> None:
    dataset = load_folder(root)
    before = [dataset[index][0].clone() for index in range(len(dataset))]
    dataset.check(progress=False)
    assert all(
        (wave == again).all() for wave, (again, _) in zip(before, map(dataset.__getitem__, range(6)), strict=True)
    )


@pytest.mark.parametrize("name", ["instruments", "mandarin_tones", "studio_samples"])
def test_the_demo_recordings_can_all_be_read_and_share_nothing_across_splits(name: str) -> None:
    report = load_folder(demo_tasks()[name]).check(progress=False)
    assert not report.of(UNREADABLE)
    assert not report.of(ACROSS_SPLITS)


def test_esc50s_two_shared_recordings_are_found(shared_data: Path) -> None:
    dataset = load_folder(shared_data / "esc50")
    chosen = [i for i, group in enumerate(dataset.groups) if group in ("fs209698", "fs234879")]
    report = dataset.subset(indices=chosen).check(progress=False)
    assert {row.detail.split("'")[1] for row in report.of(SHARED_GROUP)} == {"fs209698", "fs234879"}
    assert standard_splits(dataset)
