"""The page on data, docs/data.md: what it shows runs, and its tables say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adapterbank.data.check import KINDS, PROBLEMS
from adapterbank.data.tables import COLUMNS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize(
    "source", [pytest.param(block, marks=[pytest.mark.slow] if "fit(" in block else []) for block in BLOCKS]
)
def test_every_python_block_runs(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "data.md", "exec"), {})


def test_every_column_and_every_kind_of_finding_stands_on_the_page() -> None:
    lines = re.findall(r"^\| ([^|]+?) \| (.*) \|$", PAGE, re.M)
    rows = {key: [cell.strip() for cell in rest.split("|")] for key, rest in lines}
    for kind, names in COLUMNS.items():
        assert rows[kind][0] == ", ".join(names)
    told = {name for key in rows for name in key.split(", ")}
    assert set(KINDS) <= told
    for kind in KINDS:
        row = next(cells for key, cells in rows.items() if kind in key.split(", "))
        assert (row[0] == "yes") == (kind in PROBLEMS), kind
