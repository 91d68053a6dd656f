"""Folders of labelled audio as datasets: `load_folder(path)`, then `standard_splits(dataset)`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from torch import Tensor
from torch.utils.data import Dataset

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.resampling import DEFAULT_KERNEL
from adapterbank.data.check import DatasetReport, Suspect, check_clips
from adapterbank.data.clip import Clip, Layout, counted
from adapterbank.data.listing import scan
from adapterbank.data.splits import split_groups
from adapterbank.data.threads import in_threads
from adapterbank.data.waveforms import WaveformCache
from adapterbank.errors import (
    AudioFileError,
    ConfigError,
    DatasetError,
    LookAlikeClassesWarning,
    UnknownNameError,
    warn_outside,
)
from adapterbank.numbers import is_real, whole
from adapterbank.text import alike, amount, in_natural_order, nfc, verb

Target: TypeAlias = str | tuple[str, ...]  # one label, or for multi-label tasks all labels of the clip

CACHE_BYTES = 2 * 2**30
DEMO_TASKS = ("instruments", "mandarin_tones", "studio_samples")


class FolderDataset(Dataset[tuple[Tensor, Target]]):
    """Clips of one folder: item i is `(waveform (T,) float32, label)`, always the same for the same i.

    The label is a str, or a tuple of str if `multilabel`. Made by `load_folder`; subsets share the decoded audio.

    Attributes:
        name: the folder's name.
        labels: every class of the whole folder, sorted, numbers by their value; the same in all subsets.
        multilabel: whether a clip may have several labels.
        sample_rate: of the waveforms, in Hz.
    """

    def __init__(self, name: str, clips: Sequence[Clip], labels: Sequence[str], multilabel: bool, audio: WaveformCache):
        self.name = name
        self.labels = tuple(labels)
        self.multilabel = multilabel
        self._clips = tuple(clips)
        self._audio = audio

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self._audio.read(self._clips[index].file), self._target(self._clips[index])

    def __repr__(self) -> str:
        count = len(self.labels)
        kind = f"{amount(count, 'label')}, several per clip" if self.multilabel else amount(count, "class")
        return f"FolderDataset({self.name!r}, {amount(len(self), 'clip')}, {kind})"

    def _target(self, clip: Clip) -> Target:
        return clip.labels if self.multilabel else clip.labels[0]

    @property
    def sample_rate(self) -> int:
        return self._audio.sample_rate

    @property
    def targets(self) -> tuple[Target, ...]:
        """The label (or labels) of each clip, without decoding it."""
        return tuple(self._target(clip) for clip in self._clips)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file of each clip."""
        return tuple(clip.file for clip in self._clips)

    @property
    def groups(self) -> tuple[str, ...]:
        """What each clip was taken from (speaker, recording; several joined by ";"), else its own name."""
        return tuple(";".join(clip.groups) for clip in self._clips)

    @property
    def folds(self) -> tuple[str, ...]:
        """The fold of each clip, "" where the folder has none."""
        return tuple(clip.fold for clip in self._clips)

    @property
    def splits(self) -> tuple[str, ...]:
        """train, val or test of each clip, "" where the folder has no splits."""
        return tuple(clip.split for clip in self._clips)

    @property
    def fold_names(self) -> tuple[str, ...]:
        """The folds that occur, numbers in numerical order; empty where the folder has none."""
        return tuple(in_natural_order({fold for fold in self.folds if fold}))

    def subset(
        self,
        split: str | None = None,
        folds: Iterable[str | int] | str | int | None = None,
        indices: Iterable[int] | None = None,
    ) -> FolderDataset:
        """The clips that meet every condition given, in this dataset's order (with `indices`: in theirs).

        Raises:
            UnknownNameError: a split or fold that no clip here has. ConfigError: an index out of range.
            DatasetError: no clip meets all conditions.
        """
        chosen = list(range(len(self))) if indices is None else [int(i) for i in indices]
        if outside := [i for i in chosen if not 0 <= i < len(self)]:
            raise ConfigError(f"indices {outside[:3]} are outside {self}; expected 0 to {len(self) - 1}.")
        if split is not None:
            if split not in self.splits:
                hint = "Only folders with a split column or train/val/test folders have splits; see standard_splits."
                raise UnknownNameError(f"split of {self.name}", split, set(self.splits) - {""}, hint)
            chosen = [i for i in chosen if self._clips[i].split == split]
        if folds is not None:
            wanted = {nfc(str(fold)) for fold in ([folds] if isinstance(folds, (str, int)) else folds)}
            for fold in sorted(wanted - set(self.fold_names)):
                raise UnknownNameError(f"fold of {self.name}", fold, self.fold_names)
            chosen = [i for i in chosen if self._clips[i].fold in wanted]
        if not chosen:
            raise DatasetError(f"no clip of {self} is in split {split!r}, folds {folds!r} and the indices given.")
        return self._with(chosen)

    def _with(self, indices: Iterable[int]) -> FolderDataset:
        clips = [self._clips[i] for i in indices]
        return FolderDataset(self.name, clips, self.labels, self.multilabel, self._audio)

    def split(
        self,
        *fractions: float,
        train_fraction: float | None = None,
        val_fraction: float | None = None,
        test_fraction: float | None = None,
        seed: int = 0,
    ) -> tuple[FolderDataset, FolderDataset, FolderDataset]:
        """Train, val and test: drawn by seed, groups kept together, classes balanced as far as the groups allow.

        Fractions are given by name. What none of them says is 0.15 for val and for test, and what is left for train;
        with `train_fraction` alone, val and test share the rest.

        Raises:
            ConfigError: fractions without a name, or that leave no part. DatasetError: too few groups for three parts.
        """
        if fractions:
            raise ConfigError(
                f"got split({', '.join(map(repr, fractions))}): which part a fraction is of has to be said by name. "
                "Expected split(val_fraction=0.1, test_fraction=0.1), or split(train_fraction=0.8)."
            )
        train, val, test = self._deal(_fractions(train_fraction, val_fraction, test_fraction), seed)
        return train, val, test

    def group_folds(self, count: int = 5, seed: int = 0) -> tuple[FolderDataset, ...]:
        """`count` parts of about equal size for cross-validation, drawn as `split` draws."""
        whole("count", count, least=2)
        return self._deal([1 / count] * count, seed)

    def check(
        self,
        *,
        suspects: Iterable[Suspect] = (),
        min_seconds: float = 0.1,
        max_seconds: float = 60.0,
        min_clips: int = 5,
        progress: bool = True,
        workers: int | None = None,
    ) -> DatasetReport:
        """Decodes every clip once and reports what is wrong with the dataset; `print` shows it as a table.

        Problems are clips that cannot be read or are silent, the same sound in two splits or folds or under two
        labels, and classes without a training clip. Worth a look are copies, groups (speakers, recordings) in two
        splits, short, long and clipped clips, and classes with few clips. A copy is found under any name and in any
        lossless container.

        Args:
            suspects: what `probable_mislabels(bank, task, dataset)` found in this dataset.
            min_seconds, max_seconds: shorter and longer clips are reported; so is one of 10 times the median length.
            min_clips: a class with fewer is reported.
            progress: whether to show a progress bar.
            workers: threads that decode; None: one per processor, but at most 8.

        Raises:
            ConfigError: an option that cannot work. A clip that cannot be read is a row of the report, no error.
        """
        return check_clips(
            self.name,
            self._clips,
            self.labels,
            suspects=suspects,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            min_clips=min_clips,
            progress=progress,
            workers=workers,
        )

    def readable(self, *, progress: bool = True, workers: int | None = None) -> FolderDataset:
        """The clips that can be read: every one is decoded, and those that fail are left out.

        Warns:
            SkippedClipsWarning: how many were left out, which, and why.
        Raises:
            DatasetError: none can be read.
        """

        def probe(file: Path) -> str:
            try:
                self._audio.read(file)
            except AudioFileError as error:
                return str(error)
            return ""

        errors = list(in_threads(probe, self.files, f"reading {self.name}", progress=progress, workers=workers))
        failed = [(file, error) for file, error in zip(self.files, errors, strict=True) if error]
        if not failed:
            return self
        reasons = " ".join(error for _, error in failed[:3]) + (" ..." if len(failed) > 3 else "")
        if len(failed) == len(self):
            raise DatasetError(
                f"none of the {amount(len(self), 'clip')} of {self.name} can be read. The first: {reasons}"
            )
        named = counted([file for file, _ in failed], _common(self.files), most=20)
        warn_outside(
            f"{self.name}: {named} of {len(self)} cannot be read and {verb(len(failed), 'are')} left out. {reasons}"
        )
        return self._with(index for index, error in enumerate(errors) if not error)

    def _deal(self, fractions: Sequence[float], seed: int) -> tuple[FolderDataset, ...]:
        labels, groups = [clip.labels for clip in self._clips], [clip.groups for clip in self._clips]
        parts = split_groups(labels, groups, fractions, seed)
        if not all(parts):
            raise DatasetError(
                f"{self} cannot be dealt into {amount(len(parts), 'part')}: it has "
                f"{amount(len(set(self.groups)), 'group')} (speakers, recordings), which stay together. Add clips "
                "from other sources, or name the parts in a split column."
            )
        return tuple(self._with(part) for part in parts)


