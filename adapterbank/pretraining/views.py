"""What the student hears: a pool of unlabelled audio, pre-drawn views of it, and what the teachers say about each view.

Teachers and student hear the same augmented waveform, so a teacher runs once per view and its answers wait on disk as
memory-mapped arrays. Rows of a view lie one after another: its columns in `mel`, its target rows in each target.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import soundfile
import torch
import torchaudio.functional
from rich.progress import track
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE, frame_count, log_mel, pad_frames
from adapterbank.errors import DatasetError
from adapterbank.files import write_atomically
from adapterbank.pretraining.teachers import Target, Teacher, view_samples

Mode = Literal["r", "r+", "w+"]


FRAMES_PER_COLUMN = 16


MEL_BINS = 128


AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".opus"}


SPEEDS = ((6, 5), (9, 8), (1, 1), (1, 1), (1, 1), (1, 1), (8, 9), (5, 6))  # output over input length; half are 1


# (share, fewest, most patch columns): up to 0.6 s (notes, syllables), about 1 s, 2 s, 3-5 s and 5-10 s
LENGTHS = ((0.18, 1, 4), (0.30, 5, 7), (0.30, 10, 13), (0.15, 18, 31), (0.07, 31, 62))


class Pool:
    """All clips of a folder as one memory-mapped int16 array at 16 kHz.

    Args:
        folder: shards with an `index.csv` (`shard,start_sample,num_samples`), or any tree of audio files.
        cache: where the decoded samples are kept.
        exclude: clips to leave out, by their number among all, as `recipes/check_overlap.py` prints it.

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
            _write_json(marker, source)
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
        """Part of a clip as fp32 in [-1, 1]."""
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
    files = files or sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
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
    partial = cache / "samples.part"
    with partial.open("wb") as out:
        for number, path in enumerate(track(files, "decoding the pool")):
            audio = _read(path)
            out.write((audio.clip(-1, 1) * 32767).astype(np.int16).tobytes())
            if shards:
                mine = [row for row in rows if row["shard"] == shards[number]]
                clips += [(written + int(row["start_sample"]), int(row["num_samples"])) for row in mine]
            else:
                clips.append((written, len(audio)))
            written += len(audio)
    partial.replace(cache / "samples.i16")
    np.save(cache / "clips.npy", np.array(clips, dtype=np.int64))


def _read(path: Path) -> np.ndarray:
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DatasetError(f"cannot read {path}: {error}. Remove it from the pool, or fetch it again.") from error
    mono = audio.mean(1)
    if rate == SAMPLE_RATE:
        return mono
    return torchaudio.functional.resample(torch.from_numpy(mono), rate, SAMPLE_RATE).numpy()


@dataclass(frozen=True)
class View:
    """One augmented crop: where its sound comes from, and the generator's state for the rest.

    Attributes:
        clips: the first is the view's own; more are joined after it.
        columns: its length in patch columns.
        mix: a clip laid over it, or -1.
    """

    seed: tuple[int, int]
    clips: tuple[int, ...]
    columns: int
    speed: tuple[int, int]
    mix: int


