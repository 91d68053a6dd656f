"""Rows of recipes/benchmark.py on training: adapters beside `full` (3), caches (10), many tasks (13), files (17).

    python recipes/benchmark.py row=3            # starts this with what it needs

Clips are white noise of 1 s (in row 17 of 5 s), weights are random: neither changes what a matmul costs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
from omegaconf import DictConfig
from sidebyside import MEASURED, Bench, Claim, claim, script

from adapterbank import AdapterBank, History, fit, fit_many, load_folder
from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.backbone.precision import DTYPES
from adapterbank.experiments.cost import step_memory, step_tensors, stepper
from adapterbank.experiments.timing import alternate, noise, timed
from adapterbank.training.memory import keep_freed_memory

LATER = 3  # epochs that are timed together in row 10
PLAIN = {"freq_mask": 0, "time_mask": 0, "progress": False}
Claims = Iterator[Claim]


def adapters_or_full(cfg: DictConfig, bench: Bench) -> Claims:
    """3: a training step of aat_ms beside one of full fine-tuning."""
    # The goals of time and memory. bf16 comes first, because the heap that fp32 leaves behind would slow it down.
    goals = {"bf16": (0.76, 0.45), "fp32": (0.80, 0.55)}
    for precision, (time_goal, memory_goal) in goals.items():
        bank = bench.open(cfg.base, precision)
        batch = {"batch_size": bench.rows(32), "clip_seconds": 1.0, "classes": cfg.classes, "precision": precision}
        ours, theirs = (stepper(bank, method, {"method": method}, **batch) for method in ("aat_ms", "full"))
        more = {"precision": precision, "at_most": True}
        yield bench.compare(f"step of aat_ms / full, {precision}", ours, theirs, time_goal, **more)
        del bank, ours, theirs
        opened = {"device": str(bench.device), "base_dtype": DTYPES[precision]}
        for what, measure in {"tensors": step_tensors, "resident set": step_memory}.items():
            mine, whole = (measure(cfg.base, {"method": method}, **opened, **batch) for method in ("aat_ms", "full"))
            shown = {"megabytes": [mine, whole], "at_most": True}
            yield claim(f"peak memory of aat_ms / full, {what}, {precision}", mine / whole, memory_goal, **shown)


def trained(
    bench: Bench, bank: AdapterBank, cfg: DictConfig, method: str, options: Mapping[str, Any], **fitting: Any
) -> History:
    """A new task after some epochs on 64 clips."""
    waves = noise(bench.rows(64), 1.0)
    classes = min(cfg.classes, len(waves))  # each has a clip
    bank.add_task("cached", method, num_classes=classes, **options)
    data = [(wave, index % classes) for index, wave in enumerate(waves)]
    try:
        return fit(bank, "cached", data, batch_size=bench.rows(32), **PLAIN, **fitting)
    finally:
        bank.remove_task("cached")


def later_epoch(*of: Any, **fitting: Any) -> float:
    """Seconds of an epoch after the first."""
    ends: list[float] = []
    trained(*of, epochs=LATER + 1, on_epoch=lambda *_: ends.append(time.perf_counter()), **fitting)
    return (ends[-1] - ends[0]) / LATER


def cached_epochs(cfg: DictConfig, bench: Bench) -> Claims:
    """10: epochs after the first, with what lies below the first adapters kept."""
    bank = bench.open(cfg.base, "fp32")
    layers = bank.backbone.geometry.layers
    upper_half = {"layers": [*range(layers // 2, layers)]}
    for method, options, goal in (("head", {}, 200.0), ("partial", {}, 1.25), ("aat_ms", upper_half, 1.35)):
        what = f"cached epoch of {method}{' in the upper half' if options else ''}"
        timing = partial(later_epoch, bench, bank, cfg, method, options, precision="bf16")
        ours, theirs = partial(timing, cache="memory"), partial(timing, cache=None)
        yield bench.beside(f"{what}, bf16", alternate(ours, theirs, bench.pairs, warm_up=1), goal)
        kept, anew = (
            trained(bench, bank, cfg, method, options, epochs=2, precision="fp32", cache=cache)
            for cache in ("memory", None)
        )
        gap = max(abs(a["train/loss"] - b["train/loss"]) for a, b in zip(kept.epochs, anew.epochs, strict=True))
        yield claim(f"{what}, fp32: largest difference of losses", gap, 1e-4, at_most=True, check=True)


def fresh(bank: AdapterBank, classes: int) -> list[str]:
    """Eight new tasks."""
    names = [f"t{number}" for number in range(8)]
    for name in names:
        if name in bank.tasks:
            bank.remove_task(name)
        bank.add_task(name, "aat_ms", num_classes=classes)
    return names


def one_by_one(bank: AdapterBank, names: Sequence[str], data: Any, **fitting: Any) -> dict[str, History]:
    return {name: fit(bank, name, data, **fitting) for name in names}


def training_seconds(
    way: Callable[..., object], bench: Bench, bank: AdapterBank, classes: int, data: Any, **fitting: Any
) -> float:
    """Of eight trainings; the tasks are new each time, and made before."""
    return timed(partial(way, bank, fresh(bank, classes), data, **fitting), bench.device)()


def trained_together(cfg: DictConfig, bench: Bench) -> Claims:
    """13: eight adapters of one method trained in one routed batch, four rows each, beside eight trainings."""
    waves = noise(bench.rows(8), 1.0)
    classes = min(cfg.classes, len(waves))
    data = [(wave, index % classes) for index, wave in enumerate(waves)]
    in_fp32, in_bf16 = (bench.open(cfg.base, precision) for precision in MEASURED)
    for order in ("task", "shared"):
        fitting = {"epochs": 1, "batch_size": 4, "order": order, **PLAIN}
        what = f"fit_many: 8 aat_ms tasks, order by {order}"
        ours, theirs = (
            partial(training_seconds, way, bench, in_bf16, classes, data, precision="bf16", **fitting)
            for way in (fit_many, one_by_one)
        )
        yield bench.beside(f"{what}, bf16", alternate(ours, theirs, bench.pairs), 1.2)
        kept, alone = (
            way(in_fp32, fresh(in_fp32, classes), data, precision="fp32", **fitting) for way in (fit_many, one_by_one)
        )
        gaps = [abs(kept[name].epochs[0]["train/loss"] - alone[name].epochs[0]["train/loss"]) for name in alone]
        yield claim(f"{what}, fp32: largest difference of losses", max(gaps), 1e-4, at_most=True, check=True)


def folder_of_noise(root: Path, clips: int, classes: int) -> Path:
    """Clips of 5 s at 44,100 Hz in 16 bit, in class folders: to read one is to decode and to resample it."""
    rate = 44_100
    for index, wave in enumerate(noise(clips, 5.0 * rate / SAMPLE_RATE)):
        file = root / str(index % classes) / f"{index}.wav"
        file.parent.mkdir(exist_ok=True)
        soundfile.write(file, wave.numpy(), rate)
    return root


def epochs_of(bench: Bench, bank: AdapterBank, classes: int, data: Any) -> tuple[float, list[float]]:
    """Seconds of an epoch after the first, and the loss of each, of a new task."""
    ends: list[float] = []
    bank.add_task("files", "aat_ms", labels=[str(number) for number in range(classes)])
    try:
        fitting = {"epochs": LATER + 1, "batch_size": bench.rows(32), "precision": "fp32", **PLAIN}
        history = fit(bank, "files", data, on_epoch=lambda *_: ends.append(time.perf_counter()), **fitting)
    finally:
        bank.remove_task("files")
    return (ends[-1] - ends[0]) / LATER, [epoch["train/loss"] for epoch in history.epochs]


def from_files(cfg: DictConfig, bench: Bench) -> Claims:
    """17: an epoch from files after the first, beside the same epoch from tensors in memory."""
    bank = bench.open(cfg.base, "fp32")
    with tempfile.TemporaryDirectory() as folder:
        clips = bench.rows(64)
        classes = min(8, cfg.classes, clips)
        root = folder_of_noise(Path(folder), clips, classes)
        kept = load_folder(root)
        tensors = [kept[index] for index in range(len(kept))]

        def ours() -> float:  # nothing is decoded when the first epoch begins
            return epochs_of(bench, bank, classes, load_folder(root))[0]

        def theirs() -> float:
            return epochs_of(bench, bank, classes, tensors)[0]

        def reading(data: Any) -> Callable[[], float]:
            return timed(lambda: [data[index] for index in range(len(data))], bench.device)

        pairs = alternate(ours, theirs, bench.pairs, warm_up=1)
        yield bench.beside("later epoch from files / from tensors, fp32", pairs, 1.1, at_most=True)
        mine, other = (epochs_of(bench, bank, classes, data)[1] for data in (load_folder(root), tensors))
        gap = max(abs(a - b) for a, b in zip(mine, other, strict=True))
        yield claim("epochs from files: largest difference of losses", gap, 0.0, at_most=True, check=True)
        pairs = alternate(reading(load_folder(root, cache_bytes=0)), reading(kept), bench.pairs)
        yield bench.beside("reading files, decoded each time / kept", pairs, at_most=True)


ROWS = {3: adapters_or_full, 10: cached_epochs, 13: trained_together, 17: from_files}


if __name__ == "__main__":
    keep_freed_memory()  # before the first tensor: otherwise steps wait for the kernel's pages, some more than others
    script(ROWS)()
