"""Means of weights against torch's AveragedModel; statistics of BatchNorm against torch's update_bn."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.training.averaging import remake_batch_norms
from adapterbank.training.callbacks import BaseCallback
from adapterbank.training.fit import fit
from adapterbank.training.many import fit_many
from adapterbank.training.options import Options

OPTIONS = {"batch_size": 4, "precision": "fp32", "progress": False, "lr": 1e-2, "freq_mask": 0, "time_mask": 0}
LABELS = ["bass", "brass", "organ"]


class Watch(BaseCallback):
    """Feeds torch's average with the weights of each step or epoch, as `every` says."""

    def __init__(self, make, every):
        self.make, self.every = make, every

    def on_start(self, state):
        self.task, self.steps, self.average = state.task, 0, self.make(state.task)
        state.optimizer.register_step_post_hook(lambda *args: self.after_step())

    def after_step(self):
        self.steps += 1
        if self.every == "step" or self.steps % 3 == 0:
            self.average.update_parameters(self.task)


@pytest.fixture
def bank(small_backbone):
    bank = AdapterBank(small_backbone)
    for name in ("new", "other"):
        bank.add_task(name, "aat_m", labels=LABELS)
    return bank


@pytest.mark.parametrize(
    ("options", "make", "every"),
    [
        (
            {"average": "ema", "ema_decay": 0.8},
            lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.8)),
            "step",
        ),
        ({"average": "last", "average_epochs": 9}, AveragedModel, "epoch"),
    ],
)
@pytest.mark.parametrize("joint", [False, True])
def test_the_task_ends_with_the_mean_that_torch_computes(joint, options, make, every, bank, labelled_clips):
    watch, options = Watch(make, every), {**OPTIONS, **options, "epochs": 3}
    if joint:
        fit_many(bank, ["new", "other"], labelled_clips, callbacks={"new": [watch]}, **options)
    else:
        fit(bank, "new", labelled_clips, callbacks=[watch], **options)
    expected = dict(watch.average.module.named_parameters())
    for name, parameter in bank.task("new").named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)


def test_only_the_latest_epochs_are_in_the_mean(bank, labelled_clips):
    ends = []

    def keep(epoch, record):  # after validation the task has its own weights again
        ends.append({name: p.detach().clone() for name, p in bank.task("new").named_parameters()})

    fit(bank, "new", labelled_clips, epochs=4, average="last", average_epochs=2, on_epoch=keep, **OPTIONS)
    for name, parameter in bank.task("new").named_parameters():
        torch.testing.assert_close(parameter, (ends[2][name] + ends[3][name]) / 2)


def test_the_mean_is_what_is_validated_and_the_steps_do_not_see_it(bank, labelled_clips):
    histories = {}
    for average in (None, "ema"):
        bank.add_task("same", "aat_m", labels=LABELS)  # the name decides its start and the order of the clips
        histories[average] = fit(bank, "same", labelled_clips, labelled_clips, epochs=3, average=average, **OPTIONS)
        best = histories[average].epochs[histories[average].best_epoch]
        assert bank.evaluate("same", labelled_clips)["loss"] == pytest.approx(best["val/loss"], rel=1e-4)
        bank.remove_task("same")
    plain, averaged = ([epoch["train/loss"] for epoch in histories[kind].epochs] for kind in (None, "ema"))
    assert plain == averaged
    assert histories[None].epochs[-1]["val/loss"] != histories["ema"].epochs[-1]["val/loss"]


class Norm(nn.Module):
    """A module that looks like a task to the function under test."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.3))

    def forward(self, x):
        return self.body(x)


def test_statistics_of_batch_norm_are_those_of_torchs_update_bn():
    torch.manual_seed(0)
    ours, batches = Norm(), [torch.randn(5, 3) for _ in range(3)]
    theirs = Norm()
    theirs.load_state_dict(ours.state_dict())
    ours(batches[0])  # old statistics that must not count
    remake_batch_norms(ours, lambda: [ours(batch) for batch in batches])
    update_bn(batches, theirs)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, dict(theirs.named_buffers())[name])
    assert [norm.momentum for norm in ours.modules() if isinstance(norm, nn.BatchNorm1d)] == [0.1, 0.3]


def test_a_mean_of_weights_with_batch_norm_has_statistics_of_its_own(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "conformer", labels=LABELS, reduction=12)
    mine, theirs = {}, {}
    alike = [(waveform[:4800], label) for waveform, label in labelled_clips]  # of one length: a batch runs as one

    def keep(epoch, record):
        mine.update({name: buffer.clone() for name, buffer in bank.task("new").named_buffers()})

    fit(bank, "new", alike, epochs=2, average="ema", on_epoch=keep, **OPTIONS)
    theirs.update(bank.task("new").named_buffers())
    counted = [name for name in mine if name.endswith("num_batches_tracked")]
    assert counted
    # 3 batches in each of 2 epochs, and 3 in the one pass for the mean
    assert {(int(mine[name]), int(theirs[name])) for name in counted} == {(6, 3)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"average": "swa"}, UnknownNameError, "unknown average 'swa'.*Known: ema, last"),
        ({"ema_decay": 1.0}, ConfigError, "got ema_decay=1.0, expected a share"),
        ({"average_epochs": 0}, ConfigError, "got average_epochs=0, expected a positive integer"),
        ({"checkpointing": "yes"}, ConfigError, "got checkpointing='yes', expected True or False"),
    ],
)
def test_what_cannot_be_averaged_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Options(**options)
