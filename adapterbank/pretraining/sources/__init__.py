"""Where unlabelled sound comes from: folders of audio, synthesised speech, synthesised notes; each one small file.

A source gives its clips in parts, each of which follows from its number alone, so that a killed run repeats one part at
most. One of your own is a class with these three members and `@register("name")`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from adapterbank.errors import ConfigError, NameTakenError, UnknownNameError


class Sound(NamedTuple):
    """One clip of a source.

    Attributes:
        samples: (T,) float32 at 16 kHz, in [-1, 1].
        said: the word that is spoken, and nothing else; "" for anything else. The same word by another voice has the
            same text, which a loss may use.
    """

    samples: np.ndarray
    said: str = ""


class Source(Protocol):
    """What a pool asks of a source.

    Attributes:
        parts: how many parts there are.
    """

    parts: int

    def describe(self) -> dict[str, Any]:
        """What the clips depend on, for JSON: a pool that was made of something else is not used."""
        ...

    def part(self, number: int) -> Iterable[Sound]:
        """The clips of one part, the same whenever it is asked."""
        ...


_BUILT_IN = {"folder": "folder", "speech": "speech", "notes": "notes"}  # name: the module that registers it
_BUILDERS: dict[str, Callable[..., Source]] = {}
Builder = TypeVar("Builder", bound=Callable[..., "Source"])


def register(name: str) -> Callable[[Builder], Builder]:
    """Adds a source to the registry; `name` may be followed by ":<argument>" in `build`."""

    def add(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise NameTakenError(f"a source {name!r} is registered already; choose another name.")
        _BUILDERS[name] = builder
        return builder

    return add


def names() -> list[str]:
    """Registered sources, and those that come with the package."""
    return sorted({*_BUILDERS, *_BUILT_IN})


def build(name: str, **options: Any) -> Source:
    """`build("folder:my_audio")`, `build("speech", words=3000)`.

    Raises:
        UnknownNameError: nobody registered `name`.
        ConfigError: options that this source does not take.
    """
    kind, _, argument = name.partition(":")
    if kind not in _BUILDERS and kind in _BUILT_IN:
        importlib.import_module(f"{__name__}.{_BUILT_IN[kind]}")
    if kind not in _BUILDERS:
        raise UnknownNameError("source", name, names())
    if argument:
        options = {"path": argument, **options}
    try:
        return _BUILDERS[kind](**options)
    except TypeError as error:
        raise ConfigError(f"source {name!r} cannot be built with {sorted(options)}: {error}.") from error
