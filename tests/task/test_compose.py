"""Trained tasks composed after the fact: copies in one forward pass, sources untouched."""

from __future__ import annotations

import warnings

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import (
    CompositionError,
    ConfigError,
    LabelsError,
    NameTakenError,
    UnknownNameError,
    UntrainedHeadWarning,
)
from adapterbank.training.fit import fit

pytestmark = pytest.mark.filterwarnings("ignore::adapterbank.errors.UntrainedHeadWarning")

LABELS = ["bass", "brass", "organ"]
QUICK = {"epochs": 1, "batch_size": 6, "lr": 1e-2, "precision": "fp32", "progress": False}


@pytest.fixture
def bank(small_backbone, randomise):
    bank = AdapterBank(small_backbone)
    bank.add_task("esc_aat", "aat_ms", labels=LABELS, ratio=0.5)
    bank.add_task("esc_prompt", "prompt", labels=LABELS, tokens=3)
    bank.add_task("birds", "lora", labels=["wren", "robin"], rank=2)
    bank.add_task("conv", "conformer", labels=LABELS, reduction=8)
    for index, name in enumerate(bank.tasks):
        randomise(bank.task(name), seed=index)
    return bank


def bits(bank):
    return {n: {k: t.clone() for k, t in task.state_dict().items()} for n, task in bank.tasks.items()}


def same(before, bank, names):
    return all(torch.equal(t, bank.task(n).state_dict()[k]) for n in names for k, t in before[n].items())


def test_a_composed_task_is_the_joint_method_with_the_sources_tensors(bank, clips):
    task = bank.compose("joint", ["esc_aat", "esc_prompt"], head_from="esc_aat")
    assert task.method == "aat_ms+prompt"
    by_hand = bank.add_task("by_hand", "joint", labels=LABELS, ratio=0.5, tokens=3)
    by_hand.adapters.parts["aat_ms"].load_state_dict(bank.task("esc_aat").adapters.state_dict())
    by_hand.adapters.parts["prompt"].load_state_dict(bank.task("esc_prompt").adapters.state_dict())
    by_hand.head.load_state_dict(bank.task("esc_aat").head.state_dict())
    assert torch.equal(bank(clips, "joint"), bank(clips, "by_hand"))
    assert (bank(clips, "joint") - bank(clips, "esc_aat")).abs().max() > 1e-3


def test_sources_stay_bit_identical_while_the_composition_trains(bank, labelled_clips, clips):
    before, names = bits(bank), list(bank.tasks)
    logits = {name: bank(clips, name) for name in names}
    bank.compose("joint", ["esc_aat", "esc_prompt"])
    bank.compose("three", ["joint", "birds"], labels=LABELS)
    assert bank.task("three").method == "aat_ms+prompt+lora"
    fit(bank, "joint", labelled_clips, **QUICK)
    fit(bank, "three", labelled_clips, **QUICK)
    assert same(before, bank, names)
    assert all(torch.equal(bank(clips, name), logits[name]) for name in names)


def test_frozen_parts_keep_every_bit_and_do_not_count_as_trainable(bank, labelled_clips):
    task = bank.compose("joint", ["conv", "esc_prompt"], freeze=["conv"])
    frozen = {key: t.clone() for key, t in task.part("conformer").state_dict().items()}
    assert any("running_mean" in key for key in frozen)
    prompts = [p.detach().clone() for p in task.part("prompt").parameters()]
    assert bank.trainable_parameters("joint") == sum(p.numel() for p in prompts) + sum(
        p.numel() for p in task.head.parameters()
    )
    fit(bank, "joint", labelled_clips, **QUICK)
    assert all(torch.equal(t, task.part("conformer").state_dict()[key]) for key, t in frozen.items())
    assert all(not torch.equal(p, q) for p, q in zip(prompts, task.part("prompt").parameters(), strict=True))


def test_with_all_parts_frozen_only_the_head_trains(bank, labelled_clips):
    task = bank.compose("joint", ["esc_aat", "esc_prompt"], freeze=True)
    assert task.uses_frozen_features()
    before = {key: t.clone() for key, t in task.state_dict().items()}
    fit(bank, "joint", labelled_clips, **QUICK)
    changed = {key for key, t in task.state_dict().items() if not torch.equal(t, before[key])}
    assert changed
    assert all(key.startswith("head.") for key in changed)


def test_a_composition_comes_back_from_disk(bank, clips, tmp_path):
    bank.compose("joint", ["esc_aat", "esc_prompt"], freeze=["esc_aat"])
    bank.save(tmp_path)
    again = AdapterBank.load(tmp_path, backbone=bank.backbone)
    assert torch.equal(again(clips, "joint"), bank(clips, "joint"))
    assert again.trainable_parameters("joint") == bank.trainable_parameters("joint")


@pytest.mark.parametrize(
    ("tasks", "options", "error", "message"),
    [
        (["esc_aat"], {}, CompositionError, "two or more"),
        (["esc_aat", "esc_aat"], {}, CompositionError, "each once"),
        (["esc_aat", "nobody"], {}, UnknownNameError, "unknown task 'nobody'"),
        (["esc_aat", "birds"], {}, LabelsError, r"esc_aat \(3\), birds \(2\)"),
        (["esc_aat", "esc_prompt"], {"how": "sum"}, UnknownNameError, "Known: joint"),
        (["esc_aat", "esc_prompt"], {"freeze": ["conv"]}, UnknownNameError, "task of the composition 'conv'"),
        (["esc_aat", "esc_prompt"], {"head_from": "conv"}, UnknownNameError, "'conv'"),
        (["esc_aat", "esc_prompt"], {"head_from": "esc_aat", "labels": ["x"]}, LabelsError, "give one of them"),
        (["esc_aat", "esc_prompt"], {"colour": 1}, UnknownNameError, "option of compose 'colour'"),
    ],
)
def test_what_cannot_be_composed_leaves_the_bank_as_it_was(tasks, options, error, message, bank):
    before = dict(bank.tasks)
    with pytest.raises(error, match=message):
        bank.compose("new", tasks, **options)
    assert dict(bank.tasks) == before


def test_clashes_and_differences_are_refused_by_name(bank):
    bank.add_task("again", "aat_s", labels=LABELS)
    bank.add_task("mean", "lora", labels=LABELS, rank=2, pooling="mean")
    with pytest.raises(CompositionError, match="'aat_ms' and 'aat_s' both fill the site after_attention"):
        bank.compose("new", ["esc_aat", "again"])
    with pytest.raises(ConfigError, match="differ in pooling .*esc_aat: 'cls_dist', mean: 'mean'"):
        bank.compose("new", ["esc_aat", "mean"])
    assert bank.compose("new", ["esc_aat", "mean"], pooling="mean").spec.pooling == "mean"
    with pytest.raises(NameTakenError):
        bank.compose("new", ["esc_aat", "mean"], pooling="mean")


def test_a_new_head_is_said_to_be_untrained_and_a_copied_one_is_not(bank):
    with pytest.warns(
        UntrainedHeadWarning, match=r"the head of 'new' is new .* fit\(bank, 'new', .*head_from='esc_aat'"
    ):
        bank.compose("new", ["esc_aat", "esc_prompt"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank.compose("copied", ["esc_aat", "esc_prompt"], head_from="esc_aat")
