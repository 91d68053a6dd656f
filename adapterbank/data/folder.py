"""Folders of labelled audio as datasets: `load_folder(path)`, then `standard_splits(dataset)`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from torch import Tensor
from torch.utils.data import Dataset

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.read import read_audio
from adapterbank.data.listing import Clip, scan
from adapterbank.data.splits import split_groups
from adapterbank.errors import ConfigError, DatasetError, UnknownNameError

Target: TypeAlias = str | tuple[str, ...]  # one label, or for multi-label tasks all labels of the clip

CACHE_BYTES = 2 * 2**30
DEMO_TASKS = ("instruments", "mandarin_tones", "studio_samples")


class WaveformCache:
    """Decoded audio in RAM up to a number of bytes; what does not fit is decoded each time. Safe between threads."""

    def __init__(self, budget: int, sample_rate: int):
        self.budget = budget
        self.sample_rate = sample_rate  # Hz
        self._kept: dict[Path, Tensor] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, file: Path) -> Tensor:
        """(T,) float32, the caller's own copy: an augmentation in place must not reach the next epoch."""
        kept = self._kept.get(file)
        if kept is not None:
            return kept.clone()
        waveform = read_audio(file, self.sample_rate)
        size = waveform.numel() * waveform.element_size()
        with self._lock:
            if file not in self._kept and self._bytes + size <= self.budget:
                self._kept[file] = waveform.clone()
                self._bytes += size
        return waveform

    def __reduce__(self) -> tuple[Callable[..., WaveformCache], tuple[int, int]]:
        # A spawned DataLoader worker starts with an empty cache: decoding is quicker than gigabytes through a pipe.
        return WaveformCache, (self.budget, self.sample_rate)


