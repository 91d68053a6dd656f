"""The registry of methods and the grammar of compositions: "aat_ms", "aat_ms+prompt" (alias "joint").

A method is one file: it registers a function `(geometry, base, generator, **options) -> Adapters` and never sees a
bank, a trainer or another task. `adapterbank.methods()` lists them all.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn

from adapterbank.backbone.ast import ASTWeights, Geometry
from adapterbank.backbone.checkpoints import expected_shapes
from adapterbank.errors import CompositionError, ConfigError, UnknownNameError
from adapterbank.methods.sites import Adapters, Sites, merge
from adapterbank.methods.table import Overview

Builder = Callable[..., Adapters]
ALIASES = {"joint": "aat_ms+prompt"}  # AAT, section 3.3
_FIXED = ("geometry", "base", "generator")
_HINT = "Compose several with '+', as in 'aat_ms+prompt'; a method of your own is known once its file is imported."


@dataclass(frozen=True)
class Method:
    """A registered method: how to build it, its options with their defaults, and where it was published.

    Attributes:
        parameters: how many numbers it trains, without a head; see `register`.
        defaults: of the task around it, where the paper has others than AAT: "head", "pooling".
    """

    name: str
    build: Builder
    options: Mapping[str, Any]
    paper: str
    parameters: str
    defaults: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """What is trained: the first line of the builder's docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0].rstrip(".")


_REGISTRY: dict[str, Method] = {}


def register(
    name: str,
    *,
    paper: str,
    parameters: str,
    passes_to: Callable[..., Any] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Callable[[Builder], Builder]:
    """Decorator that makes a builder known under `name`; the first line of its docstring says what is trained.

    Args:
        paper: where the method was published.
        parameters: how many numbers it trains, without a head, such as "L (2 D r + r + D), r = D // reduction": a
            space multiplies; L chosen blocks, D width, M MLP width, N tokens and P patch side of the backbone; names
            of options; others are defined after commas. Options that it does not name are at their defaults. A
            remark may follow a semicolon.
        passes_to: what the builder hands its `**options` to; the keyword-only options of both are the method's.
        defaults: "head" and "pooling" of its tasks unless they are given.

    Raises:
        ConfigError: the name is taken, or cannot stand in a composition; an option without a default.
    """

    def add(builder: Builder) -> Builder:
        if name in _REGISTRY or name in ALIASES:
            raise ConfigError(
                f"a method {name!r} is registered already; register yours under another name, "
                f"or call methods.unregister({name!r}) first if it is an older version of yours."
            )
        if not name.isidentifier():
            raise ConfigError(f"method name {name!r} must be letters, digits and underscores: '+' joins methods.")
        options = _options(name, builder, passes_to)
        _REGISTRY[name] = Method(name, builder, options, paper, parameters, dict(defaults or {}))
        return builder

    return add


def _options(name: str, builder: Builder, passes_to: Callable[..., Any] | None) -> dict[str, Any]:
    """The options of a method with their defaults, read from signatures."""
    found = {key: p for key, p in inspect.signature(builder).parameters.items() if key not in _FIXED}
    if passes_to is not None:
        found = {key: p for key, p in found.items() if p.kind is not p.VAR_KEYWORD}
        shared = inspect.signature(passes_to).parameters
        found = {key: p for key, p in shared.items() if p.kind is p.KEYWORD_ONLY} | found  # its own defaults win
    for key, p in found.items():
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            raise ConfigError(f"the method {name!r} takes any {key!r}; name its options, or use passes_to=.")
        if p.default is p.empty:
            raise ConfigError(f"the option {key!r} of the method {name!r} has no default; give it one.")
    return {key: p.default for key, p in found.items()}


def unregister(name: str) -> None:
    """Forgets a method, so that a new version of it can be registered; tasks that were built with it stay as they are.

    Raises:
        UnknownNameError: nobody registered it.
    """
    get(name)
    del _REGISTRY[name]


def names() -> tuple[str, ...]:
    """All methods, and the aliases of compositions."""
    return (*sorted(_REGISTRY), *sorted(ALIASES))


def get(name: str) -> Method:
    """A registered method.

    Raises:
        UnknownNameError: nobody registered it.
    """
    if name not in _REGISTRY:
        raise UnknownNameError("method", name, names(), _HINT)
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


def foreign(expression: str) -> dict[str, str]:
    """{method: module that registered it} of the parts that come from outside this package."""
    modules = {part.name: part.build.__module__ for part in parse(expression)}
    return {name: module for name, module in modules.items() if not module.startswith(f"{__name__}.")}


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


def count(expression: str, geometry: Geometry | None = None, **options: Any) -> int:
    """How many numbers a method or composition trains, without a head: counted on adapters that are really built.

    Args:
        geometry: of the backbone; None is AST-base (12 x 768). Its tensors are not allocated.
        **options: as in `add_task`.
    """
    geometry = geometry or Geometry()
    empty = {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(geometry).items()}
    base = ASTWeights.from_named(empty, geometry.layers)
    adapters = build(expression, geometry, base, torch.Generator().manual_seed(0), options)
    return sum(p.numel() for p in adapters.parameters() if p.requires_grad)


def overview() -> Overview:
    """All methods and aliases with options, parameters and paper: a tuple of `Method` that prints as a table."""
    known = [_REGISTRY[name] for name in sorted(_REGISTRY)]
    return Overview([*known, *(_as_method(name, ALIASES[name]) for name in sorted(ALIASES))], count)


def _as_method(name: str, expression: str) -> Method:
    """An alias as a row of the overview."""

    def builder(geometry: Geometry, base: ASTWeights, generator: torch.Generator, **options: Any) -> Adapters:
        return build(expression, geometry, base, generator, options)

    parts = parse(expression)
    builder.__doc__ = f"{expression} in one forward pass."
    options = {key: value for part in parts for key, value in part.options.items()}
    formulas = [part.parameters.partition(", ") for part in parts]
    total = " + ".join(formula for formula, _, _ in formulas)
    definitions = dict.fromkeys(rest for _, _, rest in formulas if rest)
    papers = dict.fromkeys(paper for part in parts for paper in part.paper.split("; "))
    return Method(name, builder, options, "; ".join(papers), ", ".join((total, *definitions)))


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


for _file in pkgutil.iter_modules(__path__):  # each method registers itself: a new one is a new file and no line here
    if not _file.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_file.name}")


class _Package(ModuleType):
    """`adapterbank.methods` is this package, and `adapterbank.methods()` lists what is in it: Python calls a module
    whose class has `__call__`. Type checkers call it by its name, `methods.overview()`."""

    def __call__(self) -> Overview:
        return overview()


sys.modules[__name__].__class__ = _Package
