"""A block of many segments: equal to its segments one by one, whatever they fill; what is shared is computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from adapterbank.backbone import plain
from adapterbank.backbone.block import block
from adapterbank.backbone.kernels import choose, forced
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
    """The reference: each segment through the block of `plain.py`."""

    def run(xs: list[Tensor], sites: list[Sites]) -> list[Tensor]:
        weights = small_backbone.weights.blocks[1]
        return [plain.block(x, weights, small_geometry, s) for x, s in zip(xs, sites, strict=True)]

    return run


@pytest.fixture
def weights(small_backbone) -> BlockWeights:
    return small_backbone.weights.blocks[1]


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
        again = block(together, weights, sites, small_geometry)
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


@pytest.mark.parametrize("kind", ["beside", "norms and beside"])
def test_what_the_backward_pass_makes_anew_gives_the_same_gradients_twice(kind, all_sites, weights, small_geometry):
    changed = Affine(gain=torch.randn(48))
    sites = replace(all_sites["beside"], affine={"ln2": changed}) if "norms" in kind else all_sites["beside"]
    adapter = nn.Sequential(nn.Linear(48, 12), nn.Sigmoid(), nn.Linear(12, 48))
    sites = replace(sites, beside_mlp=(adapter, lambda h: (h * h).softmax(-1)))
    x = torch.randn(2, 5, 48, requires_grad=True)
    other = torch.randn(3, 5, 48, requires_grad=True)
    gradients = []
    for again in (True, False):
        with forced(recompute=again, attention=(torch.float32,)):  # torch's kernel has no second derivative
            out = torch.cat(block([x, other], weights, [sites, all_sites["beside"]], small_geometry))
        trained = [x, other, *adapter.parameters()]
        first = torch.autograd.grad(out.square().sum(), trained, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), trained)
        gradients.append([*first, *second])
    for one, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(one, reference, rtol=1e-5, atol=1e-5)


def kept_for(out: Tensor) -> set[int]:
    """The addresses of all memory that the backward pass of a tensor will read."""
    nodes, seen, found = [out.grad_fn], set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        found |= {t.untyped_storage().data_ptr() for t in saved if isinstance(t, Tensor)}
        nodes += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("site", ["beside_attention", "beside_mlp"])
def test_what_adapters_beside_read_is_kept_only_where_it_is_not_made_anew(site, again, weights, small_geometry):
    adapter, read = nn.Sequential(nn.Linear(48, 12), nn.GELU(), nn.Linear(12, 48)), []
    sites = Sites(**{site: (lambda h: read.append(h) or adapter(h),)})
    x = torch.randn(2, 5, 48, requires_grad=True)
    with forced(recompute=again):
        _, out = block([x, x.clone()], weights, [NOTHING, sites], small_geometry)
    assert (read[0].untyped_storage().data_ptr() in kept_for(out)) is not again


def test_under_autocast_adapters_read_the_linears_dtype_and_the_stream_is_fp32(small_backbone, small_geometry):
    weights = small_backbone.to(dtype=torch.bfloat16).weights.blocks[1]
    adapter = nn.Sequential(nn.Linear(48, 12), nn.GELU(), nn.Linear(12, 48))
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    read, after = [], []
    sites = Sites(
        beside_mlp=(lambda h: read.append(h.dtype) or adapter(h),),
        after_attention=lambda a: after.append(a.dtype) or 2 * a,
    )
    trained, found = [x, *adapter.parameters()], []
    for context in (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)):
        with context:
            (out,) = block([x], weights, [sites], small_geometry)
        assert out.dtype == torch.float32
        found.append([out, *torch.autograd.grad(out.square().sum(), trained)])
    assert read == after == [torch.bfloat16, torch.float32]
    for one, reference in zip(*found, strict=True):
        torch.testing.assert_close(one, reference, rtol=0, atol=2e-2 * float(reference.detach().abs().max()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (same,) = block([x], weights, [sites], small_geometry)
    assert same.dtype == torch.float32
    assert read == after == [torch.bfloat16, torch.float32, torch.bfloat16]
    torch.testing.assert_close(same, found[0][0], rtol=0, atol=5e-2)


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


class AttentionCalls(TorchFunctionMode):
    """(rows, queries, keys) of each call of torch's attention within it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int, int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            q, k, _ = args
            self.sizes.append((len(q), q.shape[2], k.shape[2]))
        return func(*args, **kwargs or {})


