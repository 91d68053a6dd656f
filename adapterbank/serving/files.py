"""Answers about many audio files: read ahead by threads, computed in batches, given in the order of the files.

A folder of recordings is larger than memory, and decoding it takes as long as answering it. So a few threads decode the
next files while this one computes, and no more than two batches of waveforms are in memory at any time.

    for answer in answer_files(bank.backbone, [bank.task("birds")], find_audio(["recordings/"])):
        print(answer.file, answer.error or answer.predictions["birds"].labels[0])
"""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from adapterbank.audio.clips import one_clip, read_clips
from adapterbank.audio.suffixes import READABLE_SUFFIXES
from adapterbank.backbone.backbone import Backbone
from adapterbank.data.clip import is_audio, is_foreign_audio
from adapterbank.data.threads import threads_that_read
from adapterbank.errors import AdapterBankError, AudioFileError, DatasetError, WaveformError
from adapterbank.numbers import whole
from adapterbank.routing.run import ask
from adapterbank.task.task import Prediction, Task
from adapterbank.text import amount

BATCH_SIZE = 16  # files that are computed together: enough to fill a CPU, little to wait for
THREADS = 2  # that decode: on a few cores more would take time from the computing

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one file: a result, or the reason why there is none."""

    file: Path
    result: Result | None = None
    error: AdapterBankError | None = None


@dataclass(frozen=True)
class FileAnswer:
    """What all tasks say of one file.

    Attributes:
        predictions: {task: its prediction}; empty if the file could not be answered.
        error: why it could not; None if it was.
    """

    file: Path
    predictions: dict[str, Prediction] = field(default_factory=dict)
    error: AdapterBankError | None = None


def find_audio(places: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files that somebody means by these names, each once.

    Args:
        places: files; folders, which stand for all recordings in them and below; patterns such as "day*/**/*.wav".
            A file that is named stays in the list even if it is absent, so that reading it says so. In folders and
            patterns, recordings in a format that cannot be read (.m4a) stay too: nothing is left out silently.

    Returns:
        Named files in the order given, those of a folder or pattern in the order of their names.

    Raises:
        DatasetError: a folder or pattern without recordings, or nothing that exists.
    """
    found: dict[Path, None] = {}
    absent = []
    for place in places:
        path = Path(place).expanduser()
        if path.is_dir():
            found |= dict.fromkeys(_recordings(path))
        elif path.exists() or not glob.has_magic(str(place)):
            absent += [] if path.exists() else [str(place)]
            found[path] = None
        else:
            found |= dict.fromkeys(_matching(str(path)))
    if len(found) == len(absent):
        named = ", ".join(absent[:3]) or "nothing"
        raise DatasetError(
            f"got {named}, which does not exist; expected audio files, folders or patterns like '*.wav'."
        )
    return list(found)


def _recordings(folder: Path) -> list[Path]:
    """All recordings in a folder and below, without hidden files and folders."""
    found = sorted(
        Path(parent, name)
        for parent, folders, names in os.walk(folder, followlinks=True)
        if not _hidden(Path(parent), folder)
        for name in names
        if _is_recording(name)
    )
    if not found:
        raise DatasetError(f"{folder} holds no audio; expected {', '.join(sorted(READABLE_SUFFIXES))} in it or below.")
    return found


def _hidden(folder: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in folder.relative_to(below).parts)


def _matching(pattern: str) -> list[Path]:
    """All recordings that a pattern matches; a folder that it matches stands for the recordings in it."""
    matched = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in matched if path.is_file() and _is_recording(path.name)]
    if not files:  # "day*": folders; where files match too, "**" has found those in the folders already
        files = [file for path in matched if path.is_dir() for file in _recordings(path)]
    if not files:
        what = f"matches {amount(len(matched), 'file')}, but no audio" if matched else "matches nothing"
        raise DatasetError(f"the pattern {pattern!r} {what}, seen from {Path.cwd()}; quote it so that ** is kept.")
    return files


