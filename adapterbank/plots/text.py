"""Names in figures: what somebody called a class or a task is drawn as it stands, whatever characters it has.

Matplotlib reads `$...$` as a formula, draws nothing for control characters, leaves names that start with "_" out of
legends, and warns of each character that its font lacks. None of that may happen to a label.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.legend import Legend

# Keywords of every call that takes a text: no formulas, and no LaTeX even where `text.usetex` is set.
AS_IT_STANDS: dict[str, Any] = {"parse_math": False, "usetex": False}

NAMED = 60  # names along an axis that can be told apart; of more, only some are written


def shown(text: str, longest: int | None = None) -> str:
    """A text as a figure can draw it.

    A control character, and one that no font of `rcParams["font.family"]` has, becomes its escape: a tab is `\\t`.

    Args:
        longest: characters at most; the middle of a longer text gives way to an ellipsis.
    """
    known = _characters(tuple(rcParams["font.family"]), tuple(rcParams["font.sans-serif"]))
    found = "".join(c if ord(c) in known and c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if longest is not None and len(found) > longest:
        start = (longest - 1) // 2
        found = f"{found[:start]}…{found[len(found) - (longest - 1 - start) :]}"
    return found


def shown_lines(text: str) -> str:
    """As `shown`, of a title, which may have several lines."""
    return "\n".join(map(shown, text.split("\n")))


def some(count: int) -> range:
    """The places of the names to be written along an axis: all of up to `NAMED`, of more one in so many."""
    return range(0, count, -(-count // NAMED) or 1)


def in_legend(name: str) -> str:
    """A name that a legend does not leave out."""
    return f"\N{THIN SPACE}{shown(name)}" if name.startswith("_") else shown(name)


def legend_as_it_stands(legend: Legend) -> None:
    """No name in the legend is read as a formula."""
    for text in legend.get_texts():
        text.set(**AS_IT_STANDS)


def heading(figure: Figure, title: str, colour: str) -> None:
    """The title of a whole figure."""
    figure.suptitle(shown_lines(title), fontsize=11, color=colour, **AS_IT_STANDS)


@lru_cache(maxsize=8)
def _characters(families: Iterable[str], sans_serif: Iterable[str]) -> frozenset[int]:
    """Code points that can be drawn: matplotlib tries the fonts of the families one after another."""
    names = [name for family in families for name in (sans_serif if family == "sans-serif" else (family,))]
    found: set[int] = set(get_font(findfont(FontProperties())).get_charmap())
    for name in names:
        try:
            found.update(get_font(findfont(FontProperties(family=name), fallback_to_default=False)).get_charmap())
        except ValueError:  # it is not installed
            continue
    return frozenset(found)
