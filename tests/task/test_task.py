"""What a task is: its name, its description as JSON, its tensors."""

from __future__ import annotations

import json

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import (
    AdapterBankError,
    ConfigError,
    InvalidNameError,
    LabelsError,
    StorageError,
    UnknownNameError,
)
from adapterbank.task.spec import TaskSpec, check_name
from adapterbank.task.task import Task, seeded

SPEC = {"name": "notes", "method": "aat_ms", "labels": ("a", "b", "c")}


@pytest.mark.parametrize("name", ["a", "0", "esc50", "us8k.fold-3_v2", "x" * 64])
def test_a_name_is_a_file_name_everywhere(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Esc50", "a b", "a/b", "../a", ".a", "-a", "_a", "a\n", "ä", "x" * 65, "a:b", None, 3, b"a"]
)
def test_other_names_are_refused(name, small_bank):
    before = dict(small_bank.tasks)
    with pytest.raises(InvalidNameError, match="expected 1 to 64 of a-z"):
        small_bank.add_task(name, "head", num_classes=2)
    with pytest.raises(InvalidNameError, match="expected 1 to 64 of a-z"):
        small_bank.rename_task("notes", name)
    assert dict(small_bank.tasks) == before


@pytest.mark.parametrize("name", ["auto", "all", "base", "unknown"])
def test_reserved_names_are_refused(name, small_bank):
    with pytest.raises(InvalidNameError, match=f"{name!r} is reserved .auto, all, base, unknown.; choose another"):
        small_bank.add_task(name, "head", num_classes=2)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"options": {"ratio": 0.5}, "multilabel": True, "head": "linear", "pooling": "mean", "train_final_norm": True},
        {"clip_seconds": 1.5, "normalize": (-6.6, 5.3), "seed": 7, "labels": ("ein Ä", "zwei", "3")},
        {"method": "joint", "options": {"prompt": {"tokens": 3}}},
    ],
)
def test_a_description_survives_json(extra):
    spec = TaskSpec(**{**SPEC, **extra})
    assert TaskSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "notes",
        {},
        {"name": "a", "method": "head"},
        {"name": "a", "method": "head", "labels": "abc"},
        {"name": "a", "method": "head", "labels": ["x"], "colour": 1},
        {"name": "a", "method": "head", "labels": ["x"], "options": ["ratio"]},
        {"name": "a", "method": "lora9", "labels": ["x"]},
        {"name": "../a", "method": "head", "labels": ["x"]},
        {"name": "a", "method": "head", "labels": []},
        {"name": "a", "method": "head", "labels": ["x"], "normalize": [1]},
    ],
)
def test_a_damaged_description_is_refused(content):
    with pytest.raises(AdapterBankError) as error:
        TaskSpec.from_json(content)
    if not isinstance(content, dict) or content.get("labels") in (None, "abc") or "colour" in content:
        assert isinstance(error.value, StorageError)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": ()}, LabelsError, "got no labels, expected at least one"),
        ({"labels": ("a", "a")}, LabelsError, "the label 'a' stands twice"),
        ({"labels": ("a", "")}, LabelsError, "expected non-empty strings"),
        ({"labels": (1, 2)}, LabelsError, "expected non-empty strings"),
        ({"head": "mlp"}, UnknownNameError, "Known: linear, ln_linear"),
        ({"clip_seconds": 0}, ConfigError, "clip_seconds=0, expected a positive number or None"),
        ({"clip_seconds": float("nan")}, ConfigError, "clip_seconds=nan"),
        ({"clip_seconds": "2"}, ConfigError, "clip_seconds='2'"),
        ({"normalize": "task"}, ConfigError, "normalize='task', expected 'backbone' or"),
        ({"normalize": (0.0, 0.0)}, ConfigError, "std > 0"),
        ({"normalize": (0.0,)}, ConfigError, "normalize="),
        ({"normalize": 3.0}, ConfigError, "normalize=3.0"),
        ({"normalize": (0.0, float("inf"))}, ConfigError, "normalize="),
        ({"seed": 1.5}, ConfigError, "seed=1.5, expected an integer"),
    ],
)
def test_impossible_descriptions_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        TaskSpec(**{**SPEC, **change})


def test_generators_depend_on_seed_and_names_only():
    def draw(*key: object) -> float:
        return torch.rand((), generator=seeded(*key)).item()

    torch.manual_seed(1)
    first = draw(0, "a", "init")
    torch.manual_seed(2)
    assert draw(0, "a", "init") == first
    others = [draw(1, "a", "init"), draw(0, "b", "init"), draw(0, "a", "data"), draw(0, "a"), draw(0, "ai", "nit")]
    assert len({first, *others}) == 6


