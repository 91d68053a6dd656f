"""What is wrong with a dataset, before a training finds out: `load_folder(path).check()`."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from adapterbank.data.clip import Clip
from adapterbank.data.heard import Heard, listen
from adapterbank.data.threads import in_threads
from adapterbank.errors import ConfigError
from adapterbank.files import write_atomically
from adapterbank.numbers import positive, whole
from adapterbank.text import amount

# What can be found, in the order of the report; the first five are problems, the others are worth a look.
UNREADABLE = "unreadable"
ACROSS_SPLITS = "in two splits"
TWO_LABELS = "under two labels"
UNTRAINED = "class without training clip"
SILENT = "silent"
PROBLEMS = (UNREADABLE, ACROSS_SPLITS, TWO_LABELS, UNTRAINED, SILENT)
DUPLICATE = "duplicate"
SHARED_GROUP = "group in two splits"
SHORT = "short"
LONG = "long"
CLIPPED = "clipped"
FEW = "class with few clips"
MISLABELLED = "probable mislabel"
KINDS = (*PROBLEMS, DUPLICATE, SHARED_GROUP, SHORT, LONG, CLIPPED, FEW, MISLABELLED)

SILENCE = 1e-4  # of full scale, −80 dB: below the noise of any microphone
CLIPPED_SHARE = 0.01  # of the samples; a pure tone at full scale rests at its top for 0.6 % of them
FAR = 10  # times the median length


class Suspect(Protocol):
    """A clip whose label a trained task doubts; `adapterbank.probable_mislabels` finds them."""

    @property
    def index(self) -> int: ...

    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Finding:
    """One row of a report.

    Attributes:
        kind: one of KINDS.
        file: None where it is about a class.
        label: of the clip, several joined by ";", or the class.
        split: of the clip, or its fold; "" where the dataset has none.
        detail: what was found.
        other: the clip that this one repeats.
    """

    kind: str
    file: Path | None
    label: str
    split: str
    detail: str
    other: Path | None = None

    @property
    def problem(self) -> bool:
        """Whether it breaks a training or makes its result wrong; other findings are worth a look."""
        return self.kind in PROBLEMS


@dataclass(frozen=True)
class DatasetReport:
    """What `check` found. `print(report)` shows it as a table, with the path of each clip.

    Attributes:
        name: of the dataset.
        clips: how many were looked at.
        rows: problems first, each kind in the order of the dataset.
    """

    name: str
    clips: int
    rows: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No problem was found; there may still be rows that are worth a look."""
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(row for row in self.rows if row.problem)

    @property
    def counts(self) -> dict[str, int]:
        """{kind: number of rows}, of the kinds that were found."""
        found = Counter(row.kind for row in self.rows)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def of(self, kind: str) -> tuple[Finding, ...]:
        """The rows of one kind. Raises ConfigError if there is no such kind."""
        if kind not in KINDS:
            raise ConfigError(f"got kind={kind!r}, expected one of {', '.join(KINDS)}.")
        return tuple(row for row in self.rows if row.kind == kind)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """One line per row: kind, problem, file, label, split, detail, other. Raises OSError."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["kind", "problem", "file", "label", "split", "detail", "other"])
        for row in self.rows:
            writer.writerow(
                [row.kind, int(row.problem), row.file or "", row.label, row.split, row.detail, row.other or ""]
            )
        write_atomically(Path(path), text.getvalue().encode())

    def __rich__(self) -> RenderableType:
        if not self.rows:
            return Text(self._headline())
        split = any(row.split for row in self.rows)
        table = Table(box=None, pad_edge=False)
        for column in ("found", "file", "label", *(["split"] if split else []), "detail"):
            table.add_column(column, overflow="fold")
        for row in self.rows:
            detail = f"{row.detail} {row.other}" if row.other else row.detail
            cells = [row.kind, str(row.file or ""), row.label, *([row.split] if split else []), detail]
            table.add_row(*map(Text, cells), style="red" if row.problem else None)
        return Group(Text(self._headline()), table)

    def __str__(self) -> str:
        """The table with a line per row, however long, so that paths can be copied."""
        text = io.StringIO()
        Console(file=text, width=100_000, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _headline(self) -> str:
        if not self.rows:
            return f"{self.name}: {amount(self.clips, 'clip')}, nothing found."
        told = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        return f"{self.name}: {amount(self.clips, 'clip')}, {amount(len(self.problems), 'problem')}; {told}."


def check_clips(
    name: str,
    clips: Sequence[Clip],
    labels: Sequence[str],
    *,
    suspects: Iterable[Suspect] = (),
    min_seconds: float = 0.1,
    max_seconds: float = 60.0,
    min_clips: int = 5,
    progress: bool = True,
    workers: int | None = None,
) -> DatasetReport:
    """Decodes every clip once and reports what is wrong; see `FolderDataset.check` for the options.

    Raises:
        ConfigError: an option that cannot work, or a suspect that is no clip of this dataset.
    """
    positive("min_seconds", min_seconds)
    positive("max_seconds", max_seconds)
    whole("min_clips", min_clips, least=0)
    files = [clip.file for clip in clips]
    heard = list(in_threads(listen, files, f"checking {name}", progress=progress, workers=workers))
    rows = [
        *_of_files(clips, heard, min_seconds, max_seconds),
        *_duplicates(clips, heard),
        *_shared_groups(clips),
        *_of_classes(clips, labels, min_clips),
        *_doubted(clips, suspects),
    ]
    return DatasetReport(name, len(clips), tuple(sorted(rows, key=lambda row: KINDS.index(row.kind))))


def _row(kind: str, clip: Clip, detail: str, other: Path | None = None) -> Finding:
    return Finding(kind, clip.file, ";".join(clip.labels), _part(clip), detail, other)


def _part(clip: Clip) -> str:
    """The split of a clip, else its fold."""
    return clip.split or (f"fold {clip.fold}" if clip.fold else "")


def _of_files(
    clips: Sequence[Clip], heard: Sequence[Heard], min_seconds: float, max_seconds: float
) -> Iterator[Finding]:
    lengths = [sound.seconds for sound in heard if not sound.error]
    middle = statistics.median(lengths) if lengths else 0.0
    for clip, sound in zip(clips, heard, strict=True):
        if sound.error:
            yield _row(UNREADABLE, clip, sound.error)
            continue
        if sound.peak < SILENCE:
            yield _row(SILENT, clip, "no sample is louder than −80 dB of full scale")
        if sound.seconds < min_seconds:
            yield _row(SHORT, clip, f"{sound.seconds:.3g} s, less than {min_seconds:g} s")
        if sound.seconds > max_seconds:
            yield _row(LONG, clip, f"{sound.seconds:.4g} s, more than {max_seconds:g} s")
        elif sound.seconds > FAR * middle and sound.seconds > 1:
            yield _row(LONG, clip, f"{sound.seconds:.4g} s, more than {FAR} times the median of {middle:.3g} s")
        if sound.clipped > CLIPPED_SHARE:
            yield _row(CLIPPED, clip, f"{sound.clipped:.1%} of its samples rest at the highest level")


def _duplicates(clips: Sequence[Clip], heard: Sequence[Heard]) -> Iterator[Finding]:
    """Of clips with the same sound, each after the first, beside the clip that it contradicts."""
    same: dict[str, list[Clip]] = defaultdict(list)
    for clip, sound in zip(clips, heard, strict=True):
        if sound.digest:
            same[sound.digest].append(clip)
    for copies in same.values():
        for place, clip in enumerate(copies[1:], start=1):
            before = copies[:place]
            elsewhere = next((other for other in before if _part(other) != _part(clip)), None)
            labelled = next((other for other in before if set(other.labels) != set(clip.labels)), None)
            if elsewhere:
                where = f"the same sound is in {_part(elsewhere) or 'no split'}:"
                yield _row(ACROSS_SPLITS, clip, where, elsewhere.file)
            if labelled:
                yield _row(TWO_LABELS, clip, f"the same sound is {';'.join(labelled.labels)!r}:", labelled.file)
            if not elsewhere and not labelled:
                yield _row(DUPLICATE, clip, "the same sound as", before[0].file)


def _shared_groups(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Speakers or recordings on both sides of a split: one row for each, at its first clip on the second side."""
    first: dict[str, Clip] = {}
    told: set[str] = set()
    for clip in clips:
        for group in clip.groups:
            other = first.setdefault(group, clip)
            if _part(other) != _part(clip) and group not in told:
                told.add(group)
                where = f"the group {group!r} is in {_part(other) or 'no split'} too:"
                yield _row(SHARED_GROUP, clip, where, other.file)


def _of_classes(clips: Sequence[Clip], labels: Sequence[str], min_clips: int) -> Iterator[Finding]:
    count = Counter(label for clip in clips for label in clip.labels)
    trained = {label for clip in clips if clip.split == "train" for label in clip.labels}
    has_training = any(clip.split == "train" for clip in clips)
    for label in labels:
        if has_training and label not in trained:
            yield Finding(UNTRAINED, None, label, "train", _elsewhere(count[label]))
        if count[label] < min_clips:
            yield Finding(FEW, None, label, "", f"{amount(count[label], 'clip')}, fewer than {min_clips}")


def _elsewhere(clips: int) -> str:
    return "its only clip is in another split" if clips == 1 else f"its {amount(clips, 'clip')} are all in other splits"


def _doubted(clips: Sequence[Clip], suspects: Iterable[Suspect]) -> Iterator[Finding]:
    for suspect in suspects:
        index: Any = suspect.index
        if not 0 <= index < len(clips):
            raise ConfigError(
                f"got a suspect with index {index}, expected 0 to {len(clips) - 1}: pass those that were found in this "
                "dataset."
            )
        yield _row(MISLABELLED, clips[index], suspect.reason)
