"""One task in its file: it comes back as it was, and what is damaged, forged or of another backbone is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterbank.bank import AdapterBank
from adapterbank.errors import (
    AdapterBankError,
    BackboneMismatchError,
    NameTakenError,
    StorageError,
    UnknownNameError,
)
from adapterbank.storage.skeleton import Skeletons
from adapterbank.storage.task_file import SavedTask

NAMES = ["notes", "tones", "studio", "mix", "own", "probe"]


def test_an_imported_task_answers_as_it_did(small_bank, saved, small_backbone, clips):
    bank = AdapterBank(small_backbone)
    for name in NAMES:
        task = bank.import_task(next((saved / "tasks").glob(f"{name}.*")))
        assert task.name == name
        assert torch.equal(bank(clips, name), small_bank(clips, name))
    assert bank.task("notes").metrics == {"accuracy": 0.75}


def test_an_import_refuses_a_taken_name_and_another_backbone(small_bank, saved, random_backbone, small_geometry):
    file = next((saved / "tasks").glob("notes.*"))
    with pytest.raises(NameTakenError, match="holds the task 'notes', which exists; rename_task"):
        small_bank.import_task(file)
    other = AdapterBank(random_backbone(small_geometry, seed=1))
    with pytest.raises(BackboneMismatchError, match="Open it with the backbone it was trained on"):
        other.import_task(file)
    assert list(other.tasks) == []
    small_bank.rename_task("notes", "older")
    small_bank.import_task(str(file))
    assert list(small_bank.tasks)[-1] == "notes"


def test_an_import_refuses_what_is_no_task(small_backbone, saved, tmp_path):
    bank = AdapterBank(small_backbone)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(next((saved / "tasks").glob("notes.*")).read_bytes()[:-7])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(2)}, foreign)
    for file, message in (
        (cut, "cannot read .*It is cut, or no safetensors file"),
        (foreign, "is no task of format version 1"),
        (tmp_path / "absent.safetensors", "there is no task file"),
        (tmp_path, "cannot read|there is no task file"),
    ):
        with pytest.raises(StorageError, match=message):
            bank.import_task(file)
    assert list(bank.tasks) == []


def edited_task(saved, target, tensors=None, **header_changes):
    """A task file with other tensors or another description, as somebody might forge it."""
    from safetensors import safe_open

    file = next((saved / "tasks").glob("tones.*"))
    with safe_open(file, framework="pt") as handle:
        header = json.loads(handle.metadata()["adapterbank"])
    header.update({key: value for key, value in header_changes.items() if key != "spec"})
    header["spec"].update(header_changes.get("spec", {}))
    save_file(tensors or load_file(file), target, metadata={"adapterbank": json.dumps(header)})
    return target


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format_version": 2}, StorageError, "no task of format version 1"),
        ({"fingerprint": None}, BackboneMismatchError, "was made for the backbone None"),
        ({"spec": {"method": "lora9"}}, UnknownNameError, "unknown method 'lora9'"),
        ({"spec": {"method": "aat_m"}}, StorageError, "does not fit 'aat_m': tensors"),
        ({"spec": {"options": {"tokens": 3}}}, StorageError, "does not fit 'prompt'"),
        ({"spec": {"labels": ["a"]}}, StorageError, "does not fit 'prompt': tensors head.linear"),
        ({"spec": {"options": 3}}, StorageError, "labels or options"),
        ({"spec": {"name": "../../x"}}, AdapterBankError, "got the task name"),
        ({"trained_clip_seconds": -1.0}, StorageError, "trained_clip_seconds=-1.0, expected a positive number"),
        ({"tensors": {"x": torch.zeros(1)}}, StorageError, "are not as expected"),
    ],
)
def test_a_forged_task_file_is_refused(changes, error, message, saved, small_backbone, tmp_path):
    bank = AdapterBank(small_backbone)
    with pytest.raises(error, match=message):
        bank.import_task(edited_task(saved, tmp_path / "forged.safetensors", **changes))
    assert list(bank.tasks) == []


def test_a_task_with_nan_is_refused(saved, small_backbone, tmp_path):
    tensors = load_file(next((saved / "tasks").glob("tones.*")))
    tensors["adapters.prompts.0"][0, 0] = float("nan")
    with pytest.raises(StorageError, match="the tensor adapters.prompts.0 holds NaN or Inf"):
        AdapterBank(small_backbone).import_task(edited_task(saved, tmp_path / "nan.safetensors", tensors))


def test_a_task_is_refused_by_a_backbone_that_normalises_otherwise(small_backbone, tmp_path):
    bank = AdapterBank(small_backbone)
    bank.add_task("mine", "head", num_classes=3)
    bank.save(tmp_path)
    other = dataclasses.replace(small_backbone, mean=small_backbone.mean + 1)
    with pytest.raises(BackboneMismatchError, match="mean, std"):
        AdapterBank.load(tmp_path, backbone=other)


def test_its_facts_are_read_without_its_tensors(saved, small_bank):
    for name, entry in json.loads((saved / "manifest.json").read_text())["tasks"].items():
        facts, task = SavedTask(saved, name, entry).facts(), small_bank.task(name)
        assert (facts.spec, facts.parameters, facts.metrics) == (task.spec, task.trainable_parameters(), task.metrics)
        assert facts.bytes == task.num_bytes()


def test_metrics_that_were_recorded_later_take_the_place_of_those_in_the_file(saved, small_backbone):
    entry = json.loads((saved / "manifest.json").read_text())["tasks"]["notes"]
    later = SavedTask(saved, "notes", entry, metrics={"accuracy": 0.25})
    assert later.facts().metrics == later.open(small_backbone, Skeletons()).metrics == {"accuracy": 0.25}
