"""Train, val and test of a dataset as its authors name them: `standard_splits(load_folder(path))`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adapterbank.data.check import DatasetReport, check_clips
from adapterbank.data.folder import FolderDataset
from adapterbank.errors import ConfigError, DatasetError, UnknownNameError
from adapterbank.text import amount, in_natural_order, verb


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
            f"{amount(len(untrained), 'class')} of {dataset} {verb(len(untrained), 'have')} no clip to train on: "
            f"{', '.join(untrained[:5])}. Put clips of them into the training split, or remove the class."
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


def check_splits(
    train: FolderDataset, val: FolderDataset | None = None, test: FolderDataset | None = None, **options: Any
) -> DatasetReport:
    """`FolderDataset.check` of the parts that a training uses: the same sound, or the same speaker, in two of them.

        train, val, test = standard_splits(load_folder("clips"))
        print(check_splits(train, val, test))

    Args:
        train, val, test: parts of one dataset, however they were made.
        options: those of `FolderDataset.check`.
    """
    parts = {"train": train, "val": val, "test": test}
    clips = [
        replace(clip, split=split, fold="") for split, part in parts.items() if part is not None for clip in part._clips
    ]
    labels = in_natural_order({label for part in parts.values() if part is not None for label in part.labels})
    return check_clips(train.name, clips, labels, **options)
