"""A pool of unlabelled audio: all clips of a folder, decoded once and read from disk in pieces."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from rich.progress import track
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.suffixes import READABLE_SUFFIXES
from adapterbank.errors import DatasetError
from adapterbank.files import open_atomically, write_atomically


class Pool:
    """All clips of a folder as one memory-mapped int16 array at 16 kHz.

    Args:
        folder: shards with an `index.csv` (`shard,start_sample,num_samples`), or any tree of audio files.
        cache: where the decoded samples are kept.
        exclude: the numbers of clips to leave out, counted over all clips, as `recipes/check_overlap.py` prints them.

    Raises:
        DatasetError: no audio there, a file that cannot be read, a cache of another folder's audio, or a number in
            `exclude` that no clip has.
    """

    def __init__(self, folder: str | Path, cache: str | Path, exclude: Sequence[int] = ()):
        folder, cache = Path(folder), Path(cache)
        files = _audio_files(folder)
        source = {"files": [[path.name, path.stat().st_size] for path in files]}
        cache.mkdir(parents=True, exist_ok=True)
        marker = cache / "source.json"
        if not marker.is_file():
            _decode(folder, files, cache)
            write_atomically(marker, json.dumps(source).encode())
        elif json.loads(marker.read_text(encoding="utf-8")) != source:
            raise DatasetError(f"{cache} holds the audio of another folder than {folder}; choose another, or empty it.")
        clips = np.load(cache / "clips.npy")  # (clips, 2): start, samples
        if wrong := [number for number in exclude if not 0 <= number < len(clips)]:
            raise DatasetError(f"got exclude={wrong}, expected clip numbers from 0 to {len(clips) - 1}.")
        self.numbers = np.delete(np.arange(len(clips)), list(exclude))  # of the clips that are left, among all
        self.clips = clips[self.numbers]
        self.samples = np.memmap(cache / "samples.i16", np.int16, "r")

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, clip: int, start: int = 0, samples: int | None = None) -> Tensor:
        """A clip, or a part of it, as a waveform (T,) in fp32 between -1 and 1."""
        first, count = self.clips[clip]
        stop = count if samples is None else min(count, start + samples)
        return torch.from_numpy(self.samples[first + start : first + stop].astype(np.float32) / 32768)


def _index(folder: Path) -> list[dict[str, str]]:
    """The rows of `index.csv`; none where there is no such file."""
    index = folder / "index.csv"
    if not index.is_file():
        return []
    with index.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _shards(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return sorted({row["shard"] for row in rows})


def _audio_files(folder: Path) -> list[Path]:
    shards = _shards(_index(folder))
    files = [next(folder.glob(f"{Path(shard).stem}.*"), folder / shard) for shard in shards]
    files = files or sorted(p for p in folder.rglob("*") if p.suffix.lower() in READABLE_SUFFIXES)
    if absent := [path.name for path in files if not path.is_file()]:
        raise DatasetError(f"{folder / 'index.csv'} names {absent[0]}, which is not there; fetch the shards again.")
    if not files:
        raise DatasetError(f"no audio in {folder}; put audio files there, or shards with an index.csv.")
    return files


def _decode(folder: Path, files: Sequence[Path], cache: Path) -> None:
    clips: list[tuple[int, int]] = []
    written = 0
    rows = _index(folder)
    shards = _shards(rows)
    with open_atomically(cache / "samples.i16") as out:
        for number, path in enumerate(track(files, "decoding the pool")):
            audio = _read(path)
            out.write((audio.clip(-1, 1) * 32767).astype(np.int16).tobytes())
            if shards:
                mine = [row for row in rows if row["shard"] == shards[number]]
                clips += [(written + int(row["start_sample"]), int(row["num_samples"])) for row in mine]
            else:
                clips.append((written, len(audio)))
            written += len(audio)
    with open_atomically(cache / "clips.npy") as out:
        np.save(out, np.array(clips, dtype=np.int64))


def _read(path: Path) -> np.ndarray:
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DatasetError(f"cannot read {path}: {error}. Remove it from the pool, or fetch it again.") from error
    mono = audio.mean(1)
    if rate == SAMPLE_RATE:
        return mono
    return torchaudio.functional.resample(torch.from_numpy(mono), rate, SAMPLE_RATE).numpy()
