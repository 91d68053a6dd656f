"""What the README shows must run as it stands there, and so must docs/methods.md, which has its table of methods."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

from adapterbank import methods
from adapterbank.audio.read import read_audio
from adapterbank.cli.app import app
from adapterbank.data import demo_tasks
from adapterbank.methods.table import ARXIV
from adapterbank.training import defaults

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A working folder with `my_clips` and `clip.wav`, as the README's reader has it, in which trainings are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(defaults, "MOST_PASSES", 2)  # so that `fit` without options makes two passes, not a hundred
    for label in ("bass", "brass", "organ"):
        folder = tmp_path / "my_clips" / label
        folder.mkdir(parents=True)
        for file in sorted(demo_tasks()["instruments"].glob(f"{label}_*.ogg"))[:8]:
            shutil.copy(file, folder)
    soundfile.write("clip.wav", read_audio(file).numpy(), 16_000)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21 asks transformers 5.23
@pytest.mark.parametrize("source", [*blocks("python"), *blocks("python", METHODS)])
def test_every_python_block_runs(source, own_folder):
    if "from peft" in source:
        pytest.importorskip("peft")
    exec(compile(source, "README.md", "exec"), {})
    assert (own_folder / "my_bank" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_same_from_a_shell_gives_a_table_and_records_in_the_folder(own_folder):
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("adapterbank ")]
    assert commands
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
        assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].startswith("clip.wav,")
    assert (own_folder / "mlflow.db").is_file()


def test_the_own_folder_is_trained_in_ten_lines_with_nothing_but_the_data():
    (source,) = (block for block in blocks("python") if "my_clips" in block)
    lines = [line for line in source.splitlines() if line]
    assert len(lines) <= 10
    assert 'fit(bank, "pets", train, val)' in lines


def two_commands():
    """The README's lines that begin with an environment: the main job, the tests."""
    section = README.partition("## Two commands")[2].partition("\n## ")[0]
    return [block.strip() for block in blocks("bash", section)]


def test_each_of_the_two_commands_is_one_line_that_makes_its_environment():
    job, tests = two_commands()
    assert "\n" not in job + tests
    assert job.endswith(".venv/bin/python recipes/sequential_tasks.py")
    assert job.startswith("python3 -m venv .venv && ")
    assert tests.startswith("python3 -m venv .venv && ")


def test_ci_runs_the_second_command_as_it_stands_in_the_readme():
    _, tests = two_commands()
    quoted = re.findall(r"^tests='(.*)'$", CI, flags=re.MULTILINE)
    assert quoted == [tests]
    assert re.search(r'^step eval "\$tests"$', CI, flags=re.MULTILINE)
    assert '-m "slow or not slow"' in tests


def test_ci_is_a_script_that_bash_can_read():
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True, timeout=60)


def test_every_recipe_named_exists_and_every_recipe_is_named():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    recipes = {file.name for file in (ROOT / "recipes").glob("*.py")}
    assert set(re.findall(r"recipes/(\w+\.py)", page)) == recipes
    assert set(re.findall(r"recipes/(\w+\.py)", README)) <= recipes


def test_every_page_is_linked():
    pages = {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#]+)\)", README))


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_file_exists(page):
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


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
    (table,) = re.findall(r"<!-- python -m adapterbank.methods -->\n(.*?)\n<!-- end of methods -->", METHODS, re.DOTALL)
    assert table == methods.overview().markdown(), "paste what `python -m adapterbank.methods` prints"


def test_the_counts_in_the_text_below_the_table_are_those_of_the_library():
    text = METHODS.partition("<!-- end of methods -->")[2].partition("## From and to peft")[0]
    with_head = {"aat_m": 20, "aat_ms": 20, "joint": 30}
    counts = {methods.count(name) + 2 * 768 + 769 * classes for name, classes in with_head.items()}
    assert {int(n.replace(",", "")) for n in re.findall(r"\d[\d,]+,\d{3}", text)} == {
        *counts,
        methods.count("conformer", kernel=31),
    }


def test_every_paper_of_the_table_is_a_link_and_every_link_of_the_table_is_used():
    named = {paper.removesuffix(" (baselines)") for row in methods.overview() for paper in row.paper.split("; ")}
    assert named == set(ARXIV)
