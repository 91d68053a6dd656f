"""Labels of a data set as targets: class names or indices, sets of them, and what a task refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapterbank.errors import LabelsError
from adapterbank.task.task import Task, TaskSpec

SPEC = {"name": "notes", "method": "aat_ms", "labels": ("a", "b", "c")}


def test_targets_are_indices_of_names_or_indices(small_backbone):
    task = Task(TaskSpec(**SPEC), small_backbone)
    labels = ["c", "a", 1, np.int64(2), torch.tensor(0)]
    assert task.targets(labels).tolist() == [2, 0, 1, 2, 0]
    assert task.targets(labels).dtype == torch.int64


def test_multilabel_targets_are_rows_of_zeros_and_ones(small_backbone):
    task = Task(TaskSpec(**SPEC, multilabel=True), small_backbone)
    labels = [{"a", "c"}, ("b",), [], "c", 1, [0, 2], torch.tensor([0.0, 1.0, 1.0])]
    expected = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 1]]
    assert task.targets(labels).tolist() == expected


@pytest.mark.parametrize("multilabel", [True, False])
@pytest.mark.parametrize("label", ["d", 3, -1, 1.7, None, b"a"])
def test_a_label_that_the_task_does_not_have_is_refused(label, multilabel, small_backbone):
    task = Task(TaskSpec(**SPEC, multilabel=multilabel), small_backbone)
    with pytest.raises(LabelsError, match="label .*'notes' with 3 classes does not have. Known: a, b, c. Pass labels"):
        task.targets([[label] if multilabel else label])


def test_a_row_of_zeros_and_ones_is_never_read_as_class_indices(small_backbone):
    task = Task(TaskSpec("many", "head", ("a", "b", "c", "d"), multilabel=True), small_backbone)
    with pytest.raises(LabelsError, match="stands twice"):
        task.targets([[0, 1, 1, 0]])
    assert task.targets([["b", "c"], [1, 2], [], torch.tensor([0.0, 1, 1, 0])]).tolist() == [
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
        [0, 1, 1, 0],
    ]
