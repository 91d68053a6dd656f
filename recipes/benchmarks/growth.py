"""How cost grows, for recipes/benchmark.py: with the length of clips, the tasks of a batch and those of a bank.

    python recipes/benchmark.py growth=[clip_length,tasks,bank]      # starts this with what it needs

A point of a curve is timed beside the curve's first point; its ratio says how many times as long it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from sidebyside import MEASURED, Bench, Claim, as_if_trained, saved_bank, script

from adapterbank import AdapterBank
from adapterbank.experiments.timing import noise

Claims = Iterator[Claim]


def clip_length(cfg: DictConfig, bench: Bench) -> Claims:
    """A call with clips of each length, over one with the shortest."""
    for precision in MEASURED:
        bank = bench.open(cfg.base, precision)
        bank.add_task("own", "aat_ms", num_classes=cfg.classes)
        calls = {seconds: partial(bank, noise(bench.rows(4), seconds), "own") for seconds in cfg.lengths}
        yield from curve(bench, f"aat_ms, {precision}", calls, "s", precision=precision)


def tasks(cfg: DictConfig, bench: Bench) -> Claims:
    """A call with as many rows as the most tasks, over one where all rows have the same."""
    bank = bench.open(cfg.base, "bf16")
    most = max(cfg.tasks_in_batch)
    waves = noise(most, 1.0)
    for method in ("aat_ms", "lora"):
        names = [f"{method}-{number}" for number in range(most)]
        for seed, name in enumerate(names):
            as_if_trained(bank.add_task(name, method, num_classes=cfg.classes), seed)
        calls = {n: partial(bank, waves, [names[row % n] for row in range(most)]) for n in cfg.tasks_in_batch}
        yield from curve(bench, f"{method}, bf16", calls, "tasks", precision="bf16")


def bank(cfg: DictConfig, bench: Bench) -> Claims:
    """Opening a saved bank, and a call of one of its tasks, over the same with the smallest bank."""
    out, geometry = Path(cfg.out), cfg.bank_geometry
    folders = {count: saved_bank(out, geometry, count, cfg.classes) for count in cfg.tasks_in_bank}
    opened = {"device": bench.device, "resident": cfg.resident}
    openings = {n: partial(AdapterBank.load, of, **opened) for n, of in folders.items()}
    yield from curve(bench, "opening", openings, "tasks", counted=False)
    waves = noise(8, 1.0)
    calls = {n: partial(opening(), waves, "t0") for n, opening in openings.items()}
    yield from curve(bench, "a call of 8 rows", calls, "tasks")


def curve(bench: Bench, name: str, points: dict[Any, Any], unit: str, **options: Any) -> Claims:
    first = next(iter(points.values()))
    for x, point in points.items():
        yield bench.compare(f"{name}: {x} {unit}", point, first, at_most=True, curve=name, x=x, unit=unit, **options)


ROWS = {"clip_length": clip_length, "tasks": tasks, "bank": bank}


if __name__ == "__main__":
    script(ROWS)()
