"""Words: names that people and disks write in different ways, and nouns and verbs beside a number.

Of names it says which of them are the same, and in which order they stand.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable


def nfc(text: str) -> str:
    """The text with each accented letter as one character (Unicode's NFC).

    "é" can be written as one character, or as "e" followed by an accent. macOS writes the second form into the names of
    files and most keyboards write the first, so that two names that look alike differ. In NFC they are the same.
    """
    return unicodedata.normalize("NFC", text)


# Characters of no width, and marks of the direction of writing. Those that join letters (U+200C, U+200D) are spelling.
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """What a reader sees of a name: in NFC, without characters of no width, and with plain single blanks between words.

    Web pages and spreadsheets leave zero-width and no-break spaces in names, with which "dog" would be two classes.
    """
    return " ".join(_INVISIBLE.sub("", nfc(text)).split())


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only by capitals, by blanks, underscores and hyphens, or by the form of a letter."""
    groups: dict[str, list[str]] = {}
    for name in names:
        key = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()
        groups.setdefault(key, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Sorted as a person counts: "2" before "10", and "fold2" before "fold10".

    Names that are all numbers are sorted by their value, so that the class "2" of the folders "0" to "11" is at index
    2. In any other name each run of digits counts as one number.
    """
    names = list(names)
    values = {name: _value(name) for name in names}
    if all(value is not None for value in values.values()):
        return sorted(names, key=lambda name: (values[name], name))
    return sorted(names, key=lambda name: (_pieces(name), name))


def _value(name: str) -> float | None:
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?", name, flags=re.ASCII):
        return None
    value = float(name)
    return value if math.isfinite(value) else None


def _pieces(name: str) -> list[tuple[int, int, str]]:
    """Digits and what stands between them, so that each can be compared with what stands at its place elsewhere."""
    pieces = re.split(r"(\d+)", name, flags=re.ASCII)
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece]


_OF_ONE = {"are": "is", "were": "was", "have": "has", "do": "does"}


def amount(count: int, noun: str) -> str:
    """A number with its noun: "1 clip", "2 clips", "0 classes", "1,200 files".

    Args:
        noun: a singular, of which the last word gets the ending.
    """
    return f"{count:,} {noun if count == 1 else noun + ('es' if noun.endswith(('s', 'x', 'ch')) else 's')}"


def verb(count: int, plural: str) -> str:
    """The verb that goes with so many things: of "are" it is "is" for one, of "lie" it is "lies"."""
    return _OF_ONE.get(plural, f"{plural}s") if count == 1 else plural
