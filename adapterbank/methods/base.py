"""What a method returns: `Adapters`, a module that owns every tensor the method trains inside the backbone."""

from __future__ import annotations

from torch import nn

from adapterbank.backbone.sites import NOTHING, Sites
from adapterbank.backbone.weights import ASTWeights


class Adapters(nn.Module):
    """Everything that one method trains inside the backbone.

    A method overrides `sites`, if it plugs modules or tensors into the blocks, or `owned`, if it replaces tensors of
    the backbone by its own copies. What it overrides neither of trains nothing inside the backbone.
    """

    def sites(self, layer: int) -> Sites:
        """What this method fills in block `layer`, counted from 0."""
        return NOTHING

    def owned(self, base: ASTWeights) -> ASTWeights:
        """The backbone's tensors as this task sees them: `base` itself, or `base` with the task's own copies in it."""
        return base
