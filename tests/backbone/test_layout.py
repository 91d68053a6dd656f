"""The packed block: equal to its segments one by one, whatever they fill; what is shared is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterbank.backbone import layout as packed
from adapterbank.backbone.block import block
from adapterbank.backbone.kernels import mlp
from adapterbank.backbone.kernels.attention import attention
from adapterbank.backbone.layout import alike, numbered, pack
from adapterbank.backbone.sites import NOTHING, Affine, Sites
from adapterbank.backbone.weights import BlockWeights

LOW_RANK = torch.randn(48, 48, generator=torch.Generator().manual_seed(1)) * 0.1


def low_rank(x: Tensor, y: Tensor, frozen: object) -> Tensor:
    return y + x @ LOW_RANK


@pytest.fixture
def adapter() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 12), nn.GELU(), nn.Linear(12, 48)).requires_grad_(False)


@pytest.fixture
def all_sites(adapter: nn.Module) -> dict[str, Sites]:
    """Every kind of change, one segment each."""
    pair = torch.randn(2, 48), torch.randn(2, 48)
    return {
        "none": NOTHING,
        "lora": Sites(linear={"q": (low_rank,), "v": (low_rank,)}),
        "prefix": Sites(extra_kv=(pair,)),
        "prompt": Sites(extra_tokens=(torch.randn(2, 48),), affine={"k": Affine(bias=torch.randn(48))}),
        "long prompt": Sites(extra_tokens=(torch.randn(3, 48), torch.randn(2, 48)), extra_kv=(pair,)),
        "after": Sites(after_attention=adapter, after_mlp=adapter),
        "beside": Sites(beside_attention=(adapter,), beside_mlp=(adapter, adapter)),
        "norms": Sites(affine={"ln1": Affine(gain=torch.randn(48)), "ln2": Affine(bias=torch.randn(48))}),
        "biases": Sites(affine={n: Affine(bias=torch.randn(96 if n == "fc1" else 48)) for n in ("fc1", "proj")}),
        "mlp": Sites(linear={"fc2": (lambda x, y, frozen: 1.5 * y,)}),
    }


@pytest.fixture
def one_by_one(small_backbone, small_geometry) -> Callable[..., list[Tensor]]:
    """The reference: each segment in a block call of its own, on a copy."""

    def run(xs: list[Tensor], sites: list[Sites]) -> list[Tensor]:
        weights = small_backbone.weights.blocks[1]
        return [block([x.clone()], weights, [s], small_geometry)[0] for x, s in zip(xs, sites, strict=True)]

    return run


@pytest.fixture
def weights(small_backbone) -> BlockWeights:
    return small_backbone.weights.blocks[1]


def tokens_per_linear(monkeypatch: pytest.MonkeyPatch, weights: BlockWeights) -> dict[str, int]:
    """Counts the tokens that run through each frozen linear from now on; prompts' keys and values too."""
    names = {id(tensor): name for name, tensor in weights._asdict().items()}
    counts: dict[str, int] = {}

    for module, product in itertools.product((packed, mlp), (packed.frozen_linear, packed.frozen_linear_gelu)):

        def counted(x: Tensor, weight: Tensor, *more: Any, product=product) -> Tensor:
            name = names[id(weight)]
            counts[name] = counts.get(name, 0) + x.shape[:-1].numel()
            return product(x, weight, *more)

        monkeypatch.setattr(module, product.__name__, counted)
    return counts


def test_numbers_follow_the_first_appearance():
    assert numbered("banana") == [0, 1, 2, 1, 2, 1]
    assert numbered([]) == []
    one, other = torch.zeros(1), torch.zeros(1)  # equal, and not the same
    assert alike([one, other, one], [other, other, other]) == [0, 1, 0]
    assert alike([one, one], [one, other]) == [0, 1]
    assert alike([one]) == [0]


def test_packing_copies_nothing_that_adjoins_and_is_a_concatenation_otherwise():
    whole = torch.randn(12, 4)
    a, b = (part.unflatten(0, (-1, 2)) for part in whole.split([8, 4]))
    with torch.no_grad():
        assert pack([a, b]).data_ptr() == whole.data_ptr()
        assert torch.equal(pack([a, b]), whole)
        for parts in ([b, a], [a, a], [a, b.clone()], [a[:2], b], [a, b.transpose(0, 1)], [a[:, :1], a[:, 1:]]):
            expected = torch.cat([part.reshape(-1, 4) for part in parts])
            assert torch.equal(pack(parts), expected)
            assert pack(parts).data_ptr() != whole.data_ptr()


