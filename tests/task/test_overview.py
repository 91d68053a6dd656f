"""A summary of tasks: data for a program, a table for a person."""

from __future__ import annotations

import copy
import math
import pickle

from rich.console import Console

from adapterbank.bank import AdapterBank
from adapterbank.task.overview import Summary, overview


def summary_of(bank: AdapterBank) -> Summary:
    return overview(bank.backbone, [task.facts() for task in bank.tasks.values()])


def test_a_row_holds_the_numbers_of_its_task(small_bank):
    small_bank.task("notes").metrics = {"accuracy": 0.75, "loss": 1.0}
    found = summary_of(small_bank)
    assert [row.task for row in found] == list(small_bank.tasks)
    for row in found:
        task = small_bank.task(row.task)
        assert (row.method, row.classes) == (task.method, len(task.labels))
        assert (row.parameters, row.bytes) == (task.trainable_parameters(), task.num_bytes())
        assert row.percent_of_base == 100 * row.parameters / small_bank.backbone.num_parameters()
        assert row.metric == "accuracy"
        assert row.value == 0.75 if row.task == "notes" else math.isnan(row.value)


def test_a_task_of_many_labels_is_compared_by_map(small_bank):
    small_bank.add_task("many", "head", num_classes=2, multilabel=True)
    assert math.isnan(summary_of(small_bank)[-1].value)
    small_bank.task("many").metrics = {"accuracy": 0.9, "map": 0.5}
    assert summary_of(small_bank)[-1][-2:] == ("map", 0.5)


def test_its_table_says_the_same_in_80_columns(small_bank):
    small_bank.task("notes").metrics = {"accuracy": 0.75}
    console = Console(width=80)
    with console.capture() as printed:
        console.print(summary_of(small_bank).table())
    text = printed.get()
    assert all(name in text for name in small_bank.tasks)
    assert "random: 2 x 48" in text
    assert "accuracy 0.750" in text
    assert max(map(len, text.splitlines())) <= 80


def test_it_is_shown_in_a_line_and_survives_copies(small_bank):
    found = summary_of(small_bank)
    assert repr(found) == "Summary of 6 tasks: notes, tones, studio, mix, own, probe"
    for again in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (list(map(str, again)), again.title, type(again)) == (list(map(str, found)), found.title, Summary)
    assert repr(Summary([])) == "Summary of 0 tasks: none yet"
