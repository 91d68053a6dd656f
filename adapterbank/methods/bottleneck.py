"""Bottleneck adapters: Linear, nonlinearity, Linear, as PETL_AST and AdapterHub place them.

    Pfeiffer (2021): one per block, at the MLP.       Houlsby et al. (2019): also one at the attention.
    parallel:    x + MLP(h) + A(h),  h = LN2(x)       (attention: h = LN1(x))
    sequential:  x + m + A(m),       m = MLP(h)       (attention: m is its projected output)

`up` starts at zero: an untrained adapter changes nothing. (PETL_AST starts both matrices at zero. Then no gradient
reaches either of them and only `up.bias` ever trains, so we do not.)
"""

from __future__ import annotations

from typing import Any

import torch

from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.bottleneck import Bottleneck, check_activation
from adapterbank.methods.parts.placed import Placed
from adapterbank.methods.parts.training import ADAPTERS
from adapterbank.methods.registry import register
from adapterbank.numbers import whole

REDUCTION = 64  # PETL_AST: 768 -> 12


@register(
    "bottleneck",
    paper="Houlsby et al., 2019; Pfeiffer et al., 2021; PETL_AST, 2024",
    parameters="L (2 D r + r + D), r = D // reduction; twice that for houlsby",
    passes_to=Placed,
    training=ADAPTERS,
)
def bottleneck(
    geometry: Geometry,
    base: ASTWeights,
    generator: torch.Generator,
    *,
    reduction: int = REDUCTION,
    activation: str = "gelu",
    dropout: float = 0.0,
    **where: Any,
) -> Adapters:
    """Bottlenecks at the MLP, or also at the attention.

    Args:
        reduction: D over the bottleneck's width.
        activation: "gelu" or "relu".
        dropout: of the hidden units, in training.
        **where: placement, form, layers and gates, as `Placed` takes them.
    """
    width = geometry.width
    check_activation(activation)
    hidden = width // whole("reduction", reduction, most=width, hint=f"PETL_AST uses {REDUCTION}")
    return Placed(
        lambda: Bottleneck(width, hidden, generator, activation=activation, dropout=dropout), geometry, **where
    )
