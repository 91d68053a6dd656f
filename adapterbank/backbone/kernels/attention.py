"""Softmax attention, by the fastest way of the device that is as exact as its dtype.

torch's kernel for the CPU, `scaled_dot_product_attention`, multiplies small blocks. Without a matrix unit it reaches a
fifth of the speed of plain products, and its backward pass in half precision is slower still. Attention written out is
two products around a softmax. It is fast as long as the scores between them stay in the processor's caches.

Symbols: R rows, H heads, N tokens, K keys, d width of a head.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from adapterbank.backbone.kernels import HALF, Kernels

KEPT_SCORES = 12 * 512**2  # of a clip (H x N x K) in training: autograd keeps them, and more would need too much memory
CACHED_SCORES = 2**19  # 2 MiB of fp32: the scores that are made in one go
HEAD_SCORES = 3 * CACHED_SCORES  # of one head, where a clip has too many for one go
LANES = 16  # fp32 numbers of an AVX-512 register


def attention(q: Tensor, k: Tensor, v: Tensor, kernels: Kernels) -> Tensor:
    """`softmax(q k^T / sqrt(d)) v`, (R, H, N, d) x (R, H, K, d) -> (R, H, N, d).

    Where it is written out with gradients, the scores are rounded to the dtype of the operands. Without gradients they
    are fp32, as in torch's kernel, so that logits of one bf16 task with and without gradients differ by about 8e-3.
    """
    if q.dtype in kernels.attention:
        if not kernels.grad:
            return _by_products(q, k, v)
        if math.prod(q.shape[1:3]) * k.shape[2] <= KEPT_SCORES:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (R, H, N, K)
            return scores.softmax(dim=-1) @ v
    spare = -k.shape[2] % LANES
    if kernels.fill_keys and q.dtype in HALF and spare:
        # torch's kernel takes twice as long where its rows of scores do not fill whole registers (27 ms for 32 clips x
        # 12 heads x 122 tokens, 13 ms for 128), so the keys are filled up with masked ones.
        mask = F.pad(q.new_zeros(1, 1, 1, k.shape[2]), (0, spare), value=-math.inf)
        k, v = (F.pad(t, (0, 0, 0, spare)) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v)


def _by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Without gradients. Scores are fp32 products of bf16 queries and keys; weights are bf16, as in torch's kernel."""
    rows, heads, tokens, width = q.shape
    of_head, scale = tokens * k.shape[2], width**-0.5
    out = q.new_empty(rows, tokens, heads, width).transpose(1, 2)
    if heads * of_head <= 2 * CACHED_SCORES:
        at_once = max(1, CACHED_SCORES // (heads * of_head))
        for qs, ks, vs, place in zip(*(t.split(at_once) for t in (q, k, v, out)), strict=True):
            scores = _scaled(_batched(qs).float(), _batched(ks).float().transpose(1, 2), scale)
            weights = torch.softmax(scores, dim=-1, out=scores).to(q.dtype)
            place.copy_(torch.bmm(weights, _batched(vs)).view_as(place))
        return out
    at_once = max(1, HEAD_SCORES // k.shape[2])
    for row, head in itertools.product(range(rows), range(heads)):
        keys, values = k[row, head].float(), v[row, head].contiguous()
        for qs, place in zip(q[row, head].split(at_once), out[row, head].split(at_once), strict=True):
            scores = torch.ops.mkldnn._linear_pointwise(qs.float() * scale, keys, None, "none", [], "none")
            place.copy_(torch.softmax(scores, dim=-1, out=scores).to(q.dtype) @ values)
    return out


def _batched(t: Tensor) -> Tensor:
    """One matrix per head, contiguous: a strided one is copied anew by each product. -> (R H, N, d)."""
    return rearrange(t, "r h n d -> (r h) n d").contiguous()


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`scale * a @ b` of batches of matrices, rounded once; in place, since autocast casts what `baddbmm` is given."""
    return a.new_empty(len(a), a.shape[1], b.shape[2]).baddbmm_(a, b, beta=0, alpha=scale)
