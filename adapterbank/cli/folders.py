"""The folder of labelled clips that a command is about, and how it is read: the same for all commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterbank.cli import report
from adapterbank.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from adapterbank.data.folder import FolderDataset

    Splits = tuple[FolderDataset, FolderDataset, FolderDataset]  # train, validation, test

SPLITS = ("train", "val", "test")
PARTS = ("test", "val", "train", "all")


def checked_part(split: str) -> str:
    """The name of a part itself. Raises ConfigError."""
    if split not in PARTS:
        raise ConfigError(f"got --split {split}, expected one of {', '.join(PARTS)}.")
    return split


@dataclass(frozen=True)
class Folder:
    """A folder or table of labelled clips.

    Attributes:
        path: of it.
        multilabel, label_separator, recursive, on_error: as `load_folder` takes them.
        test_fold, val_fold: as `standard_splits` takes them.
    """

    path: Path
    multilabel: bool | None = None
    label_separator: str | None = None
    recursive: bool | None = None
    on_error: str = "raise"
    test_fold: str | None = None
    val_fold: str | None = None

    def check(self) -> None:
        """Raises ConfigError for options that cannot work, and DatasetError if there is nothing at this path."""
        from adapterbank.data.clip import Layout

        Layout(self.multilabel, self.label_separator, self.recursive, self.on_error)
        if not self.path.expanduser().exists():
            raise DatasetError(
                f"there is nothing at --data {self.path}, seen from {Path.cwd()}; expected a folder with one folder of "
                "audio files per class, or a table of clips."
            )

    def clips(self) -> FolderDataset:
        """All of them."""
        from adapterbank.data import load_folder

        return load_folder(
            self.path,
            multilabel=self.multilabel,
            label_separator=self.label_separator,
            recursive=self.recursive,
            on_error=self.on_error,
            progress=report.is_watched(),
        )

    def listed(self) -> FolderDataset:
        """All of them, also those that cannot be read: none is opened."""
        from adapterbank.data.clip import Layout
        from adapterbank.data.folder import listed

        return listed(self.path, Layout(self.multilabel, self.label_separator, self.recursive, self.on_error))

    def splits(self) -> Splits:
        """As `adapterbank train` splits them."""
        from adapterbank.data import standard_splits

        return standard_splits(self.clips(), self.test_fold, self.val_fold)

    def part(self, split: str) -> FolderDataset:
        """One of `PARTS`."""
        return self.clips() if split == "all" else dict(zip(SPLITS, self.splits(), strict=True))[split]
