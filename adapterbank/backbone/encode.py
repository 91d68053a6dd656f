"""The Audio Spectrogram Transformer as functions over frozen tensors (Gong et al., 2021, "AST").

Nothing here is an `nn.Module` and nothing is stored during a forward pass, so one set of frozen tensors serves any
number of tasks and threads. A batch is a list of *segments*: contiguous rows of one task and one length. How a block
runs on all of them at once: packed.py.

Symbols: B batch, R rows of a segment, N tokens, D width, H heads, M mel bins, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.backbone.layout import alike
from adapterbank.backbone.weights import FrozenLinear as FrozenLinear

if TYPE_CHECKING:
    from adapterbank.backbone.sites import Sites
from adapterbank.backbone.block import block
from adapterbank.backbone.embedding import embed
from adapterbank.backbone.weights import ASTWeights, Geometry


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
