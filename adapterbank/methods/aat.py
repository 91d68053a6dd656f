"""AAT: Adapting Audio Transformer for Various Acoustics Recognition Tasks (equations 3 and 4).

    a  = MHSA(LN1(x));  x' = x + a + S(a)              Spatial adapter, with shortcut, after the attention
    x'' = x' + MLP(LN2(x')) + A(LN2(x'))               MLP adapter, without shortcut, beside the MLP

`aat_m` has A, `aat_s` S, `aat_ms` both. `down` has its default initialisation, biases and `up` start at zero
(section 3.1.2), so an untrained adapter changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapterbank.backbone.sites import Sites
from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.errors import ConfigError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.bottleneck import Bottleneck
from adapterbank.methods.parts.gate import gated
from adapterbank.methods.parts.layers import ByLayer, Layers, chosen
from adapterbank.methods.parts.training import ADAPTERS
from adapterbank.methods.registry import register
from adapterbank.numbers import is_real

PAPER = "AAT, 2024"
RATIO = 0.25  # 768 -> 192: the bottleneck that gives the paper's 3.567 M and 7.118 M

SIZE = "(2 D r + r + D), r = int(ratio D)"  # of one adapter


class SpatialAdapter(Bottleneck):
    """Bottleneck with a shortcut (AAT, equation 3). Shapes: (R, N, D) -> (R, N, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)

    def per_token(self) -> bool:
        """Always; it is said anew because a class with a `forward` of its own does not inherit the promise."""
        return True


class AAT(Adapters):
    """One MLP and / or one Spatial adapter in each chosen block.

    Args:
        mlp, spatial: which of the two kinds to build.
        ratio: width of the bottleneck over D.
        layers: the blocks, "all" or numbers.
        gate, gate_level: of the MLP adapters, as in `parts/gate.py`.
        dropout: of the hidden units, in training.

    Raises:
        ConfigError: the ratio leaves no hidden unit.
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
        width, hidden = geometry.width, hidden_units(geometry.width, ratio)
        blocks = chosen(layers, geometry.layers)
        self.mlp, self.spatial = ByLayer(), ByLayer()
        for layer in blocks if mlp else ():
            adapter = Bottleneck(width, hidden, generator, dropout=dropout)
            self.mlp.put(layer, gated(adapter, gate, gate_level, width))
        for layer in blocks if spatial else ():
            self.spatial.put(layer, SpatialAdapter(width, hidden, generator, dropout=dropout))

    def sites(self, layer: int) -> Sites:
        mlp = self.mlp.at(layer)
        return Sites(beside_mlp=() if mlp is None else (mlp,), after_attention=self.spatial.at(layer))


def hidden_units(width: int, ratio: float) -> int:
    """r = int(ratio D). Raises ConfigError: that is none, or `ratio` is no finite number."""
    hidden = int(width * ratio) if is_real(ratio) else 0
    if hidden < 1:
        raise ConfigError(f"got ratio={ratio!r}, which leaves no bottleneck at width {width}; AAT uses {RATIO}.")
    return hidden


@register("aat_m", paper=PAPER, parameters=f"L {SIZE}", passes_to=AAT, training=ADAPTERS)
def aat_m(geometry: Geometry, base: ASTWeights, generator: torch.Generator, **options: Any) -> Adapters:
    """MLP adapters, parallel to the MLP."""
    return AAT(geometry, generator, mlp=True, spatial=False, **options)


@register("aat_s", paper=PAPER, parameters=f"L {SIZE}", training=ADAPTERS)
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


@register("aat_ms", paper=PAPER, parameters=f"2 L {SIZE}", passes_to=AAT, training=ADAPTERS)
def aat_ms(geometry: Geometry, base: ASTWeights, generator: torch.Generator, **options: Any) -> Adapters:
    """MLP and Spatial adapters: AAT itself."""
    return AAT(geometry, generator, mlp=True, spatial=True, **options)
