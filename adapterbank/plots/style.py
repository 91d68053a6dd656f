"""What all figures share: colours, sizes of letters, heat maps and frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.image import AxesImage

from adapterbank.plots.text import AS_IT_STANDS, NAMED, shown, some

DPI = 120

LONGEST = 48  # characters of a name along an axis

COUNTED_CLASSES = 20  # more classes leave no room for numbers in the cells of a heat map

INK, MUTED, BLUE, ORANGE, GREEN = "#1f2933", "#7b8794", "#2563a8", "#d9730d", "#3d8b5f"

_STOPS = [(0.0, "#f4f8fc"), (0.12, "#cfe2f2"), (0.5, "#4f93cc"), (1.0, "#0b2e59")]  # a stray clip must be seen

BLUES = LinearSegmentedColormap.from_list("adapterbank", _STOPS)

AROUND_ONE = LinearSegmentedColormap.from_list("gates", [ORANGE, "#f6f5f3", BLUE]).with_extremes(bad="#c3c9d1")

HUES = (BLUES, colormaps["Oranges"], colormaps["Greys"], colormaps["Greens"])  # of families of bars


def block_ticks(count: int) -> range:
    """Every block has its number, as `layers=[...]` wants it; in a deep backbone every second."""
    return range(0, count, 1 if count <= 12 else 2)


def open_frame(axes: Axes) -> None:
    """Lines behind the bars, and no frame at the top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)


def heat_map(axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> AxesImage:
    """Draws values in [0, 1], (rows, columns), in shades of blue with a name at each row and column; NaN is blank.

    Of more than `NAMED` rows or columns only one in so many has its name.
    """
    colours: Colormap = BLUES.with_extremes(bad="white")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    size = max(len(rows), len(columns))
    font = font_size(size)
    crowded = size > 3 or max((len(name) for name in columns), default=0) > 12
    places = some(len(columns))
    names = [shown(columns[place], LONGEST) for place in places]
    rotation = 90 if size > 12 else 35 if crowded else 0
    axes.set_xticks(places, names, fontsize=font, rotation=rotation, **AS_IT_STANDS)
    if crowded and size <= 12:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    places = some(len(rows))
    axes.set_yticks(places, [shown(rows[place], LONGEST) for place in places], fontsize=font, **AS_IT_STANDS)
    if size <= NAMED:  # beyond, lines between the cells would cover them, and a tick for each takes seconds
        axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5 if size <= 12 else 0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return image


def write_in_cell(axes: Axes, row: int, column: int, text: str, value: float, size: float) -> None:
    """Writes into a cell of a heat map, white on dark cells; `value` is what the cell's shade stands for."""
    axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if value > 0.45 else INK)


def font_size(size: int) -> float:
    """Points, so that `size` labels fit along an axis."""
    return 9 if size <= 12 else 8 if size <= 20 else 6.5
