"""The configuration of recipes/benchmarks/tricks.py belongs to the switches that there are."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from adapterbank.backbone.kernels import SWITCHES

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def test_the_lines_of_code_of_every_switch_are_counted() -> None:
    lines = OmegaConf.load(RECIPES / "conf" / "tricks.yaml").lines
    assert set(SWITCHES) <= set(lines)
    assert all(count > 0 for count in lines.values())
