"""Folding: the same function through fewer sites, checked against the blocks as they run in the bank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adapterbank.backbone.encode import Segment, encode
from adapterbank.backbone.sites import NOTHING, Affine, Sites
from adapterbank.backbone.weights import LINEAR_NAMES
from adapterbank.bank import AdapterBank
from adapterbank.methods.aat import BottleneckAdapter, SpatialAdapter
from adapterbank.methods.lora import LowRank
from adapterbank.methods.parts.gate import gated
from adapterbank.serving.folding import fold

WIDTH, MLP = 48, 96


@pytest.fixture
def segment_of(small_backbone, randomise):
    """A task's segment, as if trained; in fp64, so that equal means equal."""

    def make(method, **options):
        task = AdapterBank(small_backbone).add_task("t", method, num_classes=2, **options).double()
        randomise(task, scale=0.2)
        return task.segment(in_fp64(small_backbone.weights))

    return make


@pytest.fixture
def same(small_geometry):
    """Checks a folded segment against the one it came from."""

    @torch.no_grad()
    def check(folded, segment):
        mel = torch.randn(3, 48, small_geometry.mel_bins, dtype=torch.float64)
        assert folded.read == segment.read
        one, other = (encode([mel], [replace(s, read=None)], small_geometry)[0] for s in (folded, segment))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        untouched = Segment((NOTHING,) * small_geometry.layers, segment.weights)
        assert (encode([mel], [untouched], small_geometry)[0] - one[:, :26]).abs().max() > 1e-3  # it is a change

    return check


def in_fp64(weights):
    return weights.map(lambda _, tensor: tensor.double())


def filled(segment):
    return set().union(*(sites.filled() for sites in segment.sites))


@pytest.mark.parametrize(
    ("method", "options", "rest"),
    [
        ("aat_m", {}, set()),
        ("aat_m", {"gate": "scalar"}, set()),
        ("aat_m", {"gate": "signal"}, {"beside_mlp"}),
        ("aat_ms", {"layers": [1]}, {"after_attention"}),
        ("bottleneck", {"reduction": 8}, set()),
        ("bottleneck", {"reduction": 8, "activation": "relu"}, {"beside_mlp"}),
        ("bottleneck", {"reduction": 8, "placement": "houlsby"}, {"beside_attention"}),
        ("lora", {"targets": LINEAR_NAMES, "dropout": 0.1}, set()),
        ("lora", {"targets": LINEAR_NAMES, "rslora": True, "alpha": 4}, set()),
        ("lora", {"targets": LINEAR_NAMES, "dora": True}, set()),
        ("bitfit", {"layers": [0]}, set()),
        ("ln_tuning", {}, set()),
        ("prompt", {}, {"extra_kv"}),
        ("prefix", {"tokens": 3}, {"extra_kv"}),
        ("prompt+prefix", {}, {"extra_kv"}),
        ("lora+bitfit+prompt+aat_m", {"targets": ["k", "v", "fc1"], "dora": True}, {"extra_kv"}),
        ("shallow_prompt", {"tokens": 5}, {"tokens"}),
        ("conformer+lora", {"conformer": {"reduction": 8, "train_block_norms": True}}, {"beside_mlp"}),
    ],
)
def test_what_can_be_folded_is_and_the_function_stays(method, options, rest, segment_of, same, small_geometry):
    segment = segment_of(method, **options)
    folded = fold(segment, small_geometry)
    assert filled(folded) == rest
    same(folded, segment)


