"""Every row measures what it says on a tiny AST; the recipe keeps lines, repeats none and draws them."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from omegaconf import OmegaConf
from sidebyside import Bench

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
TINY = ["geometry=tiny", "bank_geometry=tiny", "pairs=1", "batch=0.1", "peer_batch=10", "matrix=64"]
SMALL = ["bank_tasks=12", "resident=4", "agreement.clips=4", "recording_seconds=23", "tasks_in_bank=[1,3]"]
pytestmark = [
    pytest.mark.slow,
    # peft 0.21 asks transformers 5.23 for a deprecated property.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


def load(name):
    """The names of a recipe, which nothing may import."""
    return runpy.run_path(str(RECIPES / f"{name}.py"))


def page_of(recipe, row):
    """The script that measures a row, or a growth."""
    return f"benchmarks/rows_{recipe['SCRIPTS'][row]}" if row in recipe["SCRIPTS"] else "benchmarks/growth"


@pytest.fixture(scope="module")
def recipe():
    return load("benchmark")


@pytest.fixture(scope="module")
def base(recipe, tmp_path_factory):
    """What the recipe makes before it starts a row."""
    cfg = OmegaConf.load(RECIPES / "conf" / "benchmark.yaml")
    out = tmp_path_factory.mktemp("benchmark")
    recipe["make_backbone"](out / "backbones" / f"tiny-{cfg.classes}", dict(cfg.geometries.tiny), cfg.classes)
    return out


@pytest.fixture
def claims_of(recipe, base, packs):
    """The claims of a row on two layers, measured in this process."""

    def measure(row):
        cfg = OmegaConf.load(RECIPES / "conf" / "benchmark.yaml")
        options = [*TINY, *SMALL, f"out={base}", f"agreement.data={packs / 'single'}", "lengths=[1,2]"]
        cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist([*options, "tasks_in_batch=[1,2,4]"]))
        rows = load(page_of(recipe, row))["ROWS"]
        return list(rows[row](cfg, Bench(torch.device("cpu"), pairs=1, matrix=64, batch=0.1)))

    return measure


def test_every_row_of_the_issue_belongs_to_one_recipe(recipe):
    rows = [
        row
        for script in (*(f"rows_{page}" for page in recipe["PAGES"]), "growth")
        for row in load(f"benchmarks/{script}")["ROWS"]
    ]
    numbered = sorted(row for row in rows if isinstance(row, int))
    assert numbered == [*range(1, 19)] == sorted(recipe["SCRIPTS"])
    assert [row for row in rows if isinstance(row, str)] == list(recipe["GROWTH"])
    assert all(row in load(page_of(recipe, row))["ROWS"] for row in recipe["SCRIPTS"])


@pytest.mark.parametrize("row", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 16, 17, 18, "clip_length", "tasks"])
def test_a_row_measures_both_sides_and_their_outputs_agree(row, claims_of):
    if row in (4, 5, 8):
        pytest.importorskip("peft")
    claims = claims_of(row)
    assert claims
    assert len({found["what"] for found in claims}) == len(claims)
    for found in claims:
        if "needs" in found:
            continue
        assert math.isfinite(found["ratio"])
        if "theirs" in found:
            assert found["ours"] > 0 < found["theirs"]
            assert found["ratio"] > 0
        if "largest difference" in found["what"] and found["goal"] is not None:
            assert found["reached"], found


def test_the_front_ends_hear_the_same(claims_of):
    gaps = [found["ratio"] for found in claims_of(11) if "theirs" not in found]
    assert len(gaps) == 2
    assert max(gaps) < 1e-2


def test_a_bank_on_disk_is_measured_in_processes_of_its_own(base, tmp_path, run_recipe):
    done = run_recipe("benchmarks/rows_disk", tmp_path, *TINY, *SMALL, "row=12", f"out={base}")
    assert done.returncode == 0, done.stderr
    claims = [json.loads(line) for line in (base / "rows.jsonl").read_text().splitlines()]
    assert {found["row"] for found in claims} == {12}
    assert all("needs" in found or math.isfinite(found["ratio"]) for found in claims)


def test_the_recipe_keeps_lines_and_repeats_none(tmp_path, run_recipe):
    arguments = [*TINY, *SMALL, "out=speed"]
    first = run_recipe("benchmark", tmp_path, *arguments, "row=7", "growth=bank")
    assert first.returncode == 0, first.stderr
    log = tmp_path / "speed" / "rows.jsonl"
    before = log.read_bytes()
    lines = [json.loads(line) for line in before.splitlines()]
    assert {line["row"] for line in lines} == {7, "bank"}
    assert all(line["machine"]["threads"] == 1 and line["configuration"]["geometry"] == "tiny" for line in lines)
    table = (tmp_path / "speed" / "table.md").read_text()
    assert all(line["what"] in table for line in lines)
    assert imread(tmp_path / "speed" / "ratios.png").ndim == 3
    assert imread(tmp_path / "speed" / "growth.png").ndim == 3

    again = run_recipe("benchmark", tmp_path, *arguments, "row=7")
    assert again.returncode == 0, again.stderr
    assert log.read_bytes() == before
    wrong = run_recipe("benchmark", tmp_path, "row=19", "out=speed")
    assert wrong.returncode == 1
    assert "unknown row 19" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_the_worth_of_a_trick_is_measured_once_and_stands_in_a_table(tmp_path, run_recipe):
    small = ["geometry=tiny", "pairs=1", "batch=0.1", "tricks=[all]", "rows=[2,3]", "+lines.all=7", "out=worth"]
    first = run_recipe("benchmarks/tricks", tmp_path, *small)
    assert first.returncode == 0, first.stderr
    log, table = (tmp_path / "worth" / name for name in ("tricks.jsonl", "tricks.md"))
    before = log.read_bytes()
    lines = [json.loads(line) for line in before.splitlines()]
    assert [(line["trick"], line["column"]) for line in lines] == [
        ("all", "3 fp32"),
        ("all", "2 bf16"),
        ("all", "3 bf16"),
    ]
    assert all(line["ratio"] > 0 for line in lines)
    assert all(min(line["megabytes"]) > 0 for line in lines if line["column"].startswith("3"))
    heading, _, row = table.read_text().splitlines()
    assert heading.count("|") == row.count("|")
    assert row.startswith("| all | 7 |")

    again = run_recipe("benchmarks/tricks", tmp_path, *small)
    assert again.returncode == 0, again.stderr
    assert log.read_bytes() == before
    unknown = run_recipe("benchmarks/tricks", tmp_path, "geometry=tiny", "tricks=[magic]", "out=worth_not")
    assert unknown.returncode == 1
    assert "unknown trick 'magic'" in " ".join(unknown.stderr.split())


@pytest.mark.slow
def test_the_command_is_measured_beside_the_pipeline(tmp_path, run_recipe):
    small = ["geometry=tiny", "bank_geometry=tiny", "pairs=1", "files=3", "device=cpu", "out=speed"]
    done = run_recipe("benchmark", tmp_path, *small, "row=[14,15]")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "speed" / "rows.jsonl").read_text().splitlines()]
    assert {line["row"] for line in lines} == {14, 15}
    assert all(line["ours"] > 0 and line["theirs"] > 0 for line in lines)
    with (tmp_path / "speed" / "ours.csv").open() as ours, (tmp_path / "speed" / "theirs.csv").open() as theirs:
        assert len(ours.readlines()) == 1 + 3 * 4  # a heading, and a line for each file and task
        assert len(theirs.readlines()) == 3