def test_same_seed_and_name_start_the_same_and_another_name_does_not(small_backbone):
    def made(**change: object) -> dict[str, torch.Tensor]:
        return Task(TaskSpec(**{**SPEC, **change}), small_backbone).state_dict()

    state = torch.get_rng_state()
    first, again, renamed, reseeded = made(), made(), made(name="other"), made(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    for other in (renamed, reseeded):
        assert not torch.equal(first["head.linear.weight"], other["head.linear.weight"])
        assert not torch.equal(first["adapters.mlp.0.down.weight"], other["adapters.mlp.0.down.weight"])


def test_inputs_are_padded_with_zero_log_mel_and_then_normalised_by_task_or_backbone(small_backbone):
    mel = torch.randn(3, 128)
    own = Task(TaskSpec(**SPEC, normalize=(-6.0, 5.0)), small_backbone).prepare(mel, 5)
    expected = (torch.cat((mel, torch.zeros(2, 128))) + 6.0) / 10.0
    torch.testing.assert_close(own, expected)
    base = Task(TaskSpec(**SPEC), small_backbone).prepare(mel, 3)
    torch.testing.assert_close(base, (mel - -4.2677393) / (2 * 4.5689974))


def test_a_final_norm_of_its_own_starts_as_the_frozen_one_and_full_has_it_already(small_backbone):
    own = Task(TaskSpec(**{**SPEC, "method": "head"}, train_final_norm=True), small_backbone)
    assert torch.equal(own.norm["weight"], small_backbone.weights.norm.weight)
    assert own.trainable_parameters() == 2 * 48 + 3 * 48 + 3 + 2 * 48
    full = Task(TaskSpec(**{**SPEC, "method": "full"}, train_final_norm=True), small_backbone)
    plain = Task(TaskSpec(**{**SPEC, "method": "full"}), small_backbone)
    assert full.trainable_parameters() == plain.trainable_parameters()


def test_only_a_task_without_anything_before_its_head_has_frozen_features(small_backbone):
    for method, expected in (("head", True), ("aat_m", False), ("prompt", False), ("partial", False)):
        task = Task(TaskSpec(**{**SPEC, "method": method}), small_backbone)
        assert task.uses_frozen_features() is expected
    assert not Task(
        TaskSpec(**{**SPEC, "method": "head"}, train_final_norm=True), small_backbone
    ).uses_frozen_features()


def test_bytes_are_those_of_all_tensors(small_backbone):
    task = Task(TaskSpec(**SPEC), small_backbone)
    assert task.num_bytes() == 4 * sum(p.numel() for p in task.parameters()) == 4 * task.trainable_parameters()


def test_a_task_with_other_adapters_shares_the_rest_and_leaves_the_original_as_it_was(small_bank, clips):
    task, other = small_bank.task("notes"), small_bank.task("studio")
    task.metrics = {"accuracy": 0.5}
    before, logits = {key: t.clone() for key, t in task.state_dict().items()}, small_bank(clips, "notes")
    own = task.adapters
    variant = task.with_adapters(other.adapters)
    assert (variant.spec, variant.labels, variant.mean_std) == (task.spec, task.labels, task.mean_std)
    assert variant.adapters is other.adapters
    assert variant.head is task.head
    assert variant.norm is task.norm
    assert not variant.metrics
    variant.metrics["accuracy"] = 0.9
    assert task.adapters is own
    assert task.metrics == {"accuracy": 0.5}
    assert all(torch.equal(t, before[key]) for key, t in task.state_dict().items())
    assert torch.equal(small_bank(clips, "notes"), logits)
    assert set(task.state_dict()) == set(before)


def test_shared_adapters_are_the_same_tensors_and_heads_stay_apart(small_backbone, randomise, clips):
    bank = AdapterBank(small_backbone)
    for name in ("first", "second"):
        bank.add_task(name, "full", num_classes=3)
    first, second = bank.task("first"), bank.task("second")
    second.share_adapters(first)
    assert second.adapters is first.adapters
    before = bank(clips, "second")
    randomise(first.adapters)
    assert not torch.equal(bank(clips, "second"), before)
    assert second.head is not first.head


@pytest.mark.parametrize(
    ("method", "options"), [("aat_m", {}), ("aat_ms", {"ratio": 0.5}), ("aat_ms", {"layers": [0]}), ("partial", {})]
)
def test_adapters_of_another_method_or_size_are_not_shared(method, options, small_backbone):
    bank = AdapterBank(small_backbone)
    task, other = bank.add_task("a", "aat_ms", num_classes=2), bank.add_task("b", method, num_classes=2, **options)
    own = task.adapters
    with pytest.raises(ConfigError, match=rf"'a' \(aat_ms\) cannot share the adapters of 'b' \({method}\), expected"):
        task.share_adapters(other)
    assert task.adapters is own
