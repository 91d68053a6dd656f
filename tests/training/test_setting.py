"""What the parts of a training share: its clip length, its masks, and dropout that only the seed draws."""

from __future__ import annotations

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.training.augment import MAX_TIME_SHARE
from adapterbank.training.defaults import FREQ_MASK, MASK_PASSES, resolved
from adapterbank.training.options import Options
from adapterbank.training.setting import Setting


@pytest.fixture
def setting(small_backbone):
    def make(method="aat_ms", task=None, name="new", **options):
        bank = AdapterBank(small_backbone)
        added = bank.add_task(name, method, num_classes=3, **(task or {}))
        return Setting.of(small_backbone, added, resolved(Options(**{"precision": "fp32", **options}), added, clips=64))

    return make


@pytest.mark.parametrize(
    ("clip_seconds", "crop_seconds", "expected"),
    [(None, None, None), (None, 0.5, None), (1.0, None, 1.0), (1.0, 0.5, 0.5), (1.0, 2.0, 1.0)],
)
def test_clips_are_padded_to_the_tasks_length_but_never_beyond_a_crop(clip_seconds, crop_seconds, expected, setting):
    found = setting(task={"clip_seconds": clip_seconds}, crop_seconds=crop_seconds)
    assert found.clip_seconds == expected


@pytest.mark.parametrize(
    ("method", "task", "options", "masks"),
    [
        ("aat_ms", {}, {"epochs": MASK_PASSES}, (FREQ_MASK, MAX_TIME_SHARE)),
        ("aat_ms", {}, {"epochs": MASK_PASSES - 1}, (0, 0.0)),
        ("aat_ms", {}, {"epochs": MASK_PASSES, "time_mask": 0}, (FREQ_MASK, 0)),
        ("aat_ms", {}, {"epochs": 1, "freq_mask": 8, "time_mask": 5}, (8, 5)),
        ("head", {}, {"epochs": MASK_PASSES}, (0, 0.0)),
        ("head", {}, {"epochs": MASK_PASSES, "freq_mask": 8}, (8, 0.0)),
        ("lora", {"layers": [1]}, {"epochs": MASK_PASSES, "cache": "memory"}, (0, 0.0)),
    ],
)
def test_masks_are_for_long_trainings_whose_clips_may_change_unless_they_are_asked_for(
    method, task, options, masks, setting
):
    assert setting(method, task, **options).masks == masks


def test_dropout_is_drawn_by_seed_task_and_draw_and_by_nothing_else(setting):
    def draw(*names, seed=0, task="new"):
        torch.rand(3)  # wherever the global state is
        made = setting("aat_m", {"dropout": 0.5}, name=task, seed=seed)
        before = torch.get_rng_state()
        with made.seeded_dropout(*names):
            found = torch.rand(4).tolist()
        assert torch.equal(torch.get_rng_state(), before)
        return found

    assert draw("3") == draw("3")
    assert draw("3") not in (draw("4"), draw("3", "1"), draw("3", seed=1), draw("3", task="other"))


def test_without_dropout_the_global_random_state_is_not_touched(setting):
    made = setting("aat_m", {"dropout": 0.0})
    torch.manual_seed(5)
    expected = torch.rand(2).tolist()
    torch.manual_seed(5)
    with made.seeded_dropout("0"):
        assert torch.rand(2).tolist() == expected


def test_fp32_runs_on_the_same_backbone_without_autocast_and_bf16_on_a_cast_one_with_it(setting, small_backbone):
    exact, half = setting(), setting(precision="bf16")
    assert exact.backbone is small_backbone
    with exact.autocast:
        assert not torch.is_autocast_enabled("cpu")
    with half.autocast:
        assert torch.get_autocast_dtype("cpu") == half.backbone.dtype == torch.bfloat16
