"""Figures of a task's inside: which blocks earn their adapters, and how far gates open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from adapterbank.backbone.weights import PREFIX_TOKENS
from adapterbank.errors import ConfigError
from adapterbank.inspection import LayerImportance
from adapterbank.plots.style import (
    AROUND_ONE,
    BLUE,
    COUNTED_CLASSES,
    DPI,
    INK,
    LONGEST,
    MUTED,
    ORANGE,
    block_ticks,
    font_size,
    open_frame,
)
from adapterbank.plots.text import AS_IT_STANDS, heading, shown, shown_lines, some


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
        axes.set_title(f"{shown(name)}\n{whole}", fontsize=9, color=INK, **AS_IT_STANDS)
        axes.axhline(0, color=INK, linewidth=0.8)
        if not scores.any():
            axes.text(0.5, 0.5, "0 for every block", transform=axes.transAxes, ha="center", fontsize=8, color=MUTED)
        axes.set_xticks(block_ticks(blocks))
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        axes.yaxis.get_offset_text().set_fontsize(8)
        open_frame(axes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("block", fontsize=9)
    figure.supylabel("score lost without its adapter" if shared else "squared gradient per parameter", fontsize=9)
    heading(figure, title, INK)
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
    gates = np.ma.masked_invalid(values.T.numpy())
    blocks, count = gates.shape
    width = min(max(4.6, (0.42 if count <= COUNTED_CLASSES else 0.12) * count + 1.6), 14)
    figure = Figure(figsize=(width, 0.24 * blocks + 2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    reach = max(float(np.abs(gates - 1).max(fill_value=0)), 0.05)
    image = axes.imshow(
        gates, cmap=AROUND_ONE, vmin=1 - reach, vmax=1 + reach, aspect="auto", origin="lower", interpolation="nearest"
    )
    if names:
        written = [shown(names[place], LONGEST) for place in some(count)]
        axes.set_xticks(some(count), written, fontsize=font_size(count), rotation=90, **AS_IT_STANDS)
    elif rows:
        columns = columns or (count - PREFIX_TOKENS) // rows
        starts = [PREFIX_TOKENS + row * columns for row in range(rows)]
        axes.set_xticks(np.array(starts) - 0.5, [str(row) for row in range(rows)], fontsize=8, ha="left")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("token: cls, dist, then the patches of frequency row 0, 1, ..." if rows else "clip")
    axes.set_yticks(block_ticks(blocks))
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylabel("block")
    axes.spines[:].set_visible(False)
    axes.set_title(shown_lines(title), fontsize=11, color=INK, **AS_IT_STANDS)
    figure.colorbar(image, ax=axes, label="gate")
    return figure
