"""Makes importable what the scripts in recipes/ and recipes/benchmarks/ find beside themselves when they start."""

from __future__ import annotations

import sys
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
sys.path[:0] = [str(RECIPES), str(RECIPES / "benchmarks")]
