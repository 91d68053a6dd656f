"""LoRA: low-rank changes of frozen linears (Hu et al., 2022); rsLoRA (Kalajdzievski, 2023); DoRA (Liu et al., 2024).

    y = W x + b + s B A x                          s = alpha / rank; rsLoRA: alpha / sqrt(rank)
    y = m (W x + s B A x) / |W + s B A| + b        DoRA: m a trained magnitude per output, the norm row by row and not
                                                   differentiated (section 4.3)

A is drawn at random, B starts at zero and m at |W|: an untrained LoRA changes nothing.
Symbols: R rows of one task and clip length, N tokens, r rank, in and out the widths of the frozen linear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterbank.backbone.sites import NOTHING, Sites
from adapterbank.backbone.weights import LINEAR_NAMES, ASTWeights, FrozenLinear, Geometry
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.guesses import hint_of
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts import init
from adapterbank.methods.parts.layers import ByLayer, Layers, chosen
from adapterbank.methods.parts.training import LOW_RANK
from adapterbank.methods.registry import register
from adapterbank.numbers import positive, whole

RANK = 6  # on q and v: 221,184 on AST-base (PETL_AST)
SCALE = 8.0  # alpha / rank unless told otherwise (PETL_AST)


class LowRank(nn.Module):
    """The change of one frozen linear, as a hook on it.

    Args:
        weight: W (out, in), whose row norms a DoRA magnitude starts at.
        rank: r, of A (r, in) and B (out, r).
        scale: s.
        dropout: of the input of A, in training.
        dora: whether to train a magnitude m (out,) too.

    Shapes: input x (R, N, in), frozen output y = W x + b (R, N, out) -> (R, N, out).
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, dropout: float, dora: bool, generator: torch.Generator):
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = scale
        self.drop = init.dropout(dropout)
        self.down = nn.Parameter(init.linear(inputs, rank, generator).weight.detach())  # A (r, in)
        self.up = nn.Parameter(torch.zeros(outputs, rank))  # B (out, r)
        norms = weight.detach().float().norm(dim=1)
        self.magnitude = nn.Parameter(norms) if dora else None  # m (out,)

    def forward(self, x: Tensor, y: Tensor, frozen: FrozenLinear) -> Tensor:
        dropped = self.drop(x).to(self.down.dtype)
        change = F.linear(self.scale * F.linear(dropped, self.down), self.up)  # s B A x
        if self.magnitude is None:
            return y + change
        with torch.no_grad():
            norm = (frozen.weight.to(self.up.dtype) + self.scale * self.up @ self.down).norm(dim=1)
        bias = 0 if frozen.bias is None else frozen.bias
        if isinstance(self.drop, nn.Dropout) and self.training:
            # As in peft, the frozen product that the magnitude rescales is that of the dropped input, too.
            plain = F.linear(dropped, frozen.weight.to(dropped.dtype))
            return y + (self.magnitude / norm - 1) * plain + self.magnitude / norm * change
        return self.magnitude / norm * (y - bias + change) + bias

    def per_token(self) -> bool:
        """Always: a linear's output at one token is made of its input at that token."""
        return True


class LoRA(Adapters):
    """Low-rank changes of some linears of the chosen blocks."""

    def __init__(
        self,
        base: ASTWeights,
        geometry: Geometry,
        generator: torch.Generator,
        targets: Sequence[str],
        layers: Layers,
        *,
        rank: int,
        scale: float,
        dropout: float,
        dora: bool,
    ):
        super().__init__()
        self.changes = ByLayer()
        for layer in chosen(layers, geometry.layers):
            weights = {name: getattr(base.blocks[layer], f"{name}_weight") for name in targets}
            parts = {name: LowRank(w, rank, scale, dropout, dora, generator) for name, w in weights.items()}
            self.changes.put(layer, nn.ModuleDict(parts))

    def sites(self, layer: int) -> Sites:
        changes = self.changes.at(layer)
        return NOTHING if changes is None else Sites(linear={name: (hook,) for name, hook in changes.named_children()})


@register(
    "lora",
    paper="LoRA (Hu et al., 2022); rsLoRA (2023); DoRA (2024)",
    parameters="2 L D rank n, n = len(targets); D + M for 2 D at fc1 and fc2",
    training=LOW_RANK,
)
def lora(
    geometry: Geometry,
    base: ASTWeights,
    generator: torch.Generator,
    *,
    targets: Sequence[str] = ("q", "v"),
    rank: int = RANK,
    alpha: float | None = None,
    rslora: bool = False,
    dora: bool = False,
    dropout: float = 0.0,
    layers: Layers = "all",
) -> Adapters:
    """Low-rank changes of q and v, or of any linears.

    Args:
        targets: some of q, k, v, proj, fc1, fc2.
        alpha: the scale s is alpha / rank; None makes that PETL_AST's 8.
        rslora: the scale is alpha / sqrt(rank).
        dora: each linear gets a trained magnitude.
        dropout: of the input of A, in training.
    """
    whole("rank", rank, hint=f"PETL_AST uses {RANK}")
    if isinstance(targets, str) or not targets or len(set(targets)) != len(targets):
        raise ConfigError(f"got targets={targets!r}, expected a list of {', '.join(LINEAR_NAMES)}, each once.")
    for name in targets:
        if name not in LINEAR_NAMES:
            raise UnknownNameError("target of lora", name, LINEAR_NAMES, hint_of(name))
    alpha = SCALE * rank if alpha is None else positive("alpha", alpha)
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    return LoRA(base, geometry, generator, targets, layers, rank=rank, scale=scale, dropout=dropout, dora=dora)
