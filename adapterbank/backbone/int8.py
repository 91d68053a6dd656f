"""Frozen matrices in int8: half of bf16's memory, made bf16 again for each product (weight-only quantisation).

    W ≈ V s      V in -127 … 127, s = max |W| / 127 of each output, rounded up to bf16

torch's `_weight_int8pack_mm` and torchao multiply from int8 instead, which is slow on the CPU where many tokens share a
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from adapterbank.errors import BackboneError

MOST = 127
_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


class Int8Matrix(Tensor):
    """A matrix (out, in) that is kept in int8 and is a bf16 tensor to all who use it.

    What a product with it needs is made anew each time and not kept for the backward pass; every other operation gets a
    bf16 copy. It is frozen: nothing writes to it and no gradient reaches it; a trainable copy starts from `.float()`.

    Attributes:
        levels: (out, in) int8.
        scales: (out, 1) bf16.
    """

    levels: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, levels: Tensor, scales: Tensor) -> Int8Matrix:
        made: Int8Matrix = Tensor._make_wrapper_subclass(cls, levels.shape, dtype=scales.dtype, device=levels.device)
        return made

    def __init__(self, levels: Tensor, scales: Tensor):
        self.levels, self.scales = levels, scales

    @classmethod
    def of(cls, matrix: Tensor) -> Int8Matrix:
        """Rounds a matrix (out, in) of any floating dtype."""
        if isinstance(matrix, cls):
            return matrix
        exact = matrix.detach().float()
        scales = exact.abs().amax(dim=1, keepdim=True) / MOST
        scales = torch.where(scales > 0, scales, 1.0)
        rounded = scales.bfloat16()
        # Rounded down, the largest weight would need a level beyond the last.
        rounded = torch.where(rounded < scales, rounded.nextafter(torch.full_like(rounded, torch.inf)), rounded)
        return cls((exact / rounded).round().to(torch.int8), rounded)

    def wide(self) -> Tensor:
        """As a bf16 tensor (out, in)."""
        return self.levels.to(self.scales.dtype) * self.scales

    def product(self, x: Tensor, bias: Tensor | None, grad: bool = True) -> Tensor:
        """`x @ W.T + bias`, (…, in) -> (…, out), in bf16; gradients reach `x` and `bias`.

        Args:
            grad: whether autograd records it.

        Raises:
            BackboneError: the matrix itself is to be trained.
        """
        if self.requires_grad:
            raise BackboneError("got an int8 matrix as a parameter, which cannot be trained; copy it with .float().")
        if not grad:
            return F.linear(x, self.wide(), bias)
        made: Tensor = _Product.apply(x, self, bias)
        return made

    def share_memory_(self) -> Int8Matrix:
        """Moves both parts to memory that processes share."""
        self.levels.share_memory_()
        self.scales.share_memory_()
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch's types lose the name
        # torch's own looks at the values, which a compiler that logs its tensors does not have.
        return f"Int8Matrix{tuple(self.shape)}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch types it without `cls`
        cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SAME:
            return cls(args[0].levels, args[0].scales)
        if func is torch.ops.aten.clone.default:
            return cls(args[0].levels.clone(), args[0].scales.clone())
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") in (None, args[0].dtype):
            device = kwargs.get("device") or args[0].device
            return cls(args[0].levels.to(device, copy=True), args[0].scales.to(device, copy=True))
        written = (a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        if any(write and isinstance(given, cls) for write, given in zip(written, args, strict=False)):
            raise BackboneError(f"{func} would write to a frozen int8 matrix; copy it with .float() first.")
        args, kwargs = tree_map_only(cls, cls.wide, (args, kwargs))
        return func(*args, **kwargs)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """For torch.compile."""
        return ["levels", "scales"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], _: None, size: Any, stride: Any) -> Int8Matrix:
        return cls(inner["levels"], inner["scales"])


class _Product(torch.autograd.Function):
    """Keeps the int8 matrix for the backward pass, where `F.linear` would keep its bf16 copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Int8Matrix, bias: Tensor | None) -> Tensor:
        ctx.matrix = matrix
        return F.linear(x, matrix.wide(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor | None]:
        (grad,) = grads
        bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return grad @ ctx.matrix.wide().to(grad.dtype), None, bias  # autocast may have made it fp16
