"""Which blocks of the backbone a method fills: all of them, or some by number; and one module for each of these."""

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
        count: L, the number of blocks of the backbone.

    Raises:
        ConfigError: anything else, a block twice, or none.
    """
    if isinstance(layers, str):
        if layers == "all":
            return tuple(range(count))
        raise ConfigError(
            f"got layers={layers!r}, expected 'all' or block numbers such as [6, 7]. To fill the blocks that matter "
            "most to a task, pass layers=layer_importance(bank, task, data).top(4)."
        )
    if not isinstance(layers, Iterable) or not all(type(entry) is int and -count <= entry < count for entry in layers):
        hint = " Pass layers=scores.top(4)." if hasattr(layers, "top") else ""
        raise ConfigError(f"got layers={layers!r}, expected 'all' or numbers from 0 to {count - 1}.{hint}")
    numbers = sorted(entry % count for entry in layers)
    if not numbers or len(set(numbers)) != len(numbers):
        raise ConfigError(f"got layers={layers!r}, expected at least one block, and each once.")
    return tuple(numbers)


class ByLayer(nn.ModuleDict):
    """One module for each chosen block: `by_layer[3]` is that of block 3; `by_layer.at(3)` is None if there is none."""

    def put(self, layer: int, module: nn.Module) -> None:
        """Makes `module` that of block `layer`."""
        self[str(layer)] = module

    def __getitem__(self, layer: int | str) -> nn.Module:
        return super().__getitem__(str(layer))

    def at(self, layer: int) -> nn.Module | None:
        """The module of block `layer`, or None if that block was not chosen."""
        return self._modules.get(str(layer))