def draw_views(pool: Pool, per_clip: int, seed: int, mix: float = 0.3, join: float = 0.35) -> list[View]:
    """`per_clip` views of every clip, pass after pass.

    Args:
        mix: share of views with a second clip laid over.
        join: share of the clips too short for the drawn length that are filled up with others; the rest keep
            their own length, as short clips do in use.
    """
    views = []
    shares = np.array([share for share, _, _ in LENGTHS])
    for number in range(per_clip * len(pool)):
        rng = np.random.default_rng((seed, number))
        clips = [number % len(pool)]
        _, low, high = LENGTHS[rng.choice(len(LENGTHS), p=shares / shares.sum())]
        columns = int(rng.integers(low, high + 1))
        speed = SPEEDS[rng.integers(len(SPEEDS))]
        length = pool.clips[clips[0], 1] * speed[0] // speed[1]
        if length < view_samples(columns):
            if rng.random() < join:
                while length < view_samples(columns):
                    clips.append(int(rng.integers(len(pool))))
                    length += pool.clips[clips[-1], 1] * speed[0] // speed[1]
            else:
                columns = -(-frame_count(int(length)) // FRAMES_PER_COLUMN)
        other = int(rng.integers(len(pool))) if rng.random() < mix else -1
        views.append(View((seed, number), tuple(clips), columns, speed, other))
    return views


def render(pool: Pool, view: View) -> tuple[Tensor, int]:
    """The waveform of a view (view_samples(columns),), zero-padded at its end, and its own length in samples."""
    rng = np.random.default_rng((*view.seed, 1))
    want = view_samples(view.columns)
    sound = torch.cat([_at_speed(pool.read(clip), view.speed) for clip in view.clips])
    start = int(rng.integers(max(1, len(sound) - want + 1)))
    sound = sound[start : start + want]
    length = len(sound)
    sound = torch.nn.functional.pad(sound, (0, want - length))
    if view.mix >= 0:
        other = _at_speed(pool.read(view.mix), view.speed)
        first = int(rng.integers(max(1, len(other) - length + 1)))
        other = other[first : first + length]
        offset = int(rng.integers(max(1, length - len(other) + 1)))
        ratio = sound.square().mean().sqrt() / other.square().mean().sqrt().clamp_min(1e-5)
        level = 10 ** (rng.uniform(-12, 6) / 20)
        sound[offset : offset + len(other)] += other * min(float(ratio) * level, 30.0)
    sound = sound * 10 ** (rng.uniform(-15, 6) / 20)
    return sound / max(1.0, float(sound.abs().max())), length


def _at_speed(sound: Tensor, speed: tuple[int, int]) -> Tensor:
    longer, by = speed
    return sound if longer == by else torchaudio.functional.resample(sound, by, longer)


class Views(Protocol):
    """What a student needs of prepared views: one store, or several joined."""

    columns: np.ndarray
    targets: tuple[Target, ...]
    done: int

    def batch(self, name: str, views: Sequence[int] | np.ndarray) -> Tensor: ...


class ViewStore:
    """Log-mels and teacher targets of all views, memory-mapped fp16 arrays in one folder.

    Views are kept sorted by pass, then by length, so that a contiguous run of one length is a batch without padding.

    Args:
        folder: of the arrays.
        columns: patch columns of every view, in the stored order.
        targets: what each teacher says, with its width.
    """

    def __init__(self, folder: str | Path, columns: np.ndarray, targets: Sequence[Target], mode: Mode = "r"):
        self.folder, self.targets = Path(folder), tuple(targets)
        self.columns = columns
        self._starts: dict[str, np.ndarray] = {}
        self._arrays: dict[str, np.memmap] = {}
        for name, width, rows in self._layout():
            starts = np.concatenate(([0], np.cumsum(rows)))
            path = self.folder / f"{name}.f16"
            new = not path.is_file()
            self._starts[name] = starts
            how: Mode = "w+" if new and mode == "r+" else mode
            self._arrays[name] = np.memmap(path, np.float16, how, shape=(int(starts[-1]), width))

    def _layout(self) -> Iterator[tuple[str, int, np.ndarray]]:
        yield "mel", FRAMES_PER_COLUMN * MEL_BINS, self.columns
        for target in self.targets:
            yield target.name, target.width, np.array([target.rows(int(t)) for t in self.columns])

    @classmethod
    def open(cls, folder: str | Path) -> ViewStore:
        """What `prepare` has written so far: `done` views. Raises DatasetError if it never ran there."""
        path = Path(folder) / "store.json"
        if not path.is_file():
            raise DatasetError(f"no prepared views in {folder}; run prepare(...) first.")
        content = json.loads(path.read_text())
        columns = np.load(Path(folder) / "columns.npy")
        store = cls(folder, columns, [Target(**target) for target in content["targets"]])
        store.done = min(content["done"], len(columns))
        return store

    done = 0  # views whose targets are written

    def holds(self, clips: Sequence[int]) -> np.ndarray:
        """(V,) which views have any of these clips in them.

        Raises:
            DatasetError: views of an earlier version, which did not write it down.
        """
        if not clips:
            return np.zeros(len(self.columns), dtype=bool)
        path = self.folder / "clips.npy"
        if not path.is_file():
            raise DatasetError(f"{self.folder} does not say which clips its views hold; draw the views again.")
        return np.asarray(np.isin(np.load(path), clips).any(1))

    def batch(self, name: str, views: Sequence[int] | np.ndarray) -> Tensor:
        """Array `name` of views of one length: (R, rows, width) in fp32; "mel" as (R, F, M)."""
        starts, array = self._starts[name], self._arrays[name]
        rows = np.stack([array[starts[v] : starts[v + 1]] for v in views])
        out = torch.from_numpy(rows).float()
        return out.flatten(1).unflatten(1, (-1, MEL_BINS)) if name == "mel" else out

    def write(self, name: str, first: int, values: Tensor) -> None:
        """Writes (R, rows, width) for the views `first`, `first + 1`, ..."""
        start = self._starts[name][first]
        flat = values.reshape(-1, self._arrays[name].shape[1]).clamp(-60_000, 60_000)
        self._arrays[name][start : start + len(flat)] = flat.to(torch.float16).numpy()


class JoinedViews:
    """The finished views of several stores as one, so that a second leg hears the views of the first as well.

    Args:
        exclude: views with any of these clips in them are left out (numbers as for `Pool`).

    Raises:
        DatasetError: their teachers differ, or a store does not say which clips are in its views.
    """

    def __init__(self, stores: Sequence[ViewStore], exclude: Sequence[int] = ()):
        self.stores = tuple(stores)
        self.targets = stores[0].targets
        for store in stores:
            if store.targets != self.targets:
                names = [[target.name for target in each.targets] for each in (stores[0], store)]
                raise DatasetError(f"{stores[0].folder} and {store.folder} have other teachers: {names}.")
        self._where = [
            (store, int(view)) for store in stores for view in np.flatnonzero(~store.holds(exclude)[: store.done])
        ]
        self.columns = np.array([store.columns[view] for store, view in self._where])
        self.done = len(self.columns)

    def batch(self, name: str, views: Sequence[int] | np.ndarray) -> Tensor:
        """As `ViewStore.batch`."""
        return torch.cat([store.batch(name, [view]) for store, view in (self._where[v] for v in views)])


def prepare(
    pool: Pool,
    views: Sequence[View],
    teachers: Sequence[Teacher],
    folder: str | Path,
    *,
    pass_size: int | None = None,
    batch_columns: int = 512,
) -> ViewStore:
    """Runs the teachers over all views; goes on where a killed run stopped.

    Args:
        pass_size: views are sorted by length inside runs of so many, so that a first pass can be used early.
        batch_columns: about how many patch columns go through a teacher at once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    size = pass_size or len(views)
    order = sorted(range(len(views)), key=lambda v: (v // size, views[v].columns, v))
    columns = np.array([views[v].columns for v in order])
    targets = [target for teacher in teachers for target in teacher.targets]
    state: dict[str, Any] = {"targets": [asdict(t) for t in targets], "views": len(views), "done": 0}
    marker = folder / "store.json"
    if marker.is_file():
        found = json.loads(marker.read_text())
        if {**found, "done": 0} != state or not np.array_equal(np.load(folder / "columns.npy"), columns):
            raise DatasetError(f"{folder} holds other views or other teachers; choose another folder or empty it.")
        state = found
    else:
        np.save(folder / "clips.npy", clips_of(pool, [views[v] for v in order]))
        np.save(folder / "columns.npy", columns)
    store = ViewStore(folder, columns, targets, mode="r+")
    batches = [b for b in _batches(columns, size, batch_columns) if b[1] > state["done"]]
    for first, stop in track(batches, "asking the teachers"):
        _ask(pool, [views[v] for v in order[first:stop]], teachers, store, first)
        state["done"] = stop
        _write_json(marker, state)
    store.done = state["done"]
    return store


def clips_of(pool: Pool, views: Sequence[View]) -> np.ndarray:
    """(V, most clips of a view): the numbers of each view's clips among all of the pool, filled up with -1."""
    every = [[*view.clips, view.mix] if view.mix >= 0 else [*view.clips] for view in views]
    numbers = np.full((len(views), max(map(len, every), default=0)), -1)
    for row, clips in zip(numbers, every, strict=True):
        row[: len(clips)] = pool.numbers[clips]
    return numbers


def _batches(columns: np.ndarray, pass_size: int, batch_columns: int) -> Iterator[tuple[int, int]]:
    first = 0
    for stop in range(1, len(columns) + 1):
        full = (stop - first) * columns[first] >= batch_columns
        if stop == len(columns) or stop % pass_size == 0 or columns[stop] != columns[first] or full:
            yield first, stop
            first = stop


def _ask(pool: Pool, views: Sequence[View], teachers: Sequence[Teacher], store: ViewStore, first: int) -> None:
    rendered = [render(pool, view) for view in views]
    waves = torch.stack([wave for wave, _ in rendered])
    frames = FRAMES_PER_COLUMN * views[0].columns
    # The student's padding is zero log-mel frames, not digital silence: cut to the sound first.
    mels = log_mel([wave[:length] for wave, length in rendered], MEL_BINS)
    store.write("mel", first, torch.stack([pad_frames(mel[:frames], frames) for mel in mels]))
    for teacher in teachers:
        for name, values in teacher(waves).items():
            store.write(name, first, values)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content).encode())
