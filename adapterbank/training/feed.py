"""What a training hears: clips in their drawn order, batch by batch, cropped and masked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import DatasetError
from adapterbank.evaluation import map_style
from adapterbank.routing.run import mels_of
from adapterbank.task.task import Task, seeded
from adapterbank.training.augment import random_crop, spec_augment
from adapterbank.training.cache import Kept, collate
from adapterbank.training.options import Options


@dataclass(frozen=True)
class Batch:
    """Of B clips the raw log-mels (F, M), or what a cache keeps of them; and their labels."""

    rows: list[Tensor]
    labels: list[Any]


class Feed:
    """The batches of a training, epoch by epoch. Several trainings that walk in step get the same objects from one.

    Args:
        data: map-style, of (waveform (T,) at 16 kHz, label) or of what is kept.
        masks: SpecAugment's widths in mel bins and in frames or a share of them, 0 for none.

    Attributes:
        key: feeds with the same key give the same batches.
    """

    def __init__(self, backbone: Backbone, task: Task, data: Any, options: Options, masks: tuple[int, float | int]):
        self.backbone, self.masks, self.crop_seconds = backbone, masks, options.crop_seconds
        self.kept = isinstance(data, Kept)
        drawn_by = (task.name,) if options.order == "task" else ()
        self.generator = seeded(options.seed, *drawn_by, "data")
        self.loader = DataLoader(
            data,
            options.batch_size,
            shuffle=True,
            generator=self.generator,
            collate_fn=collate,
            num_workers=0 if self.kept else options.workers,
        )
        self.key = (id(data), options.seed, drawn_by, options.batch_size, masks, options.crop_seconds, options.workers)
        self._at: tuple[int, int] | None = None
        self._batches: Iterator[Any] = iter(())
        self._latest = Batch([], [])

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.loader)

    def batch(self, epoch: int, place: int) -> Batch:
        """The batch at this place. Rising, from the first of each epoch on; asked for again, it is the same object."""
        if self._at != (epoch, place):
            if place == 0:
                self._batches = iter(self.loader)
            self._latest, self._at = self.hear(*next(self._batches)), (epoch, place)
        return self._latest

    def hear(self, rows: list[Tensor], labels: list[Any]) -> Batch:
        """B waveforms (T,) at 16 kHz -> their log-mels, cropped and masked anew; what is kept stays as it is."""
        if self.kept:
            return Batch(rows, labels)
        if self.crop_seconds is not None:
            samples = round(self.crop_seconds * SAMPLE_RATE)
            rows = [random_crop(waveform, samples, self.generator) for waveform in rows]
        with torch.no_grad():
            mels = mels_of(self.backbone, rows)
            if any(self.masks):
                mels = [spec_augment(mel, *self.masks, self.generator) for mel in mels]
        return Batch(mels, labels)


def as_dataset(data: Any, task: Task) -> Any:
    """A map-style dataset; any other iterable is read into a list once. Raises DatasetError if there is no clip."""
    data = map_style(data)
    if not len(data):
        raise DatasetError(f"got no clips to train {task.name!r} on, expected (waveform, label) pairs.")
    return data
