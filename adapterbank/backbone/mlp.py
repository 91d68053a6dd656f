"""Linear, GELU, linear: that of a block, and that of an adapter. In training it keeps no hidden units.

Symbols: S rows, D width, M hidden units.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.linear import (
    FrozenLinear,
    Transposes,
    autocast_dtype,
    by_onednn,
    frozen_linear,
    frozen_linear_gelu,
    onednn,
    through,
)


def frozen_mlp(x: Tensor, fc1: FrozenLinear, fc2: FrozenLinear, transposes: Transposes | None = None) -> Tensor:
    """`fc2(gelu(fc1(x)))` of a block, (S, D) -> (S, D), in the dtype of its matrices.

    With gradients in bf16 on the CPU it is differentiable once.

    Args:
        transposes: of frozen matrices, for the gradient of `x`.
    """
    weights = fc1.weight, fc2.weight
    plain = any(isinstance(w, Int8Matrix) or w.requires_grad for w in weights) or not x.requires_grad
    if plain or not _by_hand(x, fc1, fc2, fc2.weight.dtype):
        return frozen_linear(frozen_linear_gelu(x, *fc1, transposes), *fc2, transposes)
    made: Tensor = _Mlp.apply(x.to(fc1.weight.dtype), *fc1, *fc2, transposes)
    return made


def trained_mlp(x: Tensor, down: nn.Linear, up: nn.Linear) -> Tensor:
    """`up(gelu(down(x)))` of an adapter, (..., D) -> (..., D), in the dtype of autocast; M is much less than D.

    With gradients in bf16 on the CPU hidden units are made anew in the backward pass, it is differentiable once, and
    hooks of the two modules are not called.
    """
    fc1, fc2 = FrozenLinear(down.weight, down.bias), FrozenLinear(up.weight, up.bias)
    dtype = autocast_dtype(x.device.type)
    if dtype is None or not _by_hand(x, fc1, fc2, dtype):
        made: Tensor = up(F.gelu(down(x)))
        return made
    read = x.flatten(0, -2).to(dtype)
    packed: Tensor = _Mlp.apply(read, *(t.to(dtype) for t in (*fc1, *fc2) if t is not None), None)
    return packed.unflatten(0, x.shape[:-1])


def _by_hand(x: Tensor, fc1: FrozenLinear, fc2: FrozenLinear, dtype: torch.dtype) -> bool:
    """Whether autograd is told the derivative."""
    whole = fc1.bias is not None and fc2.bias is not None and x.numel() > 0
    return whole and torch.is_grad_enabled() and dtype == torch.bfloat16 and by_onednn(x.device.type, dtype)


class _Mlp(torch.autograd.Function):
    """Keeps what the first linear made, which GELU's derivative is of, and `x` if the first linear is trained."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, transposes: Transposes | None
    ) -> Tensor:
        made = onednn(x, w1, b1)
        ctx.transposes = transposes
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, made, w1, w2)
        return onednn(F.gelu(made), w2, b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, made, w1, w2 = ctx.saved_tensors
        (grad,), (to_x, to_w1, to_b1, to_w2, to_b2, _) = grads, ctx.needs_input_grad
        of_w2 = grad.T @ F.gelu(made) if to_w2 else None
        units = through(grad, w2, ctx.transposes)
        torch.ops.aten.gelu_backward.grad_input(units, made, grad_input=units)
        return (
            through(units, w1, ctx.transposes) if to_x else None,
            units.T @ x if to_w1 else None,
            units.sum(0) if to_b1 else None,
            of_w2,
            grad.sum(0) if to_b2 else None,
            None,
        )
