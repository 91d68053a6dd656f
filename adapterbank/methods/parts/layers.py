"""Which blocks a method fills: all, or a subset (seed 002, section 5: layer-selective injection)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from torch import nn

from adapterbank.errors import ConfigError

Layers: TypeAlias = str | Sequence[int]


TOP = "top:"


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


def top(count: int, scores: Sequence[float]) -> tuple[int, ...]:
    """The `count` blocks with the highest scores, in rising order; of equal ones the later.

    Raises:
        ConfigError: not from 1 to the number of blocks.
    """
    if type(count) is not int or not 1 <= count <= len(scores):
        raise ConfigError(f"got {count!r} layers to choose, expected 1 to {len(scores)}.")
    return tuple(sorted(sorted(range(len(scores)), key=lambda layer: (scores[layer], layer))[-count:]))


def resolve(layers: Layers, importance: Sequence[float] | None) -> Layers:
    """ "top:4" as block numbers, by these scores; anything else as it is.

    Raises:
        ConfigError: "top:" without a number, or without scores.
    """
    if not isinstance(layers, str) or not layers.startswith(TOP):
        return layers
    number = layers.removeprefix(TOP)
    if importance is None or not number.isdecimal():
        raise ConfigError(f"got layers={layers!r}, expected 'top:4' or another number; {_hint(layers)}")
    return top(int(number), importance)


def _hint(layers: str) -> str:
    if layers.startswith(TOP):
        return "it needs importance=layer_importance(bank, task, data)."
    return "adapterbank.layer_importance tells which matter."


class ByLayer(nn.ModuleDict):
    """One module per chosen block: `by_layer[3]` is that of block 3; `by_layer.at(3)` is None if there is none."""

    def put(self, layer: int, module: nn.Module) -> None:
        self[str(layer)] = module

    def __getitem__(self, layer: int | str) -> nn.Module:
        return super().__getitem__(str(layer))

    def at(self, layer: int) -> nn.Module | None:
        return self._modules.get(str(layer))
