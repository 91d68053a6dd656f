"""The classification head that every task has, and the method that trains nothing else (AAT, section 3.1.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapterbank.backbone.weights import PREFIX_TOKENS
from adapterbank.errors import UnknownNameError
from adapterbank.methods.parts import init

HEADS = ("ln_linear", "linear")


POOLINGS = ("cls_dist", "mean")


class Head(nn.Module):
    """LayerNorm and Linear (AST, AAT), or a bare Linear (PETL_AST).

    Shapes: pooled features (R, D) -> logits (R, C).
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
    """(R, N, D) -> (R, D): the mean of cls and distillation ("cls_dist", AST), or of all tokens ("mean", PETL_AST)."""
    return (tokens[:, :PREFIX_TOKENS] if how == "cls_dist" else tokens).mean(dim=1)


def tokens_read(how: str) -> int | None:
    """How many of the first tokens `pool` reads; None for all."""
    return PREFIX_TOKENS if how == "cls_dist" else None
