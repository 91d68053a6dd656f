"""Row 12 of recipes/benchmark.py, a bank of 1,000 tasks on disk, and how cost grows with clips, tasks and banks.

    python recipes/benchmark.py row=12                        # starts this with what it needs
    python recipes/benchmark.py growth=[clip_length,tasks,bank]

A point of a curve is timed beside the curve's first point; its ratio says how many times as long it takes.
"""

from __future__ import annotations

import inspect
import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from adapterbank import AdapterBank
from adapterbank.bank import default_device
from adapterbank.errors import exit_on_error
from adapterbank.storage import MANIFEST, read_manifest
from adapterbank.training.meter import Meter
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
    timed,
)

SWITCHES = 50
Claims = Iterator[Claim]


def saved(cfg: DictConfig, count: int) -> Path:
    """The folder of a bank of aat_ms tasks; made once."""
    folder = Path(cfg.out) / "banks" / f"{cfg.bank_geometry}-{count}"
    if not (folder / MANIFEST).is_file():
        bank = AdapterBank.from_pretrained(Path(cfg.out) / "backbones" / cfg.bank_geometry, device="cpu")
        bank.remove_task("audioset")
        for number in range(count):
            as_if_trained(bank.add_task(f"t{number}", "aat_ms", num_classes=cfg.classes), number)
        bank.save(folder)
    return folder


def added_bytes(folder: Path, opened: dict[str, Any]) -> float:
    """The highest memory of a process that opens a bank and hears a clip with each of its tasks, over that before.

    Before, another bank of the folder was opened, called and kept: what torch allocates once is not counted.
    """
    device = torch.device(opened["device"])
    other = AdapterBank.load(folder, **{**opened, "resident": 1})
    other(noise(1, 1.0), next(iter(other.tasks)))
    with Meter(device) as before:
        pass
    with Meter(device) as peak:
        bank = AdapterBank.load(folder, **opened)
        for name in bank.tasks:
            bank(noise(1, 1.0), name)
    return (peak.peak_memory_mb - before.peak_memory_mb) * 2**20


def many_on_disk(cfg: DictConfig, bench: Bench) -> Claims:
    """12: a bank of which few tasks are in memory."""
    if "resident" not in inspect.signature(AdapterBank.load).parameters:
        yield needs(f"a bank of {cfg.bank_tasks} tasks on disk", "AdapterBank.load(folder, resident=...)")
        return
    large = saved(cfg, cfg.bank_tasks)
    opened = {"device": str(bench.device), "resident": cfg.resident}
    opening = timed(partial(AdapterBank.load, large, **opened), bench.device)
    opening()
    taken = median(opening() for _ in range(bench.pairs))
    yield claim(f"seconds to open a bank of {cfg.bank_tasks} tasks", taken, 1.0, at_most=True)

    bank = AdapterBank.load(large, **opened)
    entries = read_manifest(large)["tasks"]
    base = sum(tensor.nbytes for _, tensor in bank.backbone.weights.named())
    expected = base + sum(entry["bytes"] for entry in list(entries.values())[: cfg.resident])
    context = multiprocessing.get_context("spawn")  # a fork would bring the memory of this process along
    with ProcessPoolExecutor(1, mp_context=context) as worker:
        added = worker.submit(added_bytes, large, opened).result()
    what = f"peak memory, all of {cfg.bank_tasks} tasks heard / base and {cfg.resident} tasks"
    yield claim(what, added / expected, 1.1, at_most=True, megabytes=[added / 2**20, expected / 2**20])

    hot, *others = entries
    clip = noise(1, 0.2)
    names = itertools.cycle(others)  # more than are resident: each is cold when its turn comes
    switching = timed(lambda: bank(clip, next(names)), bench.device)
    staying = timed(lambda: bank(clip, hot), bench.device)
    cold = alternate(switching, staying, SWITCHES)
    files = iter([large / entry["file"] for entry in entries.values()][:SWITCHES])
    reading = median(
        timed(lambda: next(files).read_bytes(), bench.device)() for _ in range(min(SWITCHES, len(entries)))
    )
    extra = median(ours - theirs for ours, theirs in zip(cold.ours, cold.theirs, strict=True))
    seconds = {"ours": extra, "theirs": reading}
    yield claim("cold switch / reading its bytes", extra / reading, 3.0, at_most=True, **seconds)
    names = itertools.cycle(others[:2])
    warm = alternate(switching, staying, SWITCHES)
    extra = median(ours - theirs for ours, theirs in zip(warm.ours, warm.theirs, strict=True))
    yield claim("seconds of a hot switch", extra, 1e-3, at_most=True)


def clip_length(cfg: DictConfig, bench: Bench) -> Claims:
    """A call with clips of each length, over one with the shortest."""
    for precision, dtype in PRECISIONS.items():
        bank = AdapterBank.from_pretrained(cfg.base, device=bench.device, base_dtype=dtype)
        bank.add_task("own", "aat_ms", num_classes=cfg.classes)
        calls = {seconds: partial(bank, noise(max(1, round(4 * cfg.batch)), seconds), "own") for seconds in cfg.lengths}
        yield from curve(bench, f"aat_ms, {precision}", calls, "s", precision=precision)


def tasks(cfg: DictConfig, bench: Bench) -> Claims:
    """A call with as many rows as the most tasks, over one where all rows have the same."""
    bank = AdapterBank.from_pretrained(cfg.base, device=bench.device, base_dtype=torch.bfloat16)
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
    folders = {count: saved(cfg, count) for count in cfg.tasks_in_bank}
    resident = {"resident": cfg.resident} if "resident" in inspect.signature(AdapterBank.load).parameters else {}
    openings = {n: partial(AdapterBank.load, of, device=bench.device, **resident) for n, of in folders.items()}
    yield from curve(bench, "opening", openings, "tasks", counted=False)
    waves = noise(8, 1.0)
    calls = {n: partial(opening(), waves, "t0") for n, opening in openings.items()}
    yield from curve(bench, "a call of 8 rows", calls, "tasks")


def curve(bench: Bench, name: str, points: dict[Any, Any], unit: str, **options: Any) -> Claims:
    first = next(iter(points.values()))
    for x, point in points.items():
        yield bench.compare(f"{name}: {x} {unit}", point, first, at_most=True, curve=name, x=x, unit=unit, **options)


ROWS = {12: many_on_disk, "clip_length": clip_length, "tasks": tasks, "bank": bank}


def run(cfg: DictConfig) -> None:
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    row = cfg.row if cfg.growth is None else cfg.growth
    bench = Bench(torch.device(cfg.device or default_device()), cfg.pairs, cfg.matrix)
    log = RunLog(Path(cfg.out) / "rows.jsonl", {"cpu": processor()})
    keep(log, row, ROWS[row](cfg, bench), OmegaConf.to_container(cfg.configuration, resolve=True))


@hydra.main(version_base=None, config_path="conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    with exit_on_error():
        run(cfg)


if __name__ == "__main__":
    main()
