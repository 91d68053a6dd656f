"""AAT: Adapting Audio Transformer for Various Acoustics Recognition Tasks (equations 3 and 4).

    a  = MHSA(LN1(x));  x' = x + a + S(a)              Spatial adapter, with shortcut, after the attention
    x'' = x' + MLP(LN2(x')) + A(LN2(x'))               MLP adapter, without shortcut, beside the MLP

`aat_m` has A, `aat_s` S, `aat_ms` both. `down` has its default initialisation, biases and `up` start at zero
(section 3.1.2), so an untrained adapter changes nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from adapterbank.backbone.sites import Sites
from adapterbank.backbone.weights import ASTWeights, FrozenLinear, Geometry
from adapterbank.errors import ConfigError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts import init
from adapterbank.methods.parts.gate import gated
from adapterbank.methods.parts.layers import ByLayer, Layers, chosen
from adapterbank.methods.registry import register

PAPER = "AAT, 2024"
RATIO = 0.25  # 768 -> 192: the bottleneck that gives the paper's 3.567 M and 7.118 M

SIZE = "(2 D r + r + D), r = int(ratio D)"  # of one adapter


class BottleneckAdapter(nn.Module):
    """Residual-free bottleneck (AAT, eq. 4: the MLP adapter): Linear, GELU, Linear.

    Args:
        width: D, the backbone's hidden size.
        ratio: bottleneck width over D.
        dropout: of the bottleneck, in training.

    Shapes: (R, N, D) -> (R, N, D).
    Raises: ConfigError if the bottleneck would be empty.
    """

    def __init__(self, width: int, ratio: float, generator: torch.Generator, dropout: float = 0.0):
        super().__init__()
        hidden = int(width * ratio) if isinstance(ratio, (int, float)) and ratio < math.inf else 0
        if hidden < 1:
            raise ConfigError(f"got ratio={ratio!r}, which leaves no bottleneck at width {width}; AAT uses {RATIO}.")
        self.down = init.linear(width, hidden, generator)
        self.drop = init.dropout(dropout)
        self.up = init.zero_linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.drop(torch.nn.functional.gelu(self.down(x))))

    def units(self) -> tuple[FrozenLinear, FrozenLinear] | None:
        """As hidden units of a wider MLP."""
        return FrozenLinear(self.down.weight, self.down.bias), FrozenLinear(self.up.weight, self.up.bias)

    def per_token(self) -> bool:
        """Always."""
        return True


class SpatialAdapter(BottleneckAdapter):
    """Bottleneck with a shortcut (AAT, eq. 3). Shapes: (R, N, D) -> (R, N, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)

    def units(self) -> None:
        """No MLP: it has a shortcut."""

    def per_token(self) -> bool:
        """Always."""
        return True


class AAT(Adapters):
    """One MLP and / or one Spatial adapter in each chosen block.

    Args:
        ratio: bottleneck width over D.
        layers: the blocks, "all" or numbers.
        gate, gate_level: of the MLP adapters, as in `gate.py`.
        dropout: of the bottlenecks, in training.
    """

    def __init__(
        self,
        geometry: Geometry,
        generator: torch.Generator,
        mlp: bool,
        spatial: bool,
        *,
        ratio: float = RATIO,
        layers: Layers = "all",
        gate: str = "static",
        gate_level: str = "clip",
        dropout: float = 0.0,
    ):
        super().__init__()
        width = geometry.width
        blocks = chosen(layers, geometry.layers)
        self.mlp, self.spatial = ByLayer(), ByLayer()
        for layer in blocks if mlp else ():
            adapter = BottleneckAdapter(width, ratio, generator, dropout)
            self.mlp.put(layer, gated(adapter, gate, gate_level, width))
        for layer in blocks if spatial else ():
            self.spatial.put(layer, SpatialAdapter(width, ratio, generator, dropout))

    def sites(self, layer: int) -> Sites:
        mlp = self.mlp.at(layer)
        return Sites(beside_mlp=() if mlp is None else (mlp,), after_attention=self.spatial.at(layer))


@register("aat_m", paper=PAPER, parameters=f"L {SIZE}", passes_to=AAT)
def aat_m(geometry: Geometry, base: ASTWeights, generator: torch.Generator, **options: Any) -> Adapters:
    """MLP adapters, parallel to the MLP."""
    return AAT(geometry, generator, mlp=True, spatial=False, **options)


@register("aat_s", paper=PAPER, parameters=f"L {SIZE}")
def aat_s(
    geometry: Geometry,
    base: ASTWeights,
    generator: torch.Generator,
    *,
    ratio: float = RATIO,
    layers: Layers = "all",
    dropout: float = 0.0,
) -> Adapters:
    """Spatial adapters, after the attention."""
    return AAT(geometry, generator, mlp=False, spatial=True, ratio=ratio, layers=layers, dropout=dropout)


@register("aat_ms", paper=PAPER, parameters=f"2 L {SIZE}", passes_to=AAT)
def aat_ms(geometry: Geometry, base: ASTWeights, generator: torch.Generator, **options: Any) -> Adapters:
    """MLP and Spatial adapters: AAT itself."""
    return AAT(geometry, generator, mlp=True, spatial=True, **options)
