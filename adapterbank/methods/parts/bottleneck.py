"""The bottleneck that most adapters are made of: a linear to a few hidden units, a nonlinearity, a linear back."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterbank.errors import UnknownNameError
from adapterbank.methods.parts import init
from adapterbank.numbers import whole

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def check_activation(name: str) -> None:
    """Raises UnknownNameError unless `name` is that of an activation, "gelu" or "relu"."""
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)


class Bottleneck(nn.Module):
    """`up(drop(activation(down(x))))`, without a shortcut from input to output.

    `down` has torch's default weights and a zero bias. `up` starts at zero, weights and bias, so a new bottleneck
    answers zero and changes nothing until it is trained.

    Args:
        width: D, the backbone's hidden size.
        hidden: r, the number of hidden units, from 1.
        generator: draws the weights of `down`.
        activation: "gelu" or "relu".
        dropout: share of hidden units that are dropped in training.

    Shapes: (R, N, D) -> (R, N, D) for R rows of N tokens.

    Raises:
        ConfigError: no hidden unit, or a dropout that is no share. UnknownNameError: another activation.
    """

    def __init__(
        self, width: int, hidden: int, generator: torch.Generator, *, activation: str = "gelu", dropout: float = 0.0
    ):
        super().__init__()
        check_activation(activation)
        self.down = init.linear(width, whole("hidden", hidden), generator)
        self.activation = ACTIVATIONS[activation]
        self.drop = init.dropout(dropout)
        self.up = init.zero_linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.drop(self.activation(self.down(x))))

    def per_token(self) -> bool:
        """Always: every token goes through the same two linears, whatever the others are."""
        return True
