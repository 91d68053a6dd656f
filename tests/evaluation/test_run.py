"""A task over data: every item once, in order, whatever the data set's form."""

from __future__ import annotations

import pytest
import torch

from adapterbank.errors import AudioFileError, ConfigError, DatasetError, LabelsError, SkippedClipsWarning
from adapterbank.evaluation import batches, evaluate_task
from adapterbank.evaluation.run import numbered_batches
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task


class Indexed:
    """A dataset as torch defines it: a length and items, whose iteration would never end by itself."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((400,), float(index)), index


def listed():
    data = Indexed()
    return [data[index] for index in range(len(data))]


@pytest.mark.parametrize("data", [Indexed(), listed(), iter(listed())], ids=["map", "list", "iterator"])
def test_batches_hold_every_pair_once_in_order(data):
    found = list(batches(data, 3))
    assert [len(labels) for _, labels in found] == [3, 3, 1]
    assert [label for _, labels in found for label in labels] == list(range(7))
    assert [wave[0].item() for waves, _ in found for wave in waves] == list(range(7))


@pytest.mark.parametrize("size", [0, -1, 2.0, None, True])
def test_a_bad_batch_size_is_refused(size):
    with pytest.raises(ConfigError, match="got batch_size="):
        next(batches(Indexed(), size))


@pytest.fixture
def task(small_backbone):
    return Task(TaskSpec("x", "head", ("a", "b", "c")), small_backbone)


def test_a_bad_item_is_an_error_with_its_number_or_left_out(small_backbone, task):
    good = [(torch.rand(1600), label) for label in "abcab"]
    data = [*good[:2], ("gone.wav", "a"), good[2], (torch.zeros(96), "b"), (torch.rand(1600), "d"), *good[3:]]
    with pytest.raises(AudioFileError, match="item 2: gone.wav does not exist"):
        evaluate_task(small_backbone, task, data)
    with pytest.raises(LabelsError, match="item 5: the data has the label 'd'"):
        evaluate_task(small_backbone, task, [*good, data[5]])
    with pytest.warns(
        SkippedClipsWarning, match="3 of 8 items were left out. item 2: gone.*item 4: got .*item 5: the data"
    ):
        found = evaluate_task(small_backbone, task, data, batch_size=2, on_error="skip")
    expected = evaluate_task(small_backbone, task, good, batch_size=2)
    assert torch.equal(found.targets, expected.targets)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)


def test_if_nothing_is_left_there_is_nothing_to_evaluate(small_backbone, task):
    with (
        pytest.warns(SkippedClipsWarning, match="1 of 1 item was left out"),
        pytest.raises(DatasetError, match="got no clips"),
    ):
        evaluate_task(small_backbone, task, [("gone.wav", "a")], on_error="skip")


def test_numbers_are_those_of_the_data_although_items_are_left_out():
    data = [("gone.wav", 0), *listed()]
    found = list(numbered_batches(data, 3, on_error="skip"))
    assert [batch.numbers for batch in found] == [[1, 2, 3], [4, 5, 6], [7]]


def test_shares_between_yes_and_no_are_no_truth_to_measure_against(small_backbone):
    task = Task(TaskSpec("x", "head", ("a", "b", "c"), multilabel=True), small_backbone)
    data = [(torch.rand(1600), torch.tensor([0.0, 1, 0])), (torch.rand(1600), torch.tensor([0.6, 0, 1]))]
    with pytest.raises(LabelsError, match=r"item 1: got .*0\.6.*shares between 0 and 1 can be trained on"):
        evaluate_task(small_backbone, task, data)
