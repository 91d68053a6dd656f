"""Lists the clips of a dataset: which file has which labels, split, fold and group.

A dataset is a CSV table beside its audio, or one folder of audio files per class. Only the table and the names of files
are read here; no audio is opened. `folder.py` makes a torch dataset of the list.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapterbank.errors import DatasetError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})

# Column names of the packs, ESC-50, UrbanSound8K and the usual home-made tables; the first that is present counts.
COLUMNS = {
    "file": ("filename", "file", "path", "slice_file_name", "file_name", "filepath", "fname"),
    "label": ("label", "labels", "category", "class"),
    "split": ("split", "subset"),
    "fold": ("fold",),
    "group": ("group", "speaker", "src_file", "fsid"),  # the last two: the recording that ESC-50, UrbanSound8K cut
}

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}

SEPARATOR = ";"  # between several labels, or several groups, of one clip


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


def scan(path: Path, multilabel: bool | None) -> tuple[list[Clip], bool]:
    """Find the clips of a folder or of a CSV file.

    Args:
        path: a CSV file, or a folder: with `metadata.csv`, with one CSV in it, in `meta/` or in `metadata/`, or with
            class folders.
        multilabel: whether labels are sets; None: they are if a table separates several labels of one clip by ";".

    Returns:
        The clips in the table's order (class folders: sorted by name), and whether the labels are sets.

    Raises:
        DatasetError: no clips are found, or the table is wrong.
    """
    if path.is_file():
        return _read_table(path, path.parent, multilabel)
    if not path.is_dir():
        raise DatasetError(
            f"there is no dataset at {path} (from {Path.cwd()}). Put a folder there that holds metadata.csv "
            "(columns filename,label[,split|fold,group]) beside its audio, or one folder of audio files per class."
        )
    if (path / "metadata.csv").is_file():
        return _read_table(path / "metadata.csv", path, multilabel)
    tables = sorted(file for place in (".", "meta", "metadata") for file in (path / place).glob("*.csv"))
    usable = [file for file in tables if _names_clips(file)]
    if len(usable) > 1:
        names = ", ".join(file.relative_to(path).as_posix() for file in usable)
        raise DatasetError(
            f"{path} holds {len(usable)} tables of clips ({names}); expected one. Pass the one you mean."
        )
    if usable:
        return _read_table(usable[0], path, multilabel)
    clips = _scan_folders(path)
    if clips:
        return clips, bool(multilabel)
    if tables:  # a table without the columns is the likelier mistake: its error names them
        return _read_table(tables[0], path, multilabel)
    raise DatasetError(
        f"no audio found in {path}; expected metadata.csv, or class folders such as {path / 'dog' / '1.wav'} "
        f"({', '.join(sorted(AUDIO_SUFFIXES))})."
    )


def _column(header: Sequence[str], wanted: Iterable[str]) -> str | None:
    by_name = {name.strip().lower(): name for name in header}
    return next((by_name[name] for name in wanted if name in by_name), None)


def _header(table: Path) -> list[str]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as handle:
            return next(csv.reader(handle), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_csv(table, error) from error


def _no_csv(table: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{table} is no UTF-8 CSV file ({error}). Save it as UTF-8, separated by commas.")


def _names_clips(table: Path) -> bool:
    header = _header(table)
    return all(_column(header, COLUMNS[kind]) is not None for kind in ("file", "label"))


def _read_table(table: Path, root: Path, multilabel: bool | None) -> tuple[list[Clip], bool]:
    columns = _columns(table)
    rows = list(_rows(table, columns))
    if not rows:
        raise DatasetError(f"{table} lists no clips; expected one line per audio file below the header.")
    several = multilabel if multilabel is not None else any(SEPARATOR in row["label"] for _, row in rows)
    clips: list[Clip] = []
    first_line: dict[Path, int] = {}
    for line, row in rows:
        where = f"{table}, line {line}"
        for kind in ("file", "split", "fold"):
            if kind in columns and not row[kind]:
                raise DatasetError(f"{where}: nothing in column {columns[kind]!r}; every clip needs a {kind}.")
        clip = Clip(
            file=_locate(row["file"], row["fold"], table.parent, root),
            labels=_split_labels(row["label"], several, empty_is_none=bool(multilabel), where=where),
            split=_split_name(row["split"], where) if "split" in columns else "",
            fold=row["fold"],
            groups=tuple(part.strip() for part in row["group"].split(SEPARATOR) if part.strip()) or (row["file"],),
        )
        if clip.file in first_line:
            raise DatasetError(
                f"{where}: {row['file']} is already listed in line {first_line[clip.file]}; expected one line per "
                f"clip, several labels of one clip separated by {SEPARATOR!r}."
            )
        first_line[clip.file] = line
        clips.append(clip)
    _refuse_missing(clips, table, root)
    return clips, several


def _columns(table: Path) -> dict[str, str]:
    """What the table tells (file, label, and perhaps split, fold, group) and the column that tells it."""
    header = _header(table)
    found = {kind: column for kind, names in COLUMNS.items() if (column := _column(header, names)) is not None}
    for kind in ("file", "label"):
        if kind not in found:
            raise DatasetError(
                f"{table} has no {kind} column: its columns are {', '.join(header) or 'none'}; expected one of "
                f"{', '.join(COLUMNS[kind])}. Rename the column in its first line."
            )
    return found


def _rows(table: Path, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, stripped cell of each kind, "" where the table has no such column); empty lines are skipped."""
    header = _header(table)
    places = {kind: header.index(column) for kind, column in columns.items()}
    with table.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle)
        next(reader, None)
        try:
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(header):
                    raise DatasetError(
                        f"{table}, line {reader.line_num}: {len(row)} cells, expected {len(header)} "
                        f"({', '.join(header)}). Put cells that contain commas between double quotes."
                    )
                yield reader.line_num, {kind: row[places[kind]].strip() if kind in places else "" for kind in COLUMNS}
        except (UnicodeDecodeError, csv.Error) as error:
            raise _no_csv(table, error) from error


