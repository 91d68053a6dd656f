"""LayerNorm of the fp32 residual stream for sublayers that read another dtype.

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

    Where gain and bias are frozen, the backward pass of a norm in half precision keeps `x` in that too, half of what
    autograd would keep, and adds up the gradients of both results itself. It is differentiable once then.
    """
    trained = gain.requires_grad or bias.requires_grad
    half = dtype != x.dtype and not trained and not torch.compiler.is_compiling()
    if half and x.requires_grad and torch.is_grad_enabled():
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
        if of_norm is None:
            return of_stream, None, None, None, None
        x, mean, rstd, gain, bias = ctx.saved_tensors
        if x.device.type != "cpu" or x.dtype != torch.bfloat16:
            # Only the CPU's kernel reads half precision beside an fp32 gain, and fp16 has no room for what it returns.
            of_norm, x = of_norm.to(mean.dtype), x.to(mean.dtype)
        found, _, _ = torch.ops.aten.native_layer_norm_backward(
            of_norm, x, gain.shape, mean, rstd, gain, bias, [True, False, False]
        )
        found = found.to(mean.dtype)
        return found if of_stream is None else found.add_(of_stream), None, None, None, None
