"""A clip of a dataset, the names of splits, and what becomes of clips that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapterbank.audio.suffixes import READABLE_SUFFIXES, UNREADABLE_SUFFIXES
from adapterbank.errors import ConfigError, DatasetError, warn_outside
from adapterbank.text import amount, verb

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True)
class Clip:
    """One audio file of a dataset.

    Attributes:
        labels: one; of a multi-label dataset any number.
        split, fold: as the dataset names them; "" where it names none.
        groups: clips that share one, such as a speaker, belong on the same side of a split. Never empty: a clip that
            belongs to no other is a group of its own.
    """

    file: Path
    labels: tuple[str, ...]
    split: str
    fold: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How a folder is to be read: the options of `load_folder` that its parts share.

    Attributes:
        multilabel, label_separator, recursive, on_error: see `load_folder`.
    """

    multilabel: bool | None = None
    label_separator: str | None = None
    recursive: bool | None = None
    on_error: str = "raise"

    def __post_init__(self) -> None:
        for name in ("multilabel", "recursive"):
            if (value := getattr(self, name)) is not None and not isinstance(value, bool):
                raise ConfigError(f"got {name}={value!r}, expected True, False or None.")
        if self.label_separator is not None and (not isinstance(self.label_separator, str) or not self.label_separator):
            raise ConfigError(f"got label_separator={self.label_separator!r}, expected a character such as ','.")
        if self.label_separator is not None and self.multilabel is False:
            raise ConfigError(
                f"got label_separator={self.label_separator!r} and multilabel=False. A separator stands between "
                "several labels of one clip; leave out one of the two options."
            )
        if self.on_error not in ("raise", "skip"):
            raise ConfigError(f"got on_error={self.on_error!r}, expected 'raise' or 'skip'.")

    def leave_out(self, root: Path, files: Iterable[Path], why: str, advice: str, *, chosen: bool = False) -> None:
        """Files that are not read: an error, or with on_error="skip" a warning. Both count and name them.

        Args:
            why: ends "3 files ...", such as "are no audio"; it begins with its verb, in the plural.
            advice: what to do about it.
            chosen: whether an option says that they are to be left out; then it is no error.

        Raises:
            DatasetError.
        """
        files = list(files)
        if not files:
            return
        told = f"{root}: {counted(files, root, why)}."
        if self.on_error == "raise" and not chosen:
            raise DatasetError(f'{told} {advice} Or pass on_error="skip" to read the others without them.')
        warn_outside(f"{told} {'It is' if len(files) == 1 else 'They are'} left out. {advice}")


def counted(files: Iterable[Path], root: Path, why: str = "", *, most: int = 5) -> str:
    """Such as "3 files (a/1.wav, a/2.wav, b/1.wav)"; of many the first few are named.

    Args:
        why: what is told of them, which begins with a verb in the plural, such as "are missing".
    """
    files = list(files)
    names = [file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file) for file in files[:most]]
    more = ", ..." if len(files) > most else ""
    first, _, rest = why.partition(" ")
    told = f" {verb(len(files), first)} {rest}" if why else ""
    return f"{amount(len(files), 'file')} ({', '.join(names)}{more}){told}"


def is_audio(name: str) -> bool:
    """Whether a file of this name is a clip that can be read. "._x.wav" is what macOS leaves behind on other disks."""
    return _suffix(name) in READABLE_SUFFIXES and not name.startswith(".")


def is_foreign_audio(name: str) -> bool:
    """Whether a file of this name is audio that libsndfile does not decode."""
    return _suffix(name) in UNREADABLE_SUFFIXES and not name.startswith(".")


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()
