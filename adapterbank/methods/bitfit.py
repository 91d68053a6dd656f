"""BitFit: the biases alone (Ben Zaken et al., 2022), as a task's own copies.

Biases of every linear and LayerNorm of the chosen blocks, and of the final LayerNorm. They start at the frozen values,
so an untrained task is the base; a projection without a frozen bias gets one that starts at zero.
"""

from __future__ import annotations

import torch
from torch import nn

from adapterbank.backbone.sites import NOTHING, Affine, Sites
from adapterbank.backbone.weights import LINEAR_NAMES, ASTWeights, Geometry
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.layers import ByLayer, Layers, chosen
from adapterbank.methods.parts.own import trainable_copy
from adapterbank.methods.parts.training import AFFINE
from adapterbank.methods.registry import register

NAMES = (*LINEAR_NAMES, "ln1", "ln2")


class OwnBiases(Adapters):
    """Own biases of the chosen blocks, (D,) each and (M,) for fc1, and of the final LayerNorm."""

    def __init__(self, base: ASTWeights, geometry: Geometry, layers: Layers):
        super().__init__()
        self.biases = ByLayer()
        for layer in chosen(layers, geometry.layers):
            own = nn.ParameterDict()
            for name in NAMES:
                frozen = getattr(base.blocks[layer], f"{name}_bias")
                if frozen is None:  # only q, k and v may lack a bias, and all three are D wide
                    frozen = base.norm.bias.new_zeros(geometry.width)
                own[name] = trainable_copy(frozen)
            self.biases.put(layer, own)
        self.norm_bias = trainable_copy(base.norm.bias)

    def sites(self, layer: int) -> Sites:
        own = self.biases.at(layer)
        return NOTHING if own is None else Sites(affine={name: Affine(bias=own.get_parameter(name)) for name in NAMES})

    def owned(self, base: ASTWeights) -> ASTWeights:
        return base._replace(norm=base.norm._replace(bias=self.norm_bias))


@register(
    "bitfit", paper="BitFit (Ben Zaken et al., 2022); PETL_AST, 2024", parameters="L (7 D + M) + D", training=AFFINE
)
def bitfit(geometry: Geometry, base: ASTWeights, generator: torch.Generator, *, layers: Layers = "all") -> Adapters:
    """Biases of the linears and of all LayerNorms."""
    return OwnBiases(base, geometry, layers)
