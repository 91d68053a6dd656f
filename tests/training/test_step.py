"""One step: whole or in its two halves the same bits, and a learning rate that stays between 0 and its peak."""

from __future__ import annotations

import math

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.training.callbacks import BaseCallback
from adapterbank.training.defaults import Resolved
from adapterbank.training.fit import fit
from adapterbank.training.many import fit_many
from adapterbank.training.options import Options
from adapterbank.training.step import lr_factor, optimizer_of
from adapterbank.training.trainer import Trainer

OPTIONS = {"precision": "fp32", "batch_size": 6, "cache": None}


@pytest.fixture
def trainer(small_backbone, labelled_clips):
    def make(method="aat_ms", task=None, **options):
        bank = AdapterBank(small_backbone)
        added = bank.add_task("new", method, labels=["bass", "brass", "organ"], **(task or {}))
        made = Trainer(small_backbone, added, labelled_clips, Options(**{**OPTIONS, **options}))
        added.train()
        return made

    return make


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_in_its_halves_is_a_whole_step_bit_for_bit(precision, trainer):
    states, losses = [], []
    for halves in (False, True):
        made = trainer("aat_m", {"dropout": 0.3}, precision=precision)
        step, batch = made.optimizer_step, made.data.feed.batch(0, 0)
        if halves:
            with made.setting.autocast, step.seeded_dropout():
                logits = made.data.logits(batch.rows)
            step.begin(logits, batch).backward()
            step.update()
        else:
            step.take(batch)
        states.append(made.task.state_dict())
        losses.append(made.state.losses)
    assert losses[0] == losses[1]
    assert all(torch.equal(states[0][key], tensor) for key, tensor in states[1].items())


def test_a_step_begins_without_the_gradients_of_the_step_before(trainer):
    made = trainer()
    batch = made.data.feed.batch(0, 0)
    made.optimizer_step.take(batch)
    assert any(parameter.grad is not None for parameter in made.task.parameters())
    assert made.optimizer_step.begin(made.data.logits(batch.rows), batch).requires_grad
    assert all(parameter.grad is None for parameter in made.task.parameters())


@pytest.mark.filterwarnings("ignore::adapterbank.errors.UntrainedHeadWarning")
def test_the_optimizer_gets_no_frozen_tensor(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("one", "aat_ms", labels=["bass", "brass", "organ"])
    bank.add_task("two", "prompt", labels=["bass", "brass", "organ"])
    composed = bank.compose("new", ["one", "two"], freeze=True)
    setting = Trainer(small_backbone, composed, labelled_clips, Options(**OPTIONS)).setting
    held = [parameter for group in optimizer_of(setting).param_groups for parameter in group["params"]]
    assert all(parameter.requires_grad for parameter in held)
    assert 0 < len(held) < len(list(composed.parameters()))


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_rate_rises_to_its_peak_in_the_warmup_and_never_after(schedule, warmup):
    options, total = Resolved(schedule=schedule, warmup=warmup, milestones=(2, 3)), 40
    rates = [lr_factor(options, total, 10, step) for step in range(total)]
    top = max(0, round(warmup * total) - 1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == rates[top] == 1
    assert min(rates) > 0


def test_a_cosine_ends_at_zero_and_stays_there():
    assert lr_factor(Resolved(), 40, 10, 40) == lr_factor(Resolved(), 40, 10, 41) == 0


# -- accumulation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"class_weights": "balanced", "label_smoothing": 0.1}, {"loss": "bce"}])
@pytest.mark.parametrize("size", [6, 5])
def test_parts_whose_gradients_add_up_are_one_step_of_all_their_clips(size, options, trainer):
    """Also where the last part is smaller, and with mixup and masks, which are drawn for the whole."""
    options = {**options, "mixup": 0.5, "freq_mask": 8, "time_mask": 0.1, "clip_grad": 0.5}
    parts = math.ceil(12 / size)
    whole = trainer(batch_size=parts * size, **options)
    split = trainer(batch_size=size, accumulate=parts, **options)
    for made in (whole, split):
        made.optimizer_step.take(made.data.feed.batch(0, 0))
    assert split.state.losses == [pytest.approx(whole.state.losses[0], rel=1e-6)]
    for one, other in zip(whole.task.parameters(), split.task.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-6)


def test_callbacks_see_every_part_of_a_step_and_may_change_its_loss(small_backbone, labelled_clips):
    class Doubled(BaseCallback):
        def __init__(self):
            self.sizes = []

        def on_step(self, state):
            self.sizes.append((state.step, len(state.batch.rows), tuple(state.logits.shape)))
            state.loss = 2 * state.loss

    losses = []
    for callbacks in ([], [Doubled()]):
        bank = AdapterBank(small_backbone)
        bank.add_task("new", "aat_m", labels=["bass", "brass", "organ"])
        history = fit(
            bank, "new", labelled_clips, progress=False, batch_size=4, accumulate=2, epochs=1, callbacks=callbacks
        )
        losses.append(history.epochs[0]["train/loss"])
        assert history.steps == 2
    assert callbacks[0].sizes == [(0, 4, (4, 3)), (0, 4, (4, 3)), (1, 4, (4, 3))]
    assert losses[1] > 1.9 * losses[0]


def test_a_joint_training_accumulates_as_each_alone(small_backbone, labelled_clips):
    states = []
    for joint in (False, True):
        bank = AdapterBank(small_backbone)
        for name in ("one", "two"):
            bank.add_task(name, "aat_m", labels=["bass", "brass", "organ"])
        options = {"batch_size": 4, "epochs": 2, "precision": "fp32", "progress": False}
        if joint:
            fit_many(bank, {"one": {"accumulate": 2}, "two": {}}, labelled_clips, **options)
        else:
            fit(bank, "one", labelled_clips, accumulate=2, **options)
        states.append(bank.task("one").state_dict())
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
