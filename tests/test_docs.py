"""What the pages in docs/ show must run as it stands there."""

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parent.parent / "docs" / "long_recordings.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_on_long_recordings_runs_and_finds_what_its_recording_is_made_of(tmp_path, monkeypatch):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    exec(compile(source, "long_recordings.md", "exec"), names)
    for file in ("concert.csv", "concert.txt", "concert.png"):
        assert (tmp_path / file).stat().st_size > 0
    found = {}
    for event in names["scan"].windows("instruments"):
        found.setdefault(event.label, []).append(event.onset)
    assert {3.0, 1.5} <= set(found["bass"])
    assert {7.5, 9.0} <= set(found["organ"])
