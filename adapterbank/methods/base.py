"""What a method returns: everything it trains inside the backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from adapterbank.backbone.weights import ASTWeights
from adapterbank.backbone.sites import NOTHING, Sites


class Adapters(nn.Module):
    """Everything one method trains inside the backbone. A new method overrides one of the two functions below."""

    def sites(self, layer: int) -> Sites:
        """The sites that are filled in block `layer`, counted from 0."""
        return NOTHING

    def owned(self, base: ASTWeights) -> ASTWeights:
        """The backbone's tensors as this task sees them: `base` itself, or `base` with the task's own copies in it."""
        return base
