"""What one training step costs: time and memory of methods beside a reference, on the same batch.

Times are ratios: both tasks stand in one process and step alternately, so that a busy machine slows both. Memory is
what the process (or the accelerator) holds at its highest beyond Python and its libraries, in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track
from torch.profiler import ProfilerActivity, profile

from adapterbank.backbone.backbone import default_device
from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.bank import AdapterBank
from adapterbank.experiments.timing import WARM_UP, alternate, noise, timed
from adapterbank.training.meter import Meter
from adapterbank.training.options import Options
from adapterbank.training.trainer import Trainer

REFERENCE = "full"


@dataclass(frozen=True)
class Cost:
    """Of one training step of a method.

    Attributes:
        seconds: median.
        time_ratio: median over pairs of steps, to the reference beside it.
        memory_mb: peak of the steps, with the base, weights, gradients and optimiser.
        memory_ratio: to the reference in a process of its own.
    """

    seconds: float
    time_ratio: float
    memory_mb: float
    memory_ratio: float


def step_costs(
    backbone: str,
    methods: Mapping[str, Mapping[str, Any]],
    *,
    reference: str = REFERENCE,
    batch_size: int = 16,
    clip_seconds: float = 2.0,
    classes: int = 50,
    pairs: int = 7,
    precision: str = "auto",
    device: torch.device | str | None = None,
    base_dtype: torch.dtype | None = None,
) -> dict[str, Cost]:
    """Forward, backward, clipping and AdamW of each method on one batch of noise.

    Args:
        methods: name in the result: `add_task` options, "method" among them; layers as numbers.
        reference: one of `methods`, or a method.
        pairs: of alternating steps.
        precision: as `fit` takes it.
        device, base_dtype: as `AdapterBank.from_pretrained` takes them.
    """
    opened = {"device": device or default_device(), "base_dtype": base_dtype}
    batch: dict[str, Any] = {"batch_size": batch_size, "clip_seconds": clip_seconds}
    batch |= {"classes": classes, "precision": precision}
    wanted: dict[str, Mapping[str, Any]] = {**methods}
    wanted.setdefault(reference, {"method": reference})
    found = {}
    for name, options in track(wanted.items(), "measuring steps"):
        found[name] = _by_itself(_measure, backbone, opened, dict(options), dict(wanted[reference]), pairs, batch)
    whole = found[reference][2]
    return {
        name: Cost(seconds, ratio, memory, memory / whole)
        for name, (seconds, ratio, memory) in found.items()
        if name in methods
    }


def step_memory(
    backbone: str,
    options: Mapping[str, Any],
    *,
    device: torch.device | str | None = None,
    base_dtype: torch.dtype | None = None,
    **batch: Any,
) -> float:
    """MB at the peak of the first training steps of a method in a process of its own, without Python and its libraries.

    Args:
        options: of `add_task`, "method" among them.
        **batch: batch_size, clip_seconds, classes and precision, as `stepper` takes them.
    """
    opened = {"device": device or default_device(), "base_dtype": base_dtype}
    found: float = _by_itself(_memory, backbone, opened, dict(options), batch)
    return found


def step_tensors(
    backbone: str,
    options: Mapping[str, Any],
    *,
    device: torch.device | str | None = None,
    base_dtype: torch.dtype | None = None,
    **batch: Any,
) -> float:
    """MB of all tensors at the peak of the first training steps of a method: base, task, gradients, optimiser and what
    autograd keeps.

    `step_memory` is more by what the CPU's heap holds besides.

    Args:
        options, device, base_dtype, **batch: as `step_memory` takes them.
    """
    bank = AdapterBank.from_pretrained(backbone, device=device or default_device(), base_dtype=base_dtype)
    step = stepper(bank, "measured", options, **batch)
    if bank.backbone.device.type != "cpu":
        with Meter(bank.backbone.device) as peak:
            _steps(step)
        return peak.peak_memory_mb
    tensors = [tensor for _, tensor in bank.backbone.weights.named()] + list(bank.task("measured").parameters())
    stored = (part for t in tensors for part in ((t.levels, t.scales) if isinstance(t, Int8Matrix) else (t,)))
    there = {part.data_ptr(): part.nbytes for part in stored}
    return sum(there.values()) / 2**20 + tensors_peak_mb(lambda: _steps(step))


def tensors_peak_mb(run: Callable[[], object]) -> float:
    """MiB of the tensors on the CPU that `run` adds, at the highest, to those that were there before.

    On other devices `torch.accelerator.max_memory_allocated` counts the same. The resident set of the process would be
    more: it also has what the heap cannot give back to the system.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = highest = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        highest = max(highest, held)
    return highest / 2**20


def _steps(step: Callable[[], object]) -> None:
    for _ in range(WARM_UP + 1):  # the last one has beside it whatever the earlier ones have kept
        step()


def _by_itself(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own: what one has allocated is not counted for the next."""
    context = multiprocessing.get_context("spawn")  # a fork would bring the memory of this process along
    with ProcessPoolExecutor(1, mp_context=context) as worker:
        return worker.submit(function, *arguments).result()


def _memory(*arguments: Any) -> float:
    return _first_steps(*arguments)[2]


def _first_steps(
    backbone: str, opened: Mapping[str, Any], options: Mapping[str, Any], batch: Mapping[str, Any]
) -> tuple[AdapterBank, Callable[[], float], float]:
    """A new bank, the step of a task in it, and the MB at the peak of the first ones."""
    with Meter(torch.device(opened["device"])) as before:
        pass
    bank = AdapterBank.from_pretrained(backbone, **opened)
    step = stepper(bank, "measured", options, **batch)
    with Meter(bank.backbone.device) as peak:
        _steps(step)
    return bank, step, peak.peak_memory_mb - before.peak_memory_mb


def _measure(
    backbone: str,
    opened: Mapping[str, Any],
    options: Mapping[str, Any],
    reference: Mapping[str, Any],
    pairs: int,
    batch: Mapping[str, Any],
) -> tuple[float, float, float]:
    """(seconds a step, ratio to the reference, MB)."""
    bank, step, memory = _first_steps(backbone, opened, options, batch)
    other = stepper(bank, "reference", reference, **batch)
    times = alternate(timed(step, bank.backbone.device), timed(other, bank.backbone.device), pairs)
    ratio = median(1 / speedup for speedup in times.speedups())
    return median(times.ours), ratio, memory


def stepper(
    bank: AdapterBank,
    name: str,
    options: Mapping[str, Any],
    *,
    batch_size: int,
    clip_seconds: float,
    classes: int,
    precision: str,
) -> Callable[[], float]:
    """One step of training a new task, again and again on the same clips: forward, backward, clipping and AdamW.

    Args:
        options: of `add_task`, "method" among them.
        precision: as `fit` takes it.
    """
    bank.add_task(name, num_classes=classes, **options)
    waves, labels = noise(batch_size, clip_seconds), [index % classes for index in range(batch_size)]
    fitting = Options(batch_size=batch_size, precision=precision, freq_mask=0, time_mask=0, cache=None)
    trainer = Trainer(bank.backbone, bank.task(name), list(zip(waves, labels, strict=True)), fitting)
    bank.task(name).train()
    return lambda: trainer.optimizer_step.take(trainer.data.feed.prepare(waves, labels))
