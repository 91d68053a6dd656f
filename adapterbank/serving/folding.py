"""A task's changes of the frozen AST, made part of its tensors: the same function in fewer steps, for inference.

    own gains and biases           take the place of the frozen ones
    hooks of linears (LoRA)        are merged into copies, where each hook of that linear says how (`Merges`)
    adapters beside the MLP        become units of a wider MLP, where they say that they are one (`Widens`)
    deep prompts, prefixes         become one key and one value per token, through LN1, k and v once and for all

What cannot be folded stays at its site and runs as it is. Frozen tensors are never written to: what changes is a copy.
Symbols: D width, M MLP width, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.backbone.encode import Segment
from adapterbank.backbone.kernels.linear import frozen_linear
from adapterbank.backbone.sites import Affine, Sites, declared
from adapterbank.backbone.weights import LINEAR_NAMES, BlockWeights, FrozenLinear, Geometry


@torch.no_grad()
def fold(segment: Segment, geometry: Geometry) -> Segment:
    """The same rows through other tensors and fewer sites. Adapters must be in eval mode; nothing of them is kept
    where they could be folded, so training them on does not reach the result.

    With a half-precision base the folded tensors are of its dtype, and so are then the adapters inside them.
    """
    blocks, sites = [], []
    for weights, filled in zip(segment.weights.blocks, segment.sites, strict=True):
        for step in (_fold_norms, _fold_linears, _fold_mlp):
            weights, filled = step(weights, filled)
        blocks.append(weights)
        sites.append(_fold_prompts(weights, filled, geometry))
    return Segment(tuple(sites), segment.weights._replace(blocks=tuple(blocks)), segment.read)


@dataclass(frozen=True)
class Left:
    """Which sites of a block folding left filled, by name and place: adapters give new objects each time they are
    asked, which follow a copy or a move of theirs."""

    linear: frozenset[str]
    affine: frozenset[str]
    beside_mlp: tuple[int, ...]
    extra_tokens: bool

    @classmethod
    def after(cls, folded: Sites, before: Sites) -> Left:
        stayed = {id(adapter) for adapter in folded.beside_mlp}
        places = tuple(i for i, adapter in enumerate(before.beside_mlp) if id(adapter) in stayed)
        return cls(frozenset(folded.linear), frozenset(folded.affine), places, bool(folded.extra_tokens))

    def of(self, sites: Sites, extra_kv: tuple[tuple[Tensor, Tensor], ...]) -> Sites:
        """What is left of a block's sites, with the keys and values that prompts were folded into."""
        return replace(
            sites,
            linear={name: hooks for name, hooks in sites.linear.items() if name in self.linear},
            affine={name: own for name, own in sites.affine.items() if name in self.affine},
            beside_mlp=tuple(sites.beside_mlp[place] for place in self.beside_mlp),
            extra_tokens=sites.extra_tokens if self.extra_tokens else (),
            extra_kv=extra_kv,
        )


def _fold_norms(weights: BlockWeights, sites: Sites) -> tuple[BlockWeights, Sites]:
    own: dict[str, Tensor] = {}
    for name in ("ln1", "ln2"):
        gain, bias = sites.affine.get(name, (None, None))
        own |= {} if gain is None else {f"{name}_weight": gain}
        own |= {} if bias is None else {f"{name}_bias": bias}
    affine = {name: entry for name, entry in sites.affine.items() if name not in ("ln1", "ln2")}
    return weights._replace(**own), replace(sites, affine=affine)


def _fold_linears(weights: BlockWeights, sites: Sites) -> tuple[BlockWeights, Sites]:
    """All hooks of a linear and its own bias, or none: a hook that stays must find the frozen linear as it was."""
    affine, hooks = dict(sites.affine), dict(sites.linear)
    for name in (name for name in LINEAR_NAMES if name in sites.affine or name in sites.linear):
        chain = _mergeable(hooks.get(name, ()))
        if chain is None:
            continue
        frozen = _linear(weights, name)
        linear = FrozenLinear(_wide(frozen.weight), None if frozen.bias is None else _wide(frozen.bias))
        for merged in chain:
            linear = merged(linear, frozen)
        own = affine.pop(name, Affine()).bias
        if own is not None:
            moved = (0 if linear.bias is None else linear.bias) - (0 if frozen.bias is None else frozen.bias)
            linear = linear._replace(bias=own + moved)
        weights = _with_linear(weights, name, linear if chain else linear._replace(weight=frozen.weight))
        hooks.pop(name, None)
    return weights, replace(sites, affine=affine, linear=hooks)


