"""Bottleneck adapters: Linear, nonlinearity, Linear, as PETL_AST and AdapterHub place them.

    Pfeiffer (2021): one per block, at the MLP.       Houlsby et al. (2019): also one at the attention.
    parallel:    x + MLP(h) + A(h),  h = LN2(x)       (attention: h = LN1(x))
    sequential:  x + m + A(m),       m = MLP(h)       (attention: its projected output)

`up` starts at zero: an untrained adapter changes nothing. (PETL_AST starts both matrices at zero, so that only
`up.bias` ever trains; we do not.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterbank.backbone.weights import ASTWeights, FrozenLinear, Geometry
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts import init
from adapterbank.methods.parts.placed import Placed
from adapterbank.methods.registry import register

REDUCTION = 64  # PETL_AST: 768 -> 12
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class Bottleneck(nn.Module):
    """(R, N, D) -> (R, N, D) through `hidden` units."""

    def __init__(self, width: int, hidden: int, activation: str, dropout: float, generator: torch.Generator):
        super().__init__()
        self.down = init.linear(width, hidden, generator)
        self.activation = ACTIVATIONS[activation]
        self.drop = init.dropout(dropout)
        self.up = init.zero_linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.drop(self.activation(self.down(x))))

    def units(self) -> tuple[FrozenLinear, FrozenLinear] | None:
        """As hidden units of a wider MLP, whose activation is a GELU."""
        if self.activation is not F.gelu:
            return None
        return FrozenLinear(self.down.weight, self.down.bias), FrozenLinear(self.up.weight, self.up.bias)

    def per_token(self) -> bool:
        """Always."""
        return True


@register(
    "bottleneck",
    paper="Houlsby et al., 2019; Pfeiffer et al., 2021; PETL_AST, 2024",
    parameters="L (2 D r + r + D), r = D // reduction; twice that for houlsby",
    passes_to=Placed,
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
        **where: placement, form, layers and gates, as `Placed` takes them.
    """
    if activation not in ACTIVATIONS:
        raise UnknownNameError("activation", activation, ACTIVATIONS)
    if type(reduction) is not int or not 1 <= reduction <= geometry.width:
        raise ConfigError(f"got reduction={reduction!r}, expected 1 to {geometry.width}; PETL_AST uses {REDUCTION}.")
    hidden = geometry.width // reduction
    return Placed(lambda: Bottleneck(geometry.width, hidden, activation, dropout, generator), geometry, **where)