def test_aats_mlp_adapter_is_units_of_a_wider_mlp(segment_of, small_geometry):
    first, second = fold(segment_of("aat_m", layers=[1]), small_geometry).weights.blocks
    assert first.fc1_weight.shape == (MLP, WIDTH)
    assert second.fc1_weight.shape == (MLP + WIDTH // 4, WIDTH)
    assert second.fc2_weight.shape == (WIDTH, MLP + WIDTH // 4)


def test_frozen_tensors_are_not_written_to_and_unchanged_ones_not_copied(segment_of, small_geometry):
    segment = segment_of("lora+bitfit+aat_m", targets=["q"])
    before = {name: tensor.clone() for name, tensor in segment.weights.named()}
    folded = dict(fold(segment, small_geometry).weights.named())
    changed = {name.split(".")[-1] for name, tensor in segment.weights.named() if folded[name] is not tensor}
    biases = {f"{name}_bias" for name in ("ln1", "ln2", *LINEAR_NAMES)}
    assert changed == {"q_weight", "fc1_weight", "fc2_weight"} | biases
    for name, tensor in segment.weights.named():
        assert torch.equal(tensor, before[name])


@pytest.fixture
def with_sites(small_backbone, small_geometry):
    """A segment with the same sites in every block, in fp64."""
    return lambda sites: Segment((sites,) * small_geometry.layers, in_fp64(small_backbone.weights))


@pytest.fixture
def low_ranks(small_backbone, randomise):
    def make(name, *kinds):
        weight = getattr(small_backbone.weights.blocks[0], f"{name}_weight")
        hooks = [LowRank(weight, 2, 1.5, 0.0, kind == "dora", torch.Generator().manual_seed(0)) for kind in kinds]
        for seed, hook in enumerate(hooks):
            randomise(hook.double(), seed, scale=0.3)
        return tuple(hooks)

    return make


@pytest.mark.parametrize("kinds", [("lora", "dora"), ("dora", "lora"), ("dora", "dora"), ("lora", "lora")])
def test_hooks_of_one_linear_are_merged_in_their_order(kinds, low_ranks, with_sites, same, small_geometry):
    bias = Affine(bias=torch.randn(WIDTH, dtype=torch.float64))
    segment = with_sites(Sites(linear={"v": low_ranks("v", *kinds)}, affine={"v": bias}))
    folded = fold(segment, small_geometry)
    assert not filled(folded)
    same(folded, segment)


def test_a_projection_without_a_frozen_bias_gets_the_tasks_own(small_geometry, random_backbone, low_ranks, same):
    weights = in_fp64(random_backbone(small_geometry, qkv_bias=False).weights)
    sites = Sites(
        linear={"q": low_ranks("q", "dora")},
        affine={name: Affine(bias=torch.randn(WIDTH, dtype=torch.float64)) for name in "qk"},
    )
    segment = Segment((sites,) * small_geometry.layers, weights)
    folded = fold(segment, small_geometry)
    assert not filled(folded)
    assert folded.weights.blocks[0].v_bias is None
    same(folded, segment)


def test_a_hook_that_cannot_be_merged_keeps_its_whole_linear_as_it_was(low_ranks, with_sites, same, small_geometry):
    seen = []

    def hook(x, y, frozen):
        seen.append(frozen)
        return y.tanh() + frozen.weight.sum()

    (merged,) = low_ranks("k", "lora")
    sites = Sites(
        linear={"k": (merged, hook), "fc1": (lambda x, y, frozen: 2 * y,)},
        affine={"k": Affine(bias=torch.randn(WIDTH, dtype=torch.float64))},
        extra_tokens=(torch.randn(3, WIDTH, dtype=torch.float64),),
        extra_kv=(tuple(torch.randn(2, 2, WIDTH, dtype=torch.float64)),) * 2,
        beside_mlp=(BottleneckAdapter(WIDTH, 0.25, torch.Generator()).double(),),
    )
    segment = with_sites(sites)
    folded = fold(segment, small_geometry)
    assert filled(folded) == {"linear", "affine", "extra_tokens", "extra_kv", "beside_mlp"}
    assert [len(s.extra_kv) for s in folded.sites] == [1, 1]
    same(folded, segment)
    assert {id(frozen.weight) for frozen in seen} == {id(b.k_weight) for b in segment.weights.blocks}


def test_beside_a_sequential_adapter_the_mlp_stays_what_that_one_reads(with_sites, same, small_geometry):
    adapter = BottleneckAdapter(WIDTH, 0.25, torch.Generator()).double()
    nn.init.normal_(adapter.up.weight)
    segment = with_sites(Sites(beside_mlp=(adapter,), after_mlp=torch.tanh))
    folded = fold(segment, small_geometry)
    assert filled(folded) == {"beside_mlp", "after_mlp"}
    same(folded, segment)


def test_an_adapter_with_a_shortcut_is_no_part_of_the_mlp(with_sites, same, small_geometry):
    adapter = SpatialAdapter(WIDTH, 0.25, torch.Generator()).double()
    segment = with_sites(Sites(beside_mlp=(adapter, F.relu)))
    folded = fold(segment, small_geometry)
    assert folded.sites == segment.sites
    same(folded, segment)


class Louder(BottleneckAdapter):
    """Somebody's subclass, who never heard of `units`."""

    def forward(self, x):
        return 2 * super().forward(x)


class Tripled(LowRank):
    def forward(self, x, y, frozen):
        return 3 * super().forward(x, y, frozen)


class Plain:
    """A hook that is no module, and says how it is merged."""

    def __call__(self, x, y, frozen):
        return 2 * y

    def merged(self, linear, frozen):
        return frozen._replace(weight=2 * linear.weight, bias=2 * linear.bias)


class Inverse(Plain):
    def __call__(self, x, y, frozen):
        return -y


@pytest.mark.parametrize("gate", ["static", "scalar"])
def test_a_subclass_that_does_something_else_is_not_folded_as_its_parent(
    gate, small_backbone, with_sites, same, small_geometry
):
    adapter = gated(Louder(WIDTH, 0.25, torch.Generator()), gate, "clip", WIDTH).double()
    nn.init.normal_(adapter.get_parameter("up.weight" if gate == "static" else "adapter.up.weight"))
    change = Tripled(small_backbone.weights.blocks[0].k_weight, 2, 1.5, 0.0, False, torch.Generator()).double()
    nn.init.normal_(change.up)
    segment = with_sites(Sites(beside_mlp=(adapter,), linear={"k": (change,), "v": (Inverse(),), "q": (Plain(),)}))
    folded = fold(segment, small_geometry)
    assert [(s.beside_mlp, set(s.linear)) for s in folded.sites] == [((adapter,), {"k", "v"})] * 2
    same(folded, segment)


def test_a_subclass_that_keeps_what_calling_does_is_folded(with_sites, same, small_geometry):
    class Named(BottleneckAdapter):
        name = "mine"

    adapter = Named(WIDTH, 0.25, torch.Generator()).double()
    nn.init.normal_(adapter.up.weight)
    segment = with_sites(Sites(beside_mlp=(adapter,)))
    folded = fold(segment, small_geometry)
    assert not filled(folded)
    same(folded, segment)


def test_attributes_that_only_happen_to_have_the_names_mean_nothing(with_sites, same, small_geometry):
    class Counted(nn.Module):
        merged = False

        def __init__(self):
            super().__init__()
            self.units = 12

        def forward(self, x, y=None, frozen=None):
            return (x if y is None else y).tanh()

    hook = Counted()
    segment = with_sites(Sites(beside_mlp=(hook, gated(hook, "scalar", "clip", WIDTH)), linear={"q": (hook,)}))
    folded = fold(segment, small_geometry)
    assert folded.sites == segment.sites
    same(folded, segment)


def test_a_bias_that_a_merged_hook_brings_is_not_lost(small_geometry, random_backbone, same):
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))

        def forward(self, x, y, frozen):
            return y + self.shift

        def merged(self, linear, frozen):
            return linear._replace(bias=self.shift if linear.bias is None else linear.bias + self.shift)

    weights = in_fp64(random_backbone(small_geometry, qkv_bias=False).weights)
    own = {name: Affine(bias=torch.randn(WIDTH, dtype=torch.float64)) for name in ("v", "proj")}
    sites = Sites(linear={"v": (Shift(),), "proj": (Shift(),)}, affine=own)
    segment = Segment((sites,) * small_geometry.layers, weights)
    folded = fold(segment, small_geometry)
    assert not filled(folded)
    same(folded, segment)


def test_with_a_bf16_base_what_is_folded_is_bf16_and_norms_stay_fp32(small_backbone, small_geometry, randomise):
    bank = AdapterBank(small_backbone).to(base_dtype=torch.bfloat16)
    task = bank.add_task("t", "lora+bitfit+aat_m+prompt", num_classes=2)
    randomise(task)
    folded = fold(task.segment(bank.backbone.weights), small_geometry)
    for block, sites in zip(folded.weights.blocks, folded.sites, strict=True):
        for name, tensor in block._asdict().items():
            assert tensor.dtype == (torch.float32 if name.startswith("ln") else torch.bfloat16)
        assert {tensor.dtype for pair in sites.extra_kv for tensor in pair} == {torch.bfloat16}
