"""The Audio Spectrogram Transformer as functions over frozen tensors (Gong et al., 2021, "AST").

Nothing here is an `nn.Module` and nothing is stored during a forward pass, so one set of frozen tensors serves any
number of tasks and threads. A batch is a list of *segments*: contiguous rows of one task and one length. How a block
runs on all of them at once: packed.py.

Symbols: B batch, R rows of a segment, N tokens, D width, H heads, M mel bins, F frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.linear import FrozenLinear as FrozenLinear  # part of what a method sees
from adapterbank.backbone.linear import Transposes, adjoin, autocast_dtype, frozen_linear, product_dtype
from adapterbank.backbone.packed import Attended, Packed, alike
from adapterbank.errors import BackboneError

if TYPE_CHECKING:
    from adapterbank.methods.sites import Sites

PREFIX_TOKENS = 2  # cls and distillation
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


class NormWeights(NamedTuple):
    weight: Tensor  # (D,)
    bias: Tensor  # (D,)


class ASTWeights(NamedTuple):
    """All tensors of an AST body; in training also the transposes of its frozen matrices, as they are needed."""

    embed: EmbedWeights
    blocks: tuple[BlockWeights, ...]
    norm: NormWeights
    transposes: Transposes | None = None

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
        """Moved to `device`; `dtype` is that of the frozen linears only: norms and embeddings stay fp32.

        With torch.int8 the matrices of the blocks are `Int8Matrix`, their biases and the patch embedding bf16. With
        another dtype all tensors are copies: one that stayed would keep the whole file in memory that it is mapped
        from.

        Raises:
            BackboneError: a dtype that is neither floating nor torch.int8.
        """
        if dtype is not None and dtype != torch.int8 and not dtype.is_floating_point:
            raise BackboneError(
                f"got base_dtype={dtype}, expected torch.float32, torch.bfloat16, torch.float16 or torch.int8."
            )
        other = dtype not in (None, self.embed.patch_weight.dtype)

        def change(name: str, tensor: Tensor) -> Tensor:
            *_, group, field = name.split(".")
            if dtype is None or field.rsplit("_", 1)[0] not in (*LINEAR_NAMES, "patch"):
                return tensor.to(device=device, copy=other)
            if dtype == torch.int8:
                matrix = group != "embed" and field.endswith("_weight")
                return Int8Matrix.of(tensor).to(device) if matrix else tensor.to(device, torch.bfloat16, copy=other)
            exact = tensor.wide() if isinstance(tensor, Int8Matrix) else tensor
            return exact.to(device=device, dtype=dtype, copy=other)

        there = self.map(change)
        pairs = zip(self.blocks, there.blocks, strict=True)
        return there._replace(blocks=tuple(_together(b) if b.q_weight is not a.q_weight else b for a, b in pairs))


def _together(block: BlockWeights) -> BlockWeights:
    """The matrices of q, k and v one behind the other in memory, for one product."""
    if isinstance(block.q_weight, Int8Matrix):
        return block
    q, k, v = adjoin((block.q_weight, block.k_weight, block.v_weight))
    return block._replace(q_weight=q, k_weight=k, v_weight=v)


@dataclass(frozen=True)
class Segment:
    """Contiguous rows of one task and one length, as the backbone sees them: sites per block and tensors, no names.

    Attributes:
        sites: of each block.
        weights: the task's own tensors in those of the base.
        read: how many of the first tokens the last block has to give; None for all.
    """

    sites: tuple[Sites, ...]
    weights: ASTWeights
    read: int | None = None

    def read_of(self, layer: int) -> int | None:
        """How many of the first tokens block `layer` has to give; None for all."""
        return self.read if layer == len(self.sites) - 1 else None


def encode(spectrograms: Sequence[Tensor], segments: Sequence[Segment], geometry: Geometry) -> list[Tensor]:
    """Runs all segments through the AST.

    Segments that are given the same tensor (the same object) share the embedding and all blocks below the first site of
    each: that is computed once.

    Args:
        spectrograms: one normalised (R, F, M) tensor per segment.
        segments: who acts on those rows.

    Returns:
        One (R, N, D) tensor per segment, after the final LayerNorm; of a segment that reads its first tokens only, N
        may be their number.
    """
    # No name for what enters the first block: it would keep that until the last has run.
    xs = run_layers(_embedded(spectrograms, segments, geometry), segments, 0, geometry.layers, geometry)
    return final_norm(xs, segments, geometry)


def _embedded(spectrograms: Sequence[Tensor], segments: Sequence[Segment], geometry: Geometry) -> list[Tensor]:
    embedded: list[Tensor] = []
    numbers = alike(spectrograms, [s.weights.embed for s in segments])
    for mel, segment, number in zip(spectrograms, segments, numbers, strict=True):
        if number == len(embedded):
            embedded.append(embed(mel, segment.weights.embed, geometry))
    return [embedded[number] for number in numbers]


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
        read = [segments[i].read_of(layer) for i in members]
        transposes = segments[members[0]].weights.transposes
        outputs = block([xs[i] for i in members], weights, [sites[i] for i in members], geometry, read, transposes)
        done.update(zip(members, outputs, strict=True))
    return [done[i] for i in range(len(segments))]


def _append(x: Tensor, tokens: Sequence[Tensor]) -> Tensor:
    return torch.cat((x, *(t.to(x.dtype).expand(len(x), -1, -1) for t in tokens)), dim=1)


def block(
    xs: list[Tensor],
    weights: BlockWeights,
    sites: Sequence[Sites],
    geometry: Geometry,
    read: Sequence[int | None] | None = None,
    transposes: Transposes | None = None,
) -> list[Tensor]:
    """One pre-norm transformer block with its sites; `xs`, `sites` and `read` go segment by segment.

    Segments that are given the same tensor (the same object) are computed once, up to the first site that one of them
    fills; those that fill none are given the same tensor back.

    Args:
        read: the number of first tokens that are wanted of a segment, None for all. The others are keys and values.
        transposes: of the frozen matrices, for a backward pass.

    Shapes: list of (R, N, D) -> list of (R, N or read, D).
    """
    run = Packed(xs, weights, sites, geometry, transposes)
    half = product_dtype(weights.q_weight)
    # Between the frozen linears and the residual stream: under autocast adapters would cast what they read themselves.
    inside = half if autocast_dtype(run.x.device.type) == half else run.x.dtype
    x = _attention_sublayer(run, half, inside, read or [None] * len(xs))
    return run.outputs(_mlp_sublayer(run, x, inside))


def _attention_sublayer(run: Packed, half: torch.dtype, inside: torch.dtype, wanted: Sequence[int | None]) -> Tensor:
    """From the block's input to the stream after the attention, (S, D) packed."""
    (x,) = run.fork(_change_attention, run.x)
    x, h = run.norm("ln1", x, inside)
    low = h.to(half)  # cast once for the three linears
    if any(wanted):  # fewer queries than keys
        k, v = run.linears(("k", "v"), low)
        keys, (x, h, low) = run.cut(wanted, Attended(k, v, run.shapes), x, h, low)
        q = run.linear("q", low)
    else:
        q, k, v = run.linears(("q", "k", "v"), low)
        keys = Attended(k, v, run.shapes)
    a = run.linear("proj", run.attention(q, keys)).to(inside)
    x, h, a = run.fork(lambda s: s.after_attention or s.beside_attention, x, h, a)
    a = run.change(a, [s.after_attention for s in run.sites])
    return run.plus(x, run.add_beside(a, "ln1", x, h, [s.beside_attention for s in run.sites]))


def _mlp_sublayer(run: Packed, x: Tensor, inside: torch.dtype) -> Tensor:
    """From the stream after the attention to the block's output, (S, D) packed."""
    (x,) = run.fork(_change_mlp, x)
    x, h = run.norm("ln2", x, inside)
    m = run.mlp(h).to(inside)
    x, h, m = run.fork(lambda s: s.after_mlp or s.beside_mlp, x, h, m)
    m = run.change(m, [s.after_mlp for s in run.sites])
    return run.plus(x, run.add_beside(m, "ln2", x, h, [s.beside_mlp for s in run.sites]))


def _change_attention(sites: Sites) -> bool:
    names = ("ln1", "q", "k", "v", "proj")
    return bool(sites.extra_tokens or sites.extra_kv) or any(n in sites.affine or n in sites.linear for n in names)


def _change_mlp(sites: Sites) -> bool:
    return any(n in sites.affine or n in sites.linear for n in ("ln2", "fc1", "fc2"))
