"""A training is the same to the bit with and without the measurement that its estimate is made of."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import AdapterBankError
from adapterbank.training import trainer
from adapterbank.training.fit import fit

LABELS = ["bass", "brass", "organ"]
PLAIN = {"steps": 8, "batch_size": 4, "precision": "fp32", "progress": False}


class Drawing(torch.utils.data.Dataset):
    """Clips that are another time louder or softer when they are read, by the global random states."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        wave, label = self.clips[index]
        return wave * float(torch.rand(()) + np.random.rand() + random.random()), label  # noqa: NPY002


@pytest.mark.parametrize(
    ("method", "task", "options"),
    [
        ("aat_ms", {}, {}),
        ("conformer", {"reduction": 8}, {"average": "last"}),  # has a BatchNorm
        ("lora", {"dropout": 0.5}, {"accumulate": 2, "batch_size": 2}),
        ("full", {}, {"crop_seconds": 0.2, "mixup": 0.5, "noise": (10, 40), "freq_mask": 8}),
        ("prompt", {}, {"sampler": "balanced", "class_weights": "balanced", "optimizer": torch.optim.RMSprop}),
        ("partial", {"blocks": 1}, {"cache": "memory"}),
        ("head", {}, {}),
        ("linear", {}, {"cache": None, "checkpointing": True}),
    ],
)
def test_an_estimate_changes_no_bit_of_a_training(method, task, options, small_backbone, labelled_clips, monkeypatch):
    found = {}
    for fewest in (1, 1000):
        monkeypatch.setattr(trainer, "FEWEST", fewest)
        bank = AdapterBank(small_backbone)
        bank.add_task("new", method, labels=LABELS, **task)
        torch.manual_seed(3)
        history = fit(bank, "new", labelled_clips, labelled_clips[:5], **{**PLAIN, **options})
        assert bool(history.estimate) == (fewest == 1)
        found[fewest] = history.epochs, bank.task("new").state_dict(), torch.rand(3)
    (epochs, state, drawn), (same_epochs, same_state, same_drawn) = found.values()
    assert epochs == same_epochs
    assert all(torch.equal(state[name], same_state[name]) for name in state)
    assert torch.equal(drawn, same_drawn)


def test_a_data_set_that_draws_from_the_global_states_gives_the_same_clips(small_backbone, labelled_clips, monkeypatch):
    losses = []
    for fewest in (1, 1000):
        monkeypatch.setattr(trainer, "FEWEST", fewest)
        bank = AdapterBank(small_backbone)
        bank.add_task("new", "aat_m", labels=LABELS)
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        losses.append(fit(bank, "new", Drawing(labelled_clips), Drawing(labelled_clips), **PLAIN).epochs)
    assert losses[0] == losses[1]


def test_functions_of_the_caller_are_called_by_the_training_alone(small_backbone, labelled_clips):
    calls = []

    def loss(logits, targets):
        calls.append(len(logits))
        return torch.nn.functional.cross_entropy(logits, targets)

    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    history = fit(bank, "new", labelled_clips, loss=loss, **PLAIN)
    assert history.estimate
    assert len(calls) == history.steps


def test_what_fails_in_the_measurement_is_told_by_the_training(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    broken = [*labelled_clips[:-1], (torch.full((4000,), float("nan")), "bass")]
    with pytest.raises(AdapterBankError, match="item 11"):
        fit(bank, "new", broken, **PLAIN)
    assert all(parameter.grad is None for parameter in bank.task("new").parameters())


def test_validation_clips_are_not_read_before_the_first_validation(small_backbone, labelled_clips):
    read = []

    class Counted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    history = fit(bank, "new", labelled_clips, Counted(labelled_clips[:4]), **PLAIN)
    assert history.estimate
    assert len(read) == 4 * len(history.epochs)


def test_clips_of_very_different_lengths_count_by_their_lengths(small_backbone):
    draw = torch.Generator().manual_seed(0)
    lengths = [500, 480_000, 1_600, 16_000, 800, 480_000, 1_600, 16_000]
    data = [(torch.randn(length, generator=draw) / 10, LABELS[at % 3]) for at, length in enumerate(lengths)]
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    options = trainer.Options(batch_size=8, crop_seconds=0.1)
    run = trainer.Trainer(small_backbone, bank.task("new"), data, options, data)
    costs = trainer.Probe(run.setting, run.data, trainer.Sample(data)).costs()
    assert costs.validation > costs.step  # whole clips are up to 300 times as long as crops
