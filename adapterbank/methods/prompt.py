"""Deep prompts: P trained tokens before each block, gone after it (AAT, section 3.1.3; VPT-deep, Jia et al., 2022).

Because their outputs are discarded, only their keys and values matter: they run through LN1, W_k and W_v, but never
as queries nor through the MLP. The result equals the token form.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from adapterbank.backbone.ast import ASTWeights, Geometry
from adapterbank.errors import ConfigError
from adapterbank.methods import init, register
from adapterbank.methods.sites import Adapters, Sites

TOKENS = 12  # per layer, AAT section 3.1.3


class DeepPrompt(Adapters):
    """P prompts per block, uniform in +-sqrt(6 / (3 patch^2 + D)): VPT's Xavier bound for a patch of 3 channels."""

    def __init__(self, geometry: Geometry, generator: torch.Generator, tokens: int):
        super().__init__()
        if not isinstance(tokens, int) or tokens < 1:
            raise ConfigError(f"got tokens={tokens!r}, expected at least 1 prompt per layer; AAT uses {TOKENS}.")
        bound = math.sqrt(6 / (3 * geometry.patch**2 + geometry.width))
        shape = (tokens, geometry.width)
        self.prompts = nn.ParameterList(init.uniform(shape, bound, generator) for _ in range(geometry.layers))

    def sites(self, layer: int) -> Sites:
        return Sites(extra_tokens=(self.prompts[layer],))


@register("prompt", paper="AAT, 2024; VPT (Jia et al., 2022)")
def prompt(geometry: Geometry, base: ASTWeights, generator: torch.Generator, *, tokens: int = TOKENS) -> Adapters:
    """Deep prompts, `tokens` per layer."""
    return DeepPrompt(geometry, generator, tokens)
