"""Spectrograms -> tokens: patches, cls and distillation tokens, position embeddings (Gong et al., 2021, section 2.1).

Symbols: R rows, F frames, M mel bins, N tokens, D width, P side of a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from adapterbank.backbone.weights import PREFIX_TOKENS, EmbedWeights, FrozenLinear, Geometry
from adapterbank.errors import BackboneError


def plain_linear(x: Tensor, frozen: FrozenLinear) -> Tensor:
    """torch's own linear, in the dtype of its matrix. (..., in) -> (..., out)."""
    return F.linear(x.to(frozen.weight.dtype), frozen.weight, frozen.bias)


def embed(
    mel: Tensor,
    weights: EmbedWeights,
    geometry: Geometry,
    linear: Callable[[Tensor, FrozenLinear], Tensor] = plain_linear,
) -> Tensor:
    """Normalised spectrograms (R, F, M) -> tokens (R, N, D): cls, dist, patches in frequency-major order.

    Args:
        linear: makes the product of the patches with their matrix.
    """
    patches = mel.transpose(1, 2).unfold(1, geometry.patch, geometry.frequency_stride)  # (R, rows, F, P)
    patches = patches.unfold(2, geometry.patch, geometry.time_stride)  # (R, rows, columns, P, P)
    patches = rearrange(patches, "r rows columns pf pt -> r (rows columns) (pf pt)")
    x = linear(patches, FrozenLinear(weights.patch_weight, weights.patch_bias)).to(weights.positions.dtype)
    prefix = torch.stack((weights.cls, weights.dist)).expand(len(mel), -1, -1)  # (R, 2, D)
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

    Along time, the middle columns are taken if fewer are needed, else it is bilinear. Along frequency it is always
    bilinear. So do AST and SSAST, but for one case: to fewer rows SSAST cuts. Here the rows span all mel bins in either
    grid.
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
