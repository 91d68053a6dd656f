"""Pictures of a training (learning curve, confusion matrix, accuracy matrix of a sequence) and of a task's inside.

Every function returns a matplotlib `Figure` that belongs to no global state (no pyplot): safe in threads and servers,
and freed like any other object. Save one with `figure.savefig(path)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from adapterbank.backbone.weights import PREFIX_TOKENS
from adapterbank.errors import ConfigError

if TYPE_CHECKING:
    from adapterbank.inspection import LayerImportance


DPI = 120


COUNTED_CLASSES = 20  # more classes leave no room for numbers in the cells of a confusion matrix


INK, MUTED, BLUE, ORANGE = "#1f2933", "#7b8794", "#2563a8", "#d9730d"


_STOPS = [(0.0, "#f4f8fc"), (0.12, "#cfe2f2"), (0.5, "#4f93cc"), (1.0, "#0b2e59")]  # a stray clip must be seen


_AROUND_ONE = LinearSegmentedColormap.from_list("gates", [ORANGE, "#f6f5f3", BLUE]).with_extremes(bad="#c3c9d1")


_BLUES = LinearSegmentedColormap.from_list("adapterbank", _STOPS)


_HUES = (_BLUES, colormaps["Oranges"], colormaps["Greys"], colormaps["Greens"])  # of families of bars


Matrix = Sequence[Sequence[float | None]]


def learning_curve(epochs: Sequence[Mapping[str, float]], *, best_epoch: int = -1, title: str = "") -> Figure:
    """Training loss and validation metrics over the epochs.

    Args:
        epochs: as in `History.epochs`: "train/loss", and with validation data "val/loss", "val/accuracy" or "val/map".
        best_epoch: whose weights were kept, counted from 0; marked.

    Raises:
        ConfigError: there is no epoch to draw.
    """
    if not epochs:
        raise ConfigError("got no epochs to draw, expected History.epochs of a finished training.")
    numbers = range(1, len(epochs) + 1)
    scores = [key for key in ("val/map", "val/accuracy", "val/macro_accuracy") if key in epochs[0]]
    figure = Figure(figsize=(8.4 if scores else 4.6, 3.4), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, 2 if scores else 1, squeeze=False)[0])
    for key, colour in (("train/loss", BLUE), ("val/loss", ORANGE)):
        _line(panels[0], numbers, [record.get(key, np.nan) for record in epochs], key, colour)
    panels[0].set_ylabel("loss")
    panels[0].set_ylim(bottom=0)
    if scores:
        for key, colour in zip(scores, (ORANGE, MUTED), strict=False):
            _line(panels[1], numbers, [record.get(key, np.nan) for record in epochs], key, colour)
        panels[1].set_ylabel("score")
        panels[1].set_ylim(0, 1.02)
    for panel in panels:
        if 0 <= best_epoch < len(epochs):
            panel.axvline(
                best_epoch + 1, color=INK, linewidth=0.8, linestyle=":", label=f"kept: epoch {best_epoch + 1}"
            )
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(color="#e4e7eb", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def confusion_counts(logits: Tensor, targets: Tensor) -> Tensor:
    """How often clips of class i were called class j.

    Args:
        logits: (B, C).
        targets: (B,) class indices; or (B, C) of 0 and 1, where a clip counts once for each of its labels, in every
            column whose probability is above one half.

    Returns:
        (C, C) int64, rows the truth.
    """
    classes = logits.shape[1]
    if targets.ndim == 2:
        return (targets.long().T @ (logits > 0).long()).to(torch.int64)
    flat = targets.long() * classes + logits.argmax(dim=1)
    return torch.bincount(flat, minlength=classes**2).view(classes, classes)


def confusion_matrix(counts: Tensor, labels: Sequence[str], *, title: str = "") -> Figure:
    """Confusion matrix: colour is the share of the true class, numbers are clips.

    Args:
        counts: (C, C), rows the truth, as `confusion_counts` gives them.
        labels: C class names.

    Raises:
        ConfigError: the sizes do not fit.
    """
    if tuple(counts.shape) != (len(labels), len(labels)):
        raise ConfigError(f"got counts of shape {tuple(counts.shape)} for {len(labels)} labels, expected one row each.")
    size = len(labels)
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).numpy()
    side = min(3.2 + 0.34 * size, 4.5 + 0.19 * size) + 1.0
    figure = Figure(figsize=(side + 1.1, side), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    image = _heat(axes, shares, labels, labels)
    if size <= COUNTED_CLASSES:
        for row, column in np.argwhere(counts.numpy() > 0):
            _write(axes, row, column, str(int(counts[row, column])), float(shares[row, column]), _font(size))
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=11, color=INK)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return figure


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
    cell = 0.95 if size <= 8 else 0.6 if size <= COUNTED_CLASSES else 0.3
    side = 1.9 + cell * size
    figure = Figure(figsize=(side * len(matrices) + 0.9, side), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, len(matrices), squeeze=False)[0])
    for number, (panel, (name, matrix)) in enumerate(zip(panels, matrices.items(), strict=True)):
        values = np.array([[np.nan if value is None else value for value in row] for row in matrix], dtype=float)
        image = _heat(panel, values, tasks if number == 0 else [""] * size, tasks)
        if size <= COUNTED_CLASSES:
            for row, column in np.argwhere(np.isfinite(values)):
                value = float(values[row, column])
                _write(panel, row, column, f"{value:.2f}", value, 10 if size <= 8 else 7)
        panel.set_title(name, fontsize=11, color=INK)
        panel.set_xlabel("score on")
    panels[0].set_ylabel("after training")
    figure.colorbar(image, ax=panels, shrink=0.75, label=score)
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
        axes.bar(places, list(found.values()), width * 0.92, color=colours[row], label=row)
    axes.set_xticks(range(len(columns)), columns, fontsize=_font(len(columns)))
    axes.set_ylim(0, 1)
    axes.set_ylabel(score)
    _open(axes)
    figure.legend(loc="outside lower center", ncols=min(4, len(scores)), fontsize=8, frameon=False)
    return figure


def _family_colours(rows: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """{row: colour}: a hue for each family, as "family: name" says, in shades from light to dark."""
    families: dict[str, list[str]] = {}
    for row in rows:
        families.setdefault(row.partition(": ")[0] if ": " in row else "", []).append(row)
    hues = dict(zip(reversed(families), cycle(_HUES), strict=False))
    return {
        row: hues[family](shade)
        for family, members in families.items()
        for row, shade in zip(members, np.linspace(0.35, 0.95, len(members)), strict=True)
    }


def convergence(losses: Mapping[str, Sequence[float]], *, columns: int = 5) -> Figure:
    """Training losses over the epochs, a panel for each method, with all others in grey behind it.

    Args:
        losses: {method: loss of each epoch}.

    Raises:
        ConfigError: there is nothing to draw.
    """
    if not losses:
        raise ConfigError("got no losses to draw, expected {method: [loss of each epoch]}.")
    columns = min(columns, len(losses))
    rows = -(-len(losses) // columns)
    figure = Figure(figsize=(1.9 * columns + 0.6, 1.6 * rows + 0.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for panel, (name, own) in zip(panels, losses.items(), strict=False):
        for other in losses.values():
            panel.plot(range(1, len(other) + 1), other, color="#d5dae0", linewidth=0.8)
        panel.plot(range(1, len(own) + 1), own, color=BLUE, linewidth=1.8)
        panel.set_title(f"{name}: {own[-1]:.2f}", fontsize=8, color=INK)
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    for panel in panels[len(losses) :]:
        panel.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("training loss", fontsize=9)
    return figure


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
            panel.imshow(mel.T, origin="lower", aspect="auto", vmax=0, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            if column == 0:
                panel.set_ylabel(rows[row], fontsize=8)
        panels[2 * band][column].set_title(title, fontsize=7)
    return figure


def layer_importance(results: LayerImportance | Mapping[str, LayerImportance], *, title: str = "") -> Figure:
    """Each block's score as a bar; several tasks or methods as panels over the same blocks.

    Ablation scores, which are all points of one metric, share their axis; gradient scores have a scale of their own.

    Args:
        results: what `adapterbank.layer_importance` found, or {panel title: result}.

    Raises:
        ConfigError: there is nothing to draw, or the results are not of one kind.
    """
    panels = results if isinstance(results, Mapping) else {f"{results.task} ({results.method})": results}
    kinds = sorted({result.kind for result in panels.values()})
    if len(kinds) != 1:
        raise ConfigError(f"got results of the kinds {kinds}, expected one result or more, all of one kind.")
    shared = kinds == ["ablation"]
    blocks = max(len(result.scores) for result in panels.values())
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (max(2.6, 0.24 * blocks + 1) * columns + 0.8, 2.5 * rows + 0.6)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=shared)
    for axes, (name, result) in zip(grid.flat, panels.items(), strict=False):
        scores = np.array(result.scores)
        axes.bar(range(len(scores)), scores, 0.72, color=np.where(scores < 0, ORANGE, BLUE))
        whole = f"all adapters: {result.whole:.3f}" if shared else f"loss: {result.whole:.3f}"
        axes.set_title(f"{name}\n{whole}", fontsize=9, color=INK)
        axes.axhline(0, color=INK, linewidth=0.8)
        if not scores.any():
            axes.text(0.5, 0.5, "0 for every block", transform=axes.transAxes, ha="center", fontsize=8, color=MUTED)
        axes.set_xticks(_blocks(blocks))
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        axes.yaxis.get_offset_text().set_fontsize(8)
        _open(axes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("block", fontsize=9)
    figure.supylabel("score lost without its adapter" if shared else "squared gradient per parameter", fontsize=9)
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def gate_values(
    values: Tensor, names: Sequence[str] = (), *, rows: int = 0, columns: int = 0, title: str = ""
) -> Figure:
    """How far gates open: blocks upwards, clips or tokens to the right; blue above 1 (where gates start), orange below.

    Args:
        values: (B, L), a row per clip, as `adapterbank.gate_values` gives it; or (N, L), a row per token of one clip,
            as one of `adapterbank.token_gates`. NaN is grey.
        names: B names of the clips.
        rows: frequency rows of the backbone's patches (`bank.backbone.geometry.rows`): the values are a token's each.
        columns: patch columns of the clip; 0: all tokens after cls and dist are patches, none a prompt.

    Raises:
        ConfigError: another shape, or names for another number of clips.
    """
    if values.ndim != 2 or not values.numel() or (names and len(names) != len(values)):
        raise ConfigError(
            f"got values of shape {tuple(values.shape)} and {len(names)} names, expected (clips, blocks)."
        )
    shown = np.ma.masked_invalid(values.T.numpy())
    blocks, count = shown.shape
    width = min(max(4.6, (0.42 if count <= COUNTED_CLASSES else 0.12) * count + 1.6), 14)
    figure = Figure(figsize=(width, 0.24 * blocks + 2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    reach = max(float(np.abs(shown - 1).max(fill_value=0)), 0.05)
    image = axes.imshow(
        shown, cmap=_AROUND_ONE, vmin=1 - reach, vmax=1 + reach, aspect="auto", origin="lower", interpolation="nearest"
    )
    if names:
        axes.set_xticks(range(count), names, fontsize=_font(count), rotation=90)
    elif rows:
        columns = columns or (count - PREFIX_TOKENS) // rows
        starts = [PREFIX_TOKENS + row * columns for row in range(rows)]
        axes.set_xticks(np.array(starts) - 0.5, [str(row) for row in range(rows)], fontsize=8, ha="left")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("token: cls, dist, then the patches of frequency row 0, 1, ..." if rows else "clip")
    axes.set_yticks(_blocks(blocks))
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylabel("block")
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11, color=INK)
    figure.colorbar(image, ax=axes, label="gate")
    return figure


def _blocks(count: int) -> range:
    """Every block has its number, as `layers=[...]` wants it; in a deep backbone every second."""
    return range(0, count, 1 if count <= 12 else 2)


def _open(axes: Axes) -> None:
    """Lines behind the bars, and no frame at the top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)


def _line(axes: Axes, x: Sequence[int], y: Sequence[float], label: str, colour: str) -> None:
    if not np.isnan(y).all():
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=3 if len(y) < 40 else 0, label=label)


def _heat(axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> AxesImage:
    colours: Colormap = _BLUES.with_extremes(bad="white")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    size = max(len(rows), len(columns))
    font = _font(size)
    crowded = size > 3 or max((len(name) for name in columns), default=0) > 12
    axes.set_xticks(range(len(columns)), columns, fontsize=font, rotation=90 if size > 12 else 35 if crowded else 0)
    if crowded and size <= 12:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(len(rows)), rows, fontsize=font)
    axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5 if size <= 12 else 0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return image


def _write(axes: Axes, row: int, column: int, text: str, value: float, size: float) -> None:
    axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if value > 0.45 else INK)


def _font(size: int) -> float:
    """Points, so that `size` labels fit along an axis."""
    return 9 if size <= 12 else 8 if size <= 20 else 6.5
