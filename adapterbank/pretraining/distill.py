"""Pretrains a small AST from frozen teachers or from masked patches. A killed training resumes to the same bits.

The student's two global tokens learn what the teachers say about a whole view. The mean of the tokens of each patch
column learns what they say about that moment. Each target has projection heads of its own, which are thrown away after
the training. Without teachers the student guesses hidden patches (`masked.py`).

Symbols: R rows of a batch, F frames, M mel bins, t patch columns, N tokens, D width, S rows of a target, E its width.
"""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from adapterbank.audio.masks import spec_augment
from adapterbank.audio.mel import AUDIOSET_MEAN, AUDIOSET_STD, normalise
from adapterbank.backbone.checkpoints import load_backbone
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError, StorageError, TrainingDivergedError
from adapterbank.files import write_atomically
from adapterbank.pretraining.distill_losses import distill_loss, init_heads, target_statistics
from adapterbank.pretraining.masked import MaskedPatches
from adapterbank.pretraining.options import DistillOptions
from adapterbank.pretraining.student import MINI, Tensors, init_student, student_tokens
from adapterbank.pretraining.views import Views
from adapterbank.pretraining.words import init_word_head, target_of_words, word_loss, word_statistics

PROGRESS = (
    TextColumn("distilling"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[loss]}"),
)

# Raised whenever a seed leads to other draws or the student computes in another way: a training that went on all the
# same would not come to the bits of one that was never stopped. Version 1, which its files do not name, drew other
# masks of SpecAugment and made query, key and value in one product.
CHECKPOINT_VERSION = 2


def random_gain(mel: Tensor, options: DistillOptions, generator: torch.Generator) -> Tensor:
    """Normalised log-mels (R, F, M), each of a clip that is up to `gain` dB louder or softer."""
    decibel = (torch.rand(len(mel), 1, 1, generator=generator) * 2 - 1) * options.gain
    return mel + decibel * (math.log(10) / 10) / (2 * AUDIOSET_STD)


# --- loop ------------------------------------------------------------------------------------------------------------


def epoch_batches(columns: np.ndarray, options: DistillOptions, geometry: Geometry, epoch: int) -> list[np.ndarray]:
    """Micro-batches that hold every view once, each of views of one length, in an order drawn by (seed, epoch)."""
    rng = np.random.default_rng((options.seed, epoch))
    batches = []
    for length in np.unique(columns):
        members = rng.permutation(np.flatnonzero(columns == length))
        rows = max(1, round(options.batch_tokens / (2 + geometry.rows * int(length))))
        batches += np.array_split(members, max(1, round(len(members) / rows)))
    return [batches[i] for i in rng.permutation(len(batches))]


