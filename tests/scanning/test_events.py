"""Windows of one label become one event where they overlap or touch, and files say the same."""

import csv

import pytest
import torch

from adapterbank.errors import ConfigError, StorageError, UnknownNameError
from adapterbank.scanning.events import Event, Track
from adapterbank.scanning.result import Scan

LABELS = ("cat", "dog", "owl")


def make(probabilities, *, multilabel=False, window=2.0, hop=2.0, thresholds=None, task="pets"):
    table = torch.tensor(probabilities)
    starts = hop * torch.arange(len(table), dtype=torch.float64)
    track = Track(task, LABELS, multilabel, table, thresholds)
    end = float(starts[-1]) + window
    return Scan("r.wav", end, window, hop, starts, starts + window, {task: track}, (), None, torch.zeros(9, 4))


CAT, DOG, OWL = [0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]


def spans(events):
    return [(event.label, event.onset, event.offset) for event in events]


def test_touching_windows_of_one_label_are_one_event_with_the_highest_score():
    scan = make([DOG, [0.05, 0.9, 0.05], CAT, DOG])
    assert spans(scan.events()) == [("dog", 0, 4), ("cat", 4, 6), ("dog", 6, 8)]
    assert [event.score for event in scan.events()] == pytest.approx([0.9, 0.7, 0.6])


def test_overlapping_windows_of_one_label_are_one_event():
    scan = make([DOG, DOG, CAT, CAT, CAT, DOG], window=3.0, hop=1.0)
    assert spans(scan.events()) == [("dog", 0, 4), ("cat", 2, 7), ("dog", 5, 8)]


def test_a_gap_separates_events_unless_it_is_merged():
    scan = make([DOG, CAT, DOG])
    assert spans(scan.events(merge_gap=2.0)) == [("dog", 0, 6), ("cat", 2, 4)]
    apart = make([DOG, DOG], window=1.0, hop=2.0)
    assert spans(apart.events()) == [("dog", 0, 1), ("dog", 2, 3)]
    assert spans(apart.events(merge_gap=1.0)) == [("dog", 0, 3)]


def test_short_events_are_left_out_on_request():
    scan = make([DOG, CAT, CAT, OWL])
    assert spans(scan.events(min_seconds=4.0)) == [("cat", 2, 6)]


def test_a_single_label_task_names_its_likeliest_label_if_that_exceeds_the_threshold():
    scan = make([CAT, DOG, [0.34, 0.33, 0.33]])
    assert [row.label for row in scan.windows()] == ["cat", "dog", "cat"]
    assert [row.label for row in scan.windows(threshold=0.65)] == ["cat"]
    assert spans(scan.events(threshold={"dog": 0.9})) == [("cat", 0, 2), ("cat", 4, 6)]


def test_a_multi_label_task_names_every_label_above_its_threshold():
    table = [[0.9, 0.6, 0.1], [0.2, 0.55, 0.1], [0.1, 0.1, 0.1]]
    scan = make(table, multilabel=True)
    assert spans(scan.events()) == [("cat", 0, 2), ("dog", 0, 4)]
    assert [row.label for row in scan.windows(threshold=0.15)] == ["cat", "dog", "cat", "dog"]
    own = make(table, multilabel=True, thresholds=(0.95, 0.5, 0.05))
    assert spans(own.events()) == [("dog", 0, 4), ("owl", 0, 6)]
    assert spans(own.events(threshold={"cat": 0.5, "dog": 1.0})) == [("cat", 0, 2), ("owl", 0, 6)]


def test_windows_without_an_answer_are_no_event_and_separate_none_from_none():
    scan = make([DOG, [float("nan")] * 3, DOG])
    assert spans(scan.events()) == [("dog", 0, 2), ("dog", 4, 6)]
    assert len(scan.windows()) == 2


def test_an_event_equals_the_union_of_its_windows_over_random_answers():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        table = torch.rand(40, 3, generator=generator)
        scan = make(table.tolist(), multilabel=True, window=1.5, hop=1.0)
        for label, name in enumerate(LABELS):
            active = torch.zeros(420, dtype=torch.bool)  # tenths of a second
            for window in range(40):
                if table[window, label] > 0.5:
                    active[10 * window : 10 * window + 15] = True
            drawn = torch.zeros_like(active)
            for _, onset, offset in [span for span in spans(scan.events()) if span[0] == name]:
                assert not drawn[round(10 * onset) : round(10 * offset)].any()
                drawn[round(10 * onset) : round(10 * offset)] = True
            assert torch.equal(active, drawn)


def test_a_csv_has_a_row_per_event_or_per_window(tmp_path):
    scan = make([DOG, DOG, CAT])
    scan.to_csv(tmp_path / "events.csv")
    scan.to_csv(tmp_path / "windows.csv", windows=True)
    with (tmp_path / "events.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["task"], row["label"], float(row["onset"]), float(row["offset"])) for row in rows] == [
        ("pets", "dog", 0, 4),
        ("pets", "cat", 4, 6),
    ]
    assert float(rows[0]["score"]) == pytest.approx(0.6)
    assert len((tmp_path / "windows.csv").read_text().splitlines()) == 4


def test_audacity_gets_a_line_per_event_with_tabs(tmp_path):
    scan = make([DOG, DOG, CAT])
    scan.to_audacity(tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_text() == "0.000000\t4.000000\tdog\n4.000000\t6.000000\tcat\n"


def test_audacity_labels_of_several_tasks_name_the_task_and_hold_no_tab(tmp_path):
    track = Track("odd", ("a\tb", "c\nd"), False, torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    scan = make([DOG, CAT])
    both = Scan(**{**vars(scan), "tracks": {**scan.tracks, "odd": track}})
    both.to_audacity(tmp_path / "labels.txt")
    lines = [line.split("\t") for line in (tmp_path / "labels.txt").read_text().splitlines()]
    assert [line[2] for line in lines] == ["pets: dog", "odd: a b", "pets: cat", "odd: c d"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threshold": 1.5}, ConfigError),
        ({"threshold": "high"}, ConfigError),
        ({"threshold": {"cow": 0.5}}, UnknownNameError),
        ({"task": "birds"}, UnknownNameError),
        ({"min_seconds": -1}, ConfigError),
        ({"merge_gap": float("nan")}, ConfigError),
    ],
)
def test_impossible_questions_are_refused(options, error):
    with pytest.raises(error):
        make([DOG]).events(**options)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(StorageError, match="nowhere"):
        make([DOG]).to_csv(tmp_path / "nowhere" / "x.csv")


def test_an_event_is_a_tuple_that_says_what_it_is():
    assert Event._fields == ("task", "label", "onset", "offset", "score")
