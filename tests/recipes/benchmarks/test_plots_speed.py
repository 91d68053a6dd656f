"""Pictures of speed: where a goal is reached, and how curves grow."""

import io

import plots_speed
import pytest

from adapterbank.errors import ConfigError


def test_a_bar_begins_at_the_goal_and_ends_at_what_was_measured():
    figure = plots_speed.beyond_goals({"a": 2.0, "b": 0.5, "c": 1.0})
    (axes,) = figure.axes
    ends = [(round(bar.get_x(), 6), round(bar.get_x() + bar.get_width(), 6)) for bar in axes.patches]
    assert ends == [(1.0, 2.0), (1.0, 0.5), (1.0, 1.0)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.get_xscale() == "log"
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    figure.savefig(io.BytesIO())


def test_growth_has_a_panel_for_each_thing_that_grows_and_a_line_in_proportion():
    curves = {
        "tasks": {"aat_ms": {1: 1.0, 4: 1.5}, "lora": {1: 1.0, 4: 1.2}},
        "clip_length": {"fp32": {1: 1.0, 10: 9.0}},
    }
    figure = plots_speed.growth(curves)
    assert [axes.get_xlabel() for axes in figure.axes] == ["tasks", "clip length"]
    lines = [list(map(float, line.get_ydata())) for line in figure.axes[0].get_lines()]
    assert lines == [[1.0, 1.5], [1.0, 1.2], [1.0, 4.0]]
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("ratios", [{}, {"a": 0.0}])
def test_nothing_to_draw_is_refused(ratios):
    with pytest.raises(ConfigError, match="positive ratio"):
        plots_speed.beyond_goals(ratios)
    with pytest.raises(ConfigError, match="no curve"):
        plots_speed.growth({"tasks": {"a": ratios}} if not ratios else {})