def test_packing_sends_gradients_to_the_parts_that_they_belong_to():
    whole = torch.randn(12, 4)
    a, b = (part.unflatten(0, (-1, 2)).requires_grad_() for part in whole.split([8, 4]))
    (pack([a, b]) * torch.arange(12.0)[:, None]).sum().backward()
    assert torch.equal(torch.cat((a.grad.flatten(0, 1), b.grad.flatten(0, 1)))[:, 0], torch.arange(12.0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shapes", ["one", "mixed"])
def test_a_packed_block_equals_its_segments_one_by_one(
    shapes, training, all_sites, weights, small_geometry, one_by_one
):
    sites = [*all_sites.values(), *reversed(all_sites.values())]
    xs = [torch.randn(1 + i % 3, 9 if shapes == "one" else 5 + i % 4, 48) for i in range(len(sites))]
    before = [x.clone() for x in xs]
    with torch.set_grad_enabled(training):
        together = block(xs, weights, sites, small_geometry)
        for out, alone in zip(together, one_by_one(xs, sites), strict=True):
            torch.testing.assert_close(out, alone, rtol=0, atol=1e-5)
        again = block(together, weights, sites, small_geometry)  # whose inputs adjoin in memory
        for out, alone in zip(again, one_by_one(together, sites), strict=True):
            torch.testing.assert_close(out, alone, rtol=0, atol=1e-5)
    assert all(torch.equal(x, old) for x, old in zip(xs, before, strict=True)), "a block wrote to its input"


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("site", ["after_attention", "after_mlp", "proj", "fc1", "fc2"])
def test_what_a_module_returns_is_read_and_never_written_to(site, tasks, adapter, weights, small_geometry):
    table = nn.Parameter(torch.randn(1, 9, 96 if site == "fc1" else 48))
    kept = table.detach().clone()

    def looked_up(x: Tensor, *_: object) -> Tensor:
        return table[:, : x.shape[1]]

    own = {site: looked_up} if site.startswith("after") else {"linear": {site: (looked_up,)}}
    sites = Sites(**own, beside_attention=(adapter,), beside_mlp=(adapter,))
    xs = [torch.randn(1, 9, 48) for _ in range(tasks)]
    with torch.no_grad():
        first, second = (block(xs, weights, [sites] * tasks, small_geometry) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert torch.equal(table, kept)


def test_gradients_of_a_packed_block_equal_those_of_its_segments(all_sites, weights, small_geometry, one_by_one):
    sites = list(all_sites.values())
    xs = [torch.randn(2, 9, 48, requires_grad=True) for _ in sites]
    targets = [torch.randn(2, 9, 48) for _ in sites]
    grads = []
    for run in (lambda: block(xs, weights, sites, small_geometry), lambda: one_by_one(xs, sites)):
        loss = sum((out * target).sum() for out, target in zip(run(), targets, strict=True))
        grads.append(torch.autograd.grad(loss, xs))
    for together, alone in zip(*grads, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("read", [None, 2])
@pytest.mark.parametrize("kind", ["none", "lora", "prefix", "long prompt", "beside", "biases"])
def test_gradients_of_a_block_in_bf16_are_near_those_in_fp32(
    kind, read, rows, all_sites, small_backbone, small_geometry
):
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        weights = small_backbone.to(dtype=torch.bfloat16).to(dtype=dtype).weights.blocks[1]
        x = torch.randn(rows, 9, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            (out,) = block([x], weights, [all_sites[kind]], small_geometry, [read])
        given = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        found.append(torch.autograd.grad(out, x, given)[0])
    near = 2e-2 * float(found[1].abs().max())
    torch.testing.assert_close(*found, rtol=0, atol=near)


def test_a_block_in_bf16_joins_and_slices_no_gradients_of_q_k_and_v(small_backbone, small_geometry):
    weights = small_backbone.to(dtype=torch.bfloat16).weights.blocks[1]
    (out,) = block([torch.randn(2, 9, 48, requires_grad=True)], weights, [NOTHING], small_geometry)
    names, nodes = set(), [out.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [following for following, _ in node.next_functions if following is not None]
    assert "_ColumnsBackward" in names
    assert not {"SplitBackward0", "SplitWithSizesBackward0", "SliceBackward0"} & names


@pytest.mark.parametrize("kind", ["beside", "norms and beside"])
def test_what_the_backward_pass_makes_anew_gives_the_same_gradients_twice(
    kind, all_sites, weights, small_geometry, monkeypatch
):
    changed = Affine(gain=torch.randn(48))
    sites = replace(all_sites["beside"], affine={"ln2": changed}) if "norms" in kind else all_sites["beside"]
    adapter = nn.Sequential(nn.Linear(48, 12), nn.Sigmoid(), nn.Linear(12, 48))
    sites = replace(sites, beside_mlp=(adapter, lambda h: (h * h).softmax(-1)))
    x = torch.randn(2, 5, 48, requires_grad=True)
    other = torch.randn(3, 5, 48, requires_grad=True)
    # torch's kernel has no second derivative
    monkeypatch.setattr(packed, "attention", lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-1) @ v)
    gradients = []
    for way in (packed.recomputed, lambda *_: nullcontext()):
        monkeypatch.setattr(packed, "recomputed", way)
        out = torch.cat(block([x, other], weights, [sites, all_sites["beside"]], small_geometry))
        trained = [x, other, *adapter.parameters()]
        first = torch.autograd.grad(out.square().sum(), trained, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), trained)
        gradients.append([*first, *second])
    for one, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(one, reference, rtol=1e-5, atol=1e-5)


def test_what_adapters_beside_read_is_kept_as_a_place_and_not_as_numbers(
    all_sites, weights, small_geometry, monkeypatch
):
    kept, real = [], torch.autograd.graph.saved_tensors_hooks
    for_adapters = nn.Sequential(nn.Linear(48, 12), nn.GELU(), nn.Linear(12, 48))

    def hooks(keep, get):
        return real(lambda t: kept.append(keep(t)) or kept[-1], get)

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", hooks)
    x = torch.randn(2, 5, 48, requires_grad=True)
    block([x, x.clone()], weights, [NOTHING, Sites(beside_mlp=(for_adapters,))], small_geometry)
    assert [place for place in kept if isinstance(place, tuple)] == [(10, (10, 48))]
    assert not [t for t in kept if isinstance(t, Tensor) and t.shape[-1] == 48 and t.shape[0] == 10]


def test_under_autocast_adapters_read_the_linears_dtype_and_no_norm_keeps_fp32_rows(
    small_backbone, small_geometry, monkeypatch
):
    weights = small_backbone.to(dtype=torch.bfloat16).weights.blocks[1]
    adapter = nn.Sequential(nn.Linear(48, 12), nn.GELU(), nn.Linear(12, 48))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 48, generator=generator).requires_grad_()
    read, after, kept, gradients = [], [], [], []
    sites = Sites(
        beside_mlp=(lambda h: read.append(h.dtype) or adapter(h),),
        after_attention=lambda a: after.append(a.dtype) or 2 * a,
    )

    def by_torch(x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return x, F.layer_norm(x, gain.shape, gain, bias, eps).to(dtype)

    for way in (packed.stream_and_norm, by_torch):
        monkeypatch.setattr(packed, "stream_and_norm", way)
        kept.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
        with torch.autocast("cpu", torch.bfloat16), hooks:
            (out,) = block([x], weights, [sites], small_geometry)
        assert out.dtype == torch.float32
        gradients.append(torch.autograd.grad(out.square().sum(), [x, *adapter.parameters()]))
        of_norms = [t for t in kept if t.shape == (10, 48) and t.dtype == torch.float32]
        assert len(of_norms) == (0 if way is not by_torch else 2)
    assert read == [torch.bfloat16] * 2
    for one, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(one, reference, rtol=0, atol=2e-2 * float(reference.abs().max()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (same,) = block([x], weights, [sites], small_geometry)
    assert same.dtype == torch.float32
    torch.testing.assert_close(same, out, rtol=0, atol=5e-2)
    block([x], weights, [sites], small_geometry)
    assert read == after == [torch.bfloat16] * 3 + [torch.float32]


def test_a_norm_of_which_a_task_owns_the_gain_keeps_its_rows_once(small_backbone, small_geometry):
    weights = small_backbone.to(dtype=torch.bfloat16).weights.blocks[1]
    own = Sites(affine={name: Affine(gain=torch.randn(48)) for name in ("ln1", "ln2")})
    kept: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with torch.autocast("cpu", torch.bfloat16), hooks:
        block([torch.randn(2, 5, 48, requires_grad=True)], weights, [own], small_geometry)
    rows = [t for t in kept if t.shape[-1] == 48 and t.numel() == 480]
    assert len({t.data_ptr() for t in rows if t.dtype == torch.float32}) == 2
    assert not [t for t in rows if t.dtype == torch.bfloat16]


def test_neighbours_with_equal_tokens_and_keys_share_one_attention_call(
    all_sites, weights, small_geometry, monkeypatch
):
    calls: list[tuple[int, int, int]] = []

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append((len(q), q.shape[2], k.shape[2]))
        return attention(q, k, v)

    monkeypatch.setattr(packed, "attention", counted)
    kinds = ["none", "lora", "after", "prefix", "prompt", "long prompt", "beside", "norms"]
    xs = [torch.randn(2, 9, 48) for _ in kinds[:-1]] + [torch.randn(1, 7, 48)]
    block(xs, weights, [all_sites[kind] for kind in kinds], small_geometry)
    assert calls == [(6, 9, 9), (4, 9, 11), (2, 9, 16), (2, 9, 9), (1, 7, 7)]


@pytest.mark.parametrize("training", [True, False])
def test_a_cut_block_gives_the_first_tokens_of_the_whole(training, all_sites, weights, small_geometry, one_by_one):
    shared = torch.randn(2, 9, 48)
    xs = [torch.randn(2, 9, 48), shared, torch.randn(3, 5, 48), shared, shared, torch.randn(2, 9, 48), shared]
    sites = [all_sites[n] for n in ("long prompt", "none", "biases", "none", "lora", "beside", "after")]
    read = [2, None, 2, 2, 2, 30, 3]
    with torch.set_grad_enabled(training):
        outputs = block(list(xs), weights, sites, small_geometry, read)
        whole = one_by_one(xs, sites)
    for out, expected, number in zip(outputs, whole, read, strict=True):
        torch.testing.assert_close(out, expected[:, :number], rtol=0, atol=1e-5)


def test_a_cut_block_runs_the_others_as_keys_and_values_only(weights, small_geometry, monkeypatch):
    counts = tokens_per_linear(monkeypatch, weights)
    xs = [torch.randn(3, 9, 48), torch.randn(2, 7, 48)]
    block(xs, weights, [NOTHING, NOTHING], small_geometry, [2, None])
    read = 3 * 2 + 2 * 7
    everything = 3 * 9 + 2 * 7
    wanted = {"q": read, "k": everything, "v": everything, "proj": read, "fc1": read, "fc2": read}
    assert counts == {f"{name}_weight": count for name, count in wanted.items()}


@pytest.mark.parametrize("training", [True, False])
def test_segments_with_one_input_are_computed_once_up_to_the_first_site(
    training, all_sites, weights, small_geometry, one_by_one, monkeypatch
):
    x, other = torch.randn(2, 5, 48), torch.randn(1, 5, 48)
    parallel = Sites(beside_mlp=all_sites["beside"].beside_mlp)
    sites = [NOTHING, all_sites["after"], parallel, NOTHING, all_sites["lora"], NOTHING, all_sites["mlp"]]
    xs = [x, x, x, other, x, x, x]
    expected = one_by_one(xs, sites)
    with torch.set_grad_enabled(training):
        counts = tokens_per_linear(monkeypatch, weights)
        outputs = block(xs, weights, sites, small_geometry)
    for out, alone in zip(outputs, expected, strict=True):
        torch.testing.assert_close(out, alone, rtol=0, atol=1e-5)
    # 10 tokens of x once, and once more for lora; after the attention "after" is apart too, in the MLP also "mlp".
    assert counts == {f"{name}_weight": 5 + 20 for name in ("q", "k", "v", "proj")} | {
        f"{name}_weight": 5 + 40 for name in ("fc1", "fc2")
    }
    assert outputs[0] is outputs[5]
    assert len({id(out) for out in outputs}) == 6


def test_sharing_sums_the_gradients_of_all_that_share(all_sites, weights, small_geometry, one_by_one):
    x = torch.randn(2, 5, 48, requires_grad=True)
    sites = [NOTHING, all_sites["after"], all_sites["lora"], NOTHING, all_sites["mlp"]]
    targets = [torch.randn(2, 5, 48) for _ in sites]
    grads = []
    for outputs in (block([x] * 5, weights, sites, small_geometry), one_by_one([x] * 5, sites)):
        loss = sum((out * target).sum() for out, target in zip(outputs, targets, strict=True))
        grads.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("read", [None, 2])
@pytest.mark.parametrize("kind", ["none", "long prompt", "lora", "after", "beside", "norms"])
def test_a_block_of_one_task_is_one_graph_for_torch_compile(kind, read, all_sites, weights, small_geometry):
    def run(x: Tensor) -> Tensor:
        return block([x], weights, [all_sites[kind]], small_geometry, [read])[0]

    x = torch.randn(2, 9, 48)
    with torch.no_grad():
        compiled = torch.compile(run, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), run(x), rtol=0, atol=1e-6)
    torch._dynamo.reset()
