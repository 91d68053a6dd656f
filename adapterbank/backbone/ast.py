"""The Audio Spectrogram Transformer as functions over frozen tensors (Gong et al., 2021, "AST").

Nothing here is an `nn.Module` and nothing is stored during a forward pass, so one set of frozen tensors serves any
number of tasks and threads. A batch is a list of *segments*: contiguous rows of one task and one length. Frozen
matmuls run once over the packed tokens of all segments; attention and adapters run per segment.

Symbols: B batch, R rows of a segment, N tokens, D width, H heads, M mel bins, F frames, S = sum of R x N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from adapterbank.errors import BackboneError

if TYPE_CHECKING:
    from adapterbank.methods.sites import Affine, Sites

PREFIX_TOKENS = 2  # cls and distillation
WRITTEN_OUT_TOKENS = 512  # longer: N x N scores would cost more memory than they save time
LINEAR_NAMES = ("q", "k", "v", "proj", "fc1", "fc2")


@dataclass(frozen=True)
class Geometry:
    """Sizes of an AST. Strides, patch and frames count spectrogram bins; `eps` is that of every LayerNorm."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 3072
    mel_bins: int = 128
    max_frames: int = 1024
    patch: int = 16
    frequency_stride: int = 10
    time_stride: int = 10
    eps: float = 1e-12

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "eps" and (not isinstance(value, int) or value < 1):
                raise BackboneError(f"got {name}={value!r} as a size of an AST, expected a positive integer.")
        if self.width % self.heads:
            raise BackboneError(f"width {self.width} is not a multiple of heads {self.heads}; change one of them.")
        if min(self.mel_bins, self.max_frames) < self.patch:
            raise BackboneError(f"{self.mel_bins} mel bins x {self.max_frames} frames hold no {self.patch}-bin patch.")

    @property
    def rows(self) -> int:
        """Patch rows: the frequency axis of the grid."""
        return (self.mel_bins - self.patch) // self.frequency_stride + 1

    def columns(self, frames: int) -> int:
        """Patch columns that fit into `frames`."""
        return (frames - self.patch) // self.time_stride + 1

    def whole_frames(self, frames: int) -> int:
        """`frames` rounded up so that no frame is left over beside the last patch."""
        return self.patch + max(0, -(-(frames - self.patch) // self.time_stride)) * self.time_stride

    def tokens(self, frames: int) -> int:
        """cls, distillation and patch tokens of a spectrogram of `frames`."""
        return PREFIX_TOKENS + self.rows * self.columns(frames)


class EmbedWeights(NamedTuple):
    patch_weight: Tensor  # (D, patch * patch), frequency-major
    patch_bias: Tensor  # (D,)
    cls: Tensor  # (D,)
    dist: Tensor  # (D,)
    positions: Tensor  # (2 + rows * columns(max_frames), D): cls, dist, grid in frequency-major order


class BlockWeights(NamedTuple):
    ln1_weight: Tensor
    ln1_bias: Tensor
    q_weight: Tensor
    q_bias: Tensor | None
    k_weight: Tensor
    k_bias: Tensor | None
    v_weight: Tensor
    v_bias: Tensor | None
    proj_weight: Tensor
    proj_bias: Tensor
    ln2_weight: Tensor
    ln2_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


class FrozenLinear(NamedTuple):
    """One frozen linear, in the dtype it is stored in."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)


class NormWeights(NamedTuple):
    weight: Tensor  # (D,)
    bias: Tensor  # (D,)


class ASTWeights(NamedTuple):
    """All tensors of an AST body."""

    embed: EmbedWeights
    blocks: tuple[BlockWeights, ...]
    norm: NormWeights

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """(canonical name, tensor): `embed.cls`, `blocks.3.fc1_weight`, `norm.bias`."""
        groups: list[tuple[str, EmbedWeights | BlockWeights | NormWeights]] = [("embed", self.embed)]
        groups += [(f"blocks.{i}", block) for i, block in enumerate(self.blocks)]
        groups += [("norm", self.norm)]
        for prefix, group in groups:
            for name, tensor in group._asdict().items():
                if tensor is not None:
                    yield f"{prefix}.{name}", tensor

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor], layers: int) -> ASTWeights:
        """The inverse of `named`; absent query, key and value biases are None."""

        def group(kind: Any, prefix: str) -> Any:
            return kind(*(tensors.get(f"{prefix}.{name}") for name in kind._fields))

        blocks = tuple(group(BlockWeights, f"blocks.{i}") for i in range(layers))
        return cls(group(EmbedWeights, "embed"), blocks, group(NormWeights, "norm"))

    def map(self, change: Callable[[str, Tensor], Tensor]) -> ASTWeights:
        """A copy with `change(name, tensor)` in place of every tensor."""
        return ASTWeights.from_named({name: change(name, t) for name, t in self.named()}, len(self.blocks))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ASTWeights:
        """Moved to `device`; `dtype` is that of the frozen linears only: norms and embeddings stay fp32."""

        def change(name: str, tensor: Tensor) -> Tensor:
            field = name.rsplit(".", 1)[-1].rsplit("_", 1)[0]
            return tensor.to(device=device, dtype=dtype if field in (*LINEAR_NAMES, "patch") else None)

        return self.map(change)


@dataclass(frozen=True)
class Segment:
    """Contiguous rows of one task and one length, as the backbone sees them: sites per block and tensors, no names."""

    sites: tuple[Sites, ...]
    weights: ASTWeights


def encode(spectrograms: Sequence[Tensor], segments: Sequence[Segment], geometry: Geometry) -> list[Tensor]:
    """Runs all segments through the AST.

    Args:
        spectrograms: one normalised (R, F, M) tensor per segment.
        segments: who acts on those rows.

    Returns:
        One (R, N, D) tensor per segment, after the final LayerNorm.
    """
    xs = [embed(mel, s.weights.embed, geometry) for mel, s in zip(spectrograms, segments, strict=True)]
    xs = run_layers(xs, segments, 0, geometry.layers, geometry)
    return final_norm(xs, segments, geometry)


def run_layers(
    xs: list[Tensor], segments: Sequence[Segment], first: int, stop: int, geometry: Geometry
) -> list[Tensor]:
    """Blocks `first` to `stop` - 1 for all segments, (R, N, D) each."""
    for layer in range(first, stop):
        xs = run_layer(xs, segments, layer, geometry)
    return xs


def final_norm(xs: Sequence[Tensor], segments: Sequence[Segment], geometry: Geometry) -> list[Tensor]:
    """The LayerNorm after the last block, (R, N, D) each."""
    return [
        F.layer_norm(x, (geometry.width,), *s.weights.norm, geometry.eps) for x, s in zip(xs, segments, strict=True)
    ]


def embed(mel: Tensor, weights: EmbedWeights, geometry: Geometry) -> Tensor:
    """Normalised spectrograms (R, F, M) -> tokens (R, N, D): cls, dist, patches in frequency-major order."""
    patches = mel.transpose(1, 2).unfold(1, geometry.patch, geometry.frequency_stride)
    patches = patches.unfold(2, geometry.patch, geometry.time_stride)
    patches = rearrange(patches, "r rows columns pf pt -> r (rows columns) (pf pt)")
    x = frozen_linear(patches, weights.patch_weight, weights.patch_bias).to(weights.positions.dtype)
    prefix = torch.stack((weights.cls, weights.dist)).expand(len(mel), -1, -1)
    return torch.cat((prefix, x), dim=1) + positions(weights.positions, geometry, geometry.columns(mel.shape[1]))


def positions(table: Tensor, geometry: Geometry, columns: int) -> Tensor:
    """Position embeddings (N, D) for an input of `columns` patch columns.

    Shorter than the table: its middle columns; longer: bilinear interpolation along time (as AST and AAT do).
    """
    if columns == geometry.columns(geometry.max_frames):
        return table
    return resize_positions(table, geometry.rows, geometry.rows, columns)


def resize_positions(table: Tensor, rows: int, new_rows: int, columns: int) -> Tensor:
    """A position table for another grid, (2 + rows * old, D) -> (2 + new_rows * columns, D).

    Time: the middle columns where there are fewer, bilinear where there are more; frequency: bilinear to more rows: so
    do AST and SSAST. To fewer rows it is bilinear too, where SSAST cuts: the rows span all mel bins in either grid.
    """
    grid = rearrange(table[PREFIX_TOKENS:], "(rows columns) d -> d rows columns", rows=rows)
    full = grid.shape[2]
    if columns < full:
        start = full // 2 - columns // 2  # AST's formula; it differs from (full - columns) // 2 for even / odd pairs
        grid = grid[:, :, start : start + columns]
    if grid.shape[1:] != (new_rows, columns):
        grid = F.interpolate(grid[None], size=(new_rows, columns), mode="bilinear")[0]
    return torch.cat((table[:PREFIX_TOKENS], rearrange(grid, "d rows columns -> (rows columns) d")))


def at_stride(geometry: Geometry, table: Tensor, stride: int) -> tuple[Geometry, Tensor]:
    """The same patches cut every `stride` bins on both axes: the geometry and the position table of that.

    The rows are interpolated here. The columns stay, now nearer in time, and `max_frames` becomes what they cover, so
    that `positions` cuts or interpolates them per input: what SSAST does when it is fine-tuned at stride 10.

    Raises:
        BackboneError: a stride that is no positive integer, or that would leave gaps between patches.
    """
    if isinstance(stride, bool) or not isinstance(stride, int) or not 1 <= stride <= geometry.patch:
        raise BackboneError(f"got stride={stride!r}, expected an integer from 1 to {geometry.patch}, such as 10 or 16.")
    columns = geometry.columns(geometry.max_frames)
    frames = geometry.patch + (columns - 1) * stride
    there = replace(geometry, frequency_stride=stride, time_stride=stride, max_frames=frames)
    return there, resize_positions(table, geometry.rows, there.rows, columns)


def run_layer(xs: list[Tensor], segments: Sequence[Segment], layer: int, geometry: Geometry) -> list[Tensor]:
    """Block `layer` for all segments, (R, N, D) each: packed where tensors are shared, alone where a task owns them."""
    sites = [s.sites[layer] for s in segments]
    xs = [x if s.rewrite is None else s.rewrite(x).to(x.dtype) for x, s in zip(xs, sites, strict=True)]
    xs = [_append(x, s.tokens) if s.tokens else x for x, s in zip(xs, sites, strict=True)]
    by_weights: dict[int, list[int]] = {}
    for index, segment in enumerate(segments):
        by_weights.setdefault(id(segment.weights.blocks[layer]), []).append(index)
    done: dict[int, Tensor] = {}
    for members in by_weights.values():
        weights = segments[members[0]].weights.blocks[layer]
        outputs = block([xs[i] for i in members], weights, [sites[i] for i in members], geometry)
        done.update(zip(members, outputs, strict=True))
    return [done[i] for i in range(len(segments))]


def _append(x: Tensor, tokens: Sequence[Tensor]) -> Tensor:
    return torch.cat((x, *(t.to(x.dtype).expand(len(x), -1, -1) for t in tokens)), dim=1)


def block(xs: list[Tensor], weights: BlockWeights, sites: Sequence[Sites], geometry: Geometry) -> list[Tensor]:
    """One pre-norm transformer block with its sites; `xs` and `sites` go segment by segment.

    Shapes: list of (R, N, D) -> list of (R, N, D).
    """
    run = _Packed(weights, sites, [x.shape[:2] for x in xs], geometry)
    x = _pack(xs)

    h = run.norm("ln1", x)
    low = h.to(weights.q_weight.dtype)  # cast once for the three linears
    mixed = run.attention(run.linear("q", low), run.linear("k", low), run.linear("v", low))
    a = run.linear("proj", mixed).to(x.dtype)
    a = run.change(a, [s.after_attention for s in sites])
    x = x + run.add_beside(a, h, [s.beside_attention for s in sites])

    h = run.norm("ln2", x)
    m = run.linear("fc2", F.gelu(run.linear("fc1", h))).to(x.dtype)
    m = run.change(m, [s.after_mlp for s in sites])
    x = x + run.add_beside(m, h, [s.beside_mlp for s in sites])
    return run.split(x)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` in the dtype of the weight: the only place where the fp32 stream is cast."""
    return F.linear(x.to(weight.dtype), weight, bias)


def _pack(parts: Sequence[Tensor]) -> Tensor:
    """(R, N, X) per segment -> (S, X); a view where there is one segment."""
    return torch.cat([p.flatten(0, 1) for p in parts]) if len(parts) > 1 else parts[0].flatten(0, 1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, (R, H, N, d) x (R, H, K, d) -> (R, H, N, d).

    torch's CPU kernel is slow backwards in half precision (75 ms against 17 ms for 32 x 3 heads x 106 tokens), so short
    sequences are written out there; elsewhere it is `scaled_dot_product_attention`.
    """
    half = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type == "cpu" and half and k.shape[2] <= WRITTEN_OUT_TOKENS and torch.is_grad_enabled():
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class _Packed:
    """The operations of one block over packed tokens (S, D), with each segment's changes. Lives for one block call."""

    def __init__(
        self, weights: BlockWeights, sites: Sequence[Sites], shapes: Sequence[Sequence[int]], geometry: Geometry
    ):
        self.weights, self.sites, self.shapes, self.geometry = weights, sites, shapes, geometry
        self.sizes = [rows * tokens for rows, tokens in shapes]

    def split(self, packed: Tensor) -> list[Tensor]:
        """(S, X) -> one (R, N, X) view per segment."""
        parts = packed.split(self.sizes)
        return [p.unflatten(0, tuple(shape)) for p, shape in zip(parts, self.shapes, strict=True)]

    def change(self, packed: Tensor, changes: Sequence[Callable[[Tensor], Tensor] | None]) -> Tensor:
        """Applies one function per segment to its (R, N, X) part; where all are None, `packed` itself comes back."""
        if not any(changes):
            return packed
        parts = zip(self.split(packed), changes, strict=True)
        return _pack([p if f is None else f(p).to(p.dtype) for p, f in parts])

    def add_beside(self, packed: Tensor, h: Tensor, beside: Sequence[tuple[Callable[[Tensor], Tensor], ...]]) -> Tensor:
        """Adds the outputs of parallel adapters, which read the normalised input `h`, (S, D)."""
        if not any(beside):
            return packed
        parts = zip(self.split(packed), self.split(h), beside, strict=True)
        return _pack([sum((f(hp) for f in fs), p).to(p.dtype) for p, hp, fs in parts])

    def norm(self, name: str, x: Tensor) -> Tensor:
        """LayerNorm; a segment with its own gain or bias is normalised with those instead."""
        normed = self._norm(name, x, None)
        owners = [s.affine.get(name) for s in self.sites]
        if not any(owners):
            return normed
        parts = zip(self.split(normed), self.split(x), owners, strict=True)
        return _pack([n if own is None else self._norm(name, p, own) for n, p, own in parts])

    def _norm(self, name: str, x: Tensor, own: Affine | None) -> Tensor:
        gain, bias = getattr(self.weights, f"{name}_weight"), getattr(self.weights, f"{name}_bias")
        if own is not None:
            gain = gain if own.gain is None else own.gain
            bias = bias if own.bias is None else own.bias
        return F.layer_norm(x, (self.geometry.width,), gain, bias, self.geometry.eps)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """One frozen matmul for all segments, then each segment's own bias and hooks. (S, in) -> (S, out)."""
        packed = frozen_linear(x, getattr(self.weights, f"{name}_weight"), getattr(self.weights, f"{name}_bias"))
        if not any(name in s.linear or name in s.affine for s in self.sites):
            return packed
        parts = zip(self.split(x), self.split(packed), self.sites, strict=True)
        return _pack([self._own(name, xp, yp, s).to(yp.dtype) for xp, yp, s in parts])

    def _own(self, name: str, x: Tensor, y: Tensor, sites: Sites) -> Tensor:
        frozen = FrozenLinear(getattr(self.weights, f"{name}_weight"), getattr(self.weights, f"{name}_bias"))
        for hook in sites.linear.get(name, ()):
            y = hook(x, y, frozen).to(y.dtype)
        own = sites.affine.get(name)
        if own is not None and own.bias is not None:
            # The shared matmul has the frozen bias fused in, so that this segment never changes how others' rows run.
            y = y + (own.bias if frozen.bias is None else own.bias - frozen.bias)
        return y

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Multi-head self-attention per segment; prompts and prefixes join as keys and values. (S, D) -> (S, D)."""
        parts = zip(self.split(q), self.split(k), self.split(v), self.sites, strict=True)
        return _pack([self._attend(*part) for part in parts])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sites: Sites) -> Tensor:
        for prompt in sites.extra_tokens:
            h = self._norm("ln1", prompt, sites.affine.get("ln1"))
            k, v = _join(k, self._prompt_linear("k", h, sites)), _join(v, self._prompt_linear("v", h, sites))
        for key, value in sites.extra_kv:
            k, v = _join(k, key), _join(v, value)
        q, k, v = (rearrange(t, "r n (h d) -> r h n d", h=self.geometry.heads) for t in (q, k, v))
        return rearrange(attention(q, k, v), "r h n d -> r n (h d)")

    def _prompt_linear(self, name: str, h: Tensor, sites: Sites) -> Tensor:
        y = frozen_linear(h, getattr(self.weights, f"{name}_weight"), getattr(self.weights, f"{name}_bias"))
        return self._own(name, h[None], y[None], sites)[0]


def _join(tokens: Tensor, extra: Tensor) -> Tensor:
    """(R, N, D) with (P, D) -> (R, N + P, D)."""
    return torch.cat((tokens, extra.to(tokens.dtype).expand(len(tokens), -1, -1)), dim=1)
