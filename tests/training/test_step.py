"""One step: whole or in its two halves the same bits, and a learning rate that stays between 0 and its peak."""

from __future__ import annotations

import pytest
import torch

from adapterbank.bank import AdapterBank
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
    options, total = Options(schedule=schedule, warmup=warmup, milestones=(2, 3)), 40
    rates = [lr_factor(options, total, 10, step) for step in range(total)]
    top = max(0, round(warmup * total) - 1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == rates[top] == 1
    assert min(rates) > 0


def test_a_cosine_ends_at_zero_and_stays_there():
    assert lr_factor(Options(), 40, 10, 40) == lr_factor(Options(), 40, 10, 41) == 0