def _fractions(train: float | None, val: float | None, test: float | None) -> tuple[float, float, float]:
    """Of the three parts. Raises ConfigError if one is no number, or if nothing is left for one."""
    for name, value in (("train", train), ("val", val), ("test", test)):
        if value is not None and not (is_real(value) and 0 < value < 1):
            raise ConfigError(f"got {name}_fraction={value!r}, expected a number between 0 and 1.")
    if train is None:
        val, test = 0.15 if val is None else val, 0.15 if test is None else test
        train = 1 - val - test
    elif val is None and test is None:
        val = test = (1 - train) / 2
    else:
        val, test = 1 - train - test if val is None else val, 1 - train - val if test is None else test  # type: ignore[operator]
    if min(train, val, test) <= 1e-9 or abs(train + val + test - 1) > 1e-6:
        raise ConfigError(
            f"got fractions of {train:g} for train, {val:g} for val and {test:g} for test; expected three that are "
            "above 0 and add up to 1. Two of them are enough."
        )
    return train, val, test


def _common(files: Sequence[Path]) -> Path:
    """The folder that holds all files, for messages."""
    return Path(os.path.commonpath([file.parent for file in files]))


def load_folder(
    path: str | PathLike[str],
    *,
    split: str | None = None,
    folds: Iterable[str | int] | str | int | None = None,
    multilabel: bool | None = None,
    label_separator: str | None = None,
    recursive: bool | None = None,
    on_error: str = "raise",
    sample_rate: int = SAMPLE_RATE,
    resampling: str = DEFAULT_KERNEL,
    cache_bytes: int = CACHE_BYTES,
    progress: bool = True,
) -> FolderDataset:
    """Read a folder of labelled audio. docs/data.md draws every layout.

    Understood are: class folders (`dog/1.wav`), also below `train`, `val`, `test`; with `recursive=True` also
    class/speaker/clip; a table (CSV with any usual separator, TSV, or JSON lines), or a folder with one (also in
    `meta/` or `metadata/`), or with one for each split, that has a column of files (filename, file_name, path, fname,
    ...) and one of labels (label, category, class, ...), perhaps also split, fold and group. ESC-50, UrbanSound8K,
    Speech Commands, GTZAN, FSD50K, FSDKaggle and folders for Hugging Face's AudioFolder can be read as they are
    unpacked.

    Args:
        path: the folder or the table.
        split, folds: keep only these clips, see `FolderDataset.subset`.
        multilabel: whether labels are sets; None: they are if a clip of the table has several. In a table these are
            separated by ";" or "|", by "," if the column is called by a plural such as `labels`, or by ",", "+", "&" or
            "/" if each part is a label of other clips.
        label_separator: what separates several labels of one clip, if it is none of these.
        recursive: True: clips in folders inside a class folder belong to the class, and the folder is their group, such
            as a speaker, which no split divides. False: they are left out, with a warning. None: they are an error.
        on_error: "raise", or "skip": files that are missing or cannot be read are left out, and a warning counts and
            names them. For that every clip is decoded now.
        sample_rate: of the waveforms, in Hz; files of other rates are resampled.
        resampling: how, as in `read_audio`: "sox", "kaiser_best" or "hann".
        cache_bytes: how much decoded audio (float32) stays in RAM; the rest is decoded again when it is asked for.
        progress: whether to show a progress bar while clips are decoded.

    Warns:
        SkippedClipsWarning: clips were left out.
        LookAlikeClassesWarning: names of classes differ by capitals, blanks or hyphens only.
    Raises:
        DatasetError: the folder is absent, incomplete, names no clips or no labels, or clips in it would be left out.
        AudioFileError: a file is no audio; raised when its item is asked for, because only then it is opened.
        ConfigError: an option that cannot work.
    """
    layout = Layout(multilabel, label_separator, recursive, on_error)
    dataset = listed(path, layout, WaveformCache(cache_bytes, sample_rate, resampling))
    if split is not None or folds is not None:
        dataset = dataset.subset(split=split, folds=folds)
    return dataset.readable(progress=progress) if on_error == "skip" else dataset


