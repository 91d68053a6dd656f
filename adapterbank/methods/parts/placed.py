"""Where a block's adapters stand: at the MLP or also at the attention, in parallel or in sequence."""

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
    """A sequential adapter with its shortcut: y + A(y). (R, N, D) -> (R, N, D)."""

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
        placement: "pfeiffer": at the MLP; "houlsby": at attention and MLP.
        form: "parallel": on the normalised input, added to the sublayer's output; "sequential": on that output.
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
        for layer in chosen(layers, geometry.layers):
            for place in (self.attention, self.mlp) if placement == "houlsby" else (self.mlp,):
                adapter = make()
                place.put(
                    layer, gated(adapter, gate, gate_level, geometry.width) if self.parallel else Sequential(adapter)
                )

    def sites(self, layer: int) -> Sites:
        attention, mlp = self.attention.at(layer), self.mlp.at(layer)
        if not self.parallel:
            return Sites(after_attention=attention, after_mlp=mlp)
        return Sites(
            beside_attention=() if attention is None else (attention,), beside_mlp=() if mlp is None else (mlp,)
        )
