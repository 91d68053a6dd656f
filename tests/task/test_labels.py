"""Labels of a data set as targets: class names or indices, sets of them, and what a task refuses."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch

from adapterbank.errors import ConfigError, LabelsError
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task
from adapterbank.training.balance import class_weights

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
@pytest.mark.parametrize("label", ["d", 3, -1, None, b"a", 10**30])
def test_a_label_that_the_task_does_not_have_is_refused(label, multilabel, small_backbone):
    task = Task(TaskSpec(**SPEC, multilabel=multilabel), small_backbone)
    with pytest.raises(LabelsError, match="label .*'notes' with 3 classes does not have. Known: a, b, c. Pass labels"):
        task.targets([[label] if multilabel else label])


@pytest.mark.parametrize("label", [1.7, True, np.True_, torch.tensor(1.5), ["a"], {"a"}, float("nan")])
def test_what_is_no_single_class_is_refused(label, small_backbone):
    with pytest.raises(LabelsError, match="the data has the label"):
        Task(TaskSpec(**SPEC), small_backbone).targets([label])


ROW = [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    "row",
    [ROW, tuple(ROW), np.array(ROW), np.array(ROW, dtype=">f4"), torch.tensor(ROW), torch.tensor(ROW).half()],
    ids=["list", "tuple", "array", "byte-swapped", "tensor", "half"],
)
def test_a_row_of_shares_stays_as_it_is(row, small_backbone):
    task = Task(TaskSpec(**SPEC, multilabel=True), small_backbone)
    assert task.targets([row]).tolist() == [ROW]
    with pytest.raises(LabelsError, match="item 7: .*shares between 0 and 1 can be trained on"):
        task.targets([row], numbers=[7], soft=False)


@pytest.mark.parametrize(
    "row",
    [[False, True, True], [0.0, 1.0, 1], np.array([0, 1, 1]), np.array([False, True, True]), torch.tensor([0, 1, 1])],
)
def test_a_row_of_yes_and_no_names_its_classes(row, small_backbone):
    task = Task(TaskSpec(**SPEC, multilabel=True), small_backbone)
    assert task.targets([row], soft=False).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 1, 0], "is that a row of zeros and ones, or does it hold class indices"),
        ([False, True], r"shape \(2,\).*with 3 classes; expected one number per class"),
        (np.zeros(4), r"shape \(4,\)"),
        (torch.zeros(1, 3), r"shape \(1, 3\)"),
        (torch.tensor([0, 2, 1]), r"expected numbers in \[0, 1\]"),
        (np.array([0.0, -1, 1]), r"expected numbers in \[0, 1\]"),
        (torch.tensor([0.0, float("nan"), 1]), r"expected numbers in \[0, 1\]"),
        ([0.0, float("inf"), 1], r"expected numbers in \[0, 1\]"),
        ({"a": 1}, "the data has the label"),
        (np.array(["a", "b", "c"]), "expected numbers"),
    ],
)
def test_a_row_of_another_form_is_refused(row, message, small_backbone):
    task = Task(TaskSpec(**SPEC, multilabel=True), small_backbone)
    with pytest.raises(LabelsError, match=message):
        task.targets([row])


def test_one_hot_rows_are_their_class_and_shares_stay_shares(small_backbone):
    task = Task(TaskSpec(**SPEC), small_backbone)
    hot = [[0, 1, 0], [0.0, 0.0, 1.0], np.array([1, 0, 0]), torch.tensor([False, True, False]), "a"]
    assert task.targets(hot).tolist() == [1, 2, 0, 1, 0]
    mixed = task.targets(["b", torch.tensor([0.75, 0.25, 0.0])])
    assert mixed.tolist() == [[0, 1, 0], [0.75, 0.25, 0]]
    with pytest.raises(LabelsError, match="expected a row of shares that sum to 1"):
        task.targets([[1, 1, 0]])
    with pytest.raises(LabelsError, match="item 1: .*shape"):
        task.targets(["a", [0.5, 0.5]], numbers=[0, 1])
    with pytest.raises(LabelsError, match="a metric needs to know"):
        task.targets([[0.5, 0.5, 0.0]], soft=False)


def test_an_integer_that_is_the_name_of_another_class_is_refused(small_backbone):
    task = Task(TaskSpec("folds", "head", ("0", "1", "10", "2")), small_backbone)
    assert task.targets([0, 1, "10", "2"]).tolist() == [0, 1, 2, 3]
    with pytest.raises(
        LabelsError, match="item 4: .*label 2 as an integer.*at index 3.*two classes.*Pass the name, '2'"
    ):
        task.targets([2], numbers=[4])
    assert task.targets([3]).tolist() == [3]  # no class is called 3
    shifted = Task(TaskSpec("grades", "head", ("1", "2", "3")), small_backbone)
    with pytest.raises(LabelsError, match="two classes"):
        shifted.targets([3])


def test_a_list_of_zeros_and_ones_is_never_read_as_class_indices(small_backbone):
    task = Task(TaskSpec("many", "head", ("a", "b", "c", "d"), multilabel=True), small_backbone)
    with pytest.raises(LabelsError, match="is that a row of zeros and ones"):
        task.targets([[0, 1, 1, 0]])
    with pytest.raises(LabelsError, match="stands twice"):
        task.targets([[0, 1, 1]])
    assert task.targets([["b", "c"], [1, 2], [], torch.tensor([0.0, 1, 1, 0]), {0, 1}]).tolist() == [
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
        [0, 1, 1, 0],
        [1, 1, 0, 0],
    ]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_an_accent_may_be_written_in_either_form_of_unicode(form, multilabel, small_backbone):
    classes = (unicodedata.normalize(form, "café"), "bar")
    task = Task(TaskSpec("a", "head", classes, multilabel=multilabel), small_backbone)
    composed, decomposed = (unicodedata.normalize(other, "café") for other in ("NFC", "NFD"))
    assert composed != decomposed
    assert torch.equal(task.targets([composed, "bar"]), task.targets([decomposed, "bar"]))


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("known", "given"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_class_weight_finds_its_class_in_both_forms_of_unicode(known, given, small_backbone):
    spec = SPEC | {"labels": ("tea", known)}
    assert class_weights(Task(TaskSpec(**spec), small_backbone), {given: 3.0}).tolist() == [1, 3]


def test_a_message_shows_the_beginning_of_a_long_label(small_backbone):
    with pytest.raises(LabelsError) as caught:
        Task(TaskSpec(**SPEC), small_backbone).targets(["x" * 10_000])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", ["no", 1, None])
def test_multilabel_is_true_or_false(value):
    with pytest.raises(ConfigError, match=r"got multilabel=.*, expected True or False"):
        TaskSpec(**SPEC, multilabel=value)
