"""Shallow prompts: P trained tokens that join the sequence once, before the first block, and stay in it.

VPT-shallow (Jia et al., 2022); 300 tokens in PETL_AST. They run through every block and enter a mean pooling.
"""

from __future__ import annotations

import torch

from adapterbank.backbone.sites import NOTHING, Sites
from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts import init
from adapterbank.methods.parts.training import PROMPTS
from adapterbank.methods.registry import register
from adapterbank.numbers import whole

TOKENS = 300  # PETL_AST


class ShallowPrompt(Adapters):
    """P prompts, (P, D), drawn by `init.prompts`."""

    def __init__(self, geometry: Geometry, generator: torch.Generator, tokens: int):
        super().__init__()
        whole("tokens", tokens, of="prompt", hint=f"PETL_AST uses {TOKENS}")
        self.prompts = init.prompts(tokens, geometry, generator)

    def sites(self, layer: int) -> Sites:
        return Sites(tokens=(self.prompts,)) if layer == 0 else NOTHING


@register(
    "shallow_prompt", paper="VPT-shallow (Jia et al., 2022); PETL_AST, 2024", parameters="tokens D", training=PROMPTS
)
def shallow_prompt(
    geometry: Geometry, base: ASTWeights, generator: torch.Generator, *, tokens: int = TOKENS
) -> Adapters:
    """Prompts that join before the first block and stay in the sequence."""
    return ShallowPrompt(geometry, generator, tokens)
