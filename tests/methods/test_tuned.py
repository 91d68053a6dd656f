"""Full and partial fine-tuning train copies that the task owns; the base is never touched."""

from __future__ import annotations

import pytest
import torch

from adapterbank import methods
from adapterbank.bank import AdapterBank
from adapterbank.errors import CompositionError, ConfigError
from adapterbank.task.task import seeded


def built(method, backbone, **options):
    return methods.build(method, backbone.geometry, backbone.weights, seeded(0, "x"), options)


def test_full_owns_a_copy_of_every_tensor(small_backbone):
    own = built("full", small_backbone)
    copies = dict(own.owned(small_backbone.weights).named())
    for name, tensor in small_backbone.weights.named():
        assert torch.equal(copies[name], tensor)
        assert copies[name].data_ptr() != tensor.data_ptr()
        assert copies[name].requires_grad
    assert sum(p.numel() for p in own.parameters()) == small_backbone.num_parameters()


@pytest.mark.parametrize("count", [1, 2])
def test_partial_owns_the_last_blocks_and_shares_the_rest(count, small_backbone):
    base = small_backbone.weights
    mine = built("partial", small_backbone, blocks=count).owned(base)
    assert mine.embed is base.embed
    assert mine.norm is base.norm
    for layer in range(2):
        assert (mine.blocks[layer] is base.blocks[layer]) == (layer < 2 - count)


def test_partial_owns_half_of_the_blocks_unless_told(small_backbone):
    assert len(built("partial", small_backbone).blocks) == 1


@pytest.mark.parametrize("blocks", [0, 3, -1, 1.0, "1"])
def test_a_bad_number_of_blocks_is_refused(blocks, small_backbone):
    with pytest.raises(ConfigError, match="got blocks=.*expected 1 to 2"):
        built("partial", small_backbone, blocks=blocks)


def test_absent_biases_stay_absent(random_backbone, small_geometry, clips):
    bare = random_backbone(small_geometry, qkv_bias=False)
    bank = AdapterBank(bare)
    for method in ("full", "partial", "head"):
        bank.add_task(method, method, num_classes=2)
        bank.task(method).head.load_state_dict(bank.task("full").head.state_dict())
    assert bank.task("full").adapters.owned(bare.weights).blocks[0].q_bias is None
    assert (bank(clips, "full") - bank(clips, "head")).abs().max() <= 1e-6
    assert (bank(clips, "partial") - bank(clips, "head")).abs().max() <= 1e-6


def test_copies_of_a_half_precision_base_are_fp32(small_backbone, clips):
    bank = AdapterBank(small_backbone.to(dtype=torch.bfloat16))
    for method in ("full", "partial"):
        bank.add_task(method, method, num_classes=2)
        assert all(p.dtype == torch.float32 for p in bank.task(method).parameters())
        assert bank(clips, method).isfinite().all()


def test_two_owners_of_whole_blocks_clash(small_backbone):
    with pytest.raises(CompositionError, match="'full' and 'partial' both own whole blocks"):
        built("full+partial", small_backbone)


def test_adapters_run_inside_owned_blocks(small_backbone, randomise, clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("both", "partial+aat_ms", num_classes=2)
    bank.add_task("alone", "aat_ms", num_classes=2)
    alone, both = bank.task("alone"), bank.task("both")
    randomise(alone)
    both.head.load_state_dict(alone.head.state_dict())
    both.adapters.parts["aat_ms"].load_state_dict(alone.adapters.state_dict())
    torch.testing.assert_close(bank(clips, "both"), bank(clips, "alone"), rtol=0, atol=1e-6)
