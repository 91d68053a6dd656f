"""Rows of recipes/benchmark.py beside ourselves: methods (3), routing (6, 7, 9), caches (10), fit_many (13).

    python recipes/benchmark.py row=3            # starts this with what it needs

Clips are white noise of 1 s unless a row says otherwise, weights are random: neither changes what a matmul costs.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import adapterbank
from adapterbank import AdapterBank, History, fit
from adapterbank.bank import default_device
from adapterbank.errors import exit_on_error
from adapterbank.training.cost import step_costs, stepper
from adapterbank.training.fit import Options
from adapterbank.training.protocol import RunLog
from adapterbank.training.sidebyside import (
    PRECISIONS,
    Bench,
    Claim,
    alternate,
    as_if_trained,
    claim,
    keep,
    needs,
    noise,
    processor,
)

PLAIN = {"freq_mask": 0, "time_mask": 0, "progress": False}
Claims = Iterator[Claim]


def rows(cfg: DictConfig, count: int) -> int:
    return max(1, round(count * cfg.batch))


def open_bank(cfg: DictConfig, bench: Bench, precision: str) -> AdapterBank:
    return AdapterBank.from_pretrained(cfg.base, device=bench.device, base_dtype=PRECISIONS[precision])


def add(bank: AdapterBank, name: str, method: str, cfg: DictConfig, **options: Any) -> str:
    as_if_trained(bank.add_task(name, method, num_classes=cfg.classes, **options), len(bank.tasks))
    return name


def apart(bank: AdapterBank, waves: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """A call for every row."""
    return [bank([wave], name)[0] for wave, name in zip(waves, names, strict=True)]


def difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def adapters_or_full(cfg: DictConfig, bench: Bench) -> Claims:
    """3: a training step of aat_ms beside one of full fine-tuning."""
    goals = {"fp32": (0.76, 0.55), "bf16": (0.72, 0.45)}
    for precision, (time_goal, memory_goal) in goals.items():
        bank = open_bank(cfg, bench, precision)
        batch = {"batch_size": rows(cfg, 32), "clip_seconds": 1.0, "classes": cfg.classes, "precision": precision}
        ours, theirs = (stepper(bank, method, {"method": method}, **batch) for method in ("aat_ms", "full"))
        more = {"precision": precision, "at_most": True}
        yield bench.compare(f"step of aat_ms / full, {precision}", ours, theirs, time_goal, **more)
        del bank, ours, theirs
        opened = {"device": str(bench.device), "base_dtype": PRECISIONS[precision]}
        cost = step_costs(cfg.base, {"aat_ms": {"method": "aat_ms"}}, pairs=1, **batch, **opened)["aat_ms"]
        shown = {"megabytes": cost.memory_mb, "at_most": True}
        yield claim(f"peak memory of aat_ms / full, {precision}", cost.memory_ratio, memory_goal, **shown)


def mixed_methods(cfg: DictConfig, bench: Bench) -> Claims:
    """6: eight tasks of four methods in one batch, beside a batch of one task."""
    for precision in PRECISIONS:
        bank = open_bank(cfg, bench, precision)
        methods = ("aat_ms", "conformer", "lora", "joint")
        names = [add(bank, f"{method}-{number}", method, cfg) for number in range(2) for method in methods]
        waves = noise(rows(cfg, 32), 1.0)
        mixed = [names[row % len(names)] for row in range(len(waves))]
        ours, theirs = partial(bank, waves, mixed), partial(bank, waves, [names[0]] * len(waves))
        what = f"{len(waves)} rows, 8 tasks of 4 methods, {precision}"
        yield bench.compare(what, ours, theirs, 0.9, precision=precision)
        if precision == "fp32":
            gap = difference(ours(), apart(bank, waves, mixed))
            yield claim(
                "8 tasks of 4 methods, fp32: largest difference to single calls", gap, 1e-5, at_most=True, check=True
            )


def one_call(cfg: DictConfig, bench: Bench) -> Claims:
    """7: sixteen tasks in one call, beside sixteen calls."""
    for precision in PRECISIONS:
        bank = open_bank(cfg, bench, precision)
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
        for precision in PRECISIONS:
            what = f"ask: 8 aat_ms tasks, {depth} of the layers, {precision}"
            bank = open_bank(cfg, bench, precision)
            if not hasattr(bank, "ask"):
                yield needs(what, "bank.ask")
                continue
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


def trained(bank: AdapterBank, cfg: DictConfig, method: str, options: Mapping[str, Any], **fitting: Any) -> History:
    """A new task after two epochs on 64 clips."""
    waves = noise(rows(cfg, 64), 1.0)
    bank.add_task("cached", method, num_classes=cfg.classes, **options)
    data = [(wave, index % cfg.classes) for index, wave in enumerate(waves)]
    try:
        return fit(bank, "cached", data, epochs=2, batch_size=rows(cfg, 32), **PLAIN, **fitting)
    finally:
        bank.remove_task("cached")


def second_epoch(*of: Any, **fitting: Any) -> float:
    """Its seconds."""
    ends: list[float] = []
    trained(*of, on_epoch=lambda *_: ends.append(time.perf_counter()), **fitting)
    return ends[1] - ends[0]


def cached_epochs(cfg: DictConfig, bench: Bench) -> Claims:
    """10: epochs after the first, with what lies below the first adapters kept."""
    bank = open_bank(cfg, bench, "fp32")
    layers = bank.backbone.geometry.layers
    half = {"layers": [*range(layers // 2, layers)]}
    for method, options, goal in (("head", {}, 200.0), ("partial", {}, 1.25), ("aat_ms", half, 1.35)):
        what = f"cached epoch of {method}{' in the upper half' if options else ''}"
        if "cache" not in {*Options.__dataclass_fields__, *inspect.signature(fit).parameters}:
            yield needs(what, "fit(..., cache=...)")
            continue
        timing = partial(second_epoch, bank, cfg, method, options, precision="bf16")
        ours, theirs = partial(timing, cache="memory"), partial(timing, cache=None)
        yield bench.beside(f"{what}, bf16", alternate(ours, theirs, bench.pairs, warm_up=1), goal)
        kept, anew = (trained(bank, cfg, method, options, precision="fp32", cache=cache) for cache in ("memory", None))
        gap = max(abs(a["train/loss"] - b["train/loss"]) for a, b in zip(kept.epochs, anew.epochs, strict=True))
        yield claim(f"{what}, fp32: largest difference of losses", gap, 1e-4, at_most=True, check=True)


def fresh(bank: AdapterBank, cfg: DictConfig) -> list[str]:
    """Eight new tasks."""
    names = [f"t{number}" for number in range(8)]
    for name in names:
        if name in bank.tasks:
            bank.remove_task(name)
        bank.add_task(name, "aat_ms", num_classes=cfg.classes)
    return names


def together(bank: AdapterBank, cfg: DictConfig, data: Any, **fitting: Any) -> dict[str, History]:
    return adapterbank.fit_many(bank, fresh(bank, cfg), data, **fitting)


def one_by_one(bank: AdapterBank, cfg: DictConfig, data: Any, **fitting: Any) -> dict[str, History]:
    return {name: fit(bank, name, data, **fitting) for name in fresh(bank, cfg)}


def trained_together(cfg: DictConfig, bench: Bench) -> Claims:
    """13: eight adapters of one method trained in one routed batch, four rows each, beside eight trainings."""
    if not hasattr(adapterbank, "fit_many"):
        yield needs("fit_many: 8 aat_ms tasks", "adapterbank.fit_many")
        return
    data = [(wave, index % cfg.classes) for index, wave in enumerate(noise(rows(cfg, 16), 1.0))]
    for precision, order in itertools.product(PRECISIONS, ("task", "shared")):
        bank = open_bank(cfg, bench, precision)
        fitting = {"epochs": 1, "batch_size": 4, "precision": precision, "order": order, **PLAIN}
        ours, theirs = (partial(way, bank, cfg, data, **fitting) for way in (together, one_by_one))
        what = f"fit_many: 8 aat_ms tasks, order by {order}, {precision}"
        yield bench.compare(what, ours, theirs, 1.2, precision=precision)
        if precision == "fp32":
            alone = theirs()
            gaps = [
                abs(of.epochs[0]["train/loss"] - alone[name].epochs[0]["train/loss"]) for name, of in ours().items()
            ]
            yield claim(f"{what}: largest difference of losses", max(gaps), 1e-4, at_most=True, check=True)


ROWS = {3: adapters_or_full, 6: mixed_methods, 7: one_call, 9: ask, 10: cached_epochs, 13: trained_together}


def run(cfg: DictConfig) -> None:
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    bench = Bench(torch.device(cfg.device or default_device()), cfg.pairs, cfg.matrix)
    log = RunLog(Path(cfg.out) / "rows.jsonl", {"cpu": processor()})
    keep(log, cfg.row, ROWS[cfg.row](cfg, bench), OmegaConf.to_container(cfg.configuration, resolve=True))


@hydra.main(version_base=None, config_path="conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    with exit_on_error():
        run(cfg)


if __name__ == "__main__":
    main()
