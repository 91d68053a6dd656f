"""The registry of methods: name -> how it is built, its options, its paper.

A method is one file. It registers a function `(geometry, base, generator, **options) -> Adapters`: the sizes of the
backbone, its frozen tensors, and where to draw random values from. It never sees a bank, a trainer or another task.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.training import TrainingDefaults

Builder = Callable[..., Adapters]

ALIASES = {"joint": "aat_ms+prompt"}  # names of compositions; AAT, section 3.3
_FIXED = ("geometry", "base", "generator")  # what every builder is given; its other parameters are options
_HINT = "Compose several with '+', as in 'aat_ms+prompt'; a method of your own is known once its file is imported."


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        build: `(geometry, base, generator, **options) -> Adapters`.
        options: with their defaults.
        paper: where it was published.
        parameters: how many numbers it trains, without a head, as a formula; see `register`.
        defaults: "head" and "pooling" of its tasks, where its paper has others than AAT.
        training: what `fit` uses where nothing is said; None if nobody has said.
    """

    name: str
    build: Builder
    options: Mapping[str, Any]
    paper: str
    parameters: str
    defaults: Mapping[str, str] = field(default_factory=dict)
    training: TrainingDefaults | None = None

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
    training: TrainingDefaults | None = None,
) -> Callable[[Builder], Builder]:
    """Decorator that makes a builder known under `name`; the first line of its docstring says what is trained.

    Args:
        paper: where the method was published.
        parameters: how many numbers it trains, without a head, as a formula such as
            "L (2 D r + r + D), r = D // reduction". A space multiplies. L is the number of chosen blocks; D width,
            M MLP width, N tokens and P patch side are those of the backbone; names of options stand for their values,
            and what is left is defined after commas. Options that the formula does not name are at their defaults. A
            remark may follow a semicolon.
        passes_to: the function or class that the builder hands its `**options` to. The method then has the
            keyword-only options of both; where both have one, the builder's default counts.
        defaults: "head" and "pooling" of its tasks unless they are given.
        training: the learning rate and whatever else `fit` uses for it where nothing is said. Methods of the package
            take that of their family, `adapterbank.methods.parts.training`.

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
        _REGISTRY[name] = Method(name, builder, options, paper, parameters, dict(defaults or {}), training)
        return builder

    return add


def _options(name: str, builder: Builder, passes_to: Callable[..., Any] | None) -> dict[str, Any]:
    """The options of a method with their defaults, read from signatures.

    Raises:
        ConfigError: an option without a default, or options that have no names.
    """
    found = {key: p for key, p in inspect.signature(builder).parameters.items() if key not in _FIXED}
    if passes_to is not None:
        found = {key: p for key, p in found.items() if p.kind is not p.VAR_KEYWORD}
        shared = inspect.signature(passes_to).parameters
        found = {key: p for key, p in shared.items() if p.kind is p.KEYWORD_ONLY} | found
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


def registered() -> tuple[Method, ...]:
    """All methods in the order of their names, without the aliases."""
    return tuple(_REGISTRY[name] for name in sorted(_REGISTRY))


def names() -> tuple[str, ...]:
    """The names of all methods, then the aliases of compositions."""
    return (*sorted(_REGISTRY), *sorted(ALIASES))


def get(name: str) -> Method:
    """A registered method.

    Raises:
        UnknownNameError: nobody registered it.
    """
    if name not in _REGISTRY:
        raise UnknownNameError("method", name, names(), _HINT)
    return _REGISTRY[name]
