"""Which blocks a method fills: all, or a subset (seed 002, section 5: layer-selective injection)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from torch import nn

from adapterbank.errors import ConfigError

Layers: TypeAlias = str | Sequence[int]


def chosen(layers: Layers, count: int) -> tuple[int, ...]:
    """Block numbers, rising.

    Args:
        layers: "all", or numbers from 0 to `count` - 1; negative ones count from the last block.

    Raises:
        ConfigError: anything else, a block twice, or none.
    """
    if isinstance(layers, str):
        if layers == "all":
            return tuple(range(count))
        raise ConfigError(f"got layers={layers!r}, expected 'all' or block numbers such as [6, 7]; {_hint(layers)}")
    if not isinstance(layers, Iterable) or not all(type(entry) is int and -count <= entry < count for entry in layers):
        raise ConfigError(f"got layers={layers!r}, expected 'all' or numbers from 0 to {count - 1}.")
    numbers = sorted(entry % count for entry in layers)
    if not numbers or len(set(numbers)) != len(numbers):
        raise ConfigError(f"got layers={layers!r}, expected at least one block, and each once.")
    return tuple(numbers)


def _hint(layers: str) -> str:
    if layers.startswith("top:"):
        return "'top:N' needs importance=..., as layer_importance returns it."
    return "adapterbank.layer_importance tells which matter."


class ByLayer(nn.ModuleDict):
    """One module per chosen block: `by_layer[3]` is that of block 3; `by_layer.at(3)` is None if there is none."""

    def put(self, layer: int, module: nn.Module) -> None:
        self[str(layer)] = module

    def __getitem__(self, layer: int | str) -> nn.Module:
        return super().__getitem__(str(layer))

    def at(self, layer: int) -> nn.Module | None:
        return self._modules.get(str(layer))
