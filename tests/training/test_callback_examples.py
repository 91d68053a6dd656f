"""The callbacks that the docstring of `adapterbank.training.callbacks` shows do what it says of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

import adapterbank.files
from adapterbank.bank import AdapterBank
from adapterbank.training import callbacks
from adapterbank.training.fit import fit

PLAIN = {"epochs": 2, "batch_size": 6, "lr": 5e-3, "precision": "fp32", "progress": False}


@pytest.fixture
def bank(small_backbone):
    bank = AdapterBank(small_backbone)
    bank.add_task("families", "aat_ms", labels=["bass", "brass", "organ"])
    return bank


def state_of(bank):
    return {key: tensor.clone() for key, tensor in bank.task("families").state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def examples():
    """The classes that the module's docstring shows."""
    lines = callbacks.__doc__.splitlines()
    shown = lines[next(i for i, line in enumerate(lines) if line.startswith("    class ")) :]
    code = "\n".join(line.removeprefix("    ") for line in shown if line.startswith("    ") or not line)
    names = {**vars(callbacks), "Path": Path, "safetensors": safetensors, "adapterbank": adapterbank, "time": time}
    exec(code, names)
    return names


def test_the_checkpoints_of_the_docstring_hold_the_task_after_each_epoch(examples, bank, labelled_clips, tmp_path):
    after = []

    def keep(epoch, record):
        after.append(state_of(bank))

    fit(bank, "families", labelled_clips, callbacks=[examples["Checkpoints"](tmp_path)], on_epoch=keep, **PLAIN)
    assert {file.name for file in tmp_path.iterdir()} == {"families-0.safetensors", "families-1.safetensors"}
    for epoch, state in enumerate(after):
        assert_same(safetensors.torch.load_file(tmp_path / f"families-{epoch}.safetensors"), state)
    bank.task("families").load_state_dict(safetensors.torch.load_file(tmp_path / "families-0.safetensors"))
    assert_same(state_of(bank), after[0])


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 1), (3600.0, 4)])
def test_the_time_limit_of_the_docstring_ends_a_training_with_the_step_at_hand(
    seconds, steps, examples, bank, labelled_clips
):
    history = fit(bank, "families", labelled_clips, callbacks=[examples["TimeLimit"](seconds)], **PLAIN)
    assert history.steps == steps
