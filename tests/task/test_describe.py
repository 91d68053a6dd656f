"""What is left out of a new task comes from the dataset of its name, then from its method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.data import catalog
from adapterbank.task.describe import describe


@pytest.mark.parametrize("name", ["speechcommands", "openmic", "esc50", "instruments", "mandarin_tones", "us8k"])
def test_a_known_dataset_needs_no_labels(name, small_bank):
    known = catalog.lookup(name)
    task = small_bank.add_task(name, "head")
    assert task.labels == known.labels
    assert task.spec.multilabel == known.multilabel
    assert task.spec.clip_seconds == known.clip_seconds
    assert small_bank.add_task("x", "head", labels=["a"]).spec.clip_seconds is None


@pytest.mark.parametrize("classes", [{"labels": ["a", "b"]}, {"num_classes": 2}])
def test_a_known_dataset_brings_its_clip_length_whoever_names_the_classes(classes, small_bank):
    spec = small_bank.add_task("openmic", "head", **classes).spec
    assert (len(spec.labels), spec.clip_seconds, spec.multilabel) == (2, 10.0, True)
    spec = small_bank.add_task("us8k", "head", **classes, clip_seconds=1.5, multilabel=True).spec
    assert (len(spec.labels), spec.clip_seconds, spec.multilabel) == (2, 1.5, True)


def test_what_is_said_wins_over_the_catalogue(small_bank):
    task = small_bank.add_task("openmic", "head", clip_seconds=3.0, multilabel=False)
    assert (task.spec.clip_seconds, task.spec.multilabel) == (3.0, False)
    assert small_bank.add_task("esc50", "head", num_classes=2).labels == ("0", "1")


@pytest.mark.parametrize(
    ("method", "own"),
    [("aat_ms", ("ln_linear", "cls_dist")), ("linear", ("linear", "mean")), ("lora+prompt", ("ln_linear", "cls_dist"))],
)
def test_head_and_pooling_are_those_of_the_method_unless_they_are_named(method, own):
    spec = describe("new", method, num_classes=2, options={})
    assert (spec.head, spec.pooling) == own
    spec = describe("new", method, num_classes=2, head="ln_linear", pooling="mean", options={})
    assert (spec.head, spec.pooling) == ("ln_linear", "mean")


def test_options_from_numpy_and_torch_are_stored_as_the_numbers_that_they_are(small_bank, tmp_path):
    task = small_bank.add_task(
        "new", "lora", num_classes=2, rank=np.int64(2), alpha=np.float32(4), layers=np.array([1])
    )
    same = small_bank.add_task("same", "lora", num_classes=2, rank=2, alpha=4.0, layers=[1])
    assert task.spec.options == same.spec.options
    prompt = {"tokens": torch.tensor(3)}
    assert small_bank.add_task("both", "lora+prompt", num_classes=2, prompt=prompt).spec.to_json()
    small_bank.save(tmp_path / "bank")
    assert AdapterBank.load(tmp_path / "bank", small_bank.backbone).task("new").spec == task.spec
