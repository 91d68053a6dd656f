"""From a name to adapters: how "lora", "aat_ms+prompt" and the alias "joint" are read, given options, and built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from adapterbank.backbone.sites import Sites, merge
from adapterbank.backbone.weights import ASTWeights, Geometry, expected_shapes
from adapterbank.errors import CompositionError, ConfigError, UnknownNameError
from adapterbank.guesses import hint_of
from adapterbank.methods.base import Adapters
from adapterbank.methods.registry import ALIASES, Method, get, names


def parse(expression: str) -> tuple[Method, ...]:
    """The methods of "a", "a+b" or an alias, in their order.

    Raises:
        UnknownNameError: a part is no method.
        CompositionError: an empty or doubled part.
    """
    if not isinstance(expression, str):
        raise ConfigError(f"got {expression!r} as a method, expected a name such as {names()[0]!r}.")
    parts = [part.strip() for part in ALIASES.get(expression, expression).split("+")]
    if not all(parts):
        raise CompositionError(f"cannot read the composition {expression!r}, expected methods joined by single '+'.")
    if len(set(parts)) != len(parts):
        raise CompositionError(f"the composition {expression!r} names a method twice; give each once.")
    return tuple(get(part) for part in parts)


def foreign(expression: str) -> dict[str, str]:
    """{method: module that registered it} of the parts that come from outside this package.

    Task files name these modules, so that whoever opens one without them is told what to import.
    """
    modules = {part.name: part.build.__module__ for part in parse(expression)}
    return {name: module for name, module in modules.items() if not module.startswith(f"{__package__}.")}


def build(
    expression: str,
    geometry: Geometry,
    base: ASTWeights,
    generator: torch.Generator,
    options: Mapping[str, Any] | None = None,
) -> Adapters:
    """Builds the adapters of a method or composition.

    Args:
        geometry: the sizes of the backbone.
        base: its frozen tensors; a method may copy them and never writes to them.
        generator: all random initial values are drawn from it, part by part in the order of the composition.
        options: each goes to every part that has an option of that name; `{"prompt": {"tokens": 24}}`, keyed by a
            part's name, goes to that part alone.

    Raises:
        UnknownNameError: an unknown method or option.
        CompositionError: two parts fill the same one-owner site.
    """
    parts = parse(expression)
    chosen = options_of(expression, options or {})
    built = {part.name: part.build(geometry, base, generator, **chosen[part.name]) for part in parts}
    if len(built) == 1:
        return next(iter(built.values()))
    composed = Composition(built)
    composed.check(geometry.layers, base)
    return composed


def count(expression: str, geometry: Geometry | None = None, **options: Any) -> int:
    """How many numbers a method or composition trains, without a head: counted on adapters that are really built.

    Args:
        geometry: of the backbone; None is AST-base (12 x 768). Its tensors are not allocated.
        **options: of the method, as in `build`.

    Raises:
        UnknownNameError, CompositionError, ConfigError: as `build`.
    """
    geometry = geometry or Geometry()
    empty = {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(geometry).items()}
    base = ASTWeights.from_named(empty, geometry.layers)
    adapters = build(expression, geometry, base, torch.Generator().manual_seed(0), options)
    return sum(p.numel() for p in adapters.parameters() if p.requires_grad)


def options_of(expression: str, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each part of a composition, as `build` distributes them.

    Raises:
        UnknownNameError: an option that no part has.
    """
    parts = parse(expression)
    chosen: dict[str, dict[str, Any]] = {part.name: {} for part in parts}
    own: list[tuple[str, Mapping[str, Any]]] = []
    for key, value in options.items():
        if key in chosen and isinstance(value, Mapping):
            own.append((key, value))
            continue
        takers = [part for part in parts if key in part.options]
        if not takers:
            known = sorted({option for part in parts for option in part.options})
            raise UnknownNameError(f"option of {'+'.join(chosen)}", key, known, hint_of(key))
        for part in takers:
            chosen[part.name][key] = value
    for name, values in own:
        for key, value in values.items():
            if key not in get(name).options:
                raise UnknownNameError(f"option of {name}", key, get(name).options, hint_of(key))
            chosen[name][key] = value
    return chosen


class Composition(Adapters):
    """Several methods in one forward pass; each keeps its own parameters under its name."""

    def __init__(self, parts: Mapping[str, Adapters]):
        super().__init__()
        self.parts = nn.ModuleDict(dict(parts))

    def sites(self, layer: int) -> Sites:
        return merge((name, part.sites(layer)) for name, part in self._items())

    def owned(self, base: ASTWeights) -> ASTWeights:
        for _, part in self._items():
            base = part.owned(base)
        return base

    def part(self, method: str) -> Adapters:
        """The adapters of one method."""
        return dict(self._items())[method]

    def check(self, layers: int, base: ASTWeights) -> None:
        """Finds clashes when the task is added, not when it first runs.

        Raises:
            CompositionError: two parts fill one site that has room for one, or both own whole blocks.
        """
        for layer in range(layers):
            self.sites(layer)
        owners = [name for name, part in self._items() if part.owned(base) is not base]
        if len(owners) > 1:
            raise CompositionError(f"{owners[0]!r} and {owners[1]!r} both own whole blocks; keep one of them.")

    def _items(self) -> list[tuple[str, Adapters]]:
        return [(name, part) for name, part in self.parts.items() if isinstance(part, Adapters)]
