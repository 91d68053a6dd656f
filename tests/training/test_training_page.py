"""What docs/training.md shows must run as it stands there, and it must show every option that has a default of none."""

import re
from pathlib import Path

from adapterbank.training.options import Options

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def test_every_python_block_runs():
    scope = {}
    for source in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(source, "training.md", "exec"), scope)
    assert scope["bank"].tasks


def test_the_page_names_no_option_that_does_not_exist():
    named = set(re.findall(r"train\((.*)\)", PAGE))
    options = {name for call in named for name in re.findall(r"(\w+)=", call)}
    assert options
    assert options <= set(Options.__dataclass_fields__)
