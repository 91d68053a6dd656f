"""Pictures of measured speed: ratios beside their goals, and how cost grows.

As in `adapterbank.plots` figures are made without pyplot, which would keep every one of them open.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from adapterbank.errors import ConfigError
from adapterbank.plots import BLUE, DPI, INK, ORANGE

TICKS = (0.01, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 100, 1000)
LINES = (BLUE, ORANGE, "#3a8f5c", "#8a5fb0")


def beyond_goals(ratios: Mapping[str, float]) -> Figure:
    """A bar per claim on a logarithmic axis: blue to the right of 1, where the goal is reached, orange to the left.

    Args:
        ratios: {claim: what was measured over the goal}; of goals that are upper limits, the goal over it.

    Raises:
        ConfigError: there is nothing to draw, or a ratio that is not positive.
    """
    values = np.array(list(ratios.values()), dtype=float)
    if not len(values) or not (values > 0).all():
        raise ConfigError(f"got the ratios {dict(ratios)}, expected {{claim: positive ratio over its goal}}.")
    figure = Figure(figsize=(10, 0.28 * len(values) + 1), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(values)), values - 1, 0.7, left=1, color=np.where(values < 1, ORANGE, BLUE))
    axes.axvline(1, color=INK, linewidth=0.9)
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, 0.8 * values.min()), max(2.0, 1.25 * values.max()))
    low, high = axes.get_xlim()
    shown = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(values)), list(ratios), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("measured / goal (reached from 1 on)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def growth(panels: Mapping[str, Mapping[str, Mapping[float, float]]]) -> Figure:
    """How many times as long something takes as at the first point, both axes logarithmic; dotted: in proportion.

    Args:
        panels: {what grows: {curve: {its size: ratio to the first point}}}.

    Raises:
        ConfigError: there is nothing to draw.
    """
    if not panels or not all(points for curves in panels.values() for points in curves.values()):
        raise ConfigError("got no curve to draw, expected {what grows: {curve: {size: ratio}}}.")
    figure = Figure(figsize=(4.2 * len(panels), 3.6), dpi=DPI, layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (name, points), colour in zip(curves.items(), itertools.cycle(LINES), strict=False):
            axes.plot(list(points), list(points.values()), color=colour, marker="o", markersize=3, label=name)
        sizes = sorted({size for points in curves.values() for size in points})
        axes.plot(sizes, [size / sizes[0] for size in sizes], color="#7b8794", linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.set_xlabel(title.replace("_", " "))
        axes.grid(color="#e4e7eb", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.supylabel("time / time of the first point", fontsize=9)
    return figure