def test_neighbours_with_equal_tokens_and_keys_share_one_attention_call(all_sites, weights, small_geometry):
    kinds = ["none", "lora", "after", "prefix", "prompt", "long prompt", "beside", "norms"]
    xs = [torch.randn(2, 9, 48) for _ in kinds[:-1]] + [torch.randn(1, 7, 48)]
    with forced(attention=()), AttentionCalls() as calls:
        block(xs, weights, [all_sites[kind] for kind in kinds], small_geometry)
    assert calls.sizes == [(6, 9, 9), (4, 9, 11), (2, 9, 16), (2, 9, 9), (1, 7, 7)]


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


def test_a_cut_block_runs_the_others_as_keys_and_values_only(weights, small_geometry, tokens_per_linear):
    xs = [torch.randn(3, 9, 48), torch.randn(2, 7, 48)]
    with tokens_per_linear(weights) as counts:
        block(xs, weights, [NOTHING, NOTHING], small_geometry, [2, None])
    read = 3 * 2 + 2 * 7
    everything = 3 * 9 + 2 * 7
    wanted = {"q": read, "k": everything, "v": everything, "proj": read, "fc1": read, "fc2": read}
    assert counts == {f"{name}_weight": count for name, count in wanted.items()}


@pytest.mark.parametrize("training", [True, False])
def test_segments_with_one_input_are_computed_once_up_to_the_first_site(
    training, all_sites, weights, small_geometry, one_by_one, tokens_per_linear
):
    x, other = torch.randn(2, 5, 48), torch.randn(1, 5, 48)
    parallel = Sites(beside_mlp=all_sites["beside"].beside_mlp)
    sites = [NOTHING, all_sites["after"], parallel, NOTHING, all_sites["lora"], NOTHING, all_sites["mlp"]]
    xs = [x, x, x, other, x, x, x]
    expected = one_by_one(xs, sites)
    with torch.set_grad_enabled(training), tokens_per_linear(weights) as counts:
        outputs = block(xs, weights, sites, small_geometry)
    for out, alone in zip(outputs, expected, strict=True):
        torch.testing.assert_close(out, alone, rtol=0, atol=1e-5)
    # 10 tokens of x once, and once more for lora; after the attention "after" is apart too, in the MLP also "mlp".
    assert counts == {f"{name}_weight": 5 + 20 for name in ("q", "k", "v", "proj")} | {
        f"{name}_weight": 5 + 40 for name in ("fc1", "fc2")
    }
    assert outputs[0] is outputs[5]
    assert len({id(out) for out in outputs}) == 6


def test_prompts_run_through_keys_and_values_once_however_many_rows_there_are(
    all_sites, weights, small_geometry, tokens_per_linear
):
    with tokens_per_linear(weights) as counts:
        block([torch.randn(4, 9, 48)], weights, [all_sites["long prompt"]], small_geometry)
    assert counts == {f"{n}_weight": 36 + 5 * (n in "kv") for n in ("q", "k", "v", "proj", "fc1", "fc2")}


def test_decisions_that_are_handed_in_hold_whatever_the_moment(weights, small_geometry, one_by_one):
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        answering = choose(x.device)
    (out,) = block([x], weights, [NOTHING], small_geometry, kernels=answering)
    torch.testing.assert_close(out, one_by_one([x], [NOTHING])[0], rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("site", ["beside_attention", "beside_mlp"])
def test_rows_that_the_backward_pass_computes_again_are_let_go_of(site, recompute, weights, small_geometry):
    adapter = nn.Sequential(nn.Linear(48, 12), nn.GELU(), nn.Linear(12, 48))
    read: list[StorageWeakRef] = []

    def watched(h: Tensor) -> Tensor:
        read.append(StorageWeakRef(h.untyped_storage()))
        return adapter(h)

    x = torch.randn(2, 5, 48, requires_grad=True)
    kernels = choose(x.device)._replace(recompute=recompute)
    (out,) = block([x], weights, [Sites(**{site: (watched,)})], small_geometry, kernels=kernels)
    assert read[0].expired() is recompute
    out.sum().backward()
