"""What is said before the first step, and what is left of it while a training runs."""

from __future__ import annotations

import time

import pytest

from adapterbank.bank import AdapterBank
from adapterbank.errors import TrainingDivergedError
from adapterbank.training.callbacks import BaseCallback
from adapterbank.training.estimate import Costs, Estimate
from adapterbank.training.fit import fit

LABELS = ["bass", "brass", "organ"]
COSTS = Costs(before=10.0, step=2.0, validation=5.0, memory_mb=2048.0)


def test_an_estimate_adds_up_what_was_spent_what_comes_before_steps_and_validations():
    found = Estimate(COSTS, time.perf_counter() - 3, steps=50, validations=4, clips=16, at_once=4)
    assert found.seconds == pytest.approx(3 + 10 + 50 * 2 + 4 * 5, abs=0.1)
    assert str(found) == "about 2 min for 50 steps of 16 clips, 4 at a time, and 2.0 GiB of memory"


def test_what_is_left_follows_the_steps_and_validations_that_were_made():
    found = Estimate(COSTS, time.perf_counter(), steps=10, validations=2, clips=1, at_once=1)
    assert found.left() == 10 * 2 + 2 * 5
    found.after_step(60.0)  # the first is slow, and says nothing of the others
    assert found.left() == 9 * 2 + 2 * 5
    found.after_step(1.0)
    found.after_step(3.0)
    found.after_step(2.0)
    found.after_validation(1.0)
    assert found.left() == 6 * 2 + 1
    for _ in range(6):
        found.after_step(2.0)
    found.after_validation(1.0)
    assert found.left() == 0


class AtFirstStep(BaseCallback):
    """What a training has said when its first step is made."""

    def __init__(self, capsys=None):
        self.capsys, self.estimate, self.out = capsys, None, None

    def on_step(self, state):
        if state.step == 0:
            self.estimate = dict(state.history.estimate)
            self.out = None if self.capsys is None else self.capsys.readouterr().out


@pytest.mark.parametrize("method", ["aat_m", "head"])
def test_a_training_says_it_once_before_its_first_step_and_keeps_it(method, small_backbone, labelled_clips, capsys):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", method, labels=LABELS)
    first = AtFirstStep(capsys)
    history = fit(bank, "new", labelled_clips, labelled_clips, steps=9, batch_size=4, callbacks=[first])
    assert first.out.count("for 9 steps of 4 clips") == 1
    assert "for 9 steps" not in capsys.readouterr().out
    assert first.estimate == history.estimate
    assert history.estimate["memory_mb"] > 0
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
