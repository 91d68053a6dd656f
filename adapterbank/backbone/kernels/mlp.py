"""Linear, GELU, linear: that of a block, and that of an adapter. Of hidden units a training keeps what GELU reads.

Symbols: R rows, N tokens, S = R x N, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.kernels.linear import (
    Transposes,
    autocast_dtype,
    by_onednn,
    frozen_linear,
    frozen_linear_gelu,
    onednn,
    through,
)
from adapterbank.backbone.weights import FrozenLinear


def frozen_mlp(x: Tensor, fc1: FrozenLinear, fc2: FrozenLinear, transposes: Transposes | None = None) -> Tensor:
    """`fc2(gelu(fc1(x)))` of a block, (S, D) -> (S, D), in the dtype of its matrices.

    With gradients in bf16 on the CPU it is differentiable once.

    Args:
        transposes: of frozen matrices, for the gradient of `x`.
    """
    dtype = fc1.weight.dtype
    frozen = not any(isinstance(w, Int8Matrix) or w.requires_grad for w in (fc1.weight, fc2.weight))
    if fc1.bias is None or fc2.bias is None or not frozen or not x.requires_grad or not _by_hand(x, dtype):
        return frozen_linear(frozen_linear_gelu(x, *fc1, transposes), *fc2, transposes)
    biases = fc1.bias.to(dtype), fc2.bias.to(dtype)
    made: Tensor = _Mlp.apply(x.to(dtype), fc1.weight, biases[0], fc2.weight, biases[1], transposes)
    return made


def trained_mlp(x: Tensor, down: nn.Module, drop: nn.Module, up: nn.Module) -> Tensor:
    """`up(drop(gelu(down(x))))` of an adapter, (R, N, D) -> (R, N, D); it has much fewer hidden units than D.

    With gradients in bf16 on the CPU the backward pass makes the output of GELU anew, and it is differentiable once,
    unless one of the modules is anything else than a plain `Linear` or `Identity`, or has hooks.
    """
    dtype = autocast_dtype(x.device.type)
    plain = _is(down, nn.Linear) and _is(drop, nn.Identity) and _is(up, nn.Linear)
    if dtype is None or not plain or not _by_hand(x, dtype) or down.bias is None or up.bias is None:
        made: Tensor = up(drop(F.gelu(down(x))))
        return made
    own = (t.to(dtype) for t in (down.weight, down.bias, up.weight, up.bias))
    rows: Tensor = _Mlp.apply(x.flatten(0, -2).to(dtype), *own, None)
    return rows.unflatten(0, x.shape[:-1])


def _is(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module does what its class does and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks)


def _by_hand(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether autograd is told the derivative."""
    return bool(x.numel()) and torch.is_grad_enabled() and dtype == torch.bfloat16 and by_onednn(x.device.type, dtype)


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
