"""What a training reads: clips in their drawn order, batch by batch, or what a cache keeps of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, WeightedRandomSampler

from adapterbank.audio.clips import as_waveforms
from adapterbank.audio.masks import spec_augment
from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.backbone.backbone import Backbone
from adapterbank.data.pairs import Pairs, pairs_of
from adapterbank.errors import DatasetError, UntrainedClassesWarning, warn_outside
from adapterbank.routing.below import logits_above
from adapterbank.routing.run import mels_of, run_rows
from adapterbank.task.task import Task, seeded
from adapterbank.text import amount, verb
from adapterbank.training.augment import middle, mixed, random_crop, rolled, with_gain, with_noise
from adapterbank.training.balance import class_counts, clip_weights, labels_of
from adapterbank.training.cache import (
    FOLDER_BYTES,
    MEMORY_BYTES,
    ActivationCache,
    KeptClips,
    Stores,
    collate,
)
from adapterbank.training.defaults import Resolved
from adapterbank.training.sample import reads_alike
from adapterbank.training.setting import Setting


@dataclass(frozen=True)
class Batch:
    """B clips of one step.

    Attributes:
        rows: one tensor per clip: its raw log-mel (F, M), cropped and masked; or, with a cache, what is kept of it:
            tokens (N, D) or a feature vector (D,).
        labels: one per clip, as the data gives them.
        partners: with mixup, the label of the clip that each was mixed with; else empty.
        shares: with mixup, the share (B,) of each clip's own label in its target.
    """

    rows: list[Tensor]
    labels: list[Any]
    partners: list[Any] = field(default_factory=list)
    shares: Tensor | None = None

    def targets(self, task: Task) -> Tensor:
        """What the loss is given: class indices (B,); or (B, C), for a multi-label task and with mixup.

        Raises:
            LabelsError: a label that the task does not have.
        """
        own = task.targets(self.labels)
        if self.shares is None:
            return own
        other = task.targets(self.partners)
        if not task.spec.multilabel and own.ndim == 1:
            own, other = (F.one_hot(indices, len(task.labels)).float() for indices in (own, other))
        return self.shares[:, None] * own + (1 - self.shares)[:, None] * other

    def parts(self, size: int) -> list[Batch]:
        """The batch in parts of `size` clips; the last may be smaller."""
        if len(self.rows) <= size:
            return [self]
        return [
            Batch(
                self.rows[at : at + size],
                self.labels[at : at + size],
                self.partners[at : at + size],
                None if self.shares is None else self.shares[at : at + size],
            )
            for at in range(0, len(self.rows), size)
        ]


MEASURED = 10_000  # clips whose lengths stand for those of all
# The options that decide which batches a feed gives, beside the data and what the task makes of it.
_DECIDING = (
    "seed",
    "batch_size",
    "accumulate",
    "crop_seconds",
    "workers",
    "mixup",
    "mixup_alpha",
    "gain",
    "roll",
    "noise",
)


class Feed:
    """The batches of a training, epoch by epoch.

    Several trainings may share one feed: those that ask for the same place get the same object.

    Args:
        backbone: on whose device log-mels are computed.
        data: map-style, of (waveform (T,) at 16 kHz, label) or of what is kept.
        options: clips per step, seed, order, sampler, changes of the waveforms and number of workers.
        masks: the widest SpecAugment masks, in mel bins and in frames or a share of them; 0 for none.

    Attributes:
        generator: makes all draws: the order of the clips, then crops, other changes and masks. It depends on the
            seed, and on the task's name unless the order is shared.
        key: feeds with the same key give the same batches.
        lengths: in samples, of the first clips that it gave, after crops.
    """

    def __init__(self, backbone: Backbone, task: Task, data: Any, options: Resolved, masks: tuple[int, float | int]):
        self.backbone, self.masks, self.options = backbone, masks, options
        self.kept = isinstance(data, KeptClips)
        self.fill = task.mean_std[0] if options.mask_with == "mean" else 0.0
        drawn_by = (task.name,) if options.order == "task" else ()
        self.generator = seeded(options.seed, *drawn_by, "data")
        weights = clip_weights(task, labels_of(data)) if options.sampler == "balanced" else None
        self.loader = DataLoader(
            data,
            options.clips_per_step,
            shuffle=weights is None,
            sampler=None if weights is None else _balanced(weights, self.generator),
            generator=self.generator,
            collate_fn=collate,
            num_workers=0 if self.kept else options.workers,
        )
        drawn = None if weights is None else tuple(weights.tolist())
        hidden = (masks, self.fill) if any(masks) else None
        self.key = (id(data), drawn_by, drawn, hidden, *(getattr(options, name) for name in _DECIDING))
        self._at: tuple[int, int] | None = None
        self._batches: Iterator[Any] = iter(())
        self._latest = Batch([], [])
        self.lengths: list[int] = list(data.lengths) if isinstance(data, KeptClips) else []

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.loader)

    def batch(self, epoch: int, place: int) -> Batch:
        """The batch at a place of an epoch, both counted from 0.

        Places are asked for in rising order, from the first of each epoch on. The latest may be asked for again: it is
        then the same object.
        """
        if self._at != (epoch, place):
            if place == 0:
                self._batches = iter(self.loader)
            self._latest, self._at = self.prepare(*next(self._batches)), (epoch, place)
        return self._latest

    def prepare(self, rows: list[Tensor], labels: list[Any]) -> Batch:
        """B waveforms (T,) at 16 kHz -> their log-mels (F, M), changed and masked anew; what is kept stays as it is."""
        if self.kept:
            return Batch(rows, labels)
        options, generator = self.options, self.generator
        partners: list[Any] = []
        shares: Tensor | None = None
        with torch.no_grad():
            if options.crop_seconds is not None:
                samples = round(options.crop_seconds * SAMPLE_RATE)
                rows = [random_crop(waveform, samples, generator) for waveform in rows]
            if options.mixup or options.gain or options.roll or options.noise:
                rows = as_waveforms(rows)  # refuses what is none, before it is mixed into others
            if options.mixup:
                rows, places, shares = mixed(rows, options.mixup, options.mixup_alpha, generator)
                partners = [labels[place] for place in places]
            if options.gain:
                rows = [with_gain(waveform, options.gain, generator) for waveform in rows]
            if options.roll:
                rows = [rolled(waveform, options.roll, generator) for waveform in rows]
            if options.noise:
                rows = [with_noise(waveform, options.noise, generator) for waveform in rows]
            mels = mels_of(self.backbone, rows)
            if len(self.lengths) < MEASURED:
                self.lengths += [len(waveform) for waveform in rows]
            if any(self.masks):
                mels = [spec_augment(mel, *self.masks, generator, self.fill) for mel in mels]
        return Batch(mels, labels, partners, shares)


def _balanced(weights: Tensor, generator: torch.Generator) -> WeightedRandomSampler:
    """Draws as many clips as there are, with replacement, each as often as its weight says."""
    return WeightedRandomSampler(weights.tolist(), len(weights), replacement=True, generator=generator)


class TrainingData:
    """The data part of a training: training clips, validation clips, and what a cache keeps of both.

    Args:
        train: map-style, of (waveform (T,) at 16 kHz, label). val: the same, any iterable, or None.
        stores: what caches keep, where several trainings of one process share it.

    Attributes:
        given: both as they were given, `val` as a list if it was an iterable.
        train, val: the same, or `KeptClips` of them where a cache is used; `val` is None if there is no validation.
        cache: of activations; None if nothing is kept.
        feed: the batches of training clips.

    Raises:
        LabelsError: a label that the task does not have. ConfigError: a cache that cannot work or is too small.
    """

    def __init__(self, setting: Setting, train: Any, val: Any = None, stores: Stores | None = None):
        self.setting, task = setting, setting.task
        self.train: Any = train
        self.val: Any = None if val is None else pairs_of(val)
        if self.val is not None and (labels := self.val.labels()) is not None:
            task.targets(labels, numbers=range(len(labels)), soft=False)
        self.given = tuple(part.dataset if isinstance(part, Pairs) else part for part in (self.train, self.val))
        self.cache: ActivationCache | None = None
        if setting.options.keeps or (setting.options.cache == "auto" and self._may_keep()):
            self.cache = _cache_of(setting, stores)
            self.train = self.cache.survey(self.train, training=True)
            task.targets(self.train.labels)  # a wrong label is an error before the long part
            if self.val is not None:
                self.val = self.cache.survey(self.val, training=False)
            self.cache.check(*self._parts())
        _warn_of_untrained(task, *(_known_labels(part) for part in (self.train, self.val)))
        self.feed = Feed(setting.backbone, task, self.train, setting.options, setting.masks)

    def fill(self, bar: Progress) -> None:
        """Computes what the cache lacks, if there is one. Raises DatasetError if it has no validation clip to keep."""
        if self.cache is None:
            return
        name = self.setting.task.name
        if self.val is not None and not len(self.val):
            raise DatasetError(f"got no validation clips for {name!r}; pass val=None to train without.")
        missing = sum(len(part.missing()) for part in self._parts())
        row = bar.add_task(f"{name}: what its cache keeps", total=missing, note="", visible=missing > 0)
        for part in self._parts():
            training = part is self.train
            self.cache.fill(part, training=training, advance=lambda clips: bar.update(row, advance=clips))

    def median_seconds(self) -> float | None:
        """How long the training clips are, or their crops; None if none was read."""
        lengths = self.feed.lengths
        return round(median(lengths) / SAMPLE_RATE, 3) if lengths else None

    def logits(self, rows: list[Tensor]) -> Tensor:
        """B rows as a batch of this data holds them -> logits (B, C).

        A log-mel runs through the whole AST, cached tokens through the blocks from the task's first one on, and cached
        features through the head alone.
        """
        backbone, tasks = self.setting.backbone, [self.setting.task] * len(rows)
        if self.cache is None:
            return torch.stack(run_rows(backbone, tasks, rows, [self.setting.clip_seconds] * len(rows)))
        rows = [row.to(self.setting.device) for row in rows]
        if self.cache.block is None:  # features are kept: only the head is left
            return self.setting.task.head(torch.stack(rows))
        return torch.stack(logits_above(backbone, tasks, rows, self.cache.block))

    def pooled(self, rows: list[Tensor]) -> Tensor:
        """B rows of `train` -> what the head reads of them, (B, D); of waveforms the middle, if there are crops."""
        backbone, tasks, seconds = self.setting.backbone, [self.setting.task] * len(rows), self.setting.clip_seconds
        if self.cache is None:
            crop = self.setting.options.crop_seconds
            parts = rows if crop is None else [middle(waveform, round(crop * SAMPLE_RATE)) for waveform in rows]
            mels = mels_of(backbone, parts)
            return torch.stack(run_rows(backbone, tasks, mels, [seconds] * len(mels), pooled=True))
        rows = [row.to(self.setting.device) for row in rows]
        if self.cache.block is None:
            return torch.stack(rows)
        return torch.stack(logits_above(backbone, tasks, rows, self.cache.block, pooled=True))

    def _parts(self) -> list[Any]:
        return [part for part in (self.train, self.val) if part is not None]

    def _may_keep(self) -> bool:
        """Whether the task trains nothing but its head, and would get the same clips in each epoch."""
        augments = any(self.setting.masks) or bool(self.setting.options.waveform_changes())
        return self.setting.task.uses_frozen_features() and not augments and all(map(reads_alike, self._parts()))


def _known_labels(data: Any) -> list[Any] | None:
    """The labels of the clips, if they are known without reading one."""
    if isinstance(data, KeptClips):
        return list(data.labels)
    return data.labels() if isinstance(data, Pairs) else None


def _warn_of_untrained(task: Task, train: list[Any] | None, val: list[Any] | None) -> None:
    """Warns of classes that no training clip has, and says how many validation clips have them."""
    if train is None:
        return
    absent = [at for at, count in enumerate(class_counts(task, train).tolist()) if not count]
    if not absent:
        return
    names = ", ".join(task.labels[at] for at in absent[:8]) + (", …" if len(absent) > 8 else "")
    them = "it" if len(absent) == 1 else "them"
    heard = 0 if not val else int(class_counts(task, val)[absent].sum())
    also = f" {amount(heard, 'validation clip')} {verb(heard, 'have')} {them} and will be wrong." if heard else ""
    warn_outside(
        f"no training clip of {task.name!r} has {len(absent)} of its {amount(len(task.labels), 'class')}: {names}. It "
        f"cannot learn to answer {them}.{also} Add clips of {them}, or leave {them} out of labels=... in add_task.",
        UntrainedClassesWarning,
    )


def _cache_of(setting: Setting, stores: Stores | None) -> ActivationCache:
    options = setting.options
    where = "memory" if options.cache == "auto" else str(options.cache)
    standard = MEMORY_BYTES if where == "memory" else FOLDER_BYTES
    return ActivationCache(
        setting.backbone,
        setting.task,
        where,
        limit=options.cache_bytes or (None if options.cache == "auto" else standard),
        batch_size=options.batch_size,
        workers=options.workers,
        precision=setting.precision,
        autocast=setting.autocast,
        stores=stores,
    )


def as_dataset(data: Any, task: Task) -> Pairs:
    """A data set of any form by number; what is read by iteration only is read into a list once.

    Raises:
        DatasetError: there is no clip. LabelsError: a label that the task does not have, if labels are known without
            reading clips.
    """
    pairs = pairs_of(data)
    if not len(pairs):
        raise DatasetError(f"got no clips to train {task.name!r} on, expected (waveform, label) pairs.")
    if (labels := pairs.labels()) is not None:
        task.targets(labels, numbers=range(len(labels)))
    return pairs
