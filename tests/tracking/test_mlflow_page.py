"""What the page on MLflow shows must run as it stands there."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "mlflow.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_pages_python_blocks_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names: dict[str, object] = {}
    for source in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(source, "docs/mlflow.md", "exec"), names)
    assert "studio" in names["other"].tasks
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first == second


def test_the_page_explains_every_column_of_the_table():
    from adapterbank.tracking.mlflow import COLUMNS

    own = [name for name in COLUMNS if not name.startswith(("val/", "train/", "test/accuracy"))]
    assert [name for name in own if f"`{name}`" not in PAGE] == []
