"""The two parts of a task's AST make the whole."""

from __future__ import annotations

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.routing.below import first_block, logits_above, tokens_below
from adapterbank.routing.run import mels_of, run_rows


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("head", {}, 2),
        ("head", {"train_final_norm": True}, 2),
        ("aat_ms", {}, 0),
        ("aat_ms", {"layers": [1]}, 1),
        ("bitfit", {}, 0),
        ("lora", {"layers": [1]}, 1),
        ("prompt", {"mode": "overwrite"}, 1),
        ("shallow_prompt", {"tokens": 2}, 0),
        ("partial", {"blocks": 1}, 1),
        ("partial", {"blocks": 2}, 0),
        ("full", {}, None),
        ("partial+aat_m", {"blocks": 1}, 0),
    ],
)
def test_the_first_block_is_the_first_with_a_site_or_a_tensor_of_the_tasks_own(
    method, options, expected, small_backbone
):
    task = AdapterBank(small_backbone).add_task("new", method, num_classes=3, **options)
    assert first_block(task, small_backbone.weights) == expected


@pytest.mark.parametrize("clip_seconds", [None, 1.2])
def test_what_lies_below_and_above_give_the_bits_of_one_pass(clip_seconds, small_backbone, clips, randomise):
    bank = AdapterBank(small_backbone)
    methods = {"a": ("aat_ms", {"layers": [1]}), "b": ("partial", {"blocks": 1}), "c": ("head", {}), "d": ("lora", {})}
    mels = mels_of(small_backbone, clips)
    for name, (method, options) in methods.items():
        task = bank.add_task(name, method, num_classes=3, clip_seconds=clip_seconds, **options)
        randomise(task)
        first = first_block(task, small_backbone.weights)
        tokens = tokens_below(small_backbone, task, mels, {0, first}, clip_seconds)
        whole = run_rows(small_backbone, [task] * len(mels), mels)
        for block in {0, first}:
            parts = logits_above(small_backbone, [task] * len(mels), tokens[block], block)
            # A whole pass cuts the last block to the tokens that heads read: other shapes of products, which some
            # processors round otherwise.
            near = 1e-5 if block == small_backbone.geometry.layers else 0
            for one, other in zip(parts, whole, strict=True):
                torch.testing.assert_close(one, other, rtol=near, atol=near)


def test_rows_of_several_tasks_go_through_their_own(small_backbone, clips, randomise):
    bank = AdapterBank(small_backbone)
    tasks = [bank.add_task(name, "aat_ms", num_classes=3, layers=[1]) for name in ("a", "b")]
    for seed, task in enumerate(tasks):
        randomise(task, seed)
    mels = mels_of(small_backbone, clips)
    tokens = tokens_below(small_backbone, tasks[0], mels, [1], None)[1]
    mixed = logits_above(small_backbone, [task for _ in mels for task in tasks], [x for x in tokens for _ in tasks], 1)
    for place, task in enumerate(tasks):
        alone = run_rows(small_backbone, [task] * len(mels), mels)
        torch.testing.assert_close(torch.stack(mixed[place::2]), torch.stack(alone), rtol=0, atol=1e-5)
