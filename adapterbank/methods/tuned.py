"""Full and partial fine-tuning (AAT, section 3.1.3) as tasks of a bank: on copies that the task owns.

The base is never touched; rows of such a task run their own blocks, all other rows share the frozen ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adapterbank.backbone.weights import ASTWeights, BlockWeights, EmbedWeights, Geometry, NormWeights
from adapterbank.errors import ConfigError
from adapterbank.methods.base import Adapters
from adapterbank.methods.registry import register

PAPER = "AAT, 2024 (baselines)"
BLOCK = "(4 D D + 2 D M + 9 D + M)"  # of one block


def _copy(group: Any) -> nn.ParameterDict:
    """A trainable fp32 copy of a NamedTuple of frozen tensors."""
    tensors: dict[str, Tensor | None] = group._asdict()
    return nn.ParameterDict({k: nn.Parameter(t.detach().float().clone()) for k, t in tensors.items() if t is not None})


class OwnBlocks(Adapters):
    """The last `count` blocks as the task's own (partial)."""

    def __init__(self, base: ASTWeights, count: int):
        super().__init__()
        self.blocks = nn.ModuleList(_copy(block) for block in base.blocks[len(base.blocks) - count :])

    def owned(self, base: ASTWeights) -> ASTWeights:
        own = tuple(BlockWeights(*(_get(copy, name) for name in BlockWeights._fields)) for copy in self.blocks)
        return base._replace(blocks=base.blocks[: len(base.blocks) - len(own)] + own)


class OwnBody(OwnBlocks):
    """Every tensor of the backbone as the task's own (full)."""

    def __init__(self, base: ASTWeights):
        super().__init__(base, len(base.blocks))
        self.embed = _copy(base.embed)
        self.norm = _copy(base.norm)

    def owned(self, base: ASTWeights) -> ASTWeights:
        embed = EmbedWeights(*(self.embed[name] for name in EmbedWeights._fields))
        norm = NormWeights(self.norm["weight"], self.norm["bias"])
        return super().owned(base)._replace(embed=embed, norm=norm)


def _get(copy: nn.Module, name: str) -> Any:
    assert isinstance(copy, nn.ParameterDict)
    return copy.get(name)


@register("full", paper=PAPER, parameters=f"L {BLOCK} + (P P + N + 5) D")
def full(geometry: Geometry, base: ASTWeights, generator: torch.Generator) -> Adapters:
    """The whole body, as the task's own copy."""
    return OwnBody(base)


@register("partial", paper=PAPER, parameters=f"(blocks or L // 2) {BLOCK}")
def partial(geometry: Geometry, base: ASTWeights, generator: torch.Generator, *, blocks: int | None = None) -> Adapters:
    """The last blocks, half of them unless told, as the task's own copies."""
    count = geometry.layers // 2 if blocks is None else blocks
    if not isinstance(count, int) or not 1 <= count <= geometry.layers:
        raise ConfigError(f"got blocks={blocks!r}, expected 1 to {geometry.layers}, the layers of this backbone.")
    return OwnBlocks(base, count)
