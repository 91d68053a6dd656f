"""How a training is put together: its loop, what it leaves behind, and what it costs."""

from __future__ import annotations

import inspect

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.training import trainer as module
from adapterbank.training.fit import fit, progress_bar
from adapterbank.training.meter import Meter
from adapterbank.training.options import Options
from adapterbank.training.trainer import Trainer, copy_state, leave_training

OPTIONS = {"precision": "fp32", "batch_size": 6, "epochs": 2, "cache": None}


@pytest.fixture
def bank(small_backbone):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_ms", labels=["bass", "brass", "organ"])
    return bank


def test_the_loop_that_the_docstring_shows_is_that_of_fit():
    shown = [line.strip() for line in module.__doc__.splitlines() if line.startswith("    ") and "trainer." in line]
    assert len(shown) == 2
    assert "".join(shown) in "".join(line.strip() for line in inspect.getsource(fit).splitlines())


def test_the_loop_of_the_docstring_trains_as_fit_does(bank, small_backbone, labelled_clips):
    task = bank.task("new")
    before = copy_state(task)
    trainer = Trainer(small_backbone, task, labelled_clips, Options(**OPTIONS), labelled_clips[:4])
    with progress_bar(False) as bar:
        for batch in trainer.epochs.batches(bar):
            trainer.optimizer_step.take(batch)
    by_hand = copy_state(task)
    task.load_state_dict(before)
    history = fit(bank, "new", labelled_clips, labelled_clips[:4], progress=False, **OPTIONS)
    assert trainer.history.epochs == history.epochs
    assert all(torch.equal(by_hand[key], tensor) for key, tensor in task.state_dict().items())


def test_a_training_that_is_closed_gives_no_further_batch_and_no_epoch(bank, small_backbone, labelled_clips):
    trainer = Trainer(small_backbone, bank.task("new"), labelled_clips, Options(**OPTIONS))
    with progress_bar(False) as bar:
        batches = trainer.epochs.batches(bar)
        trainer.optimizer_step.take(next(batches))
        batches.close()
    assert next(batches, None) is None
    assert trainer.history.epochs == []


def test_a_copied_state_does_not_follow_its_task(bank):
    task = bank.task("new")
    copied = copy_state(task)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(1)
    assert not any(torch.equal(copied[name], parameter) for name, parameter in task.named_parameters())


def test_after_its_training_a_task_is_in_eval_mode_and_holds_no_gradient(bank):
    task = bank.task("new").train()
    sum(parameter.sum() for parameter in task.parameters()).backward()
    leave_training(task)
    assert not any(part.training for part in task.modules())
    assert all(parameter.grad is None for parameter in task.parameters())


def test_a_history_has_its_share_of_the_time_and_all_of_the_memory(bank, small_backbone, labelled_clips):
    trainer = Trainer(small_backbone, bank.task("new"), labelled_clips, Options(**OPTIONS))
    with Meter(torch.device("cpu")) as meter:
        sum(range(1000))
    trainer.finish(meter, 0.25)
    assert trainer.history.seconds == 0.25 * meter.seconds
    assert trainer.history.peak_memory_mb == meter.peak_memory_mb
