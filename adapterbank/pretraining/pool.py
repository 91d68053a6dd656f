"""A pool of unlabelled audio: all clips of some sources, made once and read from disk in pieces."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track
from torch import Tensor

from adapterbank.errors import DatasetError
from adapterbank.files import write_atomically
from adapterbank.pretraining import sources
from adapterbank.pretraining.sources import Source

PARTS = "parts.jsonl"  # of a cache: a line for each part that is finished


class Pool:
    """All clips of several sources as one memory-mapped int16 array at 16 kHz.

    Args:
        made_from: a source or several of them; a path is the source `folder` with it.
        cache: where the samples are kept. A killed run goes on there with the next part.
        exclude: the numbers of clips to leave out, counted over all clips, as `recipes/check_overlap.py` prints them.

    Raises:
        DatasetError: no audio there, a file that cannot be read, a cache of other sources, or a number in `exclude`
            that no clip has.
    """

    def __init__(
        self, made_from: str | Path | Source | Sequence[Source], cache: str | Path, exclude: Sequence[int] = ()
    ):
        every = _as_sources(made_from)
        cache = Path(cache)
        cache.mkdir(parents=True, exist_ok=True)
        marker, described = cache / "source.json", json.loads(json.dumps([one.describe() for one in every]))
        with FileLock(cache / "filling.lock"):  # one process fills it; another one waits, and then reads
            known = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
            if known != described and _whole_lines(cache / PARTS):
                raise DatasetError(
                    f"{cache} holds the audio of another source than asked; choose another, or empty it."
                )
            if isinstance(known, dict) and known != described:
                raise DatasetError(
                    f"{cache} was made by an earlier version of this library; empty it, or choose another."
                )
            write_atomically(marker, json.dumps(described).encode())
            counts, said, origin = _filled(every, cache)
        if not len(counts):
            raise DatasetError(f"the sources of {cache} gave no clip; look at their options.")
        if wrong := [number for number in exclude if not 0 <= number < len(counts)]:
            raise DatasetError(f"got exclude={wrong}, expected clip numbers from 0 to {len(counts) - 1}.")
        clips = np.stack([np.concatenate(([0], np.cumsum(counts)[:-1])), counts], axis=1)  # (clips, 2): start, samples
        self.numbers = np.delete(np.arange(len(clips)), list(exclude))  # of the clips that are left, among all
        self.clips = clips[self.numbers]
        self.said = [said[number] for number in self.numbers]  # the word that is spoken, "" where it is not one word
        self.origin = origin[self.numbers]  # (clips,) which of the sources each is from, as its place among them
        self.samples = np.memmap(cache / "samples.i16", np.int16, "r")

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, clip: int, start: int = 0, samples: int | None = None) -> Tensor:
        """A clip, or a part of it, as a waveform (T,) in fp32 between -1 and 1."""
        first, count = self.clips[clip]
        stop = count if samples is None else min(count, start + samples)
        return torch.from_numpy(self.samples[first + start : first + stop].astype(np.float32) / 32768)


def _as_sources(made_from: str | Path | Source | Sequence[Source]) -> list[Source]:
    if isinstance(made_from, (str, Path)):
        return [sources.build("folder", path=made_from)]
    if isinstance(made_from, Sequence):
        return [*made_from]
    return [made_from]


def _filled(every: Sequence[Source], cache: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Makes the parts that are not in the cache yet. Gives each clip's number of samples, what it says, and its source.

    A part's line in `parts.jsonl` is written after its samples are on the disk; what a killed run wrote behind the last
    line is cut off.
    """
    lines = cache / PARTS
    done = _whole_lines(lines)
    wanted = [(source, number) for source in every for number in range(source.parts)]
    written, held = 2 * sum(sum(part["samples"]) for part in done), cache / "samples.i16"
    if written > (held.stat().st_size if held.is_file() else 0):
        raise DatasetError(f"{held} has lost samples that {lines.name} counts; empty {cache}, so that it is made anew.")
    if len(done) < len(wanted):
        with (cache / "samples.i16").open("ab") as out, lines.open("a", encoding="utf-8") as log:
            out.truncate(written)
            for source, number in track(wanted[len(done) :], "filling the pool"):
                found = list(source.part(number))
                for sound in found:
                    out.write((sound.samples.clip(-1, 1) * 32767).astype(np.int16).tobytes())
                out.flush()
                os.fsync(out.fileno())
                part = {"samples": [len(sound.samples) for sound in found], "said": [sound.said for sound in found]}
                log.write(json.dumps(part) + "\n")
                log.flush()
                done.append(part)
    counts = np.array([count for part in done for count in part["samples"]], dtype=np.int64)
    places = np.repeat(np.arange(len(every)), [source.parts for source in every])  # (parts,)
    origin = np.repeat(places, [len(part["samples"]) for part in done])
    return counts, [word for part in done for word in part["said"]], origin


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The parts that are done; a line that was cut off while it was written is removed."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomically(path, whole)
    return [json.loads(line) for line in whole.splitlines()]
