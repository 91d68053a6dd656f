"""The product of a frozen linear, in the dtype of its matrix.

oneDNN's linear adds the bias while it writes the rows. torch's own, in bf16 on the CPU, writes the bias to all rows
first and then adds the product to them, which takes a fifth of its time.

Shapes: any leading dimensions, (..., in) -> (..., out).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.kernels import Kernels
from adapterbank.backbone.weights import FrozenLinear


def frozen_linear(x: Tensor, frozen: FrozenLinear, kernels: Kernels, gelu: bool = False) -> Tensor:
    """`x @ weight.T + bias`, or GELU of that. (..., in) -> (..., out).

    This is where the fp32 residual stream is cast to the dtype of the matrix. Gradients reach `x`, and the matrix and
    the bias where a task owns them.
    """
    weight, bias = frozen
    dtype = kernels.product_dtype(weight)
    x = x.to(dtype)
    if isinstance(weight, Int8Matrix):
        y = weight.product(x, bias, kernels.grad)
    elif dtype not in kernels.onednn or bias is None or not x.numel():
        y = F.linear(x, weight, bias)
    elif kernels.grad:
        y = _OneDNN.apply(x, weight.to(dtype), bias.to(dtype))
    elif gelu and kernels.gelu:
        return _onednn(x, weight.to(dtype), bias.to(dtype), "gelu")
    else:
        y = _onednn(x, weight.to(dtype), bias.to(dtype))
    return F.gelu(y) if gelu else y


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")
    return product


class _OneDNN(torch.autograd.Function):
    """oneDNN's linear with a backward pass, which torch does not provide. If the matrix is frozen, `x` is not kept."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _onednn(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x if weight.requires_grad else None, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, (to_x, to_weight, to_bias) = grads[0], ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _through(grad, weight) if to_x else None,
            rows.T @ x.flatten(0, -2) if to_weight else None,
            rows.sum(0) if to_bias else None,
        )


def _through(grad: Tensor, weight: Tensor) -> Tensor:
    """`grad @ weight`, (..., out) -> (..., in): a gradient on its way back through a linear."""
    if grad.dtype != torch.float32:  # torch multiplies half precision by oneDNN itself
        return grad @ weight
    product: Tensor = _OneDNN.apply(grad, weight.T, None)
    return product
