"""Figures of trainings: learning curve, and training losses of many methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapterbank.errors import ConfigError
from adapterbank.evaluation import METRICS, current_name
from adapterbank.plots.style import BLUE, DPI, GREEN, INK, MUTED, ORANGE
from adapterbank.plots.text import AS_IT_STANDS, heading, shown


def learning_curve(epochs: Sequence[Mapping[str, float]], *, best_epoch: int = -1, title: str = "") -> Figure:
    """Losses and validation scores over the epochs.

    The left panel has the training loss and every validation metric of which less is better, the right panel every one
    of which more is better. Which those are is in the table of metrics, `adapterbank.evaluation.METRICS`.

    Args:
        epochs: as in `History.epochs`: "train/loss", and with validation data "val/<metric>".
        best_epoch: whose weights were kept, counted from 0; marked.

    Raises:
        ConfigError: there is no epoch to draw.
    """
    if not epochs:
        raise ConfigError("got no epochs to draw, expected History.epochs of a finished training.")
    epochs = [{current_name(key): value for key, value in record.items()} for record in epochs]
    there = [metric for metric in METRICS.values() if any(f"val/{metric.name}" in record for record in epochs)]
    losses = ["train/loss", *(f"val/{metric.name}" for metric in there if not metric.higher_is_better)]
    scores = [f"val/{metric.name}" for metric in there if metric.higher_is_better]
    figure = Figure(figsize=(8.4 if scores else 4.6, 3.4), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, 2 if scores else 1, squeeze=False)[0])
    _lines(panels[0], epochs, losses, (BLUE, ORANGE, MUTED, GREEN))
    panels[0].set_ylabel("loss")
    panels[0].set_ylim(bottom=0)
    if scores:
        _lines(panels[1], epochs, scores, (ORANGE, MUTED, BLUE, GREEN))
        panels[1].set_ylabel("score")
        drawn = [value for line in panels[1].get_lines() for value in line.get_ydata()]
        panels[1].set_ylim(np.nanmin([0, *drawn]), np.nanmax([1.02, *drawn]))  # a metric of one's own may leave [0, 1]
    for panel in panels:
        if 0 <= best_epoch < len(epochs):
            kept = f"kept: epoch {best_epoch + 1}"
            panel.axvline(best_epoch + 1, color=INK, linewidth=0.8, linestyle=":", label=kept)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(color="#e4e7eb", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    heading(figure, title, INK)
    return figure


def _lines(axes: Axes, epochs: Sequence[Mapping[str, float]], keys: Sequence[str], colours: Sequence[str]) -> None:
    """One line per key over the epochs, counted from 1; none for a key that was never measured."""
    for key, colour in zip(keys, cycle(colours), strict=False):
        values = [record.get(key, np.nan) for record in epochs]
        if not np.isnan(values).all():
            size = 3 if len(values) < 40 else 0
            numbers = range(1, len(epochs) + 1)
            axes.plot(numbers, values, color=colour, linewidth=1.6, marker="o", markersize=size, label=key)


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
        panel.set_title(f"{shown(name)}: {own[-1]:.2f}", fontsize=8, color=INK, **AS_IT_STANDS)
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    for panel in panels[len(losses) :]:
        panel.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("training loss", fontsize=9)
    return figure