def _fold_mlp(weights: BlockWeights, sites: Sites) -> tuple[BlockWeights, Sites]:
    """W2 gelu(W1 h) + U gelu(V h) = [W2 U] gelu([W1; V] h), unless something reads the MLP's own output."""
    if sites.after_mlp is not None or any(name in sites.linear for name in ("fc1", "fc2")):
        return weights, sites
    downs, ups, rest = [_linear(weights, "fc1")], [_linear(weights, "fc2")], []
    for adapter in sites.beside_mlp:
        units = _units(adapter)
        if units is None:
            rest.append(adapter)
        else:
            downs.append(units[0])
            ups.append(units[1])
    if len(downs) == 1:
        return weights, sites
    dtype = weights.fc1_weight.dtype
    fc1 = FrozenLinear(_cat([d.weight for d in downs], dtype), _cat([_bias(d) for d in downs], dtype))
    fc2 = FrozenLinear(
        _cat([u.weight for u in ups], dtype, dim=1), torch.stack([_wide(_bias(u)) for u in ups]).sum(dim=0)
    )
    weights = _with_linear(_with_linear(weights, "fc1", fc1), "fc2", fc2)
    return weights, replace(sites, beside_mlp=tuple(rest))


def _fold_prompts(weights: BlockWeights, sites: Sites, geometry: Geometry) -> Sites:
    """Sites with one pair of keys and values at most, (P, D) each, of the dtype of the linears."""
    dtype, norm = weights.k_weight.dtype, (weights.ln1_weight, weights.ln1_bias)
    stay = "k" in sites.linear or "v" in sites.linear  # hooks that want to see the tokens
    normed = [F.layer_norm(t, (geometry.width,), *norm, geometry.eps) for t in sites.extra_tokens if not stay]
    pairs = [(frozen_linear(h, *_linear(weights, "k")), frozen_linear(h, *_linear(weights, "v"))) for h in normed]
    pairs += sites.extra_kv
    if not pairs:
        return sites
    keys, values = (_cat(tensors, dtype) for tensors in zip(*pairs, strict=True))
    return replace(sites, extra_tokens=sites.extra_tokens if stay else (), extra_kv=((keys, values),))


def _mergeable(hooks: Sequence[object]) -> list[Callable[..., FrozenLinear]] | None:
    """How each hook is merged (`Merges.merged`), if every one says it."""
    found = [merged for hook in hooks if (merged := declared(hook, "merged")) is not None]
    return found if len(found) == len(hooks) else None


def _units(adapter: object) -> tuple[FrozenLinear, FrozenLinear] | None:
    units = declared(adapter, "units")
    return None if units is None else units()


def _linear(weights: BlockWeights, name: str) -> FrozenLinear:
    return FrozenLinear(getattr(weights, f"{name}_weight"), getattr(weights, f"{name}_bias"))


def _with_linear(weights: BlockWeights, name: str, linear: FrozenLinear) -> BlockWeights:
    """With another linear in place of `name`, in its dtype."""
    dtype = _linear(weights, name).weight.dtype
    changed: dict[str, Any] = {f"{name}_weight": linear.weight.to(dtype)}
    changed[f"{name}_bias"] = None if linear.bias is None else linear.bias.to(dtype)
    return weights._replace(**changed)


def _bias(linear: FrozenLinear) -> Tensor:
    return linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias


def _wide(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _cat(tensors: Sequence[Tensor], dtype: torch.dtype, dim: int = 0) -> Tensor:
    return torch.cat([tensor.to(dtype) for tensor in tensors], dim=dim)
