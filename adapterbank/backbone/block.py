"""One transformer block with its sites, for many segments at once.

It computes what `plain.block` computes for each segment, in the same order. Frozen linears and LayerNorms run once over
the packed tokens of all segments. Attention runs once for neighbours with as many tokens and keys. What belongs to a
task runs on the rows of its segment. How that is laid out depends on shapes and on which sites are filled, never on
values.

Symbols: R rows of a segment, N tokens, K keys, P prompts, D width, S = sum of R x N over the parts of packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from adapterbank.backbone.kernels import Kernels, choose
from adapterbank.backbone.kernels.attention import attention
from adapterbank.backbone.kernels.linear import frozen_linear
from adapterbank.backbone.kernels.recompute import recomputed
from adapterbank.backbone.layout import Layout, neighbours, pack
from adapterbank.backbone.sites import Affine, Sites, Transform, gain_and_bias
from adapterbank.backbone.weights import BlockWeights, Geometry


def block(
    xs: Sequence[Tensor],
    weights: BlockWeights,
    sites: Sequence[Sites],
    geometry: Geometry,
    read: Sequence[int | None] | None = None,
    kernels: Kernels | None = None,
) -> list[Tensor]:
    """One block for all segments; `xs`, `sites` and `read` have one entry per segment.

    Segments that are given the same tensor (the same object) are computed once, up to the first site that one of them
    fills; those that fill none are given the same tensor back.

    Args:
        read: the number of first tokens that are wanted of a segment, None for all. The others are keys and values.
        kernels: as the call decided; None: decided now.

    Shapes: list of (R, N, D) -> list of (R, N or read, D).
    """
    kernels = choose(xs[0].device) if kernels is None else kernels
    packed = PackedBlock(weights, geometry, kernels)
    layout, x = Layout.of(xs, sites, view=kernels.in_place)  # x: (S, D)
    layout, x = packed.attention_sublayer(layout, x, read or [None] * len(xs))
    layout, x = packed.mlp_sublayer(layout, x)
    return layout.outputs(x)


class PackedBlock(NamedTuple):
    """The operations of one block on packed tokens. Every function gets the layout of the tensors that it is given."""

    weights: BlockWeights
    geometry: Geometry
    kernels: Kernels

    def attention_sublayer(self, layout: Layout, x: Tensor, read: Sequence[int | None]) -> tuple[Layout, Tensor]:
        """From the block's input to the residual stream after the attention. (S, D) -> (S, D)."""
        dtype = self.kernels.product_dtype(self.weights.q_weight)
        layout, (x,) = layout.fork(_changes_attention, x)
        h = self._norm("ln1", layout, x, self._between(x))  # (S, D)
        operand = h.to(dtype)  # cast once for three linears
        k, v = self._linear("k", layout, operand), self._linear("v", layout, operand)  # (S, D)
        keys = layout
        if any(read):  # fewer queries than keys
            before = layout
            layout, keys, (x, h) = before.cut(read, x, h)
            operand = h.to(dtype)  # cast again: under autocast `torch.cat` refuses tensors of another half precision
            k, v = keys.taken(before, k), keys.taken(before, v)
        q = self._linear("q", layout, operand)  # (S, D)
        a = self._attention(layout, q, keys, k, v)  # (S, D)
        a = self._linear("proj", layout, a)  # (S, D)
        layout, (x, h, a) = layout.fork(lambda s: s.after_attention or s.beside_attention, x, h, a)
        a = self._after(layout, a, h.dtype, [s.after_attention for s in layout.sites_of_parts])
        return layout, x + self._beside("ln1", layout, a, x, h, [s.beside_attention for s in layout.sites_of_parts])

    def mlp_sublayer(self, layout: Layout, x: Tensor) -> tuple[Layout, Tensor]:
        """From the residual stream after the attention to the block's output. (S, D) -> (S, D)."""
        layout, (x,) = layout.fork(_changes_mlp, x)
        h = self._norm("ln2", layout, x, self._between(x))  # (S, D)
        operand = h.to(self.kernels.product_dtype(self.weights.fc1_weight))
        m = self._linear("fc2", layout, self._hidden(layout, operand))  # (S, D)
        layout, (x, h, m) = layout.fork(lambda s: s.after_mlp or s.beside_mlp, x, h, m)
        m = self._after(layout, m, h.dtype, [s.after_mlp for s in layout.sites_of_parts])
        return layout, x + self._beside("ln2", layout, m, x, h, [s.beside_mlp for s in layout.sites_of_parts])

    def _hidden(self, layout: Layout, operand: Tensor) -> Tensor:
        """The hidden units of the MLP, after the GELU. (S, D) -> (S, width of the MLP)."""
        if any("fc1" in s.linear or "fc1" in s.affine for s in layout.sites_of_parts):  # changes come before the GELU
            return F.gelu(self._linear("fc1", layout, operand))
        return frozen_linear(operand, self.weights.linear("fc1"), self.kernels, gelu=True)

    def _between(self, x: Tensor) -> torch.dtype:
        """The dtype of what adapters read.

        It is fp32, as the residual stream is. Under autocast it is the dtype of the products, because adapters would
        cast to it anyway.
        """
        dtype = self.kernels.product_dtype(self.weights.q_weight)
        return dtype if self.kernels.autocast == dtype else x.dtype

    def _norm(self, name: str, layout: Layout, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The LayerNorm `name` in `dtype`; a part whose task has a gain or bias of its own is normalised with it."""
        normed, own = self._normed(name, x, None).to(dtype), [s.affine.get(name) for s in layout.sites_of_parts]
        if not any(own):
            return normed
        parts = layout.split(x)
        return layout.with_parts(
            normed,
            ((i, self._normed(name, parts[i], a)) for i, a in enumerate(own) if a is not None),
            self.kernels.in_place,
        )

    def _normed(self, name: str, x: Tensor, own: Affine | None) -> Tensor:
        frozen = self.weights.norm(name)
        return F.layer_norm(x, (self.geometry.width,), *gain_and_bias(frozen, own), self.geometry.eps)

    def _linear(self, name: str, layout: Layout, x: Tensor) -> Tensor:
        """One frozen product for all parts, then each task's hooks and own bias on its part. (S, in) -> (S, out)."""
        y = frozen_linear(x, self.weights.linear(name), self.kernels)
        owners = [i for i, s in enumerate(layout.sites_of_parts) if name in s.linear or name in s.affine]
        if not owners:
            return y
        inputs, outputs, sites = layout.split(x), layout.split(y), layout.sites_of_parts
        changed = ((i, self._own(name, inputs[i], outputs[i], sites[i])) for i in owners)
        return layout.with_parts(y, changed, self.kernels.in_place)

    def _own(self, name: str, x: Tensor, y: Tensor, sites: Sites) -> Tensor:
        """A task's changes of the output of a frozen linear. (R, N, in), (R, N, out) -> (R, N, out)."""
        frozen, own = self.weights.linear(name), sites.affine.get(name)
        for hook in sites.linear.get(name, ()):
            y = hook(x, y, frozen).to(y.dtype)
        if own is not None and own.bias is not None:
            # The shared product has the frozen bias inside, so that no task changes how other rows are computed.
            y = y + (own.bias if frozen.bias is None else own.bias - frozen.bias)
        return y

    def _attention(self, layout: Layout, q: Tensor, keys: Layout, k: Tensor, v: Tensor) -> Tensor:
        """Multi-head self-attention; prompts and prefixes join as keys and values. (S, D) -> (S, D).

        Args:
            keys: the layout of `k` and `v`. It has the same parts as `layout`, and in them all tokens, also those that
                ask no query.
        """
        extra = [self._extra(sites, k) for sites in layout.sites_of_parts]  # a key and a value of (P, D) per part
        sizes = [
            (n, among, len(own)) for (_, n), (_, among), (own, _) in zip(layout.shapes, keys.shapes, extra, strict=True)
        ]
        outputs, first, key = [], 0, 0
        for group in neighbours(sizes):
            rows, (queries, among, extras) = [layout.shapes[i][0] for i in group], sizes[group[0]]
            stop, key_stop = first + sum(rows) * queries, key + sum(rows) * among
            qs = _some(q, first, stop).unflatten(0, (sum(rows), queries))  # (R, N, D)
            ks, vs = (_some(t, key, key_stop).unflatten(0, (sum(rows), among)) for t in (k, v))  # (R, K, D)
            if extras:
                ks = torch.cat((ks, _repeated([extra[i][0] for i in group], rows)), dim=1)
                vs = torch.cat((vs, _repeated([extra[i][1] for i in group], rows)), dim=1)
            qs, ks, vs = (rearrange(t, "r n (h d) -> r h n d", h=self.geometry.heads) for t in (qs, ks, vs))
            outputs.append(rearrange(attention(qs, ks, vs, self.kernels), "r h n d -> r n (h d)"))
            first, key = stop, key_stop
        return pack(outputs)

    def _extra(self, sites: Sites, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (P, D) each in the dtype of `like`, that join those of the tokens; P may be 0."""
        keys, values = [key for key, _ in sites.extra_kv], [value for _, value in sites.extra_kv]
        normed = [self._normed("ln1", prompts, sites.affine.get("ln1")) for prompts in sites.extra_tokens]
        keys = [self._prompt_linear("k", h, sites) for h in normed] + keys
        values = [self._prompt_linear("v", h, sites) for h in normed] + values
        return _stacked(keys, like), _stacked(values, like)

    def _prompt_linear(self, name: str, h: Tensor, sites: Sites) -> Tensor:
        """A linear of a task's prompts, with its own hooks and bias. (P, D) -> (P, D)."""
        h = h.to(self.kernels.product_dtype(self.weights.linear(name).weight))
        return self._own(name, h[None], frozen_linear(h, self.weights.linear(name), self.kernels)[None], sites)[0]

    def _after(self, layout: Layout, y: Tensor, dtype: torch.dtype, changes: Sequence[Transform | None]) -> Tensor:
        """Sequential adapters on a sublayer's output, which they read in `dtype`. (S, D) -> (S, D)."""
        if not any(changes):
            return y
        y = y.to(dtype)
        parts = layout.split(y)
        changed = ((i, change(parts[i])) for i, change in enumerate(changes) if change is not None)
        return layout.with_parts(y, changed, self.kernels.in_place)

    def _beside(
        self, name: str, layout: Layout, y: Tensor, x: Tensor, h: Tensor, adapters: Sequence[tuple[Transform, ...]]
    ) -> Tensor:
        """Adds the outputs of parallel adapters, which read `h`, the LayerNorm `name` of `x`. (S, D) each."""
        if not any(adapters):
            return y
        y = y.to(h.dtype)
        parts = zip(layout.split(y), layout.split(h), adapters, strict=True)
        if self.kernels.in_place:
            for yp, hp, own in parts:
                for adapter in own:
                    yp.add_(adapter(hp))
            return y
        of_frozen_norm = not any(name in sites.affine for sites in layout.sites_of_parts)
        dtype = h.dtype  # `make` lives until the backward pass: if it held h, nothing would be saved

        def make(rows: Tensor) -> Tensor:
            return self._normed(name, rows, None).to(dtype)

        with recomputed(h, x, make) if self.kernels.recompute and of_frozen_norm else nullcontext():
            return layout.with_parts(
                y, [(i, sum((f(hp) for f in own), yp)) for i, (yp, hp, own) in enumerate(parts) if own]
            )


def _changes_attention(sites: Sites) -> bool:
    names = ("ln1", "q", "k", "v", "proj")
    return bool(sites.extra_tokens or sites.extra_kv) or any(n in sites.affine or n in sites.linear for n in names)


def _changes_mlp(sites: Sites) -> bool:
    return any(n in sites.affine or n in sites.linear for n in ("ln2", "fc1", "fc2"))


def _some(t: Tensor, first: int, stop: int) -> Tensor:
    """Some rows of (S, X); in the backward pass a slice of all of them would be a copy."""
    return t if first == 0 and stop == len(t) else t[first:stop]


def _repeated(prompts: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """(P, D) per part -> (sum of R, P, D): every row of a part is given the same."""
    return torch.cat([p.expand(count, -1, -1) for p, count in zip(prompts, rows, strict=True)])


def _stacked(tokens: Sequence[Tensor], like: Tensor) -> Tensor:
    """(P, D) each -> (sum of P, D) in the dtype of `like`, (S, D)."""
    return torch.cat([t.to(like.dtype) for t in tokens]) if tokens else like[:0]
