"""The AST for many tasks and clip lengths at once, as functions over frozen tensors.

It computes what `plain.encode` computes for each of them. Nothing here is an `nn.Module` and nothing is stored during a
forward pass, so one set of frozen tensors serves any number of tasks and threads. A call is given several
tensors, each with the rows of one task and one length, and for each of them a *segment*, which says what acts on those
rows. `block.py` runs one block for all of them.

Symbols: R rows of a segment, N tokens, D width, M mel bins, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adapterbank.backbone import plain
from adapterbank.backbone.block import block
from adapterbank.backbone.embedding import embed
from adapterbank.backbone.kernels import Kernels, choose
from adapterbank.backbone.kernels.linear import frozen_linear
from adapterbank.backbone.layout import alike
from adapterbank.backbone.sites import Sites
from adapterbank.backbone.weights import ASTWeights, Geometry


@dataclass(frozen=True)
class Segment:
    """What acts on a group of rows of one task and one length: sites per block and tensors, no names.

    Attributes:
        sites: of each block.
        weights: the task's own tensors in the places of those of the base.
        read: how many of the first tokens the last block has to give; None for all.
    """

    sites: tuple[Sites, ...]
    weights: ASTWeights
    read: int | None = None


def encode(
    spectrograms: Sequence[Tensor], segments: Sequence[Segment], geometry: Geometry, kernels: Kernels | None = None
) -> list[Tensor]:
    """Runs all segments through the AST.

    Segments that are given the same tensor (the same object) share the embedding and all blocks below the first site of
    each: that is computed once.

    Args:
        spectrograms: one normalised (R, F, M) tensor per segment.
        segments: who acts on those rows.
        kernels: how products are made; None decides it now, once for all blocks.

    Returns:
        One (R, N, D) tensor per segment, after the final LayerNorm. Of a segment that reads its first tokens only, N
        may be their number.
    """
    kernels = choose(spectrograms[0].device) if kernels is None else kernels
    # The embedded tokens get no variable, so that they are freed after the first block.
    xs = run_layers(
        embedded(spectrograms, segments, geometry, kernels), segments, 0, geometry.layers, geometry, kernels
    )
    return final_norm(xs, segments, geometry)


def embedded(
    spectrograms: Sequence[Tensor], segments: Sequence[Segment], geometry: Geometry, kernels: Kernels
) -> list[Tensor]:
    """(R, F, M) -> (R, N, D) per segment, each spectrogram once for all segments with the same embedding."""
    if not kernels.packing:
        return [embed(mel, s.weights.embed, geometry) for mel, s in zip(spectrograms, segments, strict=True)]
    made: list[Tensor] = []
    numbers = alike(spectrograms, [s.weights.embed for s in segments])
    for mel, segment, number in zip(spectrograms, segments, numbers, strict=True):
        if number == len(made):
            made.append(embed(mel, segment.weights.embed, geometry, partial(frozen_linear, kernels=kernels)))
    return [made[number] for number in numbers]


def run_layers(
    xs: list[Tensor],
    segments: Sequence[Segment],
    first: int,
    stop: int,
    geometry: Geometry,
    kernels: Kernels | None = None,
) -> list[Tensor]:
    """Blocks `first` to `stop` - 1 for all segments, (R, N, D) each."""
    kernels = choose(xs[0].device) if kernels is None else kernels
    contexts = kernels.checkpoint if kernels.grad else None
    # Kept and recomputed once, by the block as a whole: what its parts would keep for themselves is not freed.
    inside = kernels if contexts is None else kernels._replace(recompute=False)
    for layer in range(first, stop):
        if contexts is None:
            xs = run_layer(xs, segments, layer, geometry, inside)
        else:
            again: Any = checkpoint(
                run_layer, xs, segments, layer, geometry, inside, use_reentrant=False, context_fn=contexts
            )
            xs = again
    return xs


def run_layer(
    xs: Sequence[Tensor], segments: Sequence[Segment], layer: int, geometry: Geometry, kernels: Kernels | None = None
) -> list[Tensor]:
    """Block `layer` for all segments, (R, N, D) each.

    Segments whose tensors are the base's run together; a task that owns the block's tensors runs by itself.
    """
    kernels = choose(xs[0].device) if kernels is None else kernels
    sites = [s.sites[layer] for s in segments]
    if not kernels.packing:
        return [
            plain.block(x, segment.weights.blocks[layer], geometry, own)
            for x, segment, own in zip(xs, segments, sites, strict=True)
        ]
    xs = [x if s.rewrite is None else s.rewrite(x).to(x.dtype) for x, s in zip(xs, sites, strict=True)]
    xs = [_with_tokens(x, s.tokens) if s.tokens else x for x, s in zip(xs, sites, strict=True)]
    last = layer == geometry.layers - 1 and kernels.last_block
    by_weights: dict[int, list[int]] = {}
    for index, segment in enumerate(segments):
        by_weights.setdefault(id(segment.weights.blocks[layer]), []).append(index)
    done: dict[int, Tensor] = {}
    for members in by_weights.values():
        weights = segments[members[0]].weights.blocks[layer]
        read = [segments[i].read if last else None for i in members]
        outputs = block([xs[i] for i in members], weights, [sites[i] for i in members], geometry, read, kernels)
        done.update(zip(members, outputs, strict=True))
    return [done[i] for i in range(len(segments))]


def final_norm(xs: Sequence[Tensor], segments: Sequence[Segment], geometry: Geometry) -> list[Tensor]:
    """The LayerNorm after the last block, (R, N, D) each."""
    return [
        F.layer_norm(x, (geometry.width,), *s.weights.norm, geometry.eps) for x, s in zip(xs, segments, strict=True)
    ]


def _with_tokens(x: Tensor, tokens: Sequence[Tensor]) -> Tensor:
    """(R, N, D) with (P, D) tokens behind the last of each row -> (R, N + P, D)."""
    return torch.cat((x, *(t.to(x.dtype).expand(len(x), -1, -1) for t in tokens)), dim=1)
