"""Trainings that walk in step hear one thing; each order is drawn by its own seed."""

from __future__ import annotations

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import LabelsError, UntrainedClassesWarning
from adapterbank.training.defaults import Resolved
from adapterbank.training.feed import Feed
from adapterbank.training.fit import fit

LABELS = ["bass", "brass", "organ"]


@pytest.fixture
def make(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    for name in ("a", "b"):
        bank.add_task(name, "aat_m", labels=LABELS)

    def feed(task="a", masks=(8, 0.1), **options):
        options = Resolved(batch_size=5, crop_seconds=0.3, **options)
        return Feed(small_backbone, bank.task(task), labelled_clips, options, masks)

    return feed


def heard(feed, epochs=2):
    return [feed.batch(epoch, place) for epoch in range(epochs) for place in range(len(feed))]


def same(one, other):
    return all(
        torch.equal(x, y) and a.labels == b.labels
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a.rows, b.rows, strict=True)
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({}, {}, True),
        ({}, {"task": "b"}, False),
        ({}, {"seed": 1}, False),
        ({}, {"order": "shared"}, False),
        ({"order": "shared"}, {"order": "shared", "task": "b", "lr": 1.0}, True),
        ({"order": "shared"}, {"order": "shared", "seed": 1}, False),
        ({"order": "shared"}, {"order": "shared", "masks": (0, 0)}, False),
    ],
)
def test_feeds_give_the_same_batches_if_and_only_if_their_keys_are_the_same(one, other, expected, make):
    first, second = make(**one), make(**other)
    assert (first.key == second.key) is expected
    assert same(heard(first), heard(second)) is expected


def test_a_batch_that_is_asked_for_again_is_the_same_object(make):
    shared, alone = make(), make()
    batches = []
    for epoch in range(2):
        for place in range(len(shared)):
            batch = shared.batch(epoch, place)
            assert shared.batch(epoch, place) is batch
            batches.append(batch)
    assert same(batches, heard(alone))


def test_every_epoch_hears_every_clip_once_in_a_new_order(make, labelled_clips):
    feed = make()
    orders = [[label for place in range(len(feed)) for label in feed.batch(epoch, place).labels] for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(label for _, label in labelled_clips)
    assert orders[0] != orders[1]


def test_classes_without_a_training_clip_are_named_before_anything_is_trained(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=["bass", "brass", "organ", "flute", "harp"])
    val = [*labelled_clips[:2], (labelled_clips[0][0], "harp")]
    with pytest.warns(UntrainedClassesWarning, match=r"2 of its 5 classes: flute, harp.* 1 validation clip has them"):
        fit(bank, "new", labelled_clips, val, steps=1, progress=False)
    bank.add_task("several", "head", labels=["bass", "brass", "flute"], multilabel=True)
    sets = [(wave, ["bass", "brass"]) for wave, _ in labelled_clips]
    with pytest.warns(UntrainedClassesWarning, match="1 of its 3 classes: flute"):
        fit(bank, "several", sets, steps=1, progress=False)


def test_several_labels_for_a_task_of_one_are_told_how(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=["bass", "brass", "organ"])
    with pytest.raises(LabelsError, match="pass multilabel=True"):
        fit(bank, "new", [(wave, ["bass", "brass"]) for wave, _ in labelled_clips], steps=1, progress=False)
