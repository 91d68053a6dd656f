"""Pictures: what they show, and that they touch no global state of matplotlib."""

import io
import itertools
import math
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from adapterbank import plots
from adapterbank.data import catalog
from adapterbank.errors import ConfigError
from adapterbank.evaluation import METRICS, Metric
from adapterbank.inspection import LayerImportance

EPOCHS = [{"train/loss": 2.0 - i / 10, "val/loss": 2.1 - i / 20, "val/accuracy": i / 12, "lr": 1e-3} for i in range(6)]
MATRIX = [[0.9, None, None], [0.8, 0.7, None], [0.1, 0.2, 0.6]]
TASKS = ["a", "b", "c"]
IMPORTANCE = LayerImportance("esc", "aat_ms", "ablation", (0.1, -0.02, 0.3), 0.9)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_every_plot_renders_without_pyplot():
    figures = [
        plots.learning_curve(EPOCHS, best_epoch=5, title="a"),
        plots.learning_curve([{"train/loss": 1.0, "lr": 0.1}]),
        plots.confusion_matrix(torch.eye(3, dtype=torch.int64), TASKS),
        plots.accuracy_matrix({"bank": MATRIX, "naive": MATRIX}, TASKS),
        plots.layer_importance(IMPORTANCE, title="a"),
        plots.gate_values(torch.rand(3, 12), TASKS, title="a"),
        plots.gate_values(torch.rand(2 + 8 * 6, 12), rows=8),
    ]
    assert all(png(figure).startswith(b"\x89PNG") for figure in figures)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_the_learning_curve_shows_loss_score_and_the_kept_epoch():
    loss, score = plots.learning_curve(EPOCHS, best_epoch=3).axes
    lines = {line.get_label(): line for line in (*loss.get_lines(), *score.get_lines())}
    assert {"train/loss", "val/loss", "val/accuracy", "kept: epoch 4"} == set(lines)
    np.testing.assert_allclose(lines["train/loss"].get_ydata(), [record["train/loss"] for record in EPOCHS])
    np.testing.assert_array_equal(lines["val/accuracy"].get_xdata(), [1, 2, 3, 4, 5, 6])


def test_the_learning_curve_draws_every_metric_of_the_table_on_its_side():
    record = {"train/loss": 2.0, "val/loss": 2.1, "val/map": 0.2, "val/accuracy": 0.5, "lr": 1e-3}
    for missing in ("val/balanced_accuracy", "val/map"):
        given = {**record, "val/balanced_accuracy": 0.4}
        del given[missing]
        loss, score = plots.learning_curve([given, given]).axes
        assert {line.get_label() for line in loss.get_lines()} == {"train/loss", "val/loss"}
        assert {line.get_label() for line in score.get_lines()} == given.keys() - {"train/loss", "val/loss", "lr"}
        assert score.get_ylim() == (0, 1.02)


def test_a_metric_beyond_one_or_below_zero_stays_in_the_picture():
    METRICS["correlation"] = Metric("correlation", single_label=lambda logits, targets: 0.0)
    try:
        epochs = [{"train/loss": 1.0, "val/correlation": value} for value in (-0.5, 3.0)]
        _, score = plots.learning_curve(epochs).axes
    finally:
        del METRICS["correlation"]
    assert score.get_ylim() == (-0.5, 3.0)


def test_without_validation_there_is_one_panel():
    assert len(plots.learning_curve([{"train/loss": 1.0}, {"train/loss": 0.5}]).axes) == 1


def test_confusion_counts_have_the_truth_in_their_rows():
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]])
    counts = plots.confusion_counts(logits, torch.tensor([0, 0, 1, 2]))
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_confusion_counts_of_a_multilabel_task_count_a_clip_for_each_of_its_labels():
    logits = torch.tensor([[3.0, 3.0, -3.0], [-3.0, 3.0, -3.0]])
    counts = plots.confusion_counts(logits, torch.tensor([[1, 1, 0], [0, 0, 1]]))
    assert counts.tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("name", ["mandarin_tones", "instruments", "openmic", "speechcommands", "esc50"])
