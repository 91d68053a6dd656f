"""The classification head that every task has, and the pooling that it reads (AAT, section 3.1.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapterbank.backbone.weights import PREFIX_TOKENS
from adapterbank.errors import UnknownNameError
from adapterbank.methods.parts import init

HEADS = ("ln_linear", "linear")
POOLINGS = ("cls_dist", "mean")


class Head(nn.Module):
    """LayerNorm and Linear ("ln_linear": AST, AAT), or a bare Linear ("linear": PETL_AST).

    Args:
        kind: one of `HEADS`.
        width: D, of the pooled features.
        classes: C.
        eps: of the LayerNorm.
        generator: draws the weights of the Linear; its bias starts at zero.

    Shapes: pooled features (R, D) -> logits (R, C).

    Raises:
        UnknownNameError: another kind.
    """

    def __init__(self, kind: str, width: int, classes: int, eps: float, generator: torch.Generator):
        super().__init__()
        if kind not in HEADS:
            raise UnknownNameError("head", kind, HEADS)
        self.norm = nn.LayerNorm(width, eps=eps) if kind == "ln_linear" else nn.Identity()
        self.linear = init.linear(width, classes, generator)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(self.norm(pooled))


def pool(tokens: Tensor, how: str) -> Tensor:
    """The features that a head reads, (R, N, D) -> (R, D).

    Args:
        how: "cls_dist", the mean of the cls and distillation tokens (AST), or "mean", that of all tokens (PETL_AST).
    """
    return (tokens[:, :PREFIX_TOKENS] if how == "cls_dist" else tokens).mean(dim=1)


def tokens_read(how: str) -> int | None:
    """How many of the first tokens `pool` reads; None for all. The last block may leave the others out."""
    return PREFIX_TOKENS if how == "cls_dist" else None