class FolderDataset(Dataset[tuple[Tensor, Target]]):
    """Clips of one folder: item i is `(waveform (T,) float32, label)`, always the same for the same i.

    The label is a str, or a tuple of str if `multilabel`. Made by `load_folder`; subsets share the decoded audio.

    Attributes:
        name: the folder's name.
        labels: every class of the whole folder, sorted; the same in all subsets.
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
        kind = "labels, several per clip" if self.multilabel else "classes"
        return f"FolderDataset({self.name!r}, {len(self)} clips, {len(self.labels)} {kind})"

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
        return tuple(sorted({fold for fold in self.folds if fold}, key=lambda f: (not f.isdigit(), f.zfill(20))))

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
            wanted = {str(fold) for fold in ([folds] if isinstance(folds, (str, int)) else folds)}
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
        self, val_fraction: float = 0.15, test_fraction: float = 0.15, seed: int = 0
    ) -> tuple[FolderDataset, FolderDataset, FolderDataset]:
        """Train, val and test: drawn by seed, groups kept together, classes balanced as far as the groups allow.

        Raises:
            ConfigError: fractions that leave no part. DatasetError: too few groups for three parts.
        """
        fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
        train, val, test = self._deal(fractions, seed)
        return train, val, test

    def group_folds(self, count: int = 5, seed: int = 0) -> tuple[FolderDataset, ...]:
        """`count` parts of about equal size for cross-validation, drawn as `split` draws."""
        return self._deal([1 / count] * count, seed)

    def _deal(self, fractions: Sequence[float], seed: int) -> tuple[FolderDataset, ...]:
        labels, groups = [clip.labels for clip in self._clips], [clip.groups for clip in self._clips]
        parts = split_groups(labels, groups, fractions, seed)
        if not all(parts):
            raise DatasetError(
                f"{self} cannot be dealt into {len(parts)} parts: it has {len(set(self.groups))} groups (speakers, "
                "recordings), which stay together. Add clips from other sources, or name the parts in a split column."
            )
        return tuple(self._with(part) for part in parts)


def load_folder(
    path: str | PathLike[str],
    *,
    split: str | None = None,
    folds: Iterable[str | int] | str | int | None = None,
    multilabel: bool | None = None,
    sample_rate: int = SAMPLE_RATE,
    cache_bytes: int = CACHE_BYTES,
) -> FolderDataset:
    """Read a folder of labelled audio.

    Understood are: class folders (`dog/1.wav`), also below `train`, `val`, `test`; a CSV file, or a folder with one
    (also in `meta/` or `metadata/`), that has a column filename, file, path or slice_file_name and a column label,
    category or class; `metadata.csv` with filename,label[,split|fold,group]. In a table ";" separates several labels of
    one clip. ESC-50, UrbanSound8K, Speech Commands and GTZAN can be read as they are unpacked.

    Args:
        path: the folder or the CSV file.
        split, folds: keep only these clips, see `FolderDataset.subset`.
        multilabel: whether labels are sets; None: they are if a clip of the table has several.
        sample_rate: of the waveforms, in Hz; files of other rates are resampled.
        cache_bytes: how much decoded audio (float32) stays in RAM; the rest is decoded again when it is asked for.

    Raises:
        DatasetError: the folder is absent, incomplete, or names no clips or no labels.
        AudioFileError: a file is no audio; raised when its item is asked for, because only then it is opened.
    """
    place = Path(path).expanduser()
    clips, several = scan(place, multilabel)
    labels = sorted({label for clip in clips for label in clip.labels})
    name = place.stem if place.is_file() else place.resolve().name
    dataset = FolderDataset(name, clips, labels, several, WaveformCache(cache_bytes, sample_rate))
    return dataset if split is None and folds is None else dataset.subset(split=split, folds=folds)


def standard_splits(
    dataset: FolderDataset, test_fold: str | int | None = None, val_fold: str | int | None = None, *, seed: int = 0
) -> tuple[FolderDataset, FolderDataset, FolderDataset]:
    """Train, val and test as the folder names them, never mixing what it keeps apart.

    A folder with splits gives those (a part that it does not name is drawn from its train clips). One with folds gives
    `test_fold` (default: the last) for test, `val_fold` (default: the one before it, in a circle) for validation and
    the others for training. Any other is dealt by `FolderDataset.split`.

    Raises:
        ConfigError: a fold is asked for and there are none, or both are the same.
        UnknownNameError: a fold that does not exist. DatasetError: a class has no clip to train on.
    """
    asked = test_fold is not None or val_fold is not None
    if asked and not dataset.fold_names:
        raise ConfigError(f"{dataset} has no folds, so test_fold and val_fold mean nothing; leave them out.")
    if any(dataset.splits) and not asked:
        parts = _named_splits(dataset, seed)
    elif dataset.fold_names:
        parts = _fold_splits(dataset, test_fold, val_fold)
    else:
        parts = dataset.split(seed=seed)
    trained, occurring = ({label for clip in part._clips for label in clip.labels} for part in (parts[0], dataset))
    if untrained := sorted(occurring - trained):
        raise DatasetError(
            f"{len(untrained)} classes of {dataset} have no clip to train on: {', '.join(untrained[:5])}. Put clips of "
            "them into the training split, or remove the class."
        )
    return parts


def _named_splits(dataset: FolderDataset, seed: int) -> tuple[FolderDataset, FolderDataset, FolderDataset]:
    present = set(dataset.splits)
    if "train" not in present:
        raise DatasetError(f"{dataset} names the splits {', '.join(sorted(present))}; expected train among them.")
    train = dataset.subset(split="train")
    absent = [name for name in ("val", "test") if name not in present]
    drawn = train._deal([1 - 0.15 * len(absent)] + [0.15] * len(absent), seed) if absent else (train,)
    parts = dict(zip(absent, drawn[1:], strict=True))
    val, test = (parts[name] if name in parts else dataset.subset(split=name) for name in ("val", "test"))
    return drawn[0], val, test


def _fold_splits(
    dataset: FolderDataset, test_fold: str | int | None, val_fold: str | int | None
) -> tuple[FolderDataset, FolderDataset, FolderDataset]:
    names = dataset.fold_names
    if len(names) < 3:
        raise DatasetError(
            f"{dataset} has the folds {', '.join(names)}; expected three or more: train, validation, test."
        )
    for fold in (test_fold, val_fold):
        if fold is not None and str(fold) not in names:
            raise UnknownNameError(f"fold of {dataset.name}", str(fold), names)
    if test_fold is None:  # the last, or the one before it if the last is to validate
        test_fold = names[-1] if str(val_fold) != names[-1] else names[-2]
    if val_fold is None:
        val_fold = names[names.index(str(test_fold)) - 1]
    if str(test_fold) == str(val_fold):
        raise ConfigError(f"test_fold and val_fold are both {str(test_fold)!r}; a test fold must not choose the epoch.")
    rest = [name for name in names if name not in (str(test_fold), str(val_fold))]
    return dataset.subset(folds=rest), dataset.subset(folds=[val_fold]), dataset.subset(folds=[test_fold])


def demo_tasks() -> dict[str, Path]:
    """Name and folder of the three tasks of real recordings that come with the package."""
    root = Path(__file__).parent / "demo"
    return {name: root / name for name in DEMO_TASKS}
