"""LN tuning: gains and biases of all LayerNorms (Qi et al., 2022), as a task's own copies of the frozen values."""

from __future__ import annotations

import torch

from adapterbank.backbone.sites import NOTHING, Affine, Sites
from adapterbank.backbone.weights import ASTWeights, Geometry, NormWeights
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.layers import ByLayer, Layers, chosen
from adapterbank.methods.parts.own import trainable_copies
from adapterbank.methods.parts.training import AFFINE
from adapterbank.methods.registry import register

TENSORS = ("ln1_weight", "ln1_bias", "ln2_weight", "ln2_bias")


class OwnNorms(Adapters):
    """Own LayerNorms of the chosen blocks, and the final one; each tensor is (D,)."""

    def __init__(self, base: ASTWeights, geometry: Geometry, layers: Layers):
        super().__init__()
        self.norms = ByLayer()
        for layer in chosen(layers, geometry.layers):
            self.norms.put(layer, trainable_copies({name: getattr(base.blocks[layer], name) for name in TENSORS}))
        self.final = trainable_copies(base.norm._asdict())

    def sites(self, layer: int) -> Sites:
        own = self.norms.at(layer)
        if own is None:
            return NOTHING
        gain1, bias1, gain2, bias2 = (own.get_parameter(name) for name in TENSORS)
        return Sites(affine={"ln1": Affine(gain1, bias1), "ln2": Affine(gain2, bias2)})

    def owned(self, base: ASTWeights) -> ASTWeights:
        return base._replace(norm=NormWeights(self.final["weight"], self.final["bias"]))


@register("ln_tuning", paper="LN-tuning (Qi et al., 2022)", parameters="4 L D + 2 D", training=AFFINE)
def ln_tuning(geometry: Geometry, base: ASTWeights, generator: torch.Generator, *, layers: Layers = "all") -> Adapters:
    """Gains and biases of all LayerNorms."""
    return OwnNorms(base, geometry, layers)
