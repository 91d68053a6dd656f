"""Rows of recipes/benchmark.py beside ourselves: mixed batches (6, 7) and several tasks on one clip (9).

    python recipes/benchmark.py row=6            # starts this with what it needs

Clips are white noise of 1 s, weights are random: neither changes what a matmul costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig
from sidebyside import MEASURED, Bench, Claim, as_if_trained, claim, difference, mixed_tasks, script
from torch import Tensor

from adapterbank import AdapterBank
from adapterbank.experiments.timing import noise

Claims = Iterator[Claim]


def add(bank: AdapterBank, name: str, method: str, cfg: DictConfig, **options: Any) -> str:
    as_if_trained(bank.add_task(name, method, num_classes=cfg.classes, **options), len(bank.tasks))
    return name


def apart(bank: AdapterBank, waves: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """A call for every row."""
    return [bank([wave], name)[0] for wave, name in zip(waves, names, strict=True)]


def mixed_methods(cfg: DictConfig, bench: Bench) -> Claims:
    """6: eight tasks of four methods in one batch, beside a batch of one task."""
    for precision in MEASURED:
        bank = bench.open(cfg.base, precision)
        waves = noise(bench.rows(32), 1.0)
        mixed = mixed_tasks(bank, cfg.classes, len(waves))
        ours, theirs = partial(bank, waves, mixed), partial(bank, waves, [mixed[0]] * len(waves))
        what = f"{len(waves)} rows, 8 tasks of 4 methods, {precision}"
        yield bench.compare(what, ours, theirs, 0.9, precision=precision)
        if precision == "fp32":
            gap = difference(ours(), apart(bank, waves, mixed))
            yield claim(
                "8 tasks of 4 methods, fp32: largest difference to single calls", gap, 1e-5, at_most=True, check=True
            )


def one_call(cfg: DictConfig, bench: Bench) -> Claims:
    """7: sixteen tasks in one call, beside sixteen calls."""
    for precision in MEASURED:
        bank = bench.open(cfg.base, precision)
        names = [add(bank, f"t{number}", "aat_ms", cfg) for number in range(16)]
        waves = noise(16, 1.0)
        ours, theirs = partial(bank, waves, names), partial(apart, bank, waves, names)
        yield bench.compare(f"16 rows of 16 aat_ms tasks, {precision}", ours, theirs, 1.25, precision=precision)
        if precision == "fp32":
            gap = difference(ours(), theirs())
            yield claim(
                "16 aat_ms tasks, fp32: largest difference to single calls", gap, 1e-5, at_most=True, check=True
            )


def ask(cfg: DictConfig, bench: Bench) -> Claims:
    """9: eight tasks on one clip, which share what lies below their first adapters."""
    for depth, goal in (("last third", 2.0), ("all", 1.1)):
        for precision in MEASURED:
            what = f"ask: 8 aat_ms tasks, {depth} of the layers, {precision}"
            bank = bench.open(cfg.base, precision)
            count = bank.backbone.geometry.layers
            layers = "all" if depth == "all" else [*range(count)][-max(1, count // 3) :]
            names = [add(bank, f"t{number}", "aat_ms", cfg, layers=layers) for number in range(8)]
            waves = noise(1, 1.0)
            ours, theirs = partial(bank.ask, waves, names), partial(apart, bank, waves * 8, names)
            yield bench.compare(what, ours, theirs, goal, precision=precision)
            if precision == "fp32":
                gap = difference([ours()[name][0] for name in names], theirs())
                yield claim(
                    f"ask, {depth} of the layers, fp32: largest difference to calls",
                    gap,
                    1e-5,
                    at_most=True,
                    check=True,
                )


ROWS = {6: mixed_methods, 7: one_call, 9: ask}


if __name__ == "__main__":
    script(ROWS)()
