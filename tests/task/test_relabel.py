"""Other names for a task's classes: the answers stay, and no two classes become one."""

from __future__ import annotations

import pytest
import torch

from adapterbank import AdapterBank
from adapterbank.errors import LabelsError, UnknownNameError


def test_relabelling_changes_names_and_no_logit(small_bank, clips):
    before, labels = small_bank(clips, "tones"), small_bank.task("tones").labels
    small_bank.task("tones").metrics = {"accuracy": 0.5}
    small_bank.relabel("tones", {labels[0]: "first"})
    assert small_bank.task("tones").labels == ("first", *labels[1:])
    assert torch.equal(small_bank(clips, "tones"), before)
    assert small_bank.task("tones").metrics == {"accuracy": 0.5}
    assert {p.labels[0] for p in small_bank.predict(clips, "tones")} <= {"first", *labels[1:]}


def test_two_classes_can_swap_their_names(small_bank):
    labels = small_bank.task("tones").labels
    small_bank.relabel("tones", {labels[0]: labels[1], labels[1]: labels[0]})
    assert small_bank.task("tones").labels == (labels[1], labels[0], *labels[2:])


@pytest.mark.parametrize(
    ("new_names", "error", "message"),
    [
        ({"dgo": "cat"}, UnknownNameError, "unknown label 'dgo'. Did you mean 'dog'"),
        ({"dog": "cat"}, LabelsError, "'dog' and 'cat' would both be called 'cat'. Renaming cannot merge"),
        ({"dog": "pet", "cat": "pet"}, LabelsError, "'dog' and 'cat' would both be called 'pet'"),
        ({"dog": ""}, LabelsError, "got '' as the new name of 'dog', expected a non-empty string"),
        ({"dog": 3}, LabelsError, "got 3 as the new name"),
        ({}, LabelsError, "expected a dict of new names"),
        (["dog", "cat"], LabelsError, "expected a dict of new names"),
    ],
)
@pytest.mark.parametrize("resident", [None, 1])
def test_what_would_merge_or_miss_a_class_is_refused_and_changes_nothing(
    resident, new_names, error, message, small_backbone, tmp_path
):
    bank = AdapterBank(small_backbone)
    bank.add_task("pets", "head", labels=["dog", "cat", "bird"])
    bank.save(tmp_path)
    bank = AdapterBank.load(tmp_path, small_backbone, resident=resident)
    with pytest.raises(error, match=message):
        bank.relabel("pets", new_names)
    assert bank.task("pets").labels == ("dog", "cat", "bird")


def test_new_names_survive_saving_also_of_a_task_that_was_not_opened(small_backbone, tmp_path):
    bank = AdapterBank(small_backbone)
    bank.add_task("pets", "head", labels=["dog", "cat"])
    bank.save(tmp_path)
    bank = AdapterBank.load(tmp_path, small_backbone, resident=1)
    bank.relabel("pets", {"cat": "lynx"})
    bank.save(tmp_path)
    assert AdapterBank.load(tmp_path, small_backbone).task("pets").labels == ("dog", "lynx")


def test_a_new_name_that_only_looks_different_is_refused(small_bank):
    with pytest.raises(LabelsError, match="would both be called"):
        small_bank.relabel("tones", {"0": "caf\u00e9", "1": "cafe\u0301"})
    small_bank.relabel("tones", {"0": "cafe\u0301"})
    small_bank.relabel("tones", {"caf\u00e9": "hound"})
    assert "hound" in small_bank.task("tones").labels
