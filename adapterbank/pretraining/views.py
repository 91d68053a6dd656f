"""What the student hears: views drawn from a pool of unlabelled audio, and what the teachers say about each of them.

A view is one augmented piece of a clip. Teachers and student hear the same view, so that each teacher has to hear it
only once: its answers are kept on disk, in one memory-mapped array per target. The rows of one view lie one after
another in each array.

Symbols: R views of a batch, F frames, M mel bins, t patch columns, V all views.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torchaudio.functional
from rich.progress import track
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE, frame_count, log_mel, pad_frames
from adapterbank.errors import ConfigError, DatasetError
from adapterbank.files import open_atomically, write_atomically
from adapterbank.pretraining.pool import Pool
from adapterbank.pretraining.teachers import Target, Teacher, view_samples

Mode = Literal["r", "r+", "w+"]
FRAMES_PER_COLUMN = 16
MEL_BINS = 128
SPEEDS = ((6, 5), (9, 8), (1, 1), (1, 1), (1, 1), (1, 1), (8, 9), (5, 6))  # output over input length, half of them 1
# (share, fewest, most patch columns): up to 0.6 s (notes, syllables), about 1 s, 2 s, 3-5 s and 5-10 s
WHOLE_WORDS = 0.8  # of the views of a single word, the share that holds all of it
MIX_LEVELS = {False: (-12, 6), True: (-18, -3)}  # dB of what is laid over a view beside it; over a word it is softer
LENGTHS = ((0.18, 1, 4), (0.30, 5, 7), (0.30, 10, 13), (0.15, 18, 31), (0.07, 31, 62))


@dataclass(frozen=True)
class View:
    """One augmented piece of a clip: where its sound comes from, and the seed from which `render` draws the rest.

    Attributes:
        seed: of all that `render` draws: where the piece begins, levels, offsets.
        clips: the clip itself, and the clips that are joined after it because it is too short.
        columns: the length of the view in patch columns.
        speed: output length over input length, as two integers.
        mix: the clip that is laid over the view, or -1 for none.
        word: the view is one clip from its beginning to its end, a single word, over which nothing loud is laid.
        room: the sound is heard in a room that is drawn for it.
    """

    seed: tuple[int, int]
    clips: tuple[int, ...]
    columns: int
    speed: tuple[int, int]
    mix: int
    word: bool = False
    room: bool = False


def views_per_source(per_clip: int | Mapping[str, int], names: Sequence[str]) -> int | list[int]:
    """`per_clip` of `draw_views` from numbers by the names of the sources; 1 for those that are not named.

    Raises:
        ConfigError: a name that no source has.
    """
    if not isinstance(per_clip, Mapping):
        return per_clip
    if unknown := sorted(per_clip.keys() - set(names)):
        raise ConfigError(f"views.per_clip names {unknown}, expected some of the sources in use: {list(names)}.")
    return [per_clip.get(name, 1) for name in names]


def draw_views(
    pool: Pool, per_clip: int | Sequence[int], seed: int, mix: float = 0.3, join: float = 0.35, room: float = 0.0
) -> list[View]:
    """`per_clip` views of every clip, pass after pass.

    Args:
        per_clip: of the clips of each source, in the order of the pool's sources; one number is for all of them.
        mix: the share of views over which a second clip is laid: any that is no single word, if there are such.
        join: of the clips that are too short for the drawn length, the share that is filled up with other clips. The
            rest keep their own length, as short clips do when the backbone is used.
        room: the share of views that are heard in a room.
    """
    counts = np.full(len(pool), per_clip) if isinstance(per_clip, int) else np.asarray(per_clip)[pool.origin]
    shares = np.array([share for share, _, _ in LENGTHS])
    others = np.array([clip for clip in range(len(pool)) if not pool.said[clip]] or range(len(pool)))
    passes = (p * len(pool) + np.flatnonzero(counts > p) for p in range(counts.max(initial=0)))
    views = []
    for number in itertools.chain.from_iterable(numbers.tolist() for numbers in passes):
        rng = np.random.default_rng((seed, number))
        clips = [number % len(pool)]
        _, low, high = LENGTHS[rng.choice(len(LENGTHS), p=shares / shares.sum())]
        columns = int(rng.integers(low, high + 1))
        speed = SPEEDS[rng.integers(len(SPEEDS))]
        length = pool.clips[clips[0], 1] * speed[0] // speed[1]
        word = bool(pool.said[clips[0]]) and rng.random() < WHOLE_WORDS
        if word:
            columns = -(-frame_count(int(length)) // FRAMES_PER_COLUMN)
        elif length < view_samples(columns):
            if rng.random() < join:
                while length < view_samples(columns):
                    clips.append(int(rng.integers(len(pool))))
                    length += pool.clips[clips[-1], 1] * speed[0] // speed[1]
            else:
                columns = -(-frame_count(int(length)) // FRAMES_PER_COLUMN)
        other = int(others[rng.integers(len(others))]) if rng.random() < mix else -1
        views.append(View((seed, number), tuple(clips), columns, speed, other, word, bool(rng.random() < room)))
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
        level = 10 ** (rng.uniform(*MIX_LEVELS[view.word]) / 20)
        sound[offset : offset + len(other)] += other * min(float(ratio) * level, 30.0)
    sound = sound * 10 ** (rng.uniform(-15, 6) / 20)
    if view.room:
        sound[:length] = in_a_room(sound[:length], rng)
    return sound / max(1.0, float(sound.abs().max())), length


def in_a_room(sound: Tensor, rng: np.random.Generator) -> Tensor:
    """The same length and level in a room: (T,) -> (T,).

    Its echo is noise that falls by 60 dB within 0.1 to 0.8 s (Moorer, 1979), up to 3 dB louder or 15 dB softer than the
    direct sound; its treble falls faster, as it does where there are walls and furniture.
    """
    seconds, level = rng.uniform(0.1, 0.8), 10 ** (rng.uniform(-15, 3) / 20)
    times = np.arange(1, int(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    bright, dull = rng.standard_normal((2, len(times)))
    dull = np.convolve(dull, np.ones(4) / 2, "same")  # half of the noise below 4 kHz, and as loud
    tail = bright * 10 ** (-6 * times / seconds) + dull * 10 ** (-3 * times / seconds)
    response = torch.from_numpy(np.concatenate(([1.0], level * tail / np.sqrt((tail**2).sum())))).float()
    heard = torchaudio.functional.fftconvolve(sound, response)[: len(sound)]
    return heard * (sound.square().mean().sqrt() / heard.square().mean().sqrt().clamp_min(1e-8))


def _at_speed(sound: Tensor, speed: tuple[int, int]) -> Tensor:
    longer, by = speed
    return sound if longer == by else torchaudio.functional.resample(sound, by, longer)


class Views(Protocol):
    """What a training needs of prepared views: one store has it, and several joined stores have it, too.

    Attributes:
        columns: (V,) the length of each view in patch columns.
        targets: what the teachers answer with.
        done: how many views have all their answers.
        vocabulary: the words that are heard whole.
        said: (V,) which of them each view is, or -1.
    """

    columns: np.ndarray
    targets: tuple[Target, ...]
    done: int
    vocabulary: list[str]
    said: np.ndarray

    def batch(self, name: str, views: Sequence[int] | np.ndarray) -> Tensor: ...


class ViewStore:
    """Log-mels and teacher targets of all views, memory-mapped fp16 arrays in one folder.

    Views are sorted by pass, and within a pass by length, so that neighbours of equal length are a batch that needs no
    padding.

    Args:
        folder: of the arrays.
        columns: (V,) the length of every view in patch columns, in the order in which they are stored.
        targets: what the teachers answer with.
        mode: as `numpy.memmap` takes it; with "r+" an array that is not there yet is made.
    """

    def __init__(self, folder: str | Path, columns: np.ndarray, targets: Sequence[Target], mode: Mode = "r"):
        self.folder, self.targets = Path(folder), tuple(targets)
        self.columns = columns
        self.vocabulary: list[str] = []  # what the views of single words say
        self.said = np.full(len(columns), -1)  # (V,) the word of each view, as a place in `vocabulary`, or -1
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
        store._read_words()
        return store

    done = 0  # views whose targets are written

    def _read_words(self) -> None:
        """Views of an earlier version know of no words."""
        if (self.folder / "said.npy").is_file():
            self.said = np.load(self.folder / "said.npy")
            self.vocabulary = json.loads((self.folder / "vocabulary.json").read_text(encoding="utf-8"))

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
    """The finished views of several stores as one, so that a later training also hears the views of an earlier one.

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
        self.vocabulary = sorted({word for store in stores for word in store.vocabulary})
        place = {word: index for index, word in enumerate(self.vocabulary)}
        self.said = np.array(
            [place[store.vocabulary[store.said[view]]] if store.said[view] >= 0 else -1 for store, view in self._where]
        )

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
    threads: int = 1,
) -> ViewStore:
    """Runs the teachers over all views; goes on where a killed run stopped.

    Args:
        pass_size: views are sorted by length only within groups of this many, so that the first group is complete and
            can be trained on while the teachers hear the next one. None: one group.
        batch_columns: about how many patch columns a teacher hears at once.
        threads: how many such batches are heard side by side.
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
        ordered = [views[v] for v in order]
        vocabulary, said = words_of(pool, ordered)
        _write_json(folder / "vocabulary.json", vocabulary)
        for name, numbers in (("clips", clips_of(pool, ordered)), ("said", said), ("columns", columns)):
            with open_atomically(folder / f"{name}.npy") as file:
                np.save(file, numbers)
    store = ViewStore(folder, columns, targets, mode="r+")
    batches = [b for b in _batches(columns, size, batch_columns) if b[1] > state["done"]]

    def ask(batch: tuple[int, int]) -> int:
        _ask(pool, [views[v] for v in order[slice(*batch)]], teachers, store, batch[0])
        return batch[1]

    # Few at a time, so that an interrupted run has little to finish; in order, so that `done` counts what is written.
    groups = (batches[first : first + 4 * threads] for first in range(0, len(batches), 4 * threads))
    with ThreadPoolExecutor(threads) as workers:
        heard = (stop for group in groups for stop in workers.map(ask, group))
        for stop in track(heard, "asking the teachers", total=len(batches)):
            state["done"] = stop
            _write_json(marker, state)
    store.done = state["done"]
    store._read_words()
    return store


def clips_of(pool: Pool, views: Sequence[View]) -> np.ndarray:
    """(V, most clips of a view): the numbers of each view's clips among all of the pool, filled up with -1."""
    every = [[*view.clips, view.mix] if view.mix >= 0 else [*view.clips] for view in views]
    numbers = np.full((len(views), max(map(len, every), default=0)), -1)
    for row, clips in zip(numbers, every, strict=True):
        row[: len(clips)] = pool.numbers[clips]
    return numbers


def words_of(pool: Pool, views: Sequence[View]) -> tuple[list[str], np.ndarray]:
    """The words that are heard whole, sorted; and (V,) which of them each view is, or -1."""
    said = [pool.said[view.clips[0]] if view.word else "" for view in views]
    vocabulary = sorted(set(said) - {""})
    number = {"": -1} | {word: index for index, word in enumerate(vocabulary)}
    return vocabulary, np.array([number[word] for word in said], dtype=np.int64)


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


def _write_json(path: Path, content: dict[str, Any] | list[str]) -> None:
    write_atomically(path, json.dumps(content).encode())
