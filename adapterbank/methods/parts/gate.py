"""Gates on parallel adapters: a factor that decides how much of an adapter's output is added.

    static   x + MLP(h) + A(h)                        as published: no gate
    scalar   x + MLP(h) + g A(h)                      one trained number g per block (He et al., 2022: scaled adapter)
    signal   x + MLP(h) + 2 sigmoid(w h + b) A(h)     a factor that follows the sound: h is each token's own ("token")
                                                      or its mean over the clip ("clip"). "Signal-aware dynamic
                                                      gating", proposed by the reproduction of the Conformer adapter

Every gate starts at 1, so a new gated adapter computes the same as the static one.
Symbols: R rows of one task and clip length, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapterbank.backbone.sites import acts_per_token
from adapterbank.errors import UnknownNameError

GATES = ("static", "scalar", "signal")
LEVELS = ("clip", "token")


class Gated(nn.Module):
    """A parallel adapter with its gate. Shapes: (R, N, D) -> (R, N, D).

    Args:
        adapter: (R, N, D) -> (R, N, D).
        kind: "scalar" or "signal".
        level: whether one value of a signal gate counts for a whole "clip" or for one "token".
        width: D, the number of weights of a signal gate.
    """

    def __init__(self, adapter: nn.Module, kind: str, level: str, width: int):
        super().__init__()
        self.adapter, self.kind, self.level = adapter, kind, level
        if kind == "scalar":
            self.scale = nn.Parameter(torch.ones(()))
        else:
            self.weight = nn.Parameter(torch.zeros(width))
            self.bias = nn.Parameter(torch.zeros(()))

    def gate(self, h: Tensor) -> Tensor:
        """The factors for the normalised tokens `h`, (R, N, D).

        Returns:
            (1, 1, 1) for a scalar gate; for a signal gate (R, 1, 1), one per clip, or (R, N, 1), one per token.
        """
        if self.kind == "scalar":
            return self.scale.expand(1, 1, 1)
        signal = h.mean(dim=1, keepdim=True) if self.level == "clip" else h
        return 2 * (signal.to(self.weight.dtype) @ self.weight + self.bias).sigmoid()[..., None]

    def forward(self, h: Tensor) -> Tensor:
        return self.gate(h) * self.adapter(h)

    def per_token(self) -> bool:
        """Unless its gate is the mean of a whole clip, or its adapter reads other tokens."""
        return (self.kind == "scalar" or self.level == "token") and acts_per_token(self.adapter)


def gated(adapter: nn.Module, kind: str, level: str, width: int) -> nn.Module:
    """An adapter with a gate of this kind; the adapter itself if `kind` is "static".

    Raises:
        UnknownNameError: another gate or level.
    """
    if kind not in GATES:
        raise UnknownNameError("gate", kind, GATES)
    if level not in LEVELS:
        raise UnknownNameError("gate_level", level, LEVELS)
    return adapter if kind == "static" else Gated(adapter, kind, level, width)
