"""Softmax attention, by the fastest way of the device that is as exact as its dtype.

torch's kernel for the CPU, `scaled_dot_product_attention`, multiplies small blocks: without a matrix unit it reaches a
fifth of the speed of plain products, and backwards in half precision less. Written out, attention is two products and
a softmax over scores that stay in the caches.

Symbols: R rows, H heads, N tokens, K keys, d width of a head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from adapterbank.backbone.kernels.linear import by_onednn, has_matrix_unit, onednn

KEPT_SCORES = 12 * 512**2  # of a clip (H x N x K) in training; more would cost more memory than they save time


CACHED_SCORES = 2**19  # 2 MiB of fp32: of the clips whose scores are made in one go


HEAD_SCORES = 3 * CACHED_SCORES  # of one head, where a clip has too many for one go


LANES = 16  # fp32 numbers of an AVX-512 register


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, (R, H, N, d) x (R, H, K, d) -> (R, H, N, d).

    It is written out in two cases, both on the CPU: with gradients, for short sequences in half precision; without
    gradients, for all in bf16. Everywhere else it is `scaled_dot_product_attention`. With gradients scores are rounded
    to half precision, without they are fp32 as in torch's kernel: logits of one bf16 task with and without gradients
    differ by ~8e-3.
    """
    half = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    compiling = torch.compiler.is_compiling()  # a compiler traces neither loops over clips nor derivatives of ours
    if half and torch.is_grad_enabled() and math.prod(q.shape[1:3]) * k.shape[2] <= KEPT_SCORES:
        result: Tensor = _plain(q, k, v) if compiling else _WrittenOut.apply(q, k, v)
        return result
    if half and not torch.is_grad_enabled() and not compiling and _by_products(q.dtype):
        return _without_gradients(q, k, v)
    spare = -k.shape[2] % LANES
    if half and spare:
        # The kernel takes twice as long where its rows of scores do not fill the registers (27 ms for 32 x 12 heads x
        # 122 tokens, 13 ms for 128), so they are filled up with masked keys.
        mask = F.pad(q.new_zeros(1, 1, 1, k.shape[2]), (0, spare), value=-math.inf)
        k, v = (F.pad(t, (0, 0, 0, spare)) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v)


def columns(y: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """`y.split(sizes, dim=-1)` of (S, X), which is free backwards where the gradients lie side by side in memory."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return y.split(list(sizes), dim=-1)
    parts: tuple[Tensor, ...] = _Columns.apply(y, tuple(sizes))
    return parts


def _by_products(dtype: torch.dtype) -> bool:
    """Whether attention is faster as products: not where torch's kernel runs on a matrix unit."""
    return dtype == torch.bfloat16 and by_onednn("cpu", dtype) and not has_matrix_unit()


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(dim=-1) @ v


def _without_gradients(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are fp32 products of the bf16 queries and keys; weights are bf16, as in torch's kernel."""
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
            scores = onednn(qs.float() * scale, keys, None)
            place.copy_(torch.softmax(scores, dim=-1, out=scores).to(q.dtype) @ values)
    return out


def _batched(t: Tensor) -> Tensor:
    """One matrix per head, contiguous: a strided one is copied anew by each product."""
    return rearrange(t, "r h n d -> (r h) n d").contiguous()


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`scale * a @ b` of batches of matrices, rounded once; in place, since autocast casts what `baddbmm` is given."""
    return a.new_empty(len(a), a.shape[1], b.shape[2]).baddbmm_(a, b, beta=0, alpha=scale)


class _WrittenOut(torch.autograd.Function):
    """`_plain` in half precision with fewer copies: autograd's would transpose keys, scale queries and join gradients.

    The gradients of q, k and v lie side by side in memory, as the outputs of one product do.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, heads, tokens, width = q.shape
        ctx.sizes = q.shape, k.shape
        queries, keys, values = (_batched(t) for t in (q, k, v))
        weights = _scaled(queries, keys.transpose(1, 2), width**-0.5)
        for part in weights.split(max(1, CACHED_SCORES // math.prod(weights.shape[1:]))):
            part.copy_(part.softmax(-1, dtype=torch.float32))  # torch's in half precision takes twice as long
        ctx.save_for_backward(queries, keys, values, weights)
        out = q.new_empty(rows, tokens, heads, width).transpose(1, 2)
        return out.copy_(torch.bmm(weights, values).view_as(out))

    @staticmethod
    @once_differentiable  # torch's kernel has no second derivative either
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        queries, keys, values, weights = ctx.saved_tensors
        of_queries, of_keys = ctx.sizes
        grad, scale = _batched(grads[0]), queries.shape[-1] ** -0.5
        to_scores = torch.bmm(grad, values.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_scores, weights, -1, to_scores.dtype)
        gradients = (
            _scaled(to_scores, keys, scale),
            _scaled(to_scores.transpose(1, 2), queries, scale),
            torch.bmm(weights.transpose(1, 2), grad),
        )
        if of_queries == of_keys:
            places = _side_by_side(grad, of_keys, 3)
        else:
            places = [*_side_by_side(grad, of_queries, 1), *_side_by_side(grad, of_keys, 2)]
        return tuple(place.copy_(found.view(place.shape)) for place, found in zip(places, gradients, strict=True))


def _side_by_side(like: Tensor, size: torch.Size, count: int) -> list[Tensor]:
    """Tensors of `size`, (R, H, N, d), as columns of one (R N, count H d)."""
    rows, heads, tokens, width = size
    whole = like.new_empty(rows, tokens, count, heads, width)
    return list(rearrange(whole, "r n count h d -> count r h n d"))


class _Columns(torch.autograd.Function):
    """A split of the last dimension of (S, X); backwards a view, or a concatenation if that cannot be."""

    @staticmethod
    def forward(y: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        return y.split(list(sizes), dim=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        width = sum(grad.shape[-1] for grad in grads)
        if torch.is_grad_enabled() or not _are_columns(grads, width):
            return torch.cat(grads, dim=-1), None
        return grads[0].as_strided((len(grads[0]), width), (width, 1)), None


def _are_columns(parts: Sequence[Tensor], width: int) -> bool:
    """Whether (S, X) tensors are the columns of one contiguous (S, width), from the first to the last."""
    storage, place = parts[0].untyped_storage().data_ptr(), parts[0].storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != storage or part.storage_offset() != place:
            return False
        if part.stride() != (width, 1):
            return False
        place += part.shape[-1]
    return True
