"""Makes importable what the scripts in recipes/benchmarks/ find beside themselves when they start."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "benchmarks"))
