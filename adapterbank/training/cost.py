"""What one training step costs: time and memory of methods beside a reference, on the same batch.

Times are ratios: both tasks stand in one process and step alternately, so that a busy machine slows both. Memory is
what the process (or the accelerator) holds at its highest beyond Python and its libraries, in a process of its own.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.progress import track

from adapterbank.backbone.frontend import SAMPLE_RATE
from adapterbank.bank import AdapterBank, default_device
from adapterbank.training.fit import Trainer
from adapterbank.training.meter import Meter
from adapterbank.training.options import Options

WARM_UP = 2  # steps: the first allocate, and build what the backend keeps
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
) -> dict[str, Cost]:
    """Forward, backward, clipping and AdamW of each method on one batch of noise.

    Args:
        methods: name in the result: `add_task` options, "method" among them; layers as numbers.
        reference: one of `methods`, or a method.
        pairs: of alternating steps.
        precision: as `fit` takes it.
    """
    batch = {"batch_size": batch_size, "clip_seconds": clip_seconds, "classes": classes, "precision": precision}
    wanted: dict[str, Mapping[str, Any]] = {**methods}
    wanted.setdefault(reference, {"method": reference})
    context = multiprocessing.get_context("spawn")  # a fork would bring the memory of this process along
    found = {}
    for name, options in track(wanted.items(), "measuring steps"):
        # A process per method: what one has allocated is not counted for the next.
        with ProcessPoolExecutor(1, mp_context=context) as worker:
            job = worker.submit(_measure, backbone, dict(options), dict(wanted[reference]), pairs, batch)
            found[name] = job.result()
    whole = found[reference][2]
    return {
        name: Cost(seconds, ratio, memory, memory / whole)
        for name, (seconds, ratio, memory) in found.items()
        if name in methods
    }


def _measure(
    backbone: str, options: dict[str, Any], reference: dict[str, Any], pairs: int, batch: Mapping[str, Any]
) -> tuple[float, float, float]:
    """(seconds a step, ratio to the reference, MB)."""
    with Meter(default_device()) as before:
        pass
    bank = AdapterBank.from_pretrained(backbone)
    step = _stepper(bank, "measured", options, batch)
    with Meter(bank.backbone.device) as peak:
        for _ in range(WARM_UP):
            step()
    other = _stepper(bank, "reference", reference, batch)
    for _ in range(WARM_UP):
        other()
    times = [(_seconds(step, bank), _seconds(other, bank)) for _ in range(pairs)]
    ratio = median(mine / theirs for mine, theirs in times)
    return median(mine for mine, _ in times), ratio, peak.peak_memory_mb - before.peak_memory_mb


def _stepper(bank: AdapterBank, name: str, options: dict[str, Any], batch: Mapping[str, Any]) -> Callable[[], float]:
    """One step of training a new task, again and again on the same clips."""
    count, classes = batch["batch_size"], batch["classes"]
    bank.add_task(name, num_classes=classes, **options)
    noise = torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(round(batch["clip_seconds"] * SAMPLE_RATE), generator=noise) for _ in range(count)]
    labels = [index % classes for index in range(count)]
    fitting = Options(batch_size=count, precision=batch["precision"], freq_mask=0, time_mask=0, cache=None)
    trainer = Trainer(bank.backbone, bank.task(name), list(zip(waves, labels, strict=True)), fitting)
    return lambda: trainer.step(trainer.feed.hear(waves, labels), 0)


def _seconds(step: Callable[[], float], bank: AdapterBank) -> float:
    with Meter(bank.backbone.device) as meter:
        step()
    return meter.seconds
