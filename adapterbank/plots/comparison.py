"""Figures that compare: the accuracy matrix of a sequence, scores as bars, spectrograms in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from adapterbank.errors import ConfigError
from adapterbank.plots.style import (
    COUNTED_CLASSES,
    DPI,
    HUES,
    INK,
    LONGEST,
    font_size,
    heat_map,
    open_frame,
    write_in_cell,
)
from adapterbank.plots.text import AS_IT_STANDS, in_legend, legend_as_it_stands, shown, shown_lines

Matrix = Sequence[Sequence[float | None]]


def accuracy_matrix(matrices: Mapping[str, Matrix], tasks: Sequence[str], *, score: str = "test accuracy") -> Figure:
    """R[i][j], the score on task j after training task i, as heat maps side by side; what was not measured is blank.

    Args:
        matrices: one matrix per strategy; its name is the panel's title.
        tasks: in the order in which they were trained.

    Raises:
        ConfigError: a matrix has another size, or there is none.
    """
    if not matrices:
        raise ConfigError("got no matrix to draw, expected {strategy: R}.")
    size = len(tasks)
    for name, matrix in matrices.items():
        if len(matrix) != size or any(len(row) != size for row in matrix):
            raise ConfigError(f"the matrix of {name!r} is not {size} x {size}, the number of tasks.")
    cell = 0.95 if size <= 8 else 0.6 if size <= COUNTED_CLASSES else min(0.3, 18 / size)
    side = 1.9 + cell * size
    figure = Figure(figsize=(side * len(matrices) + 0.9, side), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, len(matrices), squeeze=False)[0])
    for number, (panel, (name, matrix)) in enumerate(zip(panels, matrices.items(), strict=True)):
        values = np.array([[np.nan if value is None else value for value in row] for row in matrix], dtype=float)
        image = heat_map(panel, values, tasks if number == 0 else [""] * size, tasks)
        if size <= COUNTED_CLASSES:
            for row, column in np.argwhere(np.isfinite(values)):
                value = float(values[row, column])
                write_in_cell(panel, row, column, f"{value:.2f}", value, 10 if size <= 8 else 7)
        panel.set_title(shown(name), fontsize=11, color=INK, **AS_IT_STANDS)
        panel.set_xlabel("score on")
    panels[0].set_ylabel("after training")
    figure.colorbar(image, ax=panels, shrink=0.75).set_label(shown(score), **AS_IT_STANDS)
    return figure


def score_bars(scores: Mapping[str, Mapping[str, float]], *, score: str = "test score") -> Figure:
    """One group of bars per column (a dataset), one bar per row (a model or method).

    Args:
        scores: {row: {column: score in [0, 1]}}; what a row lacks is left out. Rows called "family: name" have the hue
            of their family, the last of which is blue.

    Raises:
        ConfigError: there is nothing to draw.
    """
    columns = list(dict.fromkeys(column for row in scores.values() for column in row))
    if not columns:
        raise ConfigError("got no scores to draw, expected {row: {column: score}}.")
    figure = Figure(figsize=(max(6.4, 0.17 * len(columns) * len(scores) + 2.5), 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(scores)
    colours = _family_colours(list(scores))
    for index, (row, found) in enumerate(scores.items()):
        places = [columns.index(column) - 0.42 + (index + 0.5) * width for column in found]
        axes.bar(places, list(found.values()), width * 0.92, color=colours[row], label=in_legend(row))
    names = [shown(column, LONGEST) for column in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=font_size(len(columns)), **AS_IT_STANDS)
    axes.set_ylim(0, 1)
    axes.set_ylabel(shown(score), **AS_IT_STANDS)
    open_frame(axes)
    legend = figure.legend(loc="outside lower center", ncols=min(4, len(scores)), fontsize=8, frameon=False)
    legend_as_it_stands(legend)
    return figure


def _family_colours(rows: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """{row: colour}: a hue for each family, as "family: name" says, in shades from light to dark."""
    families: dict[str, list[str]] = {}
    for row in rows:
        families.setdefault(row.partition(": ")[0] if ": " in row else "", []).append(row)
    hues = dict(zip(reversed(families), cycle(HUES), strict=False))
    return {
        row: hues[family](shade)
        for family, members in families.items()
        for row, shade in zip(members, np.linspace(0.35, 0.95, len(members)), strict=True)
    }


def spectrogram_pairs(pairs: Sequence[tuple[str, Tensor, Tensor]], rows: tuple[str, str]) -> Figure:
    """Two log-mels above each other, pair by pair.

    Args:
        pairs: (title, upper (F, M), lower (F, M)), in nats below the clip's maximum.
        rows: what the upper and the lower ones are.

    Raises:
        ConfigError: there is nothing to draw.
    """
    if not pairs:
        raise ConfigError("got no pairs to draw, expected (title, log-mel, log-mel).")
    columns = min(5, len(pairs))
    bands = -(-len(pairs) // columns)
    figure = Figure(figsize=(2.2 * columns + 0.4, 3.6 * bands), dpi=DPI, layout="constrained")
    panels = figure.subplots(2 * bands, columns, squeeze=False)
    for panel in panels.flatten():
        panel.set_axis_off()
    for index, (title, *both) in enumerate(pairs):
        band, column = divmod(index, columns)
        for row, mel in enumerate(both):
            panel = panels[2 * band + row][column]
            panel.set_axis_on()
            panel.imshow(mel.T.numpy(), origin="lower", aspect="auto", vmax=0, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            if column == 0:
                panel.set_ylabel(shown(rows[row]), fontsize=8, **AS_IT_STANDS)
        panels[2 * band][column].set_title(shown_lines(title), fontsize=7, **AS_IT_STANDS)
    return figure
