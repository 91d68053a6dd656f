"""The plan of a call: rows -> groups of one task and one length -> rows in their order."""

from __future__ import annotations

import random

import pytest
import torch

from adapterbank.routing.plan import Group, by_row, chunks, in_order, plan, stacked
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task


@pytest.fixture
def tasks(small_backbone):
    return [Task(TaskSpec(name, "head", ("x", "y")), small_backbone) for name in "abc"]


def test_every_row_stands_in_exactly_one_group_of_its_task_and_length(tasks):
    choose = random.Random(0)
    for _ in range(50):
        rows = [(choose.choice(tasks), choose.choice([16, 32, 48])) for _ in range(choose.randint(1, 12))]
        groups = plan([task for task, _ in rows], [frames for _, frames in rows])
        assert sorted(row for group in groups for row in group.rows) == list(range(len(rows)))
        assert all(rows[row] == (group.task, group.length) for group in groups for row in group.rows)
        assert len({(id(group.task), group.length) for group in groups}) == len(groups)


def test_groups_are_sorted_by_length_then_by_the_tasks_first_row(tasks):
    a, b, _ = tasks
    groups = plan([b, a, b, a, b], [32, 16, 16, 16, 32])
    assert [(g.task.name, g.length, g.rows) for g in groups] == [("b", 16, (2,)), ("a", 16, (1, 3)), ("b", 32, (0, 4))]


def test_the_plan_depends_on_the_layout_and_never_on_values(tasks, randomise):
    a, b, _ = tasks
    before = plan([a, b, a], [16, 16, 32])
    randomise(b)
    assert plan([a, b, a], [16, 16, 32]) == before


def test_equal_tasks_that_are_two_objects_are_in_two_groups(small_backbone):
    # As in two banks, or a task and its copy: identity counts, never the name.
    one, two = (Task(TaskSpec("a", "head", ("x", "y")), small_backbone) for _ in range(2))
    assert [group.rows for group in plan([one, two, one], [16] * 3)] == [(0, 2), (1,)]
    assert [group.rows for group in plan([None] * 3, [16, 32, 16])] == [(0, 2), (1,)]
    assert plan([], []) == []


def test_rows_come_back_in_the_order_of_the_call(tasks):
    choose = random.Random(1)
    rows = [torch.full((choose.choice([2, 3]), 4), float(row)) for row in range(12)]
    groups = plan([choose.choice(tasks) for _ in rows], [len(row) for row in rows])
    found = in_order(by_row(groups, stacked(groups, rows)))
    assert all(torch.equal(one, row) for one, row in zip(found, rows, strict=True))


def test_groups_that_hear_the_same_rows_alike_are_given_one_tensor(tasks):
    a, b, c = tasks
    clips = [torch.randn(16, 4) for _ in range(2)]
    groups = plan([a, a, b, b, c, c], [16] * 6)
    same = stacked(groups, clips * 3)
    assert same[0] is same[1] is same[2]
    assert torch.equal(same[0], torch.stack(clips))
    copies = stacked(groups, [*clips, *(clip.clone() for clip in clips), *reversed(clips)])
    assert len({id(x) for x in copies}) == 3  # equal numbers, and another order


def test_groups_that_prepare_differently_are_given_tensors_of_their_own(tasks):
    a, b, c = tasks
    clip = torch.randn(16, 4)
    scale = {id(a): 1.0, id(b): 2.0, id(c): 1.0}
    first, second, third = stacked(
        plan([a, b, c], [16] * 3),
        [clip] * 3,
        prepare=lambda group, row: scale[id(group.task)] * row,
        heard=lambda group: scale[id(group.task)],
    )
    assert first is third
    assert torch.equal(first[0], clip)
    assert torch.equal(second[0], 2 * clip)


@pytest.mark.parametrize("room", [1, 60, 120])
def test_chunks_hold_every_row_once_and_no_more_tokens_than_there_is_room_for(room, tasks, small_geometry):
    mels = [torch.zeros(32 + 16 * (row % 3), 128) for row in range(20)]
    owners = [tasks[row % len(tasks)] for row in range(20)]
    groups = plan(owners, [len(mel) for mel in mels])
    found = chunks(groups, mels, small_geometry, room)
    assert len(found) > 2
    for part in found:
        rows = sum(len(group.rows) for group in part)
        # What has no room even alone runs alone.
        assert rows == 1 or sum(small_geometry.tokens(g.length) * len(g.rows) for g in part) <= room
    rows = sorted((row, id(group.task), group.length) for part in found for group in part for row in group.rows)
    assert rows == [(row, id(owners[row]), len(mels[row])) for row in range(20)]


def test_without_a_limit_all_groups_run_together(tasks, small_geometry):
    mels = [torch.zeros(32, 128) for _ in range(6)]
    groups = plan(tasks * 2, [32] * 6)
    assert chunks(groups, mels, small_geometry, None) == [groups]
    assert chunks(groups, mels, small_geometry, 10**6) == [groups]
    assert chunks([], [], small_geometry, 60) == []


def test_a_clip_that_several_tasks_hear_is_in_one_chunk_for_all_of_them(tasks, small_geometry):
    mels = [torch.zeros(32, 128) for _ in range(3)]
    owners = [task for task in tasks for _ in mels]
    found = chunks(plan(owners, [32] * len(owners)), mels * len(tasks), small_geometry, 1)
    assert [[group.rows for group in part] for part in found] == [
        [(row + 3 * place,) for place in range(len(tasks))] for row in range(3)
    ]


def test_a_clip_counts_once_for_all_that_hear_it_alike_and_again_for_who_hears_it_otherwise(small_backbone, tasks):
    geometry = small_backbone.geometry
    loud = Task(TaskSpec("loud", "head", ("x", "y"), normalize=(0.0, 3.0)), small_backbone)
    mels, tokens = [torch.zeros(32, 128) for _ in range(4)], geometry.tokens(32)
    alike = [task for task in tasks for _ in mels]
    assert len(chunks(plan(alike, [32] * 12), mels * 3, geometry, 2 * tokens)) == 2
    otherwise = [task for task in (tasks[0], loud) for _ in mels]
    assert len(chunks(plan(otherwise, [32] * 8), mels * 2, geometry, 2 * tokens)) == 4


def test_a_group_is_described_by_task_length_and_rows_alone(tasks):
    assert plan(tasks[:1], [16]) == [Group(tasks[0], 16, (0,))]
