"""What `bank.scan` found in a recording: windows, events, files and a picture of them.

Symbols: W windows, C classes of a task, K columns of the picture, M mel bins.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adapterbank.errors import StorageError, UnknownNameError
from adapterbank.files import write_atomically
from adapterbank.scanning.events import Event, Threshold, Track, events_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Scan:
    """Several tasks on the same windows of one recording.

    Attributes:
        recording: its file, or what kind of object it was.
        seconds: that were heard.
        window, hop: seconds of a window, and from one start to the next.
        starts, ends: (W,) in seconds. Every window is whole: the last one ends with the recording, so that it may
            overlap the one before it.
        tracks: what each task says, by its name.
        skipped: (start, end) of windows with samples that are NaN, Inf or far too loud; their probabilities are NaN.
        fault: why the recording was not heard to its end; None if it was.
        spectrogram: (K, M), the log-mels of the whole recording, averaged over time.
    """

    recording: str
    seconds: float
    window: float
    hop: float
    starts: Tensor = field(repr=False)
    ends: Tensor = field(repr=False)
    tracks: Mapping[str, Track] = field(repr=False)
    skipped: tuple[tuple[float, float], ...] = field(repr=False)
    fault: str | None
    spectrogram: Tensor = field(repr=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that were asked."""
        return tuple(self.tracks)

    def __len__(self) -> int:
        """W."""
        return len(self.starts)

    def probabilities(self, task: str) -> Tensor:
        """(W, C) of one task, in the order of its labels. Raises UnknownNameError."""
        return self._track(task).probabilities

    def windows(self, task: str | None = None, *, threshold: Threshold = None) -> list[Event]:
        """Each window's labels, unmerged: for a single-label task one row per window, for a multi-label task several
        or none. Windows that were skipped have no row.

        Args:
            task: one of them; None for all.
            threshold: a probability, or {label: probability}. None: the task's own thresholds. If it has none, a
                multi-label task takes 0.5, and a single-label task answers with its likeliest label, whatever its
                probability.

        Raises:
            UnknownNameError: a task or label that was not asked. ConfigError: a threshold outside 0 to 1.
        """
        starts, ends, rows = self.starts.tolist(), self.ends.tolist(), []
        for track in self._chosen(task):
            for window, label in track.found(threshold).nonzero().tolist():
                score = float(track.probabilities[window, label])
                rows.append(Event(track.task, track.labels[label], starts[window], ends[window], score))
        return rows

    def events(
        self,
        task: str | None = None,
        *,
        threshold: Threshold = None,
        min_seconds: float = 0.0,
        merge_gap: float = 0.0,
    ) -> list[Event]:
        """Windows of one label that overlap or touch, merged; each task's in the order of their onsets.

        Args:
            task, threshold: as in `windows`.
            min_seconds: shorter events are left out. None is shorter than a window.
            merge_gap: windows of one label that are no further apart than these seconds are one event too.

        Raises:
            UnknownNameError, ConfigError: as in `windows`, and a negative time.
        """
        return [
            event
            for track in self._chosen(task)
            for event in events_of(track, self.starts, self.ends, threshold, min_seconds, merge_gap)
        ]

    def to_csv(self, path: str | Path, *, windows: bool = False, **options: Any) -> None:
        """Writes the columns task, label, onset, offset (in seconds) and score.

        Args:
            windows: a row per window and label, in place of merged events.
            **options: of `events`, or of `windows`.

        Raises:
            StorageError: the file cannot be written. And as `events`.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Event._fields)
        for row in self.windows(**options) if windows else self.events(**options):
            writer.writerow([row.task, row.label, f"{row.onset:.3f}", f"{row.offset:.3f}", f"{row.score:.6f}"])
        _write(Path(path), text.getvalue())

    def to_audacity(self, path: str | Path, **options: Any) -> None:
        """Writes the events as a label track, which Audacity opens with File > Import > Labels.

        A line is onset, offset and label, separated by tabs. With several tasks the label is "task: label".

        Args:
            path: by custom a ".txt".
            **options: of `events`.

        Raises:
            StorageError: the file cannot be written. And as `events`.
        """
        several = options.get("task") is None and len(self.tracks) > 1
        lines = []
        for event in sorted(self.events(**options), key=lambda event: event.onset):
            label = " ".join(f"{event.task}: {event.label}".split() if several else event.label.split())
            lines.append(f"{event.onset:.6f}\t{event.offset:.6f}\t{label}\n")
        _write(Path(path), "".join(lines))

    def plot(self, **options: Any) -> Figure:
        """The spectrogram of the whole recording, and below it a track of events for each task.

        Args:
            **options: of `events`.
        """
        from adapterbank.plots.timeline import timeline  # here, because matplotlib takes a second to import

        events: dict[str, list[Event]] = {track.task: [] for track in self._chosen(options.get("task"))}
        for event in self.events(**options):
            events[event.task].append(event)
        return timeline(self.spectrogram, self.seconds, events, title=Path(self.recording).name)

    def _track(self, task: str) -> Track:
        if task not in self.tracks:
            raise UnknownNameError("task of this scan", task, self.tracks)
        return self.tracks[task]

    def _chosen(self, task: str | None) -> Iterable[Track]:
        return self.tracks.values() if task is None else [self._track(task)]


def _write(path: Path, text: str) -> None:
    path = path.expanduser()
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}. Name a file in a folder that exists.") from error
