"""Each site of a block, fast and by the formula, against a block by hand; sharing of sites between methods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adapterbank.backbone import plain
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.block import block
from adapterbank.backbone.encode import Segment, run_layer
from adapterbank.backbone.sites import NOTHING, Affine, Sites, merge
from adapterbank.backbone.weights import BlockWeights, Geometry
from adapterbank.errors import CompositionError
from adapterbank.methods.aat import SpatialAdapter
from adapterbank.methods.parts.gate import gated
from adapterbank.methods.parts.placed import Sequential

LINEARS = {"q": (48, 48), "k": (48, 48), "v": (48, 48), "proj": (48, 48), "fc1": (48, 96), "fc2": (96, 48)}


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6) * gain + bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


class ByHand:
    """One pre-norm block, row by row and head by head, with a function in place of every part that a site changes."""

    def __init__(self, weights: BlockWeights, heads: int = 3):
        self.w, self.heads = weights._asdict(), heads
        self.hook: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        self.extra: list[Tensor] = []  # tokens that are only keys and values
        self.extra_kv: list[tuple[Tensor, Tensor]] = []
        self.after_attention = self.after_mlp = lambda a: a
        self.beside_attention = self.beside_mlp = lambda h: torch.zeros_like(h)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.w[f"{name}_weight"].T + self.w[f"{name}_bias"]
        return self.hook[name](x, y) if name in self.hook else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        return layer_norm(x, self.w[f"{name}_weight"], self.w[f"{name}_bias"])

    def row(self, x: Tensor) -> Tensor:
        h = self.norm("ln1", x)
        seen = torch.cat([h, *(self.norm("ln1", p) for p in self.extra)])
        q, k, v = self.linear("q", h), self.linear("k", seen), self.linear("v", seen)
        k, v = torch.cat([k, *(e[0] for e in self.extra_kv)]), torch.cat([v, *(e[1] for e in self.extra_kv)])
        size = q.shape[1] // self.heads
        mixed = []
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            mixed.append(torch.softmax(q[:, part] @ k[:, part].T / size**0.5, dim=-1) @ v[:, part])
        a = self.linear("proj", torch.cat(mixed, dim=1))
        x = x + self.after_attention(a) + self.beside_attention(h)
        h = self.norm("ln2", x)
        m = self.linear("fc2", gelu(self.linear("fc1", h)))
        return x + self.after_mlp(m) + self.beside_mlp(h)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([self.row(row) for row in x])


@pytest.fixture
def weights(small_backbone: Backbone) -> BlockWeights:
    return small_backbone.weights.blocks[1]


@pytest.fixture
def by_hand(weights: BlockWeights) -> ByHand:
    return ByHand(weights)


@pytest.fixture
def check(weights: BlockWeights, small_geometry: Geometry) -> Callable[[Sites, ByHand], None]:
    """A segment with the sites equals the block by hand, and its neighbours without equal that without any."""

    def compare(sites: Sites, expected: ByHand) -> None:
        x, y = torch.randn(2, 11, 48), torch.randn(1, 7, 48)
        bare = ByHand(weights)
        (alone,) = block([x], weights, [sites], small_geometry)
        torch.testing.assert_close(alone, expected(x), rtol=0, atol=2e-5)
        torch.testing.assert_close(plain.block(x, weights, small_geometry, sites), expected(x), rtol=0, atol=2e-5)
        assert (alone - bare(x)).abs().max() > 1e-2, "the site changed nothing: the test would hold nothing"
        for training in (True, False):
            with torch.set_grad_enabled(training):
                first, second, third = block([y, x, x], weights, [NOTHING, sites, NOTHING], small_geometry)
            torch.testing.assert_close(first, bare(y), rtol=0, atol=2e-5)
            torch.testing.assert_close(second, expected(x), rtol=0, atol=2e-5)
            torch.testing.assert_close(third, bare(x), rtol=0, atol=2e-5)

    return compare


def test_a_block_without_sites_equals_the_block_by_hand(weights, by_hand, small_geometry):
    x = torch.randn(2, 11, 48)
    (out,) = block([x], weights, [NOTHING], small_geometry)
    torch.testing.assert_close(out, by_hand(x), rtol=0, atol=2e-5)
    torch.testing.assert_close(plain.block(x, weights, small_geometry), by_hand(x), rtol=0, atol=2e-5)


def test_extra_tokens_are_keys_and_values_through_ln1(by_hand, check):
    first, second = torch.randn(3, 48), torch.randn(2, 48)
    by_hand.extra = [first, second]
    check(Sites(extra_tokens=(first, second)), by_hand)


def test_extra_kv_join_as_they_are(by_hand, check):
    pair = torch.randn(4, 48), torch.randn(4, 48)
    by_hand.extra_kv = [pair]
    check(Sites(extra_kv=(pair,)), by_hand)


@pytest.mark.parametrize("name", ["ln1", "ln2"])
@pytest.mark.parametrize("parts", [("gain",), ("bias",), ("gain", "bias")], ids="+".join)
def test_affine_of_a_norm_replaces_gain_and_bias(name, parts, by_hand, check):
    own = {part: torch.randn(48) for part in parts}
    by_hand.w[f"{name}_weight"] = own.get("gain", by_hand.w[f"{name}_weight"])
    by_hand.w[f"{name}_bias"] = own.get("bias", by_hand.w[f"{name}_bias"])
    check(Sites(affine={name: Affine(**own)}), by_hand)


@pytest.mark.parametrize("name", LINEARS)
def test_affine_of_a_linear_replaces_its_bias(name, by_hand, check):
    # A constant added to every key changes no softmax, hence the prefix: its keys stay as they are.
    bias = by_hand.w[f"{name}_bias"] = torch.randn(LINEARS[name][1])
    prefix = (torch.randn(2, 48), torch.randn(2, 48))
    by_hand.extra_kv = [prefix]
    check(Sites(affine={name: Affine(bias=bias)}, extra_kv=(prefix,)), by_hand)


def test_affine_gives_a_bias_where_the_backbone_has_none(weights, small_geometry):
    bare = weights._replace(q_bias=None, k_bias=None, v_bias=None)
    own = {name: torch.randn(48) for name in "qkv"}
    expected = ByHand(bare._replace(**{f"{name}_bias": bias for name, bias in own.items()}))
    x = torch.randn(2, 9, 48)
    sites = Sites(affine={name: Affine(bias=bias) for name, bias in own.items()})
    for out in (block([x], bare, [sites], small_geometry)[0], plain.block(x, bare, small_geometry, sites)):
        torch.testing.assert_close(out, expected(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", LINEARS)
def test_hooks_of_a_linear_run_in_order(name, by_hand, check):
    inputs, outputs = LINEARS[name]
    low_rank = torch.randn(inputs, outputs) * 0.1
    by_hand.hook[name] = lambda x, y: (y + x @ low_rank) * 1.5
    check(Sites(linear={name: (lambda x, y, frozen: y + x @ low_rank, lambda x, y, frozen: y * 1.5)}), by_hand)


@pytest.mark.parametrize("site", ["beside_attention", "beside_mlp"])
def test_parallel_adapters_read_the_normalised_input_and_are_summed(site, by_hand, check):
    one, two = nn.Linear(48, 48), nn.Linear(48, 48)
    setattr(by_hand, site, lambda h: one(h) + two(h))
    with torch.no_grad():
        check(Sites(**{site: (one, two)}), by_hand)


@pytest.mark.parametrize("site", ["after_attention", "after_mlp"])
def test_a_sequential_adapter_changes_the_sublayer_inside_the_residual(site, by_hand, check):
    adapter = nn.Sequential(nn.Linear(48, 12), nn.GELU(), nn.Linear(12, 48))
    setattr(by_hand, site, adapter)
    with torch.no_grad():
        check(Sites(**{site: adapter}), by_hand)


def test_extra_tokens_run_through_the_tasks_own_hooks_and_affines(by_hand, check):
    prompt, low_rank, gain, bias = torch.randn(3, 48), torch.randn(48, 48) * 0.1, torch.randn(48), torch.randn(48)
    by_hand.extra = [prompt]
    by_hand.w["ln1_weight"], by_hand.w["v_bias"] = gain, bias
    by_hand.hook["k"] = lambda x, y: y + x @ low_rank
    affine = {"ln1": Affine(gain=gain), "v": Affine(bias=bias)}
    check(Sites(extra_tokens=(prompt,), affine=affine, linear={"k": (lambda x, y, frozen: y + x @ low_rank,)}), by_hand)


@pytest.mark.parametrize("rewritten", [False, True])
def test_tokens_join_the_sequence_at_its_end_and_stay_and_a_rewrite_comes_before(
    rewritten, small_backbone, weights, by_hand
):
    x, prompt = torch.randn(2, 9, 48), torch.randn(4, 48)
    sites = Sites(tokens=(prompt,), rewrite=(lambda x: 2 * x[:, 1:]) if rewritten else None)
    segment = Segment((NOTHING, sites), small_backbone.weights)
    (out,) = run_layer([x], [segment], 1, small_backbone.geometry)
    joined = torch.cat((2 * x[:, 1:] if rewritten else x, prompt.expand(2, 4, 48)), dim=1)
    assert out.shape == joined.shape
    for found in (out, plain.block(x, weights, small_backbone.geometry, sites)):
        torch.testing.assert_close(found, by_hand(joined), rtol=0, atol=2e-5)


def test_all_sites_work_on_a_half_precision_base(weights, small_backbone):
    half = small_backbone.to(dtype=torch.bfloat16)
    adapter = nn.Linear(48, 48)
    sites = Sites(
        extra_tokens=(torch.randn(2, 48),),
        extra_kv=((torch.randn(2, 48), torch.randn(2, 48)),),
        affine={
            "ln1": Affine(gain=torch.randn(48)),
            "fc1": Affine(bias=torch.randn(96)),
            "q": Affine(bias=torch.ones(48)),
        },
        linear={"v": (lambda x, y, frozen: y + x.float() @ adapter.weight,)},
        beside_attention=(adapter,),
        beside_mlp=(adapter,),
        after_attention=adapter,
        after_mlp=adapter,
    )
    x = torch.randn(2, 9, 48)
    with torch.no_grad():
        (exact,) = block([x], weights, [sites], small_backbone.geometry)
        (rounded,) = block([x], half.weights.blocks[1], [sites], half.geometry)
        by_formula = plain.block(x, half.weights.blocks[1], half.geometry, sites)
    for found in (rounded, by_formula):
        assert found.dtype == torch.float32
        assert (found - exact).abs().mean() < 0.05


# -- sharing --------------------------------------------------------------------------------------------------------


def test_tokens_and_parallel_adapters_of_two_methods_join_in_order():
    a, b = torch.zeros(1, 4), torch.ones(1, 4)
    f, g = nn.Identity(), nn.Identity()
    merged = merge(
        [
            ("one", Sites(tokens=(a,), extra_tokens=(a,), extra_kv=((a, a),), beside_mlp=(f,), beside_attention=(f,))),
            ("two", Sites(tokens=(b,), extra_tokens=(b,), extra_kv=((b, b),), beside_mlp=(g,), beside_attention=(g,))),
        ]
    )
    assert merged.tokens[0] is merged.extra_tokens[0] is merged.extra_kv[0][0] is a
    assert merged.tokens[1] is merged.extra_tokens[1] is merged.extra_kv[1][0] is b
    assert merged.beside_mlp == merged.beside_attention == (f, g)


def test_hooks_of_two_methods_on_one_linear_form_a_chain():
    def add(x: Tensor, y: Tensor) -> Tensor:
        return y + 1

    def double(x: Tensor, y: Tensor) -> Tensor:
        return y * 2

    merged = merge([("one", Sites(linear={"q": (add,), "k": (add,)})), ("two", Sites(linear={"q": (double,)}))])
    assert merged.linear == {"q": (add, double), "k": (add,)}


def test_affines_of_different_tensors_live_together():
    one, two = Affine(gain=torch.ones(2)), Affine(bias=torch.ones(2))
    assert merge([("a", Sites(affine={"ln1": one})), ("b", Sites(affine={"q": two}))]).affine == {"ln1": one, "q": two}


class Neighbour(SpatialAdapter):
    """Reads other tokens, whatever its parent says of itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(1, dims=1)


