"""What the README shows must run as it stands there."""

import re
from pathlib import Path

import pytest

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


def test_no_figure_is_left_to_be_filled_in():
    assert "@@" not in README
