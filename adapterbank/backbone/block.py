"""One transformer block with its sites, for many segments at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapterbank.backbone.kernels.linear import Transposes, autocast_dtype, product_dtype
from adapterbank.backbone.layout import Attended, Packed
from adapterbank.backbone.weights import FrozenLinear as FrozenLinear

if TYPE_CHECKING:
    from adapterbank.backbone.sites import Sites
from adapterbank.backbone.weights import BlockWeights, Geometry


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
