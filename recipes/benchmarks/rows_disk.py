"""Row 12 of recipes/benchmark.py: a bank of 1,000 tasks on disk, of which few are in memory.

python recipes/benchmark.py row=12           # starts this with what it needs
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from sidebyside import Bench, Claim, claim, saved_bank, script

from adapterbank import AdapterBank
from adapterbank.experiments.timing import alternate, noise, timed
from adapterbank.storage.manifest import read_manifest
from adapterbank.training.meter import Meter

SWITCHES = 50
Claims = Iterator[Claim]


def added_bytes(folder: Path, opened: dict[str, Any]) -> float:
    """Bytes by which the highest memory of this process grows when it opens a bank and calls each of its tasks once.

    Torch allocates some memory once, at the first call. So that it is not counted, another bank of the same folder is
    opened, called and kept before the measurement begins.
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


def after(first: Callable[[], object], measured: Callable[[], float]) -> Callable[[], float]:
    """Calls `first` and then `measured`, which tells its seconds.

    Garbage is collected between pairs, which empties the processor's caches; `first` fills them again.
    """

    def both() -> float:
        first()
        return measured()

    return both


def many_on_disk(cfg: DictConfig, bench: Bench) -> Claims:
    """12: a bank of which few tasks are in memory."""
    large = saved_bank(Path(cfg.out), cfg.bank_geometry, cfg.bank_tasks, cfg.classes)
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
    stay = partial(bank, clip, hot)
    switching = after(stay, timed(lambda: bank(clip, next(names)), bench.device))
    staying = after(stay, timed(stay, bench.device))
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


ROWS = {12: many_on_disk}


if __name__ == "__main__":
    script(ROWS)()
