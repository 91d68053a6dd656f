"""What is said after the first steps, beside what the training then took."""

from __future__ import annotations

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import TrainingDivergedError
from adapterbank.training import estimate as module
from adapterbank.training.estimate import Estimate
from adapterbank.training.fit import fit

LABELS = ["bass", "brass", "organ"]


def test_the_slow_first_step_is_counted_once_and_the_others_for_all_that_follow(monkeypatch):
    clock = iter([100.0, 110.0, 112.0, 114.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    found = Estimate(torch.device("cpu"), steps=50, validations=10)
    assert [found.after_step() for _ in range(5)] == [False, False, True, False, False]
    assert found.seconds == 14 + 2 * (47 + 0.5 * 10)
    assert "about 2 min for 50 steps" in str(found)


def test_a_training_says_it_once_and_keeps_it(small_backbone, labelled_clips, capsys):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    history = fit(bank, "new", labelled_clips, labelled_clips, steps=9, batch_size=4)
    assert capsys.readouterr().out.count("for 9 steps") == 1
    assert 0 < history.estimate["memory_mb"] <= history.peak_memory_mb
    assert history.estimate["seconds"] > 0


def test_a_training_of_few_steps_says_nothing(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    assert fit(bank, "new", labelled_clips, steps=3, progress=False).estimate == {}


def test_the_display_of_a_failed_training_ends_with_its_error(small_backbone, labelled_clips, capsys):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    with pytest.raises(TrainingDivergedError):
        fit(bank, "new", labelled_clips, loss=lambda logits, targets: logits.sum() * float("nan"))
    assert "TrainingDivergedError: training" in " ".join(capsys.readouterr().out.split())
