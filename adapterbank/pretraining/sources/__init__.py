"""Where unlabelled sound comes from: folders of audio, synthesised speech, synthesised notes; each one small file.

A source gives its clips in parts, each of which follows from its number alone, so that a killed run repeats one part at
most. One of your own is a class with these three members and `@register("name")`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from adapterbank.pretraining.registry import Registry


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


_SOURCES: Registry[Source] = Registry(
    "source", {n: f"{__name__}.{n}" for n in ("debian", "folder", "notes", "speech")}, "path"
)
register, names, build = _SOURCES.register, _SOURCES.names, _SOURCES.build
