"""The confusion matrix of a test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from adapterbank.errors import ConfigError
from adapterbank.plots.style import COUNTED_CLASSES, DPI, INK, MUTED, ORANGE, font_size, heat_map, write_in_cell
from adapterbank.plots.text import AS_IT_STANDS, NAMED, shown, shown_lines

WORST = 25  # confusions that are named where there are too many classes to name them all


def confusion_counts(logits: Tensor, targets: Tensor) -> Tensor:
    """How often clips of class i were called class j. `evaluation.confusion` also knows a task's thresholds.

    Args:
        logits: (B, C); clips with a NaN are left out.
        targets: (B,) class indices; or (B, C) of 0 and 1, where a clip counts once for each of its labels, in every
            column whose probability is above one half.

    Returns:
        (C, C) int64, rows the truth.
    """
    classes, there = logits.shape[1], ~logits.isnan().any(dim=1)
    logits, targets = logits[there], targets[there]
    if targets.ndim == 2:
        return (targets.double().T @ (logits > 0).double()).round().to(torch.int64)
    flat = targets.long() * classes + logits.argmax(dim=1)
    return torch.bincount(flat, minlength=classes**2).view(classes, classes)


def confusion_matrix(counts: Tensor | ArrayLike, labels: Sequence[str], *, title: str = "") -> Figure:
    """Confusion matrix: colour is the share of the true class, numbers are clips.

    Of more than 60 classes the axes have their numbers; the 25 worst confusions are marked and listed by name.

    Args:
        counts: (C, C), rows the truth, as `confusion_counts` or scikit-learn's `confusion_matrix` gives them.
        labels: C class names.

    Raises:
        ConfigError: the sizes do not fit, or a count is negative.
    """
    counts = torch.as_tensor(counts)
    if tuple(counts.shape) != (len(labels), len(labels)):
        raise ConfigError(f"got counts of shape {tuple(counts.shape)} for {len(labels)} labels, expected one row each.")
    if bool((counts < 0).any()):
        raise ConfigError("got negative counts, expected how many clips of each class were taken for which.")
    size = len(labels)
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).numpy()
    named = size <= NAMED
    side = min(3.2 + 0.34 * size, 4.5 + 0.19 * size) + 1.0 if named else 9.0
    figure = Figure(figsize=(side + (1.1 if named else 5.5), side), dpi=DPI, layout="constrained")
    if named:
        axes = figure.subplots()
        image = heat_map(axes, shares, labels, labels)
        if size <= COUNTED_CLASSES:
            for row, column in np.argwhere(counts.numpy() > 0):
                share, count = float(shares[row, column]), str(int(counts[row, column]))
                write_in_cell(axes, row, column, count, share, font_size(size))
    else:
        axes, margin = figure.subplots(1, 2, width_ratios=(1.7, 1))
        image = heat_map(axes, shares, [""] * size, [""] * size)
        _name_the_worst(axes, margin, counts.numpy(), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(shown_lines(title), fontsize=11, color=INK, **AS_IT_STANDS)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return figure


def _name_the_worst(axes: Axes, margin: Axes, counts: np.ndarray, labels: Sequence[str]) -> None:
    """Numbers the classes along the axes, rings the cells with the most wrong clips and lists them by name.

    A cell of 500 classes is a pixel or two, so what was confused would not be seen without the ring.
    """
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        axis.set_major_formatter("{x:.0f}")
    axes.tick_params(labelsize=8, labelrotation=0)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    share = wrong / counts.sum(axis=1, keepdims=True).clip(1)
    order = np.lexsort((-share.ravel(), -wrong.ravel()))[:WORST]  # of equally many clips, those of small classes first
    cells = [divmod(int(place), len(labels)) for place in order if wrong.flat[place] > 0]
    margin.set_axis_off()
    margin.set_xlim(0, 1)
    margin.set_ylim(WORST + 1, -1)
    heading = "most clips confused: true → predicted" if cells else "no clip was confused"
    margin.text(0, -0.5, heading, fontsize=9, color=MUTED)
    for place, (row, column) in enumerate(cells):
        axes.plot(column, row, "o", markersize=9, markerfacecolor="none", markeredgecolor=ORANGE, markeredgewidth=1)
        clips = f"{wrong[row, column]} of {counts[row].sum()}"
        names = f"{shown(labels[row], 22)} → {shown(labels[column], 22)}"
        text = f"{names}   {clips}   ({row}, {column})"
        margin.text(0, place + 0.5, text, fontsize=7.5, color=INK, va="center", **AS_IT_STANDS)