def _is_recording(name: str) -> bool:
    return is_audio(name) or is_foreign_audio(name)


def answer_files(
    backbone: Backbone,
    tasks: Sequence[Task],
    files: Iterable[str | os.PathLike[str]],
    *,
    threshold: float | Mapping[str, float] | None = None,
    batch_size: int = BATCH_SIZE,
    threads: int = THREADS,
) -> Iterator[FileAnswer]:
    """What each of several tasks says of each file; tasks share what they have in common, as in `bank.ask`.

    Args:
        threshold: as `bank.predict` takes it.

    Yields:
        One answer per file, in their order. A file that cannot be read or answered has an error instead.

    Raises:
        ConfigError: no task, one twice, or `batch_size` or `threads` below 1.
    """

    def answer(waveforms: list[Tensor]) -> list[dict[str, Prediction]]:
        with torch.no_grad():
            logits = ask(backbone, tasks, read_clips(waveforms))
        return [
            {task.name: task.prediction(logits[task.name][row], threshold) for task in tasks}
            for row in range(len(waveforms))
        ]

    for outcome in over_files(files, answer, batch_size=batch_size, threads=threads):
        yield FileAnswer(outcome.file, outcome.result or {}, outcome.error)


def over_files(
    files: Iterable[str | os.PathLike[str]],
    compute: Callable[[list[Tensor]], Sequence[Result]],
    *,
    batch_size: int = BATCH_SIZE,
    threads: int = THREADS,
) -> Iterator[Outcome[Result]]:
    """Computes something of each file, batch by batch, while threads decode the next ones.

    Args:
        compute: B waveforms at 16 kHz, (T,) each -> B results, such as `bank.embed`.
        batch_size: files per call of `compute`; twice as many waveforms are in memory at most.
        threads: that decode.

    Yields:
        One outcome per file, in their order. A waveform or file that is refused costs no other its result.

    Raises:
        ConfigError: `batch_size` or `threads` below 1.
    """
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        whole(name, value)
    with closing(_read_ahead(files, threads, batch_size)) as read:
        while batch := list(islice(read, batch_size)):
            clips = [clip for _, clip in batch if isinstance(clip, Tensor)]
            results = iter(_each(compute, clips))
            for file, clip in batch:
                found = next(results) if isinstance(clip, Tensor) else clip
                error = found if isinstance(found, AdapterBankError) else None
                yield Outcome(file, None if isinstance(found, AdapterBankError) else found, error)


Read: TypeAlias = "tuple[Path, Tensor | AdapterBankError]"


def _read_ahead(files: Iterable[str | os.PathLike[str]], threads: int, ahead: int) -> Generator[Read, None, None]:
    """Files with their waveforms (T,) at 16 kHz, or the reason why there is none. `ahead` of them are being decoded."""
    waiting: deque[tuple[Path, Future[Tensor | AdapterBankError]]] = deque()
    remaining = iter(files)
    pool = threads_that_read(threads)
    try:
        while True:
            for file in islice(remaining, ahead - len(waiting)):
                path = Path(file).expanduser()
                waiting.append((path, pool.submit(_read, path)))
            if not waiting:
                return
            path, future = waiting.popleft()
            yield path, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(file: Path) -> Tensor | AdapterBankError:
    try:
        return one_clip(file)[0]
    except AdapterBankError as error:
        return error
    except (OSError, MemoryError) as error:  # a disk that fails, an hour at 768 kHz
        return AudioFileError(f"{file} cannot be read: {error or type(error).__name__}.")


def _each(compute: Callable[[list[Tensor]], Sequence[Result]], clips: list[Tensor]) -> list[Result | AdapterBankError]:
    """The results of a batch. Where it fails, each clip is tried by itself, so that one costs no other its result."""
    if not clips:
        return []
    try:
        return list(compute(clips))
    except (WaveformError, AudioFileError) as error:
        if len(clips) == 1:
            return [error]
        return [result for clip in clips for result in _each(compute, [clip])]
