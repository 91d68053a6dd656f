"""Which parameters move at which rate: by the parts of a task, never by pieces of names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.training.fit import fit
from adapterbank.training.options import Options
from adapterbank.training.step import optimizer_of
from adapterbank.training.trainer import Trainer

LABELS = ["bass", "brass", "organ"]


@pytest.fixture
def optimizer(small_backbone, labelled_clips):
    def make(method="aat_m+prompt", task=None, **options):
        added = AdapterBank(small_backbone).add_task("new", method, labels=LABELS, **(task or {}))
        return added, optimizer_of(Trainer(small_backbone, added, labelled_clips, Options(**options)).setting)

    return make


def rates(task, made):
    """{name of a parameter: its rate}."""
    by_id = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in task.named_parameters()}


def test_each_part_has_its_rate_and_the_smaller_part_decides(optimizer):
    task, made = optimizer(
        lr=1e-4, lr_groups={"prompt": 4e-4, "adapters": 2e-4, "norm": 5e-4}, task={"train_final_norm": True}
    )
    found = rates(task, made)
    assert {found[name] for name in found if name.startswith("head.")} == {1e-4}
    prompts = {id(parameter) for parameter in task.part("prompt").parameters()}
    for name, parameter in task.named_parameters():
        if name.startswith("norm"):
            assert found[name] == 5e-4
        elif not name.startswith("head"):
            assert found[name] == (4e-4 if id(parameter) in prompts else 2e-4)
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(task.parameters()))


def test_a_schedule_scales_all_groups_alike(small_backbone, labelled_clips):
    task = AdapterBank(small_backbone).add_task("new", "prompt", labels=LABELS)
    options = Options(lr=1e-3, lr_groups={"head": 1e-2}, epochs=4, batch_size=6, schedule="cosine", precision="fp32")
    trainer = Trainer(small_backbone, task, labelled_clips, options)
    task.train()
    for place in range(2):
        trainer.optimizer_step.take(trainer.data.feed.batch(0, place))
        base, head = (group["lr"] for group in trainer.state.optimizer.param_groups)
        assert head == pytest.approx(10 * base)
        assert trainer.optimizer_step.lr() == base


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"prompts": 1e-3}, UnknownNameError, "unknown part of 'new'.*lr_groups 'prompts'. Did you mean 'prompt'"),
        ({"norm": 1e-3}, ConfigError, "got lr_groups with 'norm', in which the training of 'new' changes nothing"),
    ],
)
def test_a_part_that_nothing_trains_is_refused(groups, error, message, optimizer):
    with pytest.raises(error, match=message):
        optimizer(lr_groups=groups)


def test_adamw_gets_its_betas_and_eps(optimizer):
    _, made = optimizer(betas=(0.8, 0.98), eps=1e-6)
    assert isinstance(made, torch.optim.AdamW)
    assert (made.defaults["betas"], made.defaults["eps"]) == ((0.8, 0.98), 1e-6)


def test_sgd_makes_the_step_of_the_formula(small_backbone, labelled_clips):
    task = AdapterBank(small_backbone).add_task("new", "linear", labels=LABELS)
    options = Options(optimizer="sgd", lr=0.1, weight_decay=0.0, warmup=0.0, batch_size=12, clip_grad=0, cache=None)
    trainer = Trainer(small_backbone, task, labelled_clips, options)
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    trainer.optimizer_step.take(trainer.data.feed.batch(0, 0))
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * parameter.grad)


def test_an_optimiser_of_ones_own_trains_and_is_recorded(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    history = fit(
        bank, "new", labelled_clips, progress=False, steps=3, optimizer=torch.optim.RMSprop, lr_groups={"head": 1e-2}
    )
    assert history.options["optimizer"].endswith("RMSprop")
    assert history.options["lr_groups"] == {"head": 1e-2}
    assert history.steps == 3


def test_numbers_of_numpy_inside_pairs_and_dicts_are_numbers():
    number = np.float32(0.5)
    options = Options(
        betas=(number, number), lr_groups={"head": number}, noise=[number, number], class_weights={"a": number}
    )
    found = (options.betas, options.lr_groups, options.noise, options.class_weights)
    assert found == ((0.5, 0.5), {"head": 0.5}, (0.5, 0.5), {"a": 0.5})
    assert json.loads(json.dumps(options.record()))["lr_groups"] == {"head": 0.5}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "adam w"}, UnknownNameError, "unknown optimizer 'adam w'. Did you mean 'adamw'"),
        ({"optimizer": None}, ConfigError, "got optimizer=None, expected one of 'adamw', 'sgd', or a function"),
        ({"optimizer": lambda groups: groups}, ConfigError, "expected a torch.optim.Optimizer"),
        (
            {"optimizer": lambda groups: torch.optim.SGD(groups[0]["params"][:1])},
            ConfigError,
            "holds 1 tensor",
        ),
        ({"betas": (0.9, 1.0)}, ConfigError, "got betas=.*expected two numbers from 0 to below 1"),
        ({"betas": 0.9}, ConfigError, "got betas=0.9"),
        ({"eps": 0.0}, ConfigError, "got eps=0.0, expected a positive number"),
        ({"lr_groups": {"head": 0.0}}, ConfigError, "got lr_groups=.*expected a positive rate"),
        ({"lr_groups": ["head"]}, ConfigError, "got lr_groups=.*expected a positive rate"),
    ],
)
def test_what_cannot_optimise_is_refused(options, error, message, optimizer):
    with pytest.raises(error, match=message):
        optimizer(**options)


def test_an_optimiser_that_needs_a_closure_is_refused(optimizer):
    with pytest.raises(ConfigError, match="LBFGS evaluates the loss several times in a step"):
        optimizer(optimizer=lambda groups: torch.optim.LBFGS([p for group in groups for p in group["params"]]))
