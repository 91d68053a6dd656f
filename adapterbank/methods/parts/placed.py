"""Where the adapters of a block stand: at the MLP or also at the attention, in parallel to them or behind them.

parallel:    x + MLP(h) + A(h),  h = LN2(x)       (attention: h = LN1(x))
sequential:  x + m + A(m),       m = MLP(h)       (attention: m is its projected output)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from adapterbank.backbone.sites import Sites, acts_per_token
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.gate import gated
from adapterbank.methods.parts.layers import ByLayer, Layers, chosen

PLACEMENTS = ("pfeiffer", "houlsby")
FORMS = ("parallel", "sequential")


class Sequential(nn.Module):
    """A sequential adapter with its shortcut: y + A(y). Shapes: (R, N, D) -> (R, N, D)."""

    def __init__(self, adapter: nn.Module):
        super().__init__()
        self.adapter = adapter

    def forward(self, y: Tensor) -> Tensor:
        return y + self.adapter(y)

    def per_token(self) -> bool:
        """If its adapter does."""
        return acts_per_token(self.adapter)


class Placed(Adapters):
    """One or two adapters of one kind in each chosen block.

    Args:
        make: builds one adapter, (R, N, D) -> (R, N, D).
        placement: "pfeiffer": one adapter, at the MLP; "houlsby": one at the attention and one at the MLP.
        form: "parallel": the adapter reads the normalised input of the attention or MLP, and its output is added to
            theirs; "sequential": it reads their output.
        layers: the blocks, "all" or numbers.
        gate, gate_level: of parallel adapters, as in `gate.py`.

    Raises:
        UnknownNameError: another placement, form or gate. ConfigError: a gate on a sequential adapter.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        geometry: Geometry,
        *,
        placement: str = "pfeiffer",
        form: str = "parallel",
        layers: Layers = "all",
        gate: str = "static",
        gate_level: str = "clip",
    ):
        super().__init__()
        if placement not in PLACEMENTS:
            raise UnknownNameError("placement", placement, PLACEMENTS)
        if form not in FORMS:
            raise UnknownNameError("form", form, FORMS)
        if form == "sequential" and gate != "static":
            raise ConfigError(f"got gate={gate!r} with form='sequential', expected 'static' or form='parallel'.")
        self.parallel = form == "parallel"
        self.attention, self.mlp = ByLayer(), ByLayer()
        places = (self.attention, self.mlp) if placement == "houlsby" else (self.mlp,)
        for layer in chosen(layers, geometry.layers):
            for place in places:
                adapter = make()
                kept = gated(adapter, gate, gate_level, geometry.width) if self.parallel else Sequential(adapter)
                place.put(layer, kept)

    def sites(self, layer: int) -> Sites:
        attention, mlp = self.attention.at(layer), self.mlp.at(layer)
        if not self.parallel:
            return Sites(after_attention=attention, after_mlp=mlp)
        return Sites(
            beside_attention=() if attention is None else (attention,), beside_mlp=() if mlp is None else (mlp,)
        )
