"""LayerNorm of the residual stream into half precision, in parts that stay in the processor's caches.

The stream is fp32, and what the sublayers read and send back is not: written as torch writes it, LayerNorm, its
derivative, the casts around both and the addition of the residual's gradient are passes of their own through memory.

Symbols: S rows, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def stream_and_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x`, (S, D), to be read on in place of what was given, and its LayerNorm in `dtype`.

    With a gain and a bias that are not trained, the backward pass of a norm in half precision keeps `x` in that too,
    and adds the gradients of both results. It is differentiable once.
    """
    if dtype == x.dtype or torch.compiler.is_compiling() or gain.requires_grad or bias.requires_grad:
        return x, F.layer_norm(x, gain.shape, gain, bias, eps).to(dtype)
    if torch.is_grad_enabled() and x.requires_grad:
        both: tuple[Tensor, Tensor] = _StreamAndNorm.apply(x, gain, bias, eps, dtype)
        return both
    return x, F.layer_norm(x, gain.shape, gain, bias, eps).to(dtype)


class _StreamAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        normed, mean, rstd = torch.native_layer_norm(x, gain.shape, gain, bias, eps)
        ctx.save_for_backward(x.to(dtype), mean, rstd, gain, bias)
        ctx.set_materialize_grads(False)
        return x, normed.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        of_stream, of_norm = grads
        nothing = (None, None, None, None)
        if of_norm is None:
            return of_stream, *nothing
        x, mean, rstd, gain, bias = ctx.saved_tensors
        found, _, _ = torch.ops.aten.native_layer_norm_backward(
            of_norm, x, gain.shape, mean, rstd, gain, bias, [True, False, False]
        )
        found = found.to(mean.dtype)
        return found if of_stream is None else found.add_(of_stream), *nothing