def _steps(columns: np.ndarray, options: DistillOptions, geometry: Geometry, first: int) -> Iterator[list[np.ndarray]]:
    """The micro-batches of step `first`, `first` + 1, ..."""
    epoch, passed = 0, 0
    while True:
        batches = epoch_batches(columns, options, geometry, epoch)
        steps = max(1, len(batches) // options.accumulate)
        for step in range(max(0, first - passed), steps):
            yield batches[step * options.accumulate : (step + 1) * options.accumulate]
        passed, epoch = passed + steps, epoch + 1


def learning_rate(step: int, options: DistillOptions) -> float:
    """Linear warm-up, then cosine to 1 % of the peak."""
    warm = max(1, round(options.warmup * options.steps))
    if step < warm:
        return options.lr * (step + 1) / warm
    progress = (step - warm) / max(1, options.steps - warm)
    return options.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


class Distiller:
    """A student in training, with its heads, its average over time and its optimiser: all that a checkpoint holds.

    Batches, masks and learning rate follow from the seed and the number of the step alone. A checkpoint therefore holds
    no random generator, and a resumed training goes on to the same bits.
    """

    def __init__(
        self, store: Views, options: DistillOptions, geometry: Geometry = MINI, dtype: torch.dtype = torch.bfloat16
    ):
        self.store, self.options, self.geometry, self.dtype = store, options, geometry, dtype
        self.columns = store.columns[: store.done]
        self.student = init_student(geometry, options.seed)
        self.taught = options.objective == "teachers"
        if self.taught and not store.targets:
            raise ConfigError("no teacher has answered for these views; name one, or set objective=masked_patch.")
        hides = not self.taught or options.masked_weight > 0
        self.masked = MaskedPatches(geometry, options.hidden_share) if hides else None
        self.statistics: Tensors = target_statistics(store, options.seed) if self.taught else {}
        self.heads: Tensors = self.masked.init_heads(options.seed) if self.masked is not None else {}
        if self.taught:
            width = (geometry.width, options.head_width)
            self.heads |= init_heads(store.targets, self.statistics, *width, options.seed)
        self.spoken = None
        if self.taught and options.word_weight > 0:
            self.spoken = target_of_words(store, options.word_target)
            self.statistics |= word_statistics(store, self.spoken, options.seed)
            self.heads |= init_word_head(self.statistics, geometry.width, options.seed)
        self.ema = {name: tensor.clone() for name, tensor in self.student.items()}
        self.step = 0
        self.seconds = 0.0
        every = [*self.student.values(), *self.heads.values()]
        for tensor in every:
            tensor.requires_grad_(True)
        decayed = [t for t in every if t.ndim > 1]
        rest = [t for t in every if t.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=options.lr, betas=(0.9, 0.98), fused=True,
        )  # fmt: skip
        self._every = every
        # One thread per micro-batch: threads inside operations of this size mostly wait for each other.
        self._pool = ThreadPoolExecutor(max_workers=options.accumulate)

    def loss(self, views: np.ndarray, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of one micro-batch of views of one length, and its parts by name."""
        clean = normalise(self.store.batch("mel", views), AUDIOSET_MEAN, AUDIOSET_STD)
        total = torch.zeros(())
        parts: dict[str, float] = {}
        if self.taught:
            total, parts = self._taught_loss(views, clean, generator)
        if self.masked is not None:
            weight = self.options.masked_weight if self.taught else 1.0
            mel = random_gain(clean, self.options, generator)
            guessed, found = self.masked.loss(self.student, self.heads, mel, self.dtype, generator)
            total, parts = total + weight * guessed, {**parts, **found}
        return total, parts

    def _taught_loss(
        self, views: np.ndarray, mel: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        masked = spec_augment(mel, self.options.mask_frequency, float(self.options.mask_time), generator)
        mel = random_gain(masked, self.options, generator)
        answers = {target.name: self.store.batch(target.name, views) for target in self.store.targets}
        kept = None
        if self.step < self.options.keep_until * self.options.steps:
            draws = torch.rand(len(views), self.geometry.rows, generator=generator)
            kept = draws.argsort(1)[:, : self.options.keep_rows].sort(1).values
        tokens = student_tokens(self.student, mel, self.geometry, self.dtype, kept)
        columns = int(self.columns[views[0]])
        weights = (self.options.row_weight, self.options.probability_weight)
        total, parts = distill_loss(tokens, answers, self.store.targets, self.heads, self.statistics, columns, *weights)
        if self.spoken is not None:
            said = torch.from_numpy(self.store.said[views])
            found = word_loss(tokens, answers[self.spoken.name], said, self.spoken, self.heads, self.statistics)
            total, parts = total + self.options.word_weight * found, {**parts, "word": float(found.detach())}
        return total, parts

    def _gradients(self, views: np.ndarray, index: int) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        torch.set_num_threads(1)
        seed = (self.options.seed * 1_000_003 + self.step) * 64 + index
        loss, parts = self.loss(views, torch.Generator().manual_seed(seed))
        gradients = torch.autograd.grad(loss, self._every, materialize_grads=True)
        return gradients, {"loss": float(loss.detach()), **parts}

    def train_step(self, batches: list[np.ndarray]) -> dict[str, float]:
        """One optimiser step.

        A micro-batch counts by the root of its number of views. If every view counted alike, a hundred short views
        would drown ten long ones; if every token counted alike, short views would hardly count.
        """
        total = sum(len(b) ** 0.5 for b in batches)
        means: dict[str, float] = {}
        jobs = [self._pool.submit(self._gradients, views, index) for index, views in enumerate(batches)]
        for views, job in zip(batches, jobs, strict=True):  # always added in this order: same bits every time
            gradients, parts = job.result()
            share = len(views) ** 0.5 / total
            for tensor, gradient in zip(self._every, gradients, strict=True):
                tensor.grad = gradient * share if tensor.grad is None else tensor.grad.add_(gradient, alpha=share)
            for name, value in parts.items():
                means[name] = means.get(name, 0.0) + share * value
        norm = torch.nn.utils.clip_grad_norm_(self._every, self.options.clip)
        if not math.isfinite(means["loss"]) or not torch.isfinite(norm):
            raise TrainingDivergedError(f"loss {means['loss']} at step {self.step}; lower lr={self.options.lr}.")
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.options)
        self.optimiser.step()
        self.optimiser.zero_grad()
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.student.values()), 1 - decay)
        self.step += 1
        return means

    def run(
        self,
        checkpoint: str | Path | None = None,
        *,
        save_every: float = 120.0,
        log_every: int = 50,
        until: int | None = None,
        on_log: Callable[[int, dict[str, float]], None] | None = None,
        on_save: Callable[[Distiller], None] | None = None,
    ) -> None:
        """Trains to `options.steps`, or to step `until`.

        Args:
            checkpoint: where the state goes every `save_every` seconds and at the end; resumed from if it exists.
            on_log: receives the step and the mean losses since it was called last, or since this call began.
        """
        if checkpoint is not None and Path(checkpoint).is_file():
            self.load(checkpoint)

        def keep() -> None:
            if checkpoint is not None:
                self.save(checkpoint)
            if on_save is not None:
                on_save(self)

        stop = min(self.options.steps, until or self.options.steps)
        saved = time.monotonic()
        sums: dict[str, float] = {}
        summed = 0
        with _threads_restored(), Progress(*PROGRESS) as progress:
            bar = progress.add_task("", total=stop, completed=self.step, loss="")
            for batches in _steps(self.columns, self.options, self.geometry, self.step):
                if self.step >= stop:
                    break
                began = time.monotonic()
                means = self.train_step(batches)
                self.seconds += time.monotonic() - began
                sums = {name: sums.get(name, 0.0) + means.get(name, 0.0) for name in {**sums, **means}}
                summed += 1
                progress.update(bar, completed=self.step, loss=f"loss {means['loss']:.3f}")
                if self.step % log_every == 0:
                    if on_log is not None:
                        found = {name: value / summed for name, value in sums.items()}
                        on_log(self.step, {**found, "seconds": self.seconds})
                    sums, summed = {}, 0
                if checkpoint is not None and time.monotonic() - saved > save_every:
                    keep()
                    saved = time.monotonic()
        keep()

    def save(self, path: str | Path) -> None:
        """Writes the whole state, atomically."""
        state: dict[str, Any] = {
            "version": CHECKPOINT_VERSION,
            "options": asdict(self.options),
            "geometry": asdict(self.geometry),
            "views": len(self.columns),
            "step": self.step,
            "seconds": self.seconds,
            "student": self.student,
            "heads": self.heads,
            "ema": self.ema,
            "statistics": self.statistics,
            "optimiser": self.optimiser.state_dict(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(Path(path), content.getvalue())

    def start_from(self, path: str | Path) -> None:
        """Begins with the averaged student of an earlier run, and with its heads as far as the targets are the same.

        Args:
            path: a checkpoint; or a folder with an exported backbone, which has no heads.

        Raises:
            StorageError: not a checkpoint, or one of another geometry. BackboneError: a folder without a backbone.
        """
        if Path(path).is_dir():
            backbone = load_backbone(path)
            geometry, student, heads = asdict(backbone.geometry), dict(backbone.weights.named()), {}
        else:
            state = read_checkpoint(path)
            geometry, student, heads = state["geometry"], state["ema"], state["heads"]
        if geometry != asdict(self.geometry):
            raise StorageError(f"{path} is of geometry {geometry}, expected {asdict(self.geometry)}.")
        with torch.no_grad():
            for name, tensor in self.student.items():
                tensor.copy_(student[name])
                self.ema[name].copy_(tensor)
            for name, tensor in self.heads.items():
                if name in heads and heads[name].shape == tensor.shape:
                    tensor.copy_(heads[name])

    def load(self, path: str | Path) -> None:
        """Goes on from what `save` wrote. A training may be prolonged: `steps` may differ, and there may be more views.

        Raises:
            StorageError: not a checkpoint, or one of other options, geometry or views, or of another version of this
                code.
        """
        state = read_checkpoint(path)
        if (version := state.get("version", 1)) != CHECKPOINT_VERSION:
            raise StorageError(
                f"{path} has the checkpoint version {version}, expected {CHECKPOINT_VERSION}: with this version of "
                "adapterbank the training would go on with other masks than it began with. Finish it with the version "
                f"that started it, or start anew: choose another out=, from its student with start={path}."
            )
        defaults = {name: entry.default for name, entry in DistillOptions.__dataclass_fields__.items()}
        found = (
            {**defaults, **state["options"], "steps": 0},
            state["geometry"],
            min(state["views"], len(self.columns)),
        )
        expected = ({**asdict(self.options), "steps": 0}, asdict(self.geometry), state["views"])
        for what, got, wanted in zip(("options", "geometry", "views"), found, expected, strict=True):
            if got != wanted:
                raise StorageError(f"{path} was made with {what} {got}, now they are {wanted}; choose another out=.")
        with torch.no_grad():
            for mine, theirs in ((self.student, "student"), (self.heads, "heads"), (self.ema, "ema")):
                for name, tensor in mine.items():
                    tensor.copy_(state[theirs][name])
        self.statistics = state["statistics"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]


@contextmanager
def _threads_restored() -> Iterator[None]:
    """After it torch uses as many threads as before: the threads that train set the number for the whole process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state that `Distiller.save` wrote.

    Raises:
        StorageError: not a checkpoint.
    """
    try:
        state = torch.load(path, weights_only=True)
        missing = {"options", "geometry", "views", "student", "heads", "ema"} - state.keys()
    except (RuntimeError, OSError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise StorageError(f"{path} is not a checkpoint of a distillation: {error}.") from error
    if missing:
        raise StorageError(f"{path} is not a checkpoint of a distillation: {', '.join(sorted(missing))} missing.")
    return state
