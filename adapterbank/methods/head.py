"""Nothing but the head (AAT, section 3.1.3)."""

from __future__ import annotations

import torch

from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.training import HEAD
from adapterbank.methods.registry import register


@register("head", paper="AAT, 2024 (baselines)", parameters="0", training=HEAD)
def head(geometry: Geometry, base: ASTWeights, generator: torch.Generator) -> Adapters:
    """Nothing but the head, LayerNorm and Linear on the pooled tokens."""
    return Adapters()