def test_no_labels_of_a_confusion_matrix_overlap(name):
    labels = catalog.lookup(name).labels
    figure = plots.confusion_matrix(torch.eye(len(labels), dtype=torch.int64) * 7, labels)
    png(figure)
    (axes, _) = figure.axes
    heights = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(not one.overlaps(other) for one, other in itertools.pairwise(heights))
    assert [label.get_text() for label in axes.get_xticklabels()] == list(labels)
    if len(labels) > 12:  # upright: slanted ones have overlapping boxes but not letters
        widths = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(not one.overlaps(other) for one, other in itertools.pairwise(widths))


def test_of_500_classes_the_worst_confusions_are_named_in_seconds():
    counts = torch.eye(500, dtype=torch.int64) * 9
    counts[3, 400], counts[499, 0], counts[7, 8], counts[9, 10] = 5, 4, 2, 2
    counts[7, 7] = 3  # 2 of 5 clips are worse than 2 of 11
    start = time.process_time()
    figure = plots.confusion_matrix(counts, [f"class {index}" for index in range(500)])
    png(figure)
    assert time.process_time() - start < 10  # 0.5 s alone on a machine; 69 s with a label for each class
    axes, margin = figure.axes[:2]
    lines = [text.get_text() for text in margin.texts][1:]
    assert [line.split("   ") for line in lines] == [
        ["class 3 → class 400", "5 of 14", "(3, 400)"],
        ["class 499 → class 0", "4 of 13", "(499, 0)"],
        ["class 7 → class 8", "2 of 5", "(7, 8)"],
        ["class 9 → class 10", "2 of 11", "(9, 10)"],
    ]
    rings = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines()]
    assert rings == [(400, 3), (0, 499), (8, 7), (10, 9)]
    boxes = [text.get_window_extent() for text in margin.texts]
    assert all(not one.overlaps(other) for one, other in itertools.pairwise(boxes))
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_500_classes_without_a_confusion_are_said_to_have_none():
    figure = plots.confusion_matrix(torch.eye(500, dtype=torch.int64), [str(index) for index in range(500)])
    assert [text.get_text() for text in figure.axes[1].texts] == ["no clip was confused"]


def test_hundreds_of_tasks_and_clips_are_drawn_with_some_of_their_names():
    names = [f"task {index}" for index in range(200)]
    axes = plots.accuracy_matrix({"bank": [[0.5] * 200] * 200}, names).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == names[::4]
    axes = plots.gate_values(torch.rand(200, 2), names).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == names[::4]


def test_clips_without_logits_are_in_no_cell_of_the_confusions():
    logits = torch.tensor([[2.0, 0], [math.nan, math.nan]])
    assert plots.confusion_counts(logits, torch.tensor([0, 1])).tolist() == [[1, 0], [0, 0]]


def test_a_curve_of_before_is_drawn_under_the_names_of_today():
    _, score = plots.learning_curve([{"train/loss": 1.0, "val/macro_accuracy": 0.5}]).axes
    assert [line.get_label() for line in score.get_lines()] == ["val/balanced_accuracy"]


def test_a_class_without_clips_is_drawn_without_division_by_zero():
    png(plots.confusion_matrix(torch.tensor([[3, 1], [0, 0]]), ["a", "b"]))


def test_the_accuracy_matrix_is_blank_where_nothing_was_measured():
    axes = plots.accuracy_matrix({"bank": MATRIX}, TASKS).axes[0]
    shown = axes.get_images()[0].get_array()
    assert shown.mask.tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    assert sorted(text.get_text() for text in axes.texts) == sorted(["0.90", "0.80", "0.70", "0.10", "0.20", "0.60"])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.learning_curve([]), "no epochs"),
        (lambda: plots.confusion_matrix(torch.eye(3), ["a", "b"]), "2 labels"),
        (lambda: plots.accuracy_matrix({}, TASKS), "no matrix"),
        (lambda: plots.accuracy_matrix({"bank": MATRIX}, ["a"]), "not 1 x 1"),
        (lambda: plots.layer_importance({}), r"kinds \[\]"),
        (
            lambda: plots.layer_importance({"a": IMPORTANCE, "b": replace(IMPORTANCE, kind="gradient")}),
            "'ablation', 'gradient'.*all of one kind",
        ),
        (lambda: plots.gate_values(torch.rand(3)), r"shape \(3,\)"),
        (lambda: plots.gate_values(torch.rand(3, 2), ["a"]), "1 names"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ConfigError, match=message):
        draw()