class Renamed(SpatialAdapter):
    name = "mine"


@pytest.mark.parametrize("place", ["after_mlp", "beside_mlp", "proj", "gated", "sequential"])
def test_only_what_says_so_itself_acts_per_token(place):
    def sites(adapter: nn.Module) -> Sites:
        made = {
            "after_mlp": lambda: Sites(after_mlp=adapter),
            "beside_mlp": lambda: Sites(beside_mlp=(adapter,)),
            "proj": lambda: Sites(linear={"proj": (adapter,)}),
            "gated": lambda: Sites(beside_attention=(gated(adapter, "scalar", "clip", 48),)),
            "sequential": lambda: Sites(after_attention=Sequential(adapter)),
        }
        return made[place]()

    size = (48, 12, torch.Generator())
    assert sites(SpatialAdapter(*size)).per_token()
    assert sites(Renamed(*size)).per_token()
    assert not sites(Neighbour(*size)).per_token()
    assert not sites(nn.Identity()).per_token()  # does not say so


def test_what_makes_keys_and_values_may_read_what_it_likes():
    hooks = {"k": (lambda x, y, frozen: y,), "v": (lambda x, y, frozen: y,)}
    sites = Sites(linear=hooks, rewrite=lambda x: x, tokens=(torch.zeros(1, 48),), affine={"q": Affine()})
    assert sites.per_token()
    assert not Sites(linear={"q": hooks["k"]}).per_token()


@pytest.mark.parametrize(
    ("sites", "place"),
    [
        (Sites(after_attention=nn.Identity()), "after_attention"),
        (Sites(after_mlp=nn.Identity()), "after_mlp"),
        (Sites(affine={"ln2": Affine()}), r"affine\[ln2\]"),
    ],
)
def test_a_clash_on_a_one_owner_site_names_both_methods(sites, place):
    with pytest.raises(CompositionError, match=f"'houlsby' and 'aat_s' both fill the site {place}"):
        merge([("houlsby", sites), ("other", NOTHING), ("aat_s", sites)])


def test_merging_changes_none_of_the_parts():
    one, two = Sites(linear={"q": ()}, affine={"q": Affine()}), Sites(linear={"q": (max,)}, affine={"k": Affine()})
    merge([("one", one), ("two", two)])
    assert one == Sites(linear={"q": ()}, affine={"q": Affine()})
    assert Sites() == NOTHING
    assert NOTHING.filled() == frozenset()
