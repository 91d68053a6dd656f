"""Full and partial fine-tuning (AAT, section 3.1.3), on copies of the backbone's tensors that the task owns.

The backbone itself is never changed: rows of such a task run through the task's own blocks, all other rows share the
frozen ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adapterbank.backbone.weights import ASTWeights, BlockWeights, EmbedWeights, Geometry, NormWeights
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.own import trainable_copies
from adapterbank.methods.parts.training import COPIES
from adapterbank.methods.registry import register
from adapterbank.numbers import whole

PAPER = "AAT, 2024 (baselines)"
BLOCK = "(4 D D + 2 D M + 9 D + M)"  # of one block


class OwnBlocks(Adapters):
    """The last `count` blocks as the task's own (partial)."""

    def __init__(self, base: ASTWeights, count: int):
        super().__init__()
        last = base.blocks[len(base.blocks) - count :]
        self.blocks = nn.ModuleList(trainable_copies(block._asdict()) for block in last)

    def owned(self, base: ASTWeights) -> ASTWeights:
        own = tuple(BlockWeights(*(_get(copy, name) for name in BlockWeights._fields)) for copy in self.blocks)
        return base._replace(blocks=base.blocks[: len(base.blocks) - len(own)] + own)


class OwnBody(OwnBlocks):
    """Every tensor of the backbone as the task's own (full)."""

    def __init__(self, base: ASTWeights):
        super().__init__(base, len(base.blocks))
        self.embed = trainable_copies(base.embed._asdict())
        self.norm = trainable_copies(base.norm._asdict())

    def owned(self, base: ASTWeights) -> ASTWeights:
        embed = EmbedWeights(*(self.embed[name] for name in EmbedWeights._fields))
        norm = NormWeights(self.norm["weight"], self.norm["bias"])
        return super().owned(base)._replace(embed=embed, norm=norm)


def _get(copies: nn.Module, name: str) -> Any:
    """A tensor of a block; None for a bias that the backbone does not have."""
    assert isinstance(copies, nn.ParameterDict)
    return copies.get(name)


@register("full", paper=PAPER, parameters=f"L {BLOCK} + (P P + N + 5) D", training=COPIES)
def full(geometry: Geometry, base: ASTWeights, generator: torch.Generator) -> Adapters:
    """The whole body, as the task's own copy."""
    return OwnBody(base)


@register("partial", paper=PAPER, parameters=f"(blocks or L // 2) {BLOCK}", training=COPIES)
def partial(geometry: Geometry, base: ASTWeights, generator: torch.Generator, *, blocks: int | None = None) -> Adapters:
    """The last blocks, half of them unless told, as the task's own copies."""
    count = geometry.layers // 2 if blocks is None else blocks
    return OwnBlocks(base, whole("blocks", count, most=geometry.layers, hint="the layers of this backbone"))
