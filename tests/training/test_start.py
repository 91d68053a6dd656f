"""A new head starts at the logistic regression that scikit-learn finds; a trained one is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from adapterbank.bank import AdapterBank
from adapterbank.training.fit import fit
from adapterbank.training.many import fit_many
from adapterbank.training.start import STRENGTH, regression, starts_new

LABELS = ["bass", "brass", "organ"]
STILL = {"steps": 1, "lr": 1e-12, "weight_decay": 0.0, "batch_size": 12, "precision": "fp32", "progress": False}


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_regression_is_that_of_scikit_learn_on_standardised_features(multilabel):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 8)) * draw.uniform(0.1, 10, size=8) + draw.normal(size=8)
    x[:, 3] = 5.0  # a constant feature
    y = draw.integers(0, 2, size=(60, 3)) if multilabel else draw.integers(0, 3, size=60)
    std = np.where(x.std(0) < 1e-9, 1, x.std(0))
    scaled = (x - x.mean(0)) / std
    model = lambda target: LogisticRegression(C=STRENGTH, tol=1e-10, max_iter=5000).fit(scaled, target)  # noqa: E731
    if multilabel:
        expected = np.stack([model(y[:, c]).decision_function(scaled) for c in range(3)], axis=1)
    else:
        expected = model(y).decision_function(scaled)
    targets = torch.tensor(y).float() if multilabel else torch.tensor(y)
    weight, bias = regression(torch.tensor(x), targets, 3, one_by_one=multilabel)
    found = torch.tensor(x).float() @ weight.T + bias
    if not multilabel:  # a constant in all logits changes no answer
        found, expected = found.log_softmax(1), torch.tensor(expected).log_softmax(1).numpy()
    np.testing.assert_allclose(found.numpy(), expected, atol=5e-4)


def test_a_start_with_class_weights_is_that_of_scikit_learn_with_them():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(60, 8)), draw.integers(0, 3, size=60)
    weights = {0: 1.0, 1: 4.0, 2: 0.5}
    scaled = (x - x.mean(0)) / x.std(0)
    model = LogisticRegression(C=STRENGTH, tol=1e-10, max_iter=5000, class_weight=weights).fit(scaled, y)
    weight, bias = regression(torch.tensor(x), torch.tensor(y), 3, weights=torch.tensor([*weights.values()]))
    found = (torch.tensor(x).float() @ weight.T + bias).log_softmax(1)
    expected = torch.tensor(model.decision_function(scaled)).log_softmax(1).numpy()
    np.testing.assert_allclose(found.numpy(), expected, atol=5e-4)


def start_of(backbone, clips, **options):
    """The head of a new task after its start."""
    bank = AdapterBank(backbone)
    bank.add_task("new", "aat_m", labels=LABELS)
    fit(bank, "new", clips, **{**STILL, **options})
    return bank.task("new").head.linear.weight.detach()


def test_a_start_minimises_the_loss_that_is_named(small_backbone, labelled_clips):
    plain = start_of(small_backbone, labelled_clips)
    assert torch.equal(start_of(small_backbone, labelled_clips, loss="ce"), plain)
    assert not torch.allclose(start_of(small_backbone, labelled_clips, loss="bce"), plain, atol=1e-4)
    weighted = start_of(small_backbone, labelled_clips, class_weights={"bass": 5.0})
    assert not torch.allclose(weighted, plain, atol=1e-4)


def test_sigmoids_of_a_start_for_binary_cross_entropy_are_shares_of_the_classes(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "head", labels=LABELS)
    fit(bank, "new", labelled_clips, loss="bce", **STILL)
    shares = bank([wave for wave, _ in labelled_clips], task="new").sigmoid().mean(0)
    counts = torch.tensor([sum(label == name for _, label in labelled_clips) for name in LABELS])
    # Where the bias is free, a logistic regression predicts each class as often as it occurs.
    torch.testing.assert_close(shares, counts / len(labelled_clips), atol=1e-3, rtol=0)


def test_a_loss_of_ones_own_starts_as_the_task_would_without_it(small_backbone, labelled_clips):
    focal = lambda logits, targets: (1 - torch.nn.functional.cross_entropy(logits, targets).neg().exp()) ** 2  # noqa: E731
    own = start_of(small_backbone, labelled_clips, loss=focal)
    torch.testing.assert_close(own, start_of(small_backbone, labelled_clips), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["head", "linear", "aat_ms", "prompt", "full"])
def test_a_new_head_reads_the_training_clips_from_the_first_step_on(method, small_backbone, labelled_clips):
    losses = {}
    for start in (True, False):
        bank = AdapterBank(small_backbone)
        bank.add_task("new", method, labels=LABELS)
        losses[start] = fit(bank, "new", labelled_clips, head_start=start, **STILL).epochs[0]["train/loss"]
    assert losses[True] < losses[False]


def test_the_start_needs_no_random_draw_and_is_the_same_in_fit_many_and_beside_a_cache(small_backbone, labelled_clips):
    heads = []
    for run in (
        lambda bank: fit(bank, "new", labelled_clips, **STILL),
        lambda bank: fit_many(bank, ["new"], labelled_clips, **STILL),
        lambda bank: fit(bank, "new", labelled_clips, cache="memory", **STILL),
    ):
        bank = AdapterBank(small_backbone)
        bank.add_task("new", "lora", labels=LABELS, layers=[1])
        torch.rand(3)  # wherever the global state is
        run(bank)
        heads.append(bank.task("new").head.linear.weight.detach())
    assert torch.equal(heads[0], heads[1])
    torch.testing.assert_close(heads[0], heads[2], atol=1e-4, rtol=1e-4)


def test_a_trained_head_is_not_touched(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    task = bank.add_task("new", "aat_ms", labels=LABELS)
    assert starts_new(task)
    fit(bank, "new", labelled_clips, steps=2, progress=False)
    assert not starts_new(task)
    before = task.head.linear.weight.detach().clone()
    fit(bank, "new", labelled_clips, **STILL)
    torch.testing.assert_close(task.head.linear.weight, before, atol=1e-6, rtol=0)


def test_a_warm_start_with_the_same_labels_keeps_its_head(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("old", "aat_ms", labels=LABELS)
    fit(bank, "old", labelled_clips, steps=2, progress=False)
    assert not starts_new(bank.add_task("new", "aat_ms", labels=LABELS, init_from="old"))


def test_crops_start_too(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_ms", labels=LABELS)
    fit(bank, "new", labelled_clips, crop_seconds=0.2, **STILL)
    assert not starts_new(bank.task("new"))
