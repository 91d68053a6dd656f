"""Figure of a long recording: its spectrogram, and below it the events of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from adapterbank.errors import ConfigError
from adapterbank.plots.style import BLUE, DPI, GREEN, INK, MUTED, ORANGE
from adapterbank.plots.text import AS_IT_STANDS, shown, shown_lines
from adapterbank.text import amount

LANES = 8  # labels of a task that have a lane of their own; the rest is counted
COLOURS = (BLUE, ORANGE, GREEN)  # of the tasks, in turn


class Span(Protocol):
    """A label from its onset to its offset, in seconds."""

    @property
    def label(self) -> str: ...
    @property
    def onset(self) -> float: ...
    @property
    def offset(self) -> float: ...
    @property
    def score(self) -> float: ...


def timeline(spectrogram: Tensor, seconds: float, events: Mapping[str, Sequence[Span]], *, title: str = "") -> Figure:
    """The spectrogram above, and a panel for each task below, over one axis of time.

    A label has a lane, the earliest at the top, and a bar for each of its events; the higher its score, the stronger
    the colour. Of a task with many labels the eight that hold longest have lanes, and a line counts the others.

    Args:
        spectrogram: (K, M) log-mels in nats, evenly over the recording; NaN is blank.
        seconds: of the recording.
        events: {task: its events}.

    Raises:
        ConfigError: there is nothing to draw.
    """
    if spectrogram.ndim != 2 or not spectrogram.numel() or seconds <= 0:
        raise ConfigError(f"got a spectrogram {tuple(spectrogram.shape)} of {seconds} s, expected (columns, mel bins).")
    lanes = {task: _lanes(found) for task, found in events.items()}
    heights = [1.6, *(0.35 + 0.2 * max(1, len(names)) for names in lanes.values())]
    figure = Figure(figsize=(11, sum(heights) + 0.6), dpi=DPI, layout="constrained")
    top, *panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_spectrogram(top, spectrogram, seconds)
    top.set_title(shown_lines(title), fontsize=11, color=INK, **AS_IT_STANDS)
    for number, (panel, (task, found)) in enumerate(zip(panels, events.items(), strict=True)):
        _draw_track(panel, task, found, lanes[task], COLOURS[number % len(COLOURS)], seconds)
    bottom = panels[-1] if panels else top
    bottom.set_xlim(0, seconds)
    bottom.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 1.5, 2, 3, 6, 10]))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda second, _: clock(second, seconds)))
    bottom.set_xlabel("time, h:min:s" if seconds >= 3600 else "time, min:s")
    return figure


def clock(second: float, whole: float) -> str:
    """A time as "1:05"; "1:00:05" in a recording of an hour or more, "0:01.5" in one of a few seconds."""
    rounded = round(second, 1) if whole < 10 else round(second)
    minutes, rest = divmod(rounded, 60)
    tail = f"{rest:04.1f}" if whole < 10 else f"{rest:02.0f}"
    if whole < 3600:
        return f"{minutes:.0f}:{tail}"
    return f"{minutes // 60:.0f}:{minutes % 60:02.0f}:{tail}"


def _lanes(events: Sequence[Span]) -> list[str]:
    """The labels that have a lane, in the order in which they appear."""
    held: dict[str, float] = {}
    for event in events:
        held[event.label] = held.get(event.label, 0.0) + event.offset - event.onset
    longest = sorted(held, key=held.__getitem__, reverse=True)[:LANES]
    return [label for label in held if label in longest]


def _draw_spectrogram(axes: Axes, spectrogram: Tensor, seconds: float) -> None:
    values = np.ma.masked_invalid(spectrogram.numpy().T)
    low, high = np.percentile(values.compressed(), [5, 99.5]) if values.count() else (0.0, 1.0)
    axes.imshow(
        values,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=max(high, low + 1e-6),
        extent=(0, seconds, 0, len(values)),
    )
    axes.set_yticks([])
    axes.set_ylabel("log-mel", fontsize=9)


def _draw_track(
    axes: Axes, task: str, events: Sequence[Span], lanes: Sequence[str], colour: str, seconds: float
) -> None:
    for lane, label in enumerate(lanes):
        mine = [event for event in events if event.label == label]
        bars = axes.broken_barh(
            [(event.onset, event.offset - event.onset) for event in mine], (lane - 0.36, 0.72), facecolors=colour
        )
        bars.set_alpha([0.25 + 0.75 * min(1.0, max(0.0, event.score)) for event in mine])
    axes.set_yticks(range(len(lanes)), [shown(label, 28) for label in lanes], fontsize=8, **AS_IT_STANDS)
    axes.set_ylim(max(1, len(lanes)) - 0.5, -0.5)
    axes.set_ylabel(shown(task), fontsize=9, color=INK, rotation=0, ha="right", va="center", **AS_IT_STANDS)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    others = {event.label for event in events} - set(lanes)
    note = f"and {amount(len(others), 'more label')}, not drawn" if others else "" if events else "no event"
    if note:
        axes.text(1.0, 1.0, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color=MUTED)
