"""Row 18 of recipes/benchmark.py: how long a program waits for `import adapterbank`.

    python recipes/benchmark.py row=18           # starts this with what it needs

Each import has a fresh Python to itself, so that nothing is imported already. The files of both sides are in the page
cache.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from omegaconf import DictConfig
from sidebyside import Bench, Claim, script

from adapterbank.experiments.timing import alternate, timed


def fresh(code: str) -> Callable[[], float]:
    """Seconds of a new Python that runs this code and ends."""
    return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True), torch.device("cpu"))


def importing(cfg: DictConfig, bench: Bench) -> Iterator[Claim]:
    """18: the package, and the class that most programs begin with, beside torch alone."""
    theirs = "import torch"
    for ours in ("import adapterbank", "from adapterbank import AdapterBank"):
        pairs = alternate(fresh(ours), fresh(theirs), bench.pairs, warm_up=1)
        yield bench.beside(f"{ours} / {theirs}", pairs, 1.3, at_most=True)


ROWS = {18: importing}

if __name__ == "__main__":
    script(ROWS)()
