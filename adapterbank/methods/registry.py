"""The registry of methods and the grammar of compositions: "aat_ms", "aat_ms+prompt" (alias "joint").

A method is one file: it registers a function `(geometry, base, generator, **options) -> Adapters` and never sees a
bank, a trainer or another task. `adapterbank.methods()` lists them all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.methods.base import Adapters

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
