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

    Where `keeps_half`, it is differentiable once.
    """
    if torch.is_grad_enabled() and x.requires_grad and keeps_half(x, gain, bias, dtype):
        both: tuple[Tensor, Tensor] = _StreamAndNorm.apply(x, gain, bias, eps, dtype)
        return both
    return x, F.layer_norm(x, gain.shape, gain, bias, eps).to(dtype)


def keeps_half(x: Tensor, gain: Tensor, bias: Tensor, dtype: torch.dtype) -> bool:
    """Whether a backward pass keeps `x` in bf16, half of what autograd would: on the CPU, with frozen gain and bias.

    `x` is rounded before it is centred, so that the gradient is wrong by 2^-9 of |x| over its standard deviation.
    """
    trained = gain.requires_grad or bias.requires_grad
    bf16 = x.device.type == "cpu" and dtype == torch.bfloat16 and x.dtype != dtype
    return bf16 and not trained and not torch.compiler.is_compiling()


class _StreamAndNorm(torch.autograd.Function):
    """Keeps `x` in bf16, and adds the gradients of both results. Only the CPU's kernel reads bf16 and an fp32 gain."""

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
        found, _, _ = torch.ops.aten.native_layer_norm_backward(
            of_norm, x, gain.shape, mean, rstd, gain, bias, [True, False, False]
        )
        found = found.to(mean.dtype)
        return found if of_stream is None else found.add_(of_stream), None, None, None, None
