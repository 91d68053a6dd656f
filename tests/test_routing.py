"""The plan of a call: rows -> groups of one task and one length -> rows in their order."""

from __future__ import annotations

import random

import pytest
import torch

from adapterbank.routing import plan, run
from adapterbank.task import Task, TaskSpec


@pytest.fixture
def tasks(small_backbone):
    return [Task(TaskSpec(name, "head", ("x", "y")), small_backbone) for name in "abc"]


def test_every_row_stands_in_exactly_one_group_of_its_task_and_length(tasks):
    choose = random.Random(0)
    for _ in range(50):
        rows = [(choose.choice(tasks), choose.choice([16, 32, 48])) for _ in range(choose.randint(1, 12))]
        groups = plan([task for task, _ in rows], [frames for _, frames in rows])
        assert sorted(row for group in groups for row in group.rows) == list(range(len(rows)))
        assert all(rows[row] == (group.task, group.frames) for group in groups for row in group.rows)
        assert len({(id(group.task), group.frames) for group in groups}) == len(groups)


def test_groups_of_a_task_are_contiguous_and_sorted_by_length(tasks):
    a, b, _ = tasks
    groups = plan([b, a, b, a, b], [32, 16, 16, 16, 32])
    assert [(g.task.name, g.frames, g.rows) for g in groups] == [("b", 16, (2,)), ("b", 32, (0, 4)), ("a", 16, (1, 3))]


def test_the_plan_depends_on_the_layout_and_never_on_values(tasks, randomise):
    a, b, _ = tasks
    before = plan([a, b, a], [16, 16, 32])
    randomise(b)
    assert plan([a, b, a], [16, 16, 32]) == before


def test_two_tasks_of_one_name_are_two_tasks(small_backbone, randomise):
    # As in two banks, or a task and its copy: identity counts, never the name.
    one, two = (Task(TaskSpec("a", "head", ("x", "y")), small_backbone) for _ in range(2))
    randomise(two)
    mel = torch.randn(20, 128)
    with torch.no_grad():
        first, second = run(small_backbone, [one, two], [mel, mel])
        alone = run(small_backbone, [two], [mel])[0]
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(second, alone, rtol=0, atol=1e-5)


def test_lengths_of_the_call_win_over_those_of_the_task(small_backbone, tasks):
    mel = torch.randn(20, 128)
    with torch.no_grad():
        short, long = (run(small_backbone, tasks[:1], [mel], [s], pooled=True)[0] for s in (None, 1.0))
        padded = torch.cat((mel, torch.zeros(112 - 20, 128)))  # 1 s: 98 frames, 7 patches of 16
        by_hand = run(small_backbone, tasks[:1], [padded], pooled=True)[0]
    assert (short - long).abs().max() > 1e-3
    torch.testing.assert_close(long, by_hand, rtol=0, atol=1e-5)
