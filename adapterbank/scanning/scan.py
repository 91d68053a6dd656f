"""Tasks along a recording of any length: windows in batches, all tasks on the same ones.

Symbols: W windows, T samples, F frames, M mel bins, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from adapterbank.audio.clips import check_on_error
from adapterbank.audio.mel import LOUDEST, SAMPLE_RATE, WINDOW
from adapterbank.audio.stream import Recording, open_recording
from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import AudioFileError, WaveformError, warn_outside
from adapterbank.numbers import whole
from adapterbank.routing.run import ask_mels, check_asked
from adapterbank.scanning.events import Track
from adapterbank.scanning.overview import Overview
from adapterbank.scanning.result import Scan
from adapterbank.scanning.windows import FRAME_SECONDS, SHORTEST, Cutter, Cutting, Window, spectrogram
from adapterbank.task.task import Task
from adapterbank.text import amount, verb

WINDOW_SECONDS = 5.0  # where of no task it is known how long its clips are
LONGEST_USUAL = 60.0  # seconds of a window that nobody asked for


def scan(
    backbone: Backbone,
    tasks: Sequence[Task],
    source: Any,
    *,
    window: float | None = None,
    hop: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    on_error: str = "raise",
    batch_size: int = 32,
    progress: bool = True,
) -> Scan:
    """What `AdapterBank.scan` does; arguments, results and errors as there."""
    check_asked(tasks)
    whole("batch_size", batch_size)
    check_on_error(on_error)
    cutting = Cutting.of(usual_window(tasks) if window is None else window, hop)
    recording = open_recording(source, sample_rate)
    listener = _Listener(recording, strict=on_error == "raise")
    answers, overview, starts = _Answers(backbone, tasks), Overview(), []
    with _progress_bar(progress) as bar:
        row = bar.add_task(f"scan {recording.name}", total=recording.seconds)
        windows = _windows(listener, cutting, backbone, overview)
        for batch in _batches(windows, batch_size):
            answers.take([found.mel for found in batch])
            starts += [found.start * FRAME_SECONDS for found in batch]
            bar.update(row, completed=listener.seconds)
        bar.update(row, completed=listener.seconds, total=listener.seconds)
    if not starts:
        raise listener.broken or WaveformError(f"{recording.name} holds no samples; expected at least one.")
    result = _result(recording, listener, cutting, answers, overview, starts)
    _warn_of_what_is_left_out(result)
    return result


def usual_window(tasks: Sequence[Task]) -> float:
    """Seconds of a window where nobody says them: as long as the clips of the task with the longest, so that no task
    hears less at once than it was trained on. 5, where of no task it is known how long its clips are.

    It is at most 60, because memory grows with a window.
    """
    known = [task.usual_seconds for task in tasks if task.usual_seconds is not None]
    return min(max(SHORTEST, *known), LONGEST_USUAL) if known else WINDOW_SECONDS


class _Listener:
    """The blocks of a recording; it counts what passes, and notes what breaks.

    Args:
        strict: raise an error of the recording. Otherwise it ends there, and what went before is answered.
    """

    def __init__(self, recording: Recording, strict: bool):
        self.recording, self.strict = recording, strict
        self.samples = 0
        self.broken: AudioFileError | None = None

    @property
    def seconds(self) -> float:
        """That were heard."""
        return self.samples / SAMPLE_RATE

    def __iter__(self) -> Iterator[Tensor]:
        try:
            for block in self.recording:
                self.samples += len(block)
                yield self._checked(block)
        except AudioFileError as error:
            if self.strict:
                raise AudioFileError(f"{error} on_error='skip' answers for what comes before.") from error
            self.broken = error
        if 0 < self.samples < WINDOW and self.broken is None:  # as a clip of this length is refused
            raise WaveformError(
                f"{self.recording.name} holds {1000 * self.seconds:.3g} ms of sound, expected at least one window of "
                f"{1000 * WINDOW / SAMPLE_RATE:g} ms."
            )

    def _checked(self, block: Tensor) -> Tensor:
        """The block with NaN for every sample that no sound has. Raises WaveformError for one, if strict."""
        low, high = block.aminmax()  # one pass; both are NaN if one sample is
        if low >= -LOUDEST and high <= LOUDEST:
            return block
        good = block.abs() <= LOUDEST  # False for NaN
        if self.strict:
            first = int(good.logical_not().nonzero()[0])
            second = (self.samples - len(block) + first) / SAMPLE_RATE
            raise WaveformError(
                f"{self.recording.name} holds a sample of {float(block[first]):.4g} at {second:.2f} s, expected finite "
                f"ones in [-1, 1] (up to {LOUDEST:g} is let pass); samples of 16 bits are divided by 32768. "
                "on_error='skip' answers for the windows without such samples."
            )
        return block.where(good, torch.nan)


class _Answers:
    """The probabilities of all tasks, batch by batch."""

    def __init__(self, backbone: Backbone, tasks: Sequence[Task]):
        self.backbone, self.tasks = backbone, tasks
        self.found: dict[str, list[Tensor]] = {task.name: [] for task in tasks}

    def take(self, mels: Sequence[Tensor]) -> None:
        """Answers for these windows, (F, M) each; where one holds NaN or Inf, so do its probabilities."""
        sound = [place for place, mel in enumerate(mels) if mel.sum().isfinite()]
        logits = ask_mels(self.backbone, self.tasks, [mels[place] for place in sound]) if sound else {}
        for task in self.tasks:
            table = torch.full((len(mels), len(task.labels)), torch.nan)
            if sound:
                table[sound] = task.probabilities(logits[task.name]).float().cpu()
            self.found[task.name].append(table)

    def tracks(self) -> dict[str, Track]:
        """Of each task."""
        return {
            task.name: Track(
                task.name,
                task.labels,
                task.spec.multilabel,
                torch.cat(self.found[task.name]),
                task.thresholds if task.spec.multilabel else None,
            )
            for task in self.tasks
        }


def _windows(blocks: Iterable[Tensor], cutting: Cutting, backbone: Backbone, overview: Overview) -> Iterator[Window]:
    cutter = Cutter(cutting)
    for mel in spectrogram(blocks, backbone.geometry.mel_bins, backbone.device):
        overview.push(mel)
        yield from cutter.push(mel)
    yield from cutter.finish()


def _batches(windows: Iterable[Window], size: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for window in windows:
        batch.append(window)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _result(
    recording: Recording,
    listener: _Listener,
    cutting: Cutting,
    answers: _Answers,
    overview: Overview,
    begun: Sequence[float],
) -> Scan:
    window, hop = cutting.seconds
    starts = torch.tensor(begun, dtype=torch.float64)
    ends = (starts + window).clamp(max=listener.seconds)
    tracks = answers.tracks()
    unheard = next(iter(tracks.values())).probabilities.isnan().any(dim=1)
    skipped = tuple(zip(starts[unheard].tolist(), ends[unheard].tolist(), strict=True))
    fault = None if listener.broken is None else str(listener.broken)
    heard = listener.seconds
    return Scan(recording.name, heard, window, hop, starts, ends, tracks, skipped, fault, overview.result())


def _warn_of_what_is_left_out(result: Scan) -> None:
    if result.fault is not None:
        warn_outside(f"{result.recording} was heard up to {result.seconds:.1f} s only: {result.fault}")
    if result.skipped:
        (start, end), left = result.skipped[0], len(result.skipped)
        warn_outside(
            f"{left} of {amount(len(result), 'window')} of {result.recording} {verb(left, 'hold')} samples that no "
            f"sound has, and {verb(left, 'have')} no answer: the first from {start:.2f} to {end:.2f} s."
        )


def _progress_bar(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} s"))
    return Progress(*columns, TimeRemainingColumn(), disable=not show)
