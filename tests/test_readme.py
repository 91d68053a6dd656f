"""What the README shows must run as it stands there."""

import re
from pathlib import Path

import pytest

from adapterbank import methods

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21 asks transformers 5.23
@pytest.mark.parametrize("source", blocks("python"))
def test_every_python_block_runs(source, tmp_path, monkeypatch):
    if "from peft" in source:
        pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "README.md", "exec"), {})
    assert (tmp_path / "my_bank" / "manifest.json").is_file()


def test_every_recipe_named_exists_and_every_recipe_is_named():
    named = set(re.findall(r"recipes/(\w+\.py)", README))
    assert named == {file.name for file in (ROOT / "recipes").glob("*.py")}


def test_every_linked_file_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page):
    """The addresses of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_finds_it(page):
    links = re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    missing = [f"{file}#{name}" for file, name in links if name not in anchors(page.parent / file if file else page)]
    assert missing == []


def test_no_figure_is_left_to_be_filled_in():
    assert "@@" not in README


def test_the_table_of_methods_is_the_one_that_the_command_prints():
    (table,) = re.findall(r"<!-- python -m adapterbank.methods -->\n(.*?)\n<!-- end of methods -->", README, re.DOTALL)
    assert table == methods.overview().markdown(), "paste what `python -m adapterbank.methods` prints"


def test_the_counts_in_the_text_below_the_table_are_those_of_the_library():
    text = README.partition("<!-- end of methods -->")[2].partition("## Recipes")[0]
    with_head = {"aat_m": 20, "aat_ms": 20, "joint": 30}
    counts = {methods.count(name) + 2 * 768 + 769 * classes for name, classes in with_head.items()}
    assert {int(n.replace(",", "")) for n in re.findall(r"\d[\d,]+,\d{3}", text)} == {
        *counts,
        methods.count("conformer", kernel=31),
    }
