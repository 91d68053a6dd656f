"""Deep prompts: P trained tokens before each block (AAT, section 3.1.3; VPT-deep, Jia et al., 2022), in three readings.

discard     The prompts are gone after their block (AAT's text). Then only their keys and values matter, so they run
            through LN1, W_k and W_v, but never as queries nor through the MLP. The result is the same.
petl        The prompts are replaced before the next block, and the last ones stay: they enter a mean pooling
            (PETL_AST's code).
overwrite   The prompts are written over the patch tokens 2 to P + 1 before every block but the first (AAT's released
            code). The first block's prompts get no gradient, and what those patches held is lost.

Symbols: R rows of one task and clip length, N tokens, P prompts, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapterbank.backbone.sites import NOTHING, Sites
from adapterbank.backbone.weights import PREFIX_TOKENS, ASTWeights, Geometry
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts import init
from adapterbank.methods.parts.layers import Layers, chosen
from adapterbank.methods.parts.training import PROMPTS
from adapterbank.methods.registry import register
from adapterbank.numbers import whole

TOKENS = 12  # per layer, AAT section 3.1.3
MODES = ("discard", "petl", "overwrite")


class DeepPrompt(Adapters):
    """P prompts per block, (P, D) each, drawn by `init.prompts`."""

    def __init__(self, geometry: Geometry, generator: torch.Generator, tokens: int, mode: str, layers: Layers):
        super().__init__()
        whole("tokens", tokens, of="prompt per layer", hint=f"AAT uses {TOKENS}")
        if mode not in MODES:
            raise UnknownNameError("mode of prompt", mode, MODES)
        self.blocks = chosen(layers, geometry.layers)
        if mode == "petl" and len(self.blocks) != self.blocks[-1] - self.blocks[0] + 1:
            raise ConfigError(f"got layers={layers!r} with mode='petl', expected blocks without a gap.")
        self.mode, self.count = mode, tokens
        self.prompts = torch.nn.ParameterList(init.prompts(tokens, geometry, generator) for _ in self.blocks)

    def sites(self, layer: int) -> Sites:
        if layer not in self.blocks:
            return NOTHING
        prompts = self.prompts[self.blocks.index(layer)]
        if self.mode == "discard":
            return Sites(extra_tokens=(prompts,))
        if self.mode == "overwrite":
            return Sites(rewrite=lambda x: self._overwrite(x, prompts)) if layer else NOTHING
        if layer == self.blocks[0]:
            return Sites(tokens=(prompts,))
        return Sites(rewrite=lambda x: torch.cat((x[:, : -self.count], _rows(prompts, x)), dim=1))

    def _overwrite(self, x: Tensor, prompts: Tensor) -> Tensor:
        """(R, N, D) -> (R, N, D). Of a clip with fewer patches than prompts, all patches are overwritten."""
        free = min(self.count, x.shape[1] - PREFIX_TOKENS)
        first, last = PREFIX_TOKENS, PREFIX_TOKENS + free
        return torch.cat((x[:, :first], _rows(prompts[:free], x), x[:, last:]), dim=1)


def _rows(prompts: Tensor, x: Tensor) -> Tensor:
    """(P, D) -> (R, P, D) beside (R, N, D)."""
    return prompts.to(x.dtype).expand(len(x), -1, -1)


@register("prompt", paper="AAT, 2024; VPT-deep (Jia et al., 2022)", parameters="L tokens D", training=PROMPTS)
def prompt(
    geometry: Geometry,
    base: ASTWeights,
    generator: torch.Generator,
    *,
    tokens: int = TOKENS,
    mode: str = "discard",
    layers: Layers = "all",
) -> Adapters:
    """Deep prompts, new ones before each block."""
    return DeepPrompt(geometry, generator, tokens, mode, layers)
