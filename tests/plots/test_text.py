"""Whatever a class or a task is called, figures write it as it stands."""

import io
from dataclasses import dataclass

import pytest
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from adapterbank import plots
from adapterbank.inspection import LayerImportance

NAMES = [
    "$",
    "cash $5 to $10",
    r"$\frac{1}$",
    r"\$x$\\",
    "a_b^{c",
    "_hidden",
    "100 %#&~",
    "two\nlines",
    "tab\tand\x00nul",
    "\udcff from a file name",
    "犬の声",
    "dog \U0001f436",
    "é and e\u0301",
    " ",
]


@dataclass(frozen=True)
class Span:
    """An event of a timeline."""

    label: str
    onset: float = 1.0
    offset: float = 2.0
    score: float = 1.0


def importance(name: str) -> LayerImportance:
    return LayerImportance(name, "aat_ms", "ablation", (0.1, 0.2), 0.9)


def with_names(names: list[str]) -> list[Figure]:
    """Each kind of figure with these names wherever it takes one."""
    count = len(names)
    square = [[0.5] * count for _ in range(count)]
    mel = torch.zeros(4, 8)
    counts = torch.ones(count, count, dtype=torch.int64)
    many = [*names, *(f"{index} $x$" for index in range(70))]
    return [
        plots.learning_curve([{"train/loss": 1.0, "val/accuracy": 0.5}], title=names[1]),
        plots.convergence({name: [1.0, 0.5] for name in names}),
        plots.confusion_matrix(counts, names, title=names[1]),
        plots.confusion_matrix(torch.ones(len(many), len(many), dtype=torch.int64), many, title=names[1]),
        plots.accuracy_matrix(dict.fromkeys(names[:2], square), names, score=names[1]),
        plots.score_bars({name: dict.fromkeys(names, 0.5) for name in names}, score=names[1]),
        plots.spectrogram_pairs([(name, mel, mel) for name in names], (names[0], names[1])),
        plots.layer_importance({name: importance(name) for name in names}, title=names[1]),
        plots.layer_importance(importance(names[2])),
        plots.gate_values(torch.rand(count, 3), names, title=names[1]),
        plots.timeline(torch.zeros(5, 4), 9.0, {name: [Span(name)] for name in names}, title=names[1]),
    ]


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=30)
    return buffer.getvalue()


def test_no_name_breaks_a_figure_or_makes_it_warn():
    for figure in with_names(NAMES):
        assert png(figure).startswith(b"\x89PNG")


def test_dollars_are_drawn_as_dollars_and_latex_is_never_asked():
    dollars = [name for name in NAMES if "$" in name] + ["plain"]
    with rc_context({"text.usetex": True}):  # which would need LaTeX here
        figures = with_names(dollars)
    for figure in figures:
        texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert texts
        assert not any(text.get_parse_math() or text.get_usetex() for text in texts)


def test_the_labels_of_a_confusion_matrix_are_the_names_with_escapes_for_what_cannot_be_drawn():
    axes = plots.confusion_matrix(torch.ones(14, 14, dtype=torch.int64), NAMES).axes[0]
    drawn = [label.get_text() for label in axes.get_xticklabels()]
    assert drawn == [label.get_text() for label in axes.get_yticklabels()]
    expected = {
        "two\nlines": "two\\nlines",
        "tab\tand\x00nul": "tab\\tand\\x00nul",
        "\udcff from a file name": "\\udcff from a file name",
        "dog \U0001f436": "dog \\U0001f436",
        "犬の声": "\\u72ac\\u306e\\u58f0",
    }
    assert drawn == [expected.get(name, name) for name in NAMES]


def test_a_legend_leaves_out_no_name():
    figure = plots.score_bars({name: {"esc": 0.5} for name in ("_a", "$b$", "__")})
    assert [text.get_text().strip("\N{THIN SPACE}") for text in figure.legends[0].get_texts()] == ["_a", "$b$", "__"]


@pytest.mark.parametrize("longest", [5, 6])
def test_a_long_name_keeps_its_ends(longest):
    names = ["x" * 40 + "a" * longest, "x" * 40 + "b" * 300]
    drawn = [label.get_text() for label in plots.confusion_matrix(torch.eye(2), names).axes[0].get_yticklabels()]
    assert drawn[0] == names[0]
    assert (drawn[1][:20], drawn[1][-20:], len(drawn[1])) == ("x" * 20, "b" * 20, 48)
