"""Losses against torch's own; hard targets and the same ones as shares give the same number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.training.fit import fit
from adapterbank.training.losses import Loss, amount, loss_of
from adapterbank.training.options import Options

LABELS = ["bass", "brass", "organ"]


@pytest.fixture
def logits():
    return torch.randn(7, 3, requires_grad=True)


TARGETS = torch.tensor([0, 2, 1, 1, 0, 0, 2])
ROWS = F.one_hot(TARGETS, 3).float()
WEIGHTS = torch.tensor([0.5, 2.0, 3.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("targets", [TARGETS, ROWS], ids=["indices", "shares"])
def test_cross_entropy_is_that_of_torch_for_indices_and_for_shares(targets, weights, smoothing, logits):
    expected = torch.nn.CrossEntropyLoss(weights, label_smoothing=smoothing)(logits, TARGETS)
    torch.testing.assert_close(Loss("ce", weights, smoothing)(logits, targets), expected)


@pytest.mark.parametrize("targets", [TARGETS, ROWS], ids=["indices", "shares"])
def test_binary_cross_entropy_is_that_of_torch_on_rows_of_zeros_and_ones(targets, logits):
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=WEIGHTS)(logits, 0.9 * ROWS + 0.05)
    torch.testing.assert_close(Loss("bce", WEIGHTS, 0.1)(logits, targets), expected)


@pytest.mark.parametrize("loss", [Loss("ce"), Loss("ce", WEIGHTS, 0.1), Loss("bce", WEIGHTS), F.cross_entropy])
@pytest.mark.parametrize("targets", [TARGETS, ROWS], ids=["indices", "shares"])
def test_parts_count_so_that_their_sum_is_the_mean_over_the_whole(targets, loss, logits):
    parts = [(logits[:4], targets[:4]), (logits[4:], targets[4:])]
    total = sum(amount(loss, own) for _, own in parts)
    summed = sum(amount(loss, own) / total * loss(part, own) for part, own in parts)
    torch.testing.assert_close(summed, loss(logits, targets))


def test_a_softmax_over_labels_that_do_not_exclude_one_another_is_refused(small_backbone):
    task = AdapterBank(small_backbone).add_task("tags", "head", labels=LABELS, multilabel=True)
    with pytest.raises(ConfigError, match="got loss='ce' for 'tags'.*Pass loss='bce'"):
        loss_of(task, "ce", None, 0.0)
    assert loss_of(task, "auto", None, 0.0).kind == "bce"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "bec"}, UnknownNameError, "unknown loss 'bec'. Did you mean 'bce'"),
        ({"loss": 3}, ConfigError, "got loss=3, expected one of 'auto', 'ce', 'bce', or a function"),
        (
            {"loss": F.cross_entropy, "label_smoothing": 0.1},
            ConfigError,
            "with label_smoothing: a function",
        ),
        ({"loss": F.cross_entropy, "class_weights": "balanced"}, ConfigError, "with class_weights: a function"),
        ({"label_smoothing": 1.0}, ConfigError, "got label_smoothing=1.0, expected a share from 0 to below 1"),
        ({"label_smoothing": True}, ConfigError, "got label_smoothing=True"),
    ],
)
def test_what_no_loss_can_be_made_of_is_refused_when_it_is_given(options, error, message):
    with pytest.raises(error, match=message):
        Options(**options)


def test_a_training_minimises_the_loss_that_was_asked_for(small_backbone, labelled_clips):
    """One step from the same start: its loss is that of torch on the logits of that start."""
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    clips, names = zip(*labelled_clips, strict=True)
    truth = torch.tensor([LABELS.index(name) for name in names])
    start = bank(list(clips), task="new")
    rows = F.one_hot(truth, 3).float()
    wanted = {
        "ce": (F.cross_entropy(start, truth, WEIGHTS, label_smoothing=0.1), {"label_smoothing": 0.1}),
        "bce": (F.binary_cross_entropy_with_logits(start, rows, pos_weight=WEIGHTS), {}),
    }
    for loss, (expected, more) in wanted.items():
        bank.add_task(loss, "aat_m", labels=LABELS, init_from="new")
        options = {
            "steps": 1,
            "freq_mask": 0,
            "time_mask": 0,
            "precision": "fp32",
            "loss": loss,
            "head_start": False,
            **more,
        }
        weights = dict(zip(LABELS, WEIGHTS.tolist(), strict=True))
        history = fit(bank, loss, labelled_clips, progress=False, batch_size=12, class_weights=weights, **options)
        assert history.epochs[0]["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
        assert (history.options["loss"], history.options["class_weights"]) == (loss, weights)


def own_loss(logits, targets):
    return (logits - F.one_hot(targets, 3)).square().mean()


def test_a_loss_of_ones_own_is_minimised_and_recorded_by_its_name(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "head", labels=LABELS)
    history = fit(bank, "new", labelled_clips, progress=False, loss=own_loss, epochs=8, lr=1e-2, batch_size=12)
    losses = [epoch["train/loss"] for epoch in history.epochs]
    assert losses[-1] < losses[0]
    assert history.options["loss"].endswith("test_losses.own_loss")
