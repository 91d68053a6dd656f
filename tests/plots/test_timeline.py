"""The picture of a long recording shows every event where it is, and says what it leaves out."""

from types import SimpleNamespace

import pytest
import torch

from adapterbank.errors import ConfigError
from adapterbank.plots.timeline import LANES, clock, timeline


def event(label, onset, offset, score=1.0):
    return SimpleNamespace(label=label, onset=onset, offset=offset, score=score)


def bars(panel):
    """(left, right, lane, alpha) of each bar of a track."""
    found = []
    for collection in panel.collections:
        alphas = collection.get_alpha()
        for path, alpha in zip(collection.get_paths(), alphas, strict=True):
            box = path.get_extents()
            found.append((box.x0, box.x1, round((box.y0 + box.y1) / 2), alpha))
    return found


def texts(panel):
    return [text.get_text() for text in panel.texts]


def test_a_bar_stands_where_its_event_is_in_the_lane_of_its_label():
    events = {"pets": [event("dog", 0, 4), event("cat", 4, 6, 0.5), event("dog", 8, 10, 0.0)], "rest": []}
    figure = timeline(torch.randn(100, 8), 10.0, events, title="r.wav")
    top, pets, rest = figure.axes
    assert [label.get_text() for label in pets.get_yticklabels()] == ["dog", "cat"]
    expected = [(0, 4, 0, 1.0), (4, 6, 1, 0.625), (8, 10, 0, 0.25)]
    assert [pytest.approx(bar) for bar in sorted(bars(pets))] == expected
    assert top.get_title() == "r.wav"
    assert rest.get_ylabel() == "rest"
    assert texts(rest) == ["no event"]
    assert top.get_xlim() == (0, 10)
    figure.canvas.draw()


def test_labels_beyond_the_lanes_are_counted():
    events = {"many": [event(f"label {n}", n, n + 1 + n / 100) for n in range(LANES + 5)]}
    panel = timeline(torch.zeros(5, 4), 20.0, events).axes[1]
    assert [label.get_text() for label in panel.get_yticklabels()] == [f"label {n}" for n in range(5, LANES + 5)]
    assert texts(panel) == ["and 5 more labels, not drawn"]


@pytest.mark.parametrize("value", [float("nan"), -15.9])
def test_nothing_but_silence_or_nan_is_drawn_all_the_same(value):
    timeline(torch.full((3, 4), value), 1.0, {}).canvas.draw()


def test_signs_of_formulas_in_names_are_text():
    figure = timeline(torch.randn(3, 4), 1.0, {"t": [event("$x", 0, 1), event("$\\bad{$", 0, 1)]}, title="$5.wav $")
    figure.canvas.draw()


@pytest.mark.parametrize("spectrogram", [torch.zeros(0, 4), torch.zeros(4)])
def test_nothing_to_draw_is_refused(spectrogram):
    with pytest.raises(ConfigError, match="spectrogram"):
        timeline(spectrogram, 1.0, {})


@pytest.mark.parametrize(
    ("second", "whole", "text"),
    [(65, 100, "1:05"), (3605, 7200, "1:00:05"), (1.5, 9, "0:01.5"), (59.7, 100, "1:00"), (0, 3600, "0:00:00")],
)
def test_times_are_written_as_a_clock_shows_them(second, whole, text):
    assert clock(second, whole) == text
