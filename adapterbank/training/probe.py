"""Measures, before a training begins, what its parts will cost, without changing anything that it starts from.

A step is made on a copy of the task, with an optimiser, an order of clips and random draws of its own; the random
states of torch, NumPy and Python are put back. So a training is the same to the bit with and without it, unless the
data set draws from a generator of its own, because it is asked for some clips more. It costs a little more than two
steps; where a step is quick, some steps more.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE, frame_count
from adapterbank.data.folder import FolderDataset
from adapterbank.data.pairs import Pairs
from adapterbank.evaluation import evaluate_task, score
from adapterbank.training.cache import ActivationCache, KeptClips, MemoryStore
from adapterbank.training.callbacks import Callbacks, State
from adapterbank.training.estimate import Costs
from adapterbank.training.feed import Feed, TrainingData
from adapterbank.training.history import History
from adapterbank.training.meter import memory_mb, peak_memory_mb
from adapterbank.training.sample import Sample
from adapterbank.training.setting import Setting
from adapterbank.training.start import ITERATIONS, MOST_CLIPS, will_start
from adapterbank.training.step import OptimizerStep, optimizer_of

FEW = 2  # clips of about the mean length, whose forward pass without gradients stands for those of all
QUICK, AGAIN = 0.02, 5  # steps of fewer seconds are measured so many times more
PER_ITERATION = 2e-4  # seconds of Python in an iteration of L-BFGS, beside its products


class Probe:
    """The measurement of one training.

    Args:
        data: of the training, whose cache need not be filled.
        sample: of its training clips.
    """

    def __init__(self, setting: Setting, data: TrainingData, sample: Sample):
        self.setting, self.given, self.sample = setting, data, sample
        self.device = setting.device
        self.task = copy.deepcopy(setting.task)
        options = setting.options
        # What belongs to the caller may count its calls or keep what it is given: the probe uses our own in its place.
        own = replace(
            options,
            loss="auto" if callable(options.loss) else options.loss,
            optimizer="adamw" if callable(options.optimizer) else options.optimizer,
            class_weights=None,
            sampler="shuffled",
            workers=0,
        )
        self.twin = replace(setting, task=self.task, options=own)
        self.data = copy.copy(data)
        self.data.setting = self.twin

    def costs(self) -> Costs:
        """Measures them. Raises whatever reading and computing clips does."""
        return self._of_waveforms() if self.given.cache is None else self._of_kept(self.given.cache)

    def _of_waveforms(self) -> Costs:
        options, before = self.setting.options, memory_mb(self.device)
        clips = self.sample.clips(min(options.batch_size, len(self.sample)))
        waves = [wave for wave, _ in clips]
        crop, whole = (sum(map(frames, map(len, waves))) / len(waves) for frames in (self._frames, self._whole_frames))
        first, again = (each / max(1, options.workers) for each in self._reading())
        step = self._step(clips)
        few = sorted(waves, key=lambda wave: abs(self._whole_frames(len(wave)) - whole))[:FEW]
        per_frame = self._forward(few)
        peak = peak_memory_mb(self.device)
        validated = 0 if self.given.val is None else len(self.given.val)
        drawn = again * min(options.clips_per_step, len(self.sample))
        unread = (first - again) * len(self.sample)  # the first pass, which opens the files, takes longer by this
        prepare = self.starts * (per_frame * crop + again) + unread + self._regression()
        memory = max(peak, before + (peak - before) * self._longest_over_mean(waves))
        return Costs(prepare, step + drawn, validated * (per_frame * whole + again), memory)

    def _of_kept(self, cache: ActivationCache) -> Costs:
        train, val = self.given.train, self.given.val
        waves = train.examples
        cache.task.eval()
        cache.compute(waves, True)  # the first pass is slow
        kept: list[Tensor] = []
        computed = self._seconds(lambda: kept.extend(cache.compute(waves, True))) / len(waves)
        rows = [value.detach().float() for value in kept]
        missing = sum(len(part.missing()) * (computed + _read_again(part)) for part in (train, val) if part is not None)
        step = self._step([(row, train.labels[at]) for at, row in enumerate(rows)])
        pooled = self._pass(lambda: self.data.pooled(rows)) / len(rows) if self.starts else 0.0
        validation = 0.0
        if val is not None and len(val):
            some = [rows[at % len(rows)] for at in range(min(len(val), self.setting.batch_size))]
            validation = len(val) / len(some) * self._pass(lambda: self.data.logits(some))
            logits, targets = torch.zeros(len(val), len(self.task.labels)), self.task.targets(val.labels)
            validation += self._seconds(lambda: score(self.task, logits, targets, each_epoch=True))
        prepare = missing + self.starts * pooled + self._regression()
        return Costs(prepare, step, validation, peak_memory_mb(self.device))

    def _step(self, clips: list[Any]) -> float:
        """Seconds of an optimiser step on these (row, label) pairs, which are repeated until they fill it."""
        twin, size = self.twin, min(self.twin.options.batch_size, len(self.sample))
        clips = [clips[at % len(clips)] for at in range(size)]
        data: Any = clips
        if self.given.cache is not None:
            data = KeptClips([str(at) for at in range(size)], [label for _, label in clips], clips, MemoryStore())
            data.tensors = [row for row, _ in clips]
        feed = Feed(twin.backbone, self.task, data, replace(twin.options, accumulate=1), twin.masks)
        self.data.feed = feed
        state = State(twin, self.data, optimizer_of(twin), History(self.task.name, {}, twin.precision))
        step = OptimizerStep(twin, self.data, state, Callbacks(()))
        self.task.train()
        run = iter(range(2 + AGAIN))
        take = lambda: step.take(feed.batch(next(run), 0))  # noqa: E731
        take()  # the first is slow: kernels are chosen, memory is asked for
        seconds = self._seconds(take)
        if seconds < QUICK:  # too short to be told from what else goes on
            seconds = min(self._seconds(take) for _ in range(AGAIN))
        return seconds * min(self.setting.options.accumulate, -(-len(self.sample) // size))

    @property
    def starts(self) -> int:
        """Clips on which the head is started; 0 if it is not."""
        return min(MOST_CLIPS, len(self.sample)) if will_start(self.setting) else 0

    def _regression(self) -> float:
        """Seconds of the regression that a new head starts from: the products of its objective, and L-BFGS."""
        if not self.starts:
            return 0.0
        width, classes, some = self.setting.backbone.geometry.width, len(self.task.labels), min(self.starts, 256)
        x, w = (torch.zeros(shape, dtype=torch.float64) for shape in ((some, width), (width, classes)))
        products = 2 * self._seconds(lambda: x @ w) * self.starts / some
        return ITERATIONS * (products + PER_ITERATION)

    def _reading(self) -> tuple[float, float]:
        """Seconds to read a clip for the first time, and each time after it."""
        return self.sample.seconds_to_read(), self.sample.seconds_to_read_again()

    def _forward(self, waves: list[Tensor]) -> float:
        """Seconds of a frame in a forward pass of whole clips, as a validation makes it.

        Training clips stand in for those of validation, which are not touched before their time.
        """
        clips = [(wave, self.task.labels[0]) for wave in waves]
        run = lambda: evaluate_task(  # noqa: E731
            self.setting.backbone, self.task, clips, batch_size=len(clips), each_epoch=True
        )
        with self.setting.autocast:
            return min(self._seconds(run) for _ in range(2)) / sum(self._whole_frames(len(wave)) for wave in waves)

    def _longest_over_mean(self, waves: list[Tensor]) -> float:
        """How much larger a batch of clips like these is with the longest clip of the data set among them."""
        crop = self.setting.options.crop_seconds
        most = self.sample.longest() if crop is None else round(crop * SAMPLE_RATE)
        frames = [self._frames(len(wave)) for wave in waves]
        return (sum(frames) - min(frames) + max(*frames, self._frames(most))) / sum(frames)

    def _frames(self, samples: int) -> int:
        """Frames with which a clip of so many samples is trained on."""
        crop = self.setting.options.crop_seconds
        samples = samples if crop is None else min(samples, round(crop * SAMPLE_RATE))
        return self.task.used_frames(frame_count(samples), self.setting.clip_seconds)

    def _whole_frames(self, samples: int) -> int:
        """Frames with which it is validated."""
        return self.task.used_frames(frame_count(samples), self.task.spec.clip_seconds)

    def _pass(self, run: Callable[[], Any]) -> float:
        """Seconds of a forward pass without gradients, in eval mode."""
        self.task.eval()
        with torch.no_grad(), self.setting.autocast:
            return self._seconds(run)

    def _seconds(self, run: Callable[[], Any]) -> float:
        """Seconds of a call, on a GPU until its work is done."""
        _wait(self.device)
        start = time.perf_counter()
        run()
        _wait(self.device)
        return time.perf_counter() - start


def _read_again(kept: KeptClips) -> float:
    """Seconds to read a clip of these a second time: a folder's data set keeps what it decoded."""
    given = kept.data.dataset if isinstance(kept.data, Pairs) else kept.data
    return 0.0 if isinstance(given, FolderDataset) else kept.read_seconds


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Context after which the random states of torch, NumPy and Python are what they were, whatever drew from them."""
    devices = [device] if device.type == "cuda" else []
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - the state that old code draws from
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
