"""Mixtures of adapters beside the MLP (Cappellazzo et al., 2024, "Soft Mixture of Adapters"; PETL_AST).

    dense   A(h) = sum_e softmax(h W)_e A_e(h)               every adapter sees every token; W is (D, E)
    soft    slots = softmax_tokens(h P)^T h                  each slot is a mean of the clip's tokens; P is (D, E S)
            A(h)  = softmax_slots(h P) [A_e(slots)]          (Soft MoE: Puigcerver et al., 2024)

The adapters A_e are bottlenecks with a GELU; `up` starts at zero, so an untrained mixture changes nothing.
Symbols: R rows of one task and clip length, N tokens, D width, E experts (the adapters), S slots per expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.errors import UnknownNameError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts import init
from adapterbank.methods.parts.layers import Layers
from adapterbank.methods.parts.placed import Placed
from adapterbank.methods.parts.training import ADAPTERS
from adapterbank.methods.registry import register
from adapterbank.numbers import whole

EXPERTS, SLOTS, REDUCTION = 4, 1, 64
KINDS = ("soft", "dense")


class Mixture(nn.Module):
    """E bottlenecks, whose tensors are stacked, and a router (D, E) or (D, E S). Shapes: (R, N, D) -> (R, N, D)."""

    def __init__(self, width: int, hidden: int, experts: int, slots: int, kind: str, generator: torch.Generator):
        super().__init__()
        self.kind = kind
        bound = width**-0.5
        self.router = init.uniform((width, experts * (slots if kind == "soft" else 1)), bound, generator)
        self.down = init.uniform((experts, width, hidden), bound, generator)
        self.down_bias = nn.Parameter(torch.zeros(experts, 1, hidden))
        self.up = nn.Parameter(torch.zeros(experts, hidden, width))
        self.up_bias = nn.Parameter(torch.zeros(experts, 1, width))

    def forward(self, h: Tensor) -> Tensor:
        routes = h.to(self.router.dtype) @ self.router  # (R, N, E) or (R, N, E S)
        if self.kind == "dense":
            x = self._experts(rearrange(h, "r n d -> 1 (r n) d"))  # (E, R N, D)
            return einsum(routes.softmax(-1).flatten(0, 1), x, "t e, e t d -> t d").unflatten(0, h.shape[:2])
        slots = einsum(routes.softmax(1), h.to(routes.dtype), "r n s, r n d -> r s d")  # (R, E S, D)
        grouped = rearrange(slots, "r (e s) d -> e (r s) d", e=len(self.down))
        answers = rearrange(self._experts(grouped), "e (r s) d -> r (e s) d", r=len(h))
        return routes.softmax(2) @ answers

    def _experts(self, x: Tensor) -> Tensor:
        """Each expert on its own tokens, (E, X, D) -> (E, X, D); all of them on the same for (1, X, D)."""
        x = x.to(self.down.dtype)
        return F.gelu(x @ self.down + self.down_bias) @ self.up + self.up_bias

    def per_token(self) -> bool:
        """If dense: the slots of a soft mixture are made of all tokens."""
        return self.kind == "dense"


@register(
    "moa",
    paper="Soft mixture of adapters (Cappellazzo et al., 2024)",
    parameters="L experts (D slots + 2 D r + r + D), r = D // reduction",
    training=ADAPTERS,
)
def moa(
    geometry: Geometry,
    base: ASTWeights,
    generator: torch.Generator,
    *,
    kind: str = "soft",
    experts: int = EXPERTS,
    slots: int = SLOTS,
    reduction: int = REDUCTION,
    gate: str = "static",
    gate_level: str = "clip",
    layers: Layers = "all",
) -> Adapters:
    """Soft or dense mixtures of bottlenecks, parallel to the MLP.

    Args:
        kind: "soft" (experts work on slots, means of a clip's tokens) or "dense" (on every token).
        slots: per expert, of the soft kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of moa", kind, KINDS)
    for name, value in (("experts", experts), ("slots", slots), ("reduction", reduction)):
        whole(name, value, most=geometry.width)
    hidden = geometry.width // reduction
    return Placed(
        lambda: Mixture(geometry.width, hidden, experts, slots, kind, generator),
        geometry,
        placement="pfeiffer",
        form="parallel",
        layers=layers,
        gate=gate,
        gate_level=gate_level,
    )
