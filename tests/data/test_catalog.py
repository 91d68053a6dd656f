from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from adapterbank.data import demo_tasks, load_folder, lookup, names
from adapterbank.data.catalog import DatasetInfo
from adapterbank.errors import LabelsError


def known(name: str) -> DatasetInfo:
    info = lookup(name)
    assert info is not None
    return info


def indexed(pack: Path, part: int) -> tuple[str, ...]:
    """Labels in the order of the class index that stands in the pack's file names."""
    with (pack / "metadata.csv").open(newline="") as handle:
        order = {int(Path(row["filename"]).stem.split("-")[part]): row["label"] for row in csv.DictReader(handle)}
    return tuple(order[i] for i in sorted(order))


def test_class_counts_and_lengths_are_the_published_ones() -> None:
    expected = {
        "esc50": (50, 5.0, False),
        "urbansound8k": (10, 4.0, False),
        "speechcommands": (35, 1.0, False),
        "speechcommands_v1": (30, 1.0, False),
        "gtzan": (10, 30.0, False),
        "openmic": (20, 10.0, True),
        "instruments": (10, None, False),
        "mandarin_tones": (4, None, False),
        "studio_samples": (9, None, False),
    }
    assert {n: (len(known(n).labels), known(n).clip_seconds, known(n).multilabel) for n in names()} == expected


def test_esc50_has_the_order_of_its_target_column(shared_data: Path) -> None:
    assert known("esc50").labels == indexed(shared_data / "esc50", part=3)


def test_urbansound8k_has_the_order_of_its_class_ids(shared_data: Path) -> None:
    assert known("urbansound8k").labels == indexed(shared_data / "urbansound8k", part=1)


@pytest.mark.parametrize(("name", "pack"), [("speechcommands_v1", "speech_commands_v1_words"), ("gtzan", "gtzan_mini")])
def test_other_sets_are_in_alphabetical_order(shared_data: Path, name: str, pack: str) -> None:
    assert known(name).labels == load_folder(shared_data / pack).labels


def test_the_second_speech_commands_adds_five_words_to_the_first() -> None:
    first, second = known("speechcommands_v1").labels, known("speechcommands").labels
    assert set(second) - set(first) == {"backward", "follow", "forward", "learn", "visual"}
    assert set(first) < set(second)
    assert list(second) == sorted(second)


def test_demo_tasks_have_the_labels_of_their_folders() -> None:
    assert set(demo_tasks()) < set(names())
    for name, folder in demo_tasks().items():
        assert known(name).labels == load_folder(folder).labels


def test_aliases_and_case_find_the_same_entry() -> None:
    for alias in ("speechcommands_v2", "speech_commands", "SpeechCommands"):
        assert lookup(alias) is known("speechcommands")
    assert lookup("ESC-50") is known("esc50")


def test_an_unknown_name_is_none_and_not_a_guess() -> None:
    assert lookup("esc") is None


def test_every_entry_says_where_it_comes_from() -> None:
    for name in names():
        info = known(name)
        assert info.title
        assert info.licence
        assert info.url
        assert info.how_to_get.endswith(".")


def test_a_doubled_label_is_refused() -> None:
    with pytest.raises(LabelsError, match="lists labels twice: rock"):
        replace(known("gtzan"), labels=("rock", "pop", "rock"))
