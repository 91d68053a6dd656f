"""AAT: Adapting Audio Transformer for Various Acoustics Recognition Tasks (equations 3 and 4).

    a  = MHSA(LN1(x));  x' = x + a + S(a)              Spatial adapter, with shortcut, after the attention
    x'' = x' + MLP(LN2(x')) + A(LN2(x'))               MLP adapter, without shortcut, beside the MLP

`aat_m` has A, `aat_s` S, `aat_ms` both. `down` has its default initialisation, biases and `up` start at zero
(section 3.1.2), so an untrained adapter changes nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterbank.backbone.ast import ASTWeights, Geometry
from adapterbank.errors import ConfigError
from adapterbank.methods import init, register
from adapterbank.methods.sites import Adapters, Sites

PAPER = "AAT, 2024"
RATIO = 0.25  # 768 -> 192: the bottleneck that gives the paper's 3.567 M and 7.118 M


class BottleneckAdapter(nn.Module):
    """Residual-free bottleneck (AAT, eq. 4: the MLP adapter): Linear, GELU, Linear.

    Args:
        width: D, the backbone's hidden size.
        ratio: bottleneck width over D.

    Shapes: (R, N, D) -> (R, N, D).
    Raises: ConfigError if the bottleneck would be empty.
    """

    def __init__(self, width: int, ratio: float, generator: torch.Generator):
        super().__init__()
        hidden = int(width * ratio) if isinstance(ratio, (int, float)) and ratio < math.inf else 0
        if hidden < 1:
            raise ConfigError(f"got ratio={ratio!r}, which leaves no bottleneck at width {width}; AAT uses {RATIO}.")
        self.down = init.linear(width, hidden, generator)
        self.up = init.zero_linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(x)))


class SpatialAdapter(BottleneckAdapter):
    """Bottleneck with a shortcut (AAT, eq. 3). Shapes: (R, N, D) -> (R, N, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class AAT(Adapters):
    """One MLP and / or one Spatial adapter in each block."""

    def __init__(self, geometry: Geometry, generator: torch.Generator, mlp: bool, spatial: bool, ratio: float):
        super().__init__()
        width, layers = geometry.width, range(geometry.layers)
        self.mlp = nn.ModuleList(BottleneckAdapter(width, ratio, generator) for _ in layers if mlp)
        self.spatial = nn.ModuleList(SpatialAdapter(width, ratio, generator) for _ in layers if spatial)

    def sites(self, layer: int) -> Sites:
        return Sites(
            beside_mlp=(self.mlp[layer],) if len(self.mlp) else (),
            after_attention=self.spatial[layer] if len(self.spatial) else None,
        )


@register("aat_m", paper=PAPER)
def aat_m(geometry: Geometry, base: ASTWeights, generator: torch.Generator, *, ratio: float = RATIO) -> Adapters:
    """MLP adapters only."""
    return AAT(geometry, generator, mlp=True, spatial=False, ratio=ratio)


@register("aat_s", paper=PAPER)
def aat_s(geometry: Geometry, base: ASTWeights, generator: torch.Generator, *, ratio: float = RATIO) -> Adapters:
    """Spatial adapters only."""
    return AAT(geometry, generator, mlp=False, spatial=True, ratio=ratio)


@register("aat_ms", paper=PAPER)
def aat_ms(geometry: Geometry, base: ASTWeights, generator: torch.Generator, *, ratio: float = RATIO) -> Adapters:
    """MLP and Spatial adapters: AAT itself."""
    return AAT(geometry, generator, mlp=True, spatial=True, ratio=ratio)