def listed(path: str | PathLike[str], layout: Layout, audio: WaveformCache | None = None) -> FolderDataset:
    """All clips that a folder or table names; none of them is opened, so that some may be unreadable.

    Errors and warnings as `load_folder`.
    """
    place = Path(path).expanduser()
    clips, several = scan(place, layout)
    labels = in_natural_order({label for clip in clips for label in clip.labels})
    _warn_of_alike(labels, place)
    name = place.stem if place.is_file() else place.resolve().name
    return FolderDataset(name, clips, labels, several, audio or WaveformCache(CACHE_BYTES, SAMPLE_RATE))


def _warn_of_alike(labels: Iterable[str], place: Path) -> None:
    if groups := alike(labels):
        named = "; ".join(" and ".join(map(repr, group)) for group in groups[:5]) + ("; ..." if len(groups) > 5 else "")
        warn_outside(
            f"{place}: these classes differ by capitals, blanks, hyphens or the form of a letter only: {named}. Each "
            "is a class of its own. If they are one, give them one name.",
            LookAlikeClassesWarning,
        )


def demo_tasks() -> dict[str, Path]:
    """Name and folder of the three tasks of real recordings that come with the package."""
    root = Path(__file__).parent / "demo"
    return {name: root / name for name in DEMO_TASKS}
