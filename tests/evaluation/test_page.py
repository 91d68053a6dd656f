"""The page on evaluation: its code runs as it stands there, block after block."""

import re
from pathlib import Path

from adapterbank.evaluation import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_python_block_runs_in_its_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    try:
        for source in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
            exec(compile(source, "evaluation.md", "exec"), names)
    finally:
        METRICS.pop("error_rate", None)
    assert (tmp_path / "classes.csv").read_text().startswith("label,clips,precision")
    assert "pipe organ" in names["bank"].task("instruments").labels


def test_the_table_of_the_page_has_every_metric_with_its_kinds_and_epochs():
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|(.*)\|$", PAGE, flags=re.MULTILINE)
    assert [name for name, *_ in rows] == [
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "top3_accuracy",
        "map",
        "auc",
        "ece",
        "loss",
    ]
    assert {name for name, *_ in rows} == METRICS.keys()
    for name, single, multilabel, each_epoch in rows:
        metric = METRICS[name]
        assert bool(single.strip()) == (metric.single_label is not None)
        assert bool(multilabel.strip()) == (metric.multilabel is not None)
        assert (each_epoch.strip() == "yes") == metric.each_epoch
