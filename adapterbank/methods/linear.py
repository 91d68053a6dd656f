"""A bare linear classifier on the mean of all tokens (PETL_AST's "Linear"): nothing is trained inside the backbone."""

from __future__ import annotations

import torch

from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.training import LINEAR
from adapterbank.methods.registry import register


@register(
    "linear",
    paper="PETL_AST, 2024 (baselines)",
    parameters="0",
    defaults={"head": "linear", "pooling": "mean"},
    training=LINEAR,
)
def linear(geometry: Geometry, base: ASTWeights, generator: torch.Generator) -> Adapters:
    """Nothing but the head, a bare Linear on the mean of all tokens."""
    return Adapters()
