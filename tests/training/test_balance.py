"""Rare classes weigh more in the loss, or are heard more often: by the formulas of scikit-learn and of torch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from adapterbank.bank import AdapterBank
from adapterbank.data import demo_tasks, load_folder
from adapterbank.data.pairs import pairs_of
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.training.balance import class_weights, clip_weights, labels_of
from adapterbank.training.defaults import Resolved
from adapterbank.training.feed import Feed
from adapterbank.training.options import Options

LABELS = ["bass", "brass", "organ"]
NAMES = ["bass"] * 8 + ["brass"] * 3 + ["organ"]


@pytest.fixture
def bank(small_backbone):
    return AdapterBank(small_backbone)


def test_balanced_weights_are_those_of_scikit_learn(bank):
    from sklearn.utils.class_weight import compute_class_weight

    task = bank.add_task("new", "head", labels=LABELS)
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=np.array(NAMES))
    torch.testing.assert_close(class_weights(task, "balanced", NAMES), torch.tensor(expected).float())


def test_balanced_weights_of_labels_are_clips_without_over_clips_with_them(bank):
    task = bank.add_task("tags", "head", labels=["a", "b", "c"], multilabel=True)
    found = class_weights(task, "balanced", [["a"], ["a", "b"], ["a"], []])
    assert found.tolist() == [pytest.approx(1 / 3), 3.0, 1.0]  # "c" never occurs


@pytest.mark.parametrize("given", [{"organ": 4}, [1, 1, 4], np.array([1.0, 1.0, 4.0]), torch.tensor([1, 1, 4.0])])
def test_weights_are_given_by_name_or_in_the_order_of_the_labels(given, bank):
    task = bank.add_task("new", "head", labels=LABELS)
    assert class_weights(task, Options(class_weights=given).class_weights).tolist() == [1, 1, 4]


@pytest.mark.parametrize("given", ["rare", {"a": 0}, {"a": float("nan")}, [1, -1, 1], [], 3.0, {3: 1.0}, [[1.0]]])
def test_weights_that_cannot_be_are_refused(given):
    with pytest.raises(ConfigError, match="got class_weights=.*expected 'balanced', a positive number per class"):
        Options(class_weights=given)


def test_weights_that_do_not_fit_the_task_name_its_classes(bank):
    task = bank.add_task("new", "head", labels=LABELS)
    with pytest.raises(UnknownNameError, match="unknown class of 'new' in class_weights 'orgam'. Did you mean 'organ'"):
        class_weights(task, {"orgam": 2.0})
    with pytest.raises(ConfigError, match="got 2 class_weights for the 3 classes of 'new'"):
        class_weights(task, (1.0, 2.0))


def test_labels_of_a_folder_are_known_without_reading_a_clip(monkeypatch):
    dataset = load_folder(demo_tasks()["instruments"])
    expected = [dataset[index][1] for index in (5, 40)]
    monkeypatch.setattr(type(dataset), "__getitem__", None)
    assert labels_of(pairs_of(Subset(dataset, [5, 40]))) == expected
    assert len(labels_of(pairs_of(dataset))) == len(dataset)


def test_labels_of_any_other_dataset_are_read_clip_by_clip(labelled_clips):
    assert labels_of(labelled_clips) == [label for _, label in labelled_clips]


def test_the_balanced_sampler_hears_all_classes_equally_often(bank, small_backbone, labelled_clips):
    task = bank.add_task("new", "head", labels=LABELS)
    skewed = [clip for name in NAMES for clip in labelled_clips if clip[1] == name][: 8 * 4] + labelled_clips
    names = [label for _, label in skewed]
    counts = Counter(names)
    assert max(counts.values()) > 5 * min(counts.values())
    assert clip_weights(task, names).tolist() == [pytest.approx(1 / counts[name]) for name in names]
    feed = Feed(small_backbone, task, skewed, Resolved(batch_size=8, sampler="balanced"), (0, 0))
    heard = Counter(
        label for epoch in range(30) for place in range(len(feed)) for label in feed.batch(epoch, place).labels
    )
    assert sum(heard.values()) == 30 * len(skewed)
    shares = [heard[name] / heard.total() for name in LABELS]
    assert all(share == pytest.approx(1 / 3, abs=0.05) for share in shares)  # 2.5 standard deviations of 1320 draws


def test_clips_with_several_labels_add_up_and_those_without_count_as_one_class(bank):
    task = bank.add_task("tags", "head", labels=["a", "b"], multilabel=True)
    assert clip_weights(task, [["a"], ["a", "b"], [], []]).tolist() == [0.5, 1.5, 0.5, 0.5]