def _split_labels(cell: str, several: bool, *, empty_is_none: bool, where: str) -> tuple[str, ...]:
    labels = (
        tuple(dict.fromkeys(part.strip() for part in cell.split(SEPARATOR) if part.strip())) if several else (cell,)
    )
    if not all(labels) or (not labels and not empty_is_none):
        raise DatasetError(f"{where}: no label. Every clip needs one (or multilabel=True, where a clip may have none).")
    return labels


def _split_name(cell: str, where: str) -> str:
    if cell.lower() not in SPLITS:
        raise DatasetError(f"{where}: unknown split {cell!r}; expected one of {', '.join(SPLITS)}.")
    return SPLITS[cell.lower()]


def _locate(name: str, fold: str, beside: Path, root: Path) -> Path:
    """Where a table's file is: below the root, beside the table, or in `audio/` as in ESC-50 and UrbanSound8K."""
    relative = Path(name.replace("\\", "/"))
    audio = (root / "audio", beside.parent / "audio")
    folders = (root, beside, *audio, *(folder / f"fold{fold}" for folder in audio))
    return next((folder / relative for folder in folders if (folder / relative).is_file()), root / relative)


def _refuse_missing(clips: Sequence[Clip], table: Path, root: Path) -> None:
    missing = [clip.file for clip in clips if not clip.file.is_file()]
    if missing:
        first = ", ".join(str(file) for file in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DatasetError(
            f"{root} is incomplete: {len(missing)} of the {len(clips)} audio files that {table.name} lists are "
            f"missing, the first: {first}. Put the audio below {root} under the names in the table (download or "
            "unpack the dataset again), or remove those lines."
        )


def _scan_folders(root: Path) -> list[Clip]:
    """Class folders, below train/val/test folders if there are any; Speech Commands lists the files of its splits."""
    split_folders = [folder for folder in _folders(root) if folder.name.lower() in SPLITS]
    if any(SPLITS[folder.name.lower()] == "train" for folder in split_folders):
        clips = []
        for folder in split_folders:
            split = SPLITS[folder.name.lower()]
            clips += [replace(clip, split=split) for clip in _scan_classes(folder, root)]
    else:
        clips = _scan_classes(root, root)
        lists = {"val": root / "validation_list.txt", "test": root / "testing_list.txt"}
        if all(file.is_file() for file in lists.values()):
            listed = {name: split for split, file in lists.items() for name in file.read_text("utf-8").split()}
            clips = [replace(c, split=listed.get(c.file.relative_to(root).as_posix(), "train")) for c in clips]
    if clips and len({label for clip in clips for label in clip.labels}) < 2:
        raise DatasetError(
            f"{root} has one class folder only ({clips[0].labels[0]!r}); a task needs two or more. Expected one folder "
            "per class, or metadata.csv with the columns filename,label."
        )
    return clips


def _folders(root: Path) -> list[Path]:
    """Sub-folders by name; `_background_noise_` of Speech Commands and hidden folders are no classes."""
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and folder.name[0] not in "._")


def _scan_classes(parent: Path, root: Path) -> list[Clip]:
    """One class per folder in `parent`. Nothing says which clips belong together, so each is its own group."""
    found = {folder: _audio(folder) for folder in _folders(parent)}
    if not any(found.values()):
        return []
    empty = [folder.name for folder, files in found.items() if not files]
    if empty:
        raise DatasetError(
            f"{parent} has class folders without a clip: {', '.join(empty[:5])}. Put audio files "
            f"({', '.join(sorted(AUDIO_SUFFIXES))}) directly into {parent / empty[0]}, or remove the folder."
        )
    return [
        Clip(file, (folder.name,), split="", fold="", groups=(file.relative_to(root).as_posix(),))
        for folder, files in found.items()
        for file in files
    ]


def _audio(folder: Path) -> list[Path]:
    # "._x.wav" are not sounds but what macOS leaves behind on foreign disks.
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in AUDIO_SUFFIXES and not f.name.startswith("."))
