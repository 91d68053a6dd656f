"""Gates on parallel adapters: how much of an adapter is added, from nothing but habit to the sound itself.

    static   x + MLP(h) + A(h)                        as published
    scalar   x + MLP(h) + g A(h)                      g trained, one per layer (He et al., 2022: scaled adapter)
    signal   x + MLP(h) + 2 sigmoid(w h + b) A(h)     the signal-aware dynamic gating of seed 002, section 5;
                                                      h is each token's, or its mean over the clip ("clip")

All start at 1, so that a gated adapter begins as the static one. Symbols: R rows, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapterbank.backbone.sites import acts_per_token, declared
from adapterbank.backbone.weights import FrozenLinear
from adapterbank.errors import UnknownNameError

GATES = ("static", "scalar", "signal")


LEVELS = ("clip", "token")


class Gated(nn.Module):
    """A parallel adapter with its gate.

    Args:
        adapter: (R, N, D) -> (R, N, D).
        kind: "scalar" or "signal".
        level: what one value of a signal gate is for: a whole "clip" or each "token".
    """

    def __init__(self, adapter: nn.Module, kind: str, level: str, width: int):
        super().__init__()
        self.adapter, self.level = adapter, level
        if kind == "scalar":
            self.scale = nn.Parameter(torch.ones(()))
        else:
            self.weight = nn.Parameter(torch.zeros(width))
            self.bias = nn.Parameter(torch.zeros(()))

    def gate(self, h: Tensor) -> Tensor:
        """(R, N, D) -> factors (R, N, 1), (R, 1, 1) or (1, 1, 1)."""
        if hasattr(self, "scale"):
            return self.scale.expand(1, 1, 1)
        signal = h.mean(dim=1, keepdim=True) if self.level == "clip" else h
        return 2 * (signal.to(self.weight.dtype) @ self.weight + self.bias).sigmoid()[..., None]

    def forward(self, h: Tensor) -> Tensor:
        return self.gate(h) * self.adapter(h)

    def units(self) -> tuple[FrozenLinear, FrozenLinear] | None:
        """Those of its adapter, if it has any and the gate is the same for all sounds."""
        inner = declared(self.adapter, "units") if hasattr(self, "scale") else None
        units = None if inner is None else inner()
        if units is None:
            return None
        down, up = units
        return down, FrozenLinear(self.scale * up.weight, None if up.bias is None else self.scale * up.bias)

    def per_token(self) -> bool:
        """Unless its gate listens to the whole clip, or its adapter reads other tokens."""
        return (hasattr(self, "scale") or self.level == "token") and acts_per_token(self.adapter)


def gated(adapter: nn.Module, kind: str, level: str, width: int) -> nn.Module:
    """The adapter itself if `kind` is "static".

    Raises:
        UnknownNameError: another gate or level.
    """
    if kind not in GATES:
        raise UnknownNameError("gate", kind, GATES)
    if level not in LEVELS:
        raise UnknownNameError("gate_level", level, LEVELS)
    return adapter if kind == "static" else Gated(adapter, kind, level, width)
