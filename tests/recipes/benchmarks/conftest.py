"""The benchmarks' modules find each other because their folder is on the path; so do these tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "benchmarks"))
