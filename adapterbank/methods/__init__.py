"""The registry of methods and the grammar of compositions: "aat_ms", "aat_ms+prompt" (alias "joint").

A method is one file in this folder: it registers a function
`(geometry, base, generator, **options) -> Adapters` and never sees a bank, a trainer or another task.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adapterbank.errors import CompositionError, ConfigError, UnknownNameError
from adapterbank.methods.sites import Adapters, Sites, merge

if TYPE_CHECKING:
    from adapterbank.backbone.ast import ASTWeights, Geometry

Builder = Callable[..., Adapters]
ALIASES = {"joint": "aat_ms+prompt"}  # AAT, section 3.3
_FIXED = ("geometry", "base", "generator")


@dataclass(frozen=True)
class Method:
    """A registered method: how to build it, its options with their defaults, and where it was published.

    Attributes:
        defaults: of the task around it, where the paper has others than AAT: "head", "pooling".
    """

    name: str
    build: Builder
    options: Mapping[str, Any]
    paper: str
    defaults: Mapping[str, str] = field(default_factory=dict)


_REGISTRY: dict[str, Method] = {}


def register(name: str, *, paper: str, defaults: Mapping[str, str] | None = None) -> Callable[[Builder], Builder]:
    """Decorator that makes a builder known under `name`.

    Args:
        paper: where the method was published.
        defaults: "head" and "pooling" of its tasks unless they are given.

    Raises:
        ConfigError: the name is taken, or cannot stand in a composition.
    """

    def add(builder: Builder) -> Builder:
        if name in _REGISTRY or name in ALIASES:
            raise ConfigError(f"a method {name!r} is registered already; register yours under another name.")
        if not name.isidentifier():
            raise ConfigError(f"method name {name!r} must be letters, digits and underscores: '+' joins methods.")
        parameters = inspect.signature(builder).parameters
        options = {key: p.default for key, p in parameters.items() if key not in _FIXED}
        _REGISTRY[name] = Method(name, builder, options, paper, dict(defaults or {}))
        return builder

    return add


def names() -> tuple[str, ...]:
    """All methods, and the aliases of compositions."""
    return (*sorted(_REGISTRY), *sorted(ALIASES))


def get(name: str) -> Method:
    """A registered method.

    Raises:
        UnknownNameError: nobody registered it.
    """
    if name not in _REGISTRY:
        raise UnknownNameError("method", name, names(), "Compose several with '+', as in 'aat_ms+prompt'.")
    return _REGISTRY[name]


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


def build(
    expression: str,
    geometry: Geometry,
    base: ASTWeights,
    generator: torch.Generator,
    options: Mapping[str, Any] | None = None,
) -> Adapters:
    """Builds the adapters of a method or composition.

    Args:
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
            raise UnknownNameError(f"option of {'+'.join(chosen)}", key, known)
        for part in takers:
            chosen[part.name][key] = value
    for name, values in own:
        for key, value in values.items():
            if key not in _REGISTRY[name].options:
                raise UnknownNameError(f"option of {name}", key, _REGISTRY[name].options)
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
        """Finds clashes when the task is added, not when it first runs."""
        for layer in range(layers):
            self.sites(layer)
        owners = [name for name, part in self._items() if part.owned(base) is not base]
        if len(owners) > 1:
            raise CompositionError(f"{owners[0]!r} and {owners[1]!r} both own whole blocks; keep one of them.")

    def _items(self) -> list[tuple[str, Adapters]]:
        return [(name, part) for name, part in self.parts.items() if isinstance(part, Adapters)]


from adapterbank.methods import (  # noqa: E402, F401  (each registers itself)
    aat,
    bitfit,
    bottleneck,
    conformer,
    head,
    linear,
    ln_tuning,
    lora,
    moa,
    prefix,
    prompt,
    shallow_prompt,
    tuned,
)
