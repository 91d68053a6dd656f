"""One block's operations on the packed tokens of many segments, with each segment's own changes.

Frozen matmuls run once over all tokens; attention runs once for neighbours with the same number of tokens and of keys;
adapters run per segment. How that is laid out depends on shapes and on which sites are filled, never on values.

Symbols: R rows of a part, N tokens, K keys, D width, H heads, S = sum of R x N, X any width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from adapterbank.backbone.kernels.attention import attention, columns
from adapterbank.backbone.kernels.linear import Transposes, adjoining, frozen_linear, frozen_linear_gelu, gelu, joined
from adapterbank.backbone.kernels.mlp import frozen_mlp
from adapterbank.backbone.kernels.norm import keeps_half, stream_and_norm
from adapterbank.backbone.weights import FrozenLinear

if TYPE_CHECKING:
    from adapterbank.backbone.sites import Affine, Sites
    from adapterbank.backbone.weights import BlockWeights, Geometry


Beside = tuple[Callable[[Tensor], Tensor], ...]


class Attended(NamedTuple):
    """Keys and values that the queries of a block attend to, packed, and (R, N) of each part of them."""

    k: Tensor  # (S, D)
    v: Tensor  # (S, D)
    shapes: Sequence[Sequence[int]]


@contextmanager
def recomputed(h: Tensor, x: Tensor, make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it autograd keeps no rows of `h`, (S, D), which the backward pass makes of `x`, (S, D), row by row."""
    place, width, dtype, source = h.untyped_storage().data_ptr(), h.shape[-1], h.dtype, x.detach()

    def keep(t: Tensor) -> Tensor | tuple[int, torch.Size]:
        rows = t.is_contiguous() and t.ndim > 1 and t.shape[-1] == width and t.dtype == dtype
        if not rows or t.untyped_storage().data_ptr() != place:
            return t.detach()  # autograd knows its place in the graph by itself
        return int(t.storage_offset()) // width, t.shape

    def get(kept: Tensor | tuple[int, torch.Size]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        start, shape = kept
        with torch.no_grad():
            return make(source[start : start + math.prod(shape[:-1])]).view(shape)

    with torch.autograd.graph.saved_tensors_hooks(keep, get):
        yield


def numbered(keys: Iterable[Hashable]) -> list[int]:
    """Each key's number, counted in the order in which new ones appear: "b", "a", "b" -> 0, 1, 0."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def alike(*lists: Sequence[object]) -> list[int]:
    """A number per place: the same one where all lists hold the same objects, counted by first appearance."""
    if len(lists[0]) == 1:
        return [0]  # torch.compile, which sees one task at a time, traces no id() of a tensor
    return numbered(tuple(id(entry) for entry in place) for place in zip(*lists, strict=True))


def pack(parts: Sequence[Tensor]) -> Tensor:
    """(R, N, X) per part -> (S, X); a view where the parts adjoin in memory, as `Packed.split` leaves them."""
    if len(parts) == 1:
        return parts[0].flatten(0, 1)
    if not torch.is_grad_enabled() and adjoining(parts):  # autograd would send the gradients of all to the first
        width = parts[0].shape[-1]
        return parts[0].as_strided((sum(p.numel() for p in parts) // width, width), (width, 1))
    return torch.cat([p.flatten(0, 1) for p in parts])


class Packed:
    """The operations of one block over packed tokens (S, D). Lives for one block call.

    Segments that are given the same tensor are one *part* and are computed once, until `fork` is told of sites that
    one of them fills.

    Args:
        xs: (R, N, D) per segment.
        segments: the sites of each.
        transposes: of the frozen matrices, in training.
    """

    def __init__(
        self,
        xs: Sequence[Tensor],
        weights: BlockWeights,
        segments: Sequence[Sites],
        geometry: Geometry,
        transposes: Transposes | None = None,
    ) -> None:
        self.weights, self.geometry, self.segments, self.transposes = weights, geometry, segments, transposes
        self._lay_out(alike(xs), [x.shape[:2] for x in xs])
        self.x = pack([xs[i] for i in self._first])

    def _lay_out(self, part_of: list[int], shapes: Sequence[Sequence[int]]) -> None:
        """Takes the part of each segment, and (R, N) of each segment."""
        self.part_of = part_of
        first: dict[int, int] = {}
        for index, part in enumerate(part_of):
            first.setdefault(part, index)
        self._first = list(first.values())  # a segment of each part
        self.shapes = [shapes[i] for i in self._first]
        self.sizes = [rows * tokens for rows, tokens in self.shapes]
        self.sites = [self.segments[i] for i in self._first]  # where a part is shared, none of its members' is filled

    def fork(self, fills: Callable[[Sites], object], *packed: Tensor) -> tuple[Tensor, ...]:
        """Segments that fill these sites get a part of their own: the same tensors, (S, X) each, in the new layout."""
        if len(self.shapes) == len(self.part_of):
            return packed
        before = self.part_of
        alone = [index if fills(sites) else None for index, sites in enumerate(self.segments)]
        after = numbered(zip(before, alone, strict=True))
        parts = [self.split(tensor) for tensor in packed]
        self._lay_out(after, [self.shapes[part] for part in before])
        sources = [before[i] for i in self._first]
        return tuple(pack([tensor[part] for part in sources]) for tensor in parts)

    def cut(self, read: Sequence[int | None], keys: Attended, *packed: Tensor) -> tuple[Attended, tuple[Tensor, ...]]:
        """Keeps the first `read` tokens of each segment, all for None; keys and values keep theirs, part by part.

        Segments of one part that read different numbers get parts of their own.
        """
        if not any(read):
            return keys, packed
        parts = [self.split(tensor) for tensor in packed]
        both = [self.split(tensor) for tensor in keys[:2]]
        before, shapes = self.part_of, self.shapes
        wanted = [shapes[p][1] if n is None else min(n, shapes[p][1]) for n, p in zip(read, before, strict=True)]
        after = numbered(zip(before, wanted, strict=True))
        self._lay_out(after, [(shapes[p][0], n) for p, n in zip(before, wanted, strict=True)])
        sources = [before[i] for i in self._first]
        if len(sources) > len(shapes):
            k, v = (pack([tensor[part] for part in sources]) for tensor in both)
            keys = Attended(k, v, [shapes[part] for part in sources])
        return keys, tuple(
            pack([tensor[part][:, :n] for part, (_, n) in zip(sources, self.shapes, strict=True)]) for tensor in parts
        )

    def split(self, packed: Tensor) -> list[Tensor]:
        """(S, X) -> one (R, N, X) view per part."""
        # Backwards a split is a concatenation, also that into one part.
        parts = packed.split(self.sizes) if len(self.sizes) > 1 else [packed]
        return [p.unflatten(0, tuple(shape)) for p, shape in zip(parts, self.shapes, strict=True)]

    def outputs(self, packed: Tensor) -> list[Tensor]:
        """(S, X) -> one (R, N, X) view per segment; those of one part get the same tensor."""
        parts = self.split(packed)
        return [parts[part] for part in self.part_of]

    def change(self, packed: Tensor, changes: Sequence[Callable[[Tensor], Tensor] | None]) -> Tensor:
        """Applies one function per part to (R, N, X) of `packed`, which may be written to."""
        if not any(changes):
            return packed
        parts = self.split(packed)
        return self._put(packed, ((i, f(parts[i])) for i, f in enumerate(changes) if f is not None))

    def add_beside(self, packed: Tensor, name: str, x: Tensor, h: Tensor, beside: Sequence[Beside]) -> Tensor:
        """Adds the outputs of parallel adapters, which read `h`, the LayerNorm `name` of `x`.

        `packed` may be written to. The backward pass makes `h` anew where the LayerNorm keeps `x` as it is.
        """
        if not any(beside):
            return packed
        parts = list(zip(self.split(packed), self.split(h), beside, strict=True))
        if torch.is_grad_enabled():
            plain = not any(name in sites.affine for sites in self.sites)
            exact = not keeps_half(x, *self._gain_and_bias(name, None), h.dtype)
            again = plain and exact and not torch.compiler.is_compiling()  # a compiler chooses by itself what to do so
            with recomputed(h, x, partial(self._normed, name, h.dtype)) if again else nullcontext():
                return pack([sum((f(hp) for f in fs), p).to(p.dtype) for p, hp, fs in parts])
        for part, hp, fs in parts:
            for f in fs:
                part.add_(f(hp))
        return packed

    @staticmethod
    def plus(x: Tensor, change: Tensor) -> Tensor:
        """The residual connection, (S, D) each, in the dtype of `x`; `change` may be written to."""
        own = change.to(x.dtype)
        return x + change if own is change and torch.is_grad_enabled() else own.add_(x)

    def norm(self, name: str, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`x`, to be read on instead, and its LayerNorm in `dtype`; a part with its own gain or bias is normalised
        with those."""
        owners = [s.affine.get(name) for s in self.sites]
        if not any(owners):
            return stream_and_norm(x, *self._gain_and_bias(name, None), self.geometry.eps, dtype)
        normed, parts = self._normed(name, dtype, x), self.split(x)
        return x, self._put(normed, ((i, self._norm(name, parts[i], own)) for i, own in enumerate(owners) if own))

    def linear(self, name: str, x: Tensor) -> Tensor:
        """One frozen matmul for all parts, then each one's own bias and hooks. (S, in) -> (S, out)."""
        return self._own_linear(name, x, frozen_linear(x, *self._frozen(name), self.transposes))

    def mlp(self, h: Tensor) -> Tensor:
        """The MLP; GELU is between its linears. (S, D) -> (S, D)."""
        if any("fc1" in s.linear or "fc1" in s.affine for s in self.sites):
            return self.linear("fc2", gelu(self.linear("fc1", h)))
        if any("fc2" in s.linear or "fc2" in s.affine for s in self.sites):
            return self.linear("fc2", frozen_linear_gelu(h, *self._frozen("fc1"), self.transposes))
        return frozen_mlp(h, self._frozen("fc1"), self._frozen("fc2"), self.transposes)

    def linears(self, names: Sequence[str], x: Tensor) -> list[Tensor]:
        """`linear` for each of these, in one matmul where their matrices adjoin in memory."""
        whole = joined([self._frozen(name) for name in names])
        if whole is None:
            return [self.linear(name, x) for name in names]
        outputs = columns(frozen_linear(x, *whole, self.transposes), [len(self._frozen(name).weight) for name in names])
        return [self._own_linear(name, x, y) for name, y in zip(names, outputs, strict=True)]

    def attention(self, q: Tensor, keys: Attended) -> Tensor:
        """Multi-head self-attention; prompts and prefixes join as keys and values. (S, D) -> (S, D)."""
        extra = [self._extra(sites, keys.k) for sites in self.sites]
        shapes = zip(self.shapes, keys.shapes, extra, strict=True)
        sizes = [(queries, among, len(own)) for (_, queries), (_, among), (own, _) in shapes]
        outputs, first, key = [], 0, 0
        for run in _runs(sizes):
            rows, (queries, among, _) = [self.shapes[i][0] for i in run], sizes[run[0]]
            stop, key_stop = first + sum(rows) * queries, key + sum(rows) * among
            q_run = _rows(q, first, stop).unflatten(0, (sum(rows), queries))
            k_run, v_run = (_rows(t, key, key_stop).unflatten(0, (sum(rows), among)) for t in keys[:2])
            outputs.append(self._attend(q_run, k_run, v_run, rows, [extra[i] for i in run]))
            first, key = stop, key_stop
        return pack(outputs)

    def _put(self, packed: Tensor, own: Iterable[tuple[int, Tensor]]) -> Tensor:
        """`packed` with these parts in place of its own; written into it unless autograd may need it as it is.

        Never the parts themselves, not even of a single one: they may be somebody's parameter or a kept tensor, and
        what is returned is written to.
        """
        parts = self.split(packed)
        if torch.is_grad_enabled():
            new = {i: part.to(packed.dtype) for i, part in own}
            return pack([new.get(i, part) for i, part in enumerate(parts)])
        for i, part in own:
            parts[i].copy_(part)
        return packed

    def _normed(self, name: str, dtype: torch.dtype, x: Tensor) -> Tensor:
        return self._norm(name, x, None).to(dtype)

    def _norm(self, name: str, x: Tensor, own: Affine | None) -> Tensor:
        return F.layer_norm(x, (self.geometry.width,), *self._gain_and_bias(name, own), self.geometry.eps)

    def _gain_and_bias(self, name: str, own: Affine | None) -> tuple[Tensor, Tensor]:
        gain, bias = getattr(self.weights, f"{name}_weight"), getattr(self.weights, f"{name}_bias")
        if own is None:
            return gain, bias
        return gain if own.gain is None else own.gain, bias if own.bias is None else own.bias

    def _frozen(self, name: str) -> FrozenLinear:
        return FrozenLinear(getattr(self.weights, f"{name}_weight"), getattr(self.weights, f"{name}_bias"))

    def _own_linear(self, name: str, x: Tensor, packed: Tensor) -> Tensor:
        """The output of a frozen linear, (S, out), with each part's own bias and hooks."""
        owners = [i for i, s in enumerate(self.sites) if name in s.linear or name in s.affine]
        if not owners:
            return packed
        inputs, parts = self.split(x), self.split(packed)
        return self._put(packed, ((i, self._own(name, inputs[i], parts[i], self.sites[i])) for i in owners))

    def _own(self, name: str, x: Tensor, y: Tensor, sites: Sites) -> Tensor:
        frozen = self._frozen(name)
        for hook in sites.linear.get(name, ()):
            y = hook(x, y, frozen).to(y.dtype)
        own = sites.affine.get(name)
        if own is not None and own.bias is not None:
            # The shared matmul has the frozen bias fused in, so that this segment never changes how others' rows run.
            y = y + (own.bias if frozen.bias is None else own.bias - frozen.bias)
        return y

    def _extra(self, sites: Sites, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (P, D) each, that join those of the tokens, (S, D) `like`; P may be 0."""
        keys, values = [], []
        for prompt in sites.extra_tokens:
            h = self._norm("ln1", prompt, sites.affine.get("ln1"))
            keys.append(self._prompt_linear("k", h, sites))
            values.append(self._prompt_linear("v", h, sites))
        for key, value in sites.extra_kv:
            keys.append(key)
            values.append(value)
        return _stacked(keys, like), _stacked(values, like)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, rows: Sequence[int], extra: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """(R, N, D), (R, K, D) of parts with `rows` rows each, and their own keys and values -> (R, N, D)."""
        if len(extra[0][0]):
            k, v = _join(k, rows, [key for key, _ in extra]), _join(v, rows, [value for _, value in extra])
        q, k, v = (rearrange(t, "r n (h d) -> r h n d", h=self.geometry.heads) for t in (q, k, v))
        return rearrange(attention(q, k, v), "r h n d -> r n (h d)")

    def _prompt_linear(self, name: str, h: Tensor, sites: Sites) -> Tensor:
        y = frozen_linear(h, *self._frozen(name))
        return self._own(name, h[None], y[None], sites)[0]


def _runs(sizes: Sequence[Hashable]) -> list[list[int]]:
    """Places of neighbours that are equal: "aab" -> [[0, 1], [2]]."""
    runs: list[list[int]] = []
    for place, size in enumerate(sizes):
        if place and size == sizes[place - 1]:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _rows(t: Tensor, first: int, stop: int) -> Tensor:
    """Some rows of (S, X); backwards a slice of all of them would be a copy."""
    return t if first == 0 and stop == len(t) else t[first:stop]


def _stacked(tokens: Sequence[Tensor], like: Tensor) -> Tensor:
    """(P, D) each -> (sum of P, D) in the dtype of `like`, (S, D)."""
    return torch.cat([t.to(like.dtype) for t in tokens]) if tokens else like[:0]


def _join(tokens: Tensor, rows: Sequence[int], extra: Sequence[Tensor]) -> Tensor:
    """(R, N, D) with (P, D) for each part's rows -> (R, N + P, D)."""
    return torch.cat((tokens, torch.cat([e.expand(r, -1, -1) for r, e in zip(rows, extra, strict=True)])), dim=1)