def test_bars_stand_for_every_score_that_was_measured():
    scores = {"head": {"esc": 0.25, "urban": 0.5}, "aat_ms": {"urban": 0.75}}
    axes = plots.score_bars(scores).axes[0]
    assert sorted(round(bar.get_height(), 2) for bar in axes.patches) == [0.25, 0.5, 0.75]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["esc", "urban"]
    assert axes.patches[2].get_x() > axes.patches[1].get_x()  # the second row stands right of the first
    with pytest.raises(ConfigError, match="no scores"):
        plots.score_bars({})


def test_bars_of_one_family_have_one_hue_and_no_two_bars_of_a_group_look_alike():
    rows = ["ridge", "probe: a", "probe: b", "mini: head", "mini: aat_m", "mini: aat_ms"]
    axes = plots.score_bars({row: {"esc": 0.5} for row in rows}).axes[0]
    colours = [bar.get_facecolor()[:3] for bar in axes.patches]
    assert len(set(colours)) == len(rows)
    redder = [red > blue for red, _, blue in colours]
    assert redder[1:] == [True, True, False, False, False]


def test_each_block_has_its_score_as_a_bar_and_a_harmful_one_another_colour():
    (axes,) = plots.layer_importance(IMPORTANCE).axes
    assert [round(bar.get_height(), 2) for bar in axes.patches] == [0.1, -0.02, 0.3]
    assert axes.get_title() == "esc (aat_ms)\nall adapters: 0.900"
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    assert not axes.texts
    (axes,) = plots.layer_importance(replace(IMPORTANCE, scores=(0.0, 0.0))).axes
    assert [text.get_text() for text in axes.texts] == ["0 for every block"]


@pytest.mark.parametrize("kind", ["ablation", "gradient"])
def test_several_results_stand_side_by_side_over_the_same_blocks(kind):
    results = {str(i): replace(IMPORTANCE, kind=kind, scores=(0.1 * 10**i, 0, 0)) for i in range(4)}
    figure = plots.layer_importance(results)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title()[0] for axes in panels] == ["0", "1", "2", "3"]
    assert len({axes.get_xlim() for axes in panels}) == 1
    assert len({axes.get_ylim() for axes in panels}) == (1 if kind == "ablation" else 4)


def test_gates_are_coloured_around_one_and_grey_where_there_is_none():
    values = torch.tensor([[float("nan"), 1.0, 1.5], [float("nan"), 0.8, 1.0]])
    axes, _ = plots.gate_values(values, ["dog", "cat"]).axes
    (image,) = axes.get_images()
    assert image.get_array().shape == (3, 2)
    assert image.get_array().mask.tolist() == [[True, True], [False, False], [False, False]]
    assert image.get_clim() == (0.5, 1.5)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["dog", "cat"]
    assert axes.get_ylim() == (-0.5, 2.5)


def test_gates_of_tokens_have_a_mark_at_each_frequency_row():
    axes, _ = plots.gate_values(torch.rand(2 + 3 * 5, 2), rows=3).axes
    assert axes.get_xticks().tolist() == [1.5, 6.5, 11.5]
    assert "token" in axes.get_xlabel()


def test_counts_of_a_confusion_matrix_may_be_an_array_or_lists_and_are_never_negative():
    tensor = torch.tensor([[3, 1], [0, 2]])
    pictures = []
    for counts in (tensor, tensor.numpy(), tensor.tolist()):
        image = io.BytesIO()
        plots.confusion_matrix(counts, ["a", "b"]).savefig(image, format="raw")
        pictures.append(image.getvalue())
    assert pictures[0] == pictures[1] == pictures[2]
    with pytest.raises(ConfigError, match="negative counts"):
        plots.confusion_matrix(-tensor, ["a", "b"])
