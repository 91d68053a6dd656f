"""Prefix tuning: P trained keys and values per block, beside those of the tokens (Li and Liang, 2021; PETL_AST).

Unlike deep prompts they do not pass through LN1, W_k and W_v. Keys and values are drawn from a normal distribution with
a standard deviation of 0.02. The tokens attend to them from the start, so an untrained prefix is not the base.
"""

from __future__ import annotations

import torch
from torch import nn

from adapterbank.backbone.sites import NOTHING, Sites
from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.layers import ByLayer, Layers, chosen
from adapterbank.methods.parts.training import PROMPTS
from adapterbank.methods.registry import register
from adapterbank.numbers import whole

TOKENS = 12  # keys, and as many values, per block: PETL_AST's 24
STD = 0.02


class Prefix(Adapters):
    """Keys and values of the chosen blocks, (P, D) each."""

    def __init__(self, geometry: Geometry, generator: torch.Generator, tokens: int, layers: Layers):
        super().__init__()
        whole("tokens", tokens, of="per layer", hint=f"PETL_AST uses {TOKENS}")
        self.pairs = ByLayer()
        for layer in chosen(layers, geometry.layers):
            drawn = STD * torch.randn(2, tokens, geometry.width, generator=generator)
            self.pairs.put(layer, nn.ParameterDict({"key": nn.Parameter(drawn[0]), "value": nn.Parameter(drawn[1])}))

    def sites(self, layer: int) -> Sites:
        pair = self.pairs.at(layer)
        if pair is None:
            return NOTHING
        return Sites(extra_kv=((pair.get_parameter("key"), pair.get_parameter("value")),))


@register(
    "prefix", paper="Prefix tuning (Li and Liang, 2021); PETL_AST, 2024", parameters="2 L tokens D", training=PROMPTS
)
def prefix(
    geometry: Geometry,
    base: ASTWeights,
    generator: torch.Generator,
    *,
    tokens: int = TOKENS,
    layers: Layers = "all",
) -> Adapters:
    """Keys and values beside those of the tokens, in each block."""
    return Prefix(geometry, generator, tokens, layers)
