"""Early stopping: when it ends a training, and that the best epoch stays."""

from __future__ import annotations

import math

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError
from adapterbank.training.callbacks import BaseCallback, EarlyStopping
from adapterbank.training.fit import fit

LABELS = ["bass", "brass", "organ"]
PLAIN = {"epochs": 2, "batch_size": 6, "lr": 5e-3, "precision": "fp32", "progress": False}


@pytest.fixture
def bank(small_backbone):
    bank = AdapterBank(small_backbone)
    bank.add_task("families", "aat_ms", labels=LABELS)
    bank.add_task("probe", "head", labels=LABELS)
    return bank


class Scripted(BaseCallback):
    """Puts its own numbers into the records, before the callbacks after it read them."""

    def __init__(self, metric, values):
        self.metric, self.values = metric, values

    def on_epoch(self, state):
        state.record[self.metric] = self.values[state.epoch]


@pytest.mark.parametrize(
    ("metric", "values", "patience", "epochs"),
    [
        (None, [0.1, 0.5, 0.5, 0.2, 0.9, 0.9], 2, 4),
        (None, [0.1, 0.5, 0.5, 0.6, 0.4, 0.9], 2, 6),
        (None, [0.5, 0.4, 0.9, 0.9, 0.9, 0.9], 1, 2),
        (None, [math.nan, math.nan, 0.9, 0.9, 0.9, 0.9], 2, 2),
        ("train/loss", [0.5, 0.4, 0.3, 0.3, 0.2, 0.1], 1, 4),
        ("val/balanced_accuracy", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1, 6),
    ],
)
def test_epochs_that_are_no_better_end_a_training(metric, values, patience, epochs, bank, labelled_clips):
    script = Scripted(metric or "val/accuracy", values)
    callbacks = [script, EarlyStopping(patience, metric)]
    history = fit(bank, "probe", labelled_clips, labelled_clips[:4], callbacks=callbacks, **{**PLAIN, "epochs": 6})
    assert len(history.epochs) == epochs
    assert history.steps == 2 * epochs


def test_a_training_that_is_stopped_keeps_its_best_epoch(bank, labelled_clips):
    states, task = [], bank.task("families")

    def keep(epoch, record):
        states.append({key: tensor.clone() for key, tensor in task.state_dict().items()})

    options = {**PLAIN, "epochs": 30, "lr": 0.05}
    history = fit(
        bank, "families", labelled_clips[:6], labelled_clips[6:], callbacks=[EarlyStopping(2)], on_epoch=keep, **options
    )
    scores = [record["val/accuracy"] for record in history.epochs]
    assert len(scores) < 30
    assert scores.index(max(scores)) == len(scores) - 3
    assert history.best_epoch == max(range(len(scores)), key=lambda epoch: (scores[epoch], epoch))
    assert all(torch.equal(states[history.best_epoch][key], tensor) for key, tensor in task.state_dict().items())
    assert task.metrics["accuracy"] == max(scores)


def test_early_stopping_without_its_metric_says_which_there_are(bank, labelled_clips):
    for metric in (None, "lr"):  # the table does not say whether more of a learning rate is better
        message = (
            f"EarlyStopping on '{metric or 'val/accuracy'}', but in an epoch of 'probe' it can watch train/loss\\."
        )
        with pytest.raises(ConfigError, match=message):
            fit(bank, "probe", labelled_clips, callbacks=[EarlyStopping(1, metric)], **PLAIN)
    with pytest.raises(ConfigError, match="got patience=0"):
        EarlyStopping(0)
