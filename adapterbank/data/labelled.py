"""Clips of a table: the labels in its cells and the files that it names."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from adapterbank.audio.suffixes import READABLE_SUFFIXES
from adapterbank.data.clip import SPLITS, Clip, Layout, counted, is_audio
from adapterbank.data.tables import PLURAL, Cell, Table, read_table
from adapterbank.errors import DatasetError
from adapterbank.text import amount, nfc, verb, visible

SEPARATOR = ";"  # between several groups of one clip
ON_EVIDENCE = (",", "+", "&", "/")  # between labels of one clip, if each part is the label of other clips

_ENDS = {  # names of columns, without signs, that say where a part of a file begins or ends
    *("start", "end", "begin", "stop", "onset", "offset", "starttime", "endtime", "begintime", "startseconds"),
    *("endseconds", "begintimes", "endtimes", "xmin", "xmax", "duration"),
}


def clips_of(files: Sequence[tuple[Path, str]], root: Path, layout: Layout) -> tuple[list[Clip], bool]:
    """The clips of one table, or of one for each split.

    Args:
        files: tables, and the split that the name of each says; "" if it says none.
        root: of the dataset; files are looked for below it and beside each table.

    Returns:
        The clips in the tables' order, and whether the labels are sets.

    Raises:
        DatasetError: a table is wrong, or names a file that is not there.
    """
    tables = [read_table(file) for file, _ in files]
    labels = [_Labels(table, layout) for table in tables]
    several = layout.multilabel if layout.multilabel is not None else any(found.several for found in labels)
    clips: list[Clip] = []
    first_line: dict[Path, str] = {}
    missing: list[Path] = []
    for table, found, (_, split) in zip(tables, labels, files, strict=True):
        finder = _Finder(root, table.file.parent)
        for line, row in table.rows:
            where = f"{table.file}, line {line}"
            clip = _clip(table, row, found.of(row["label"], several, where), finder, where)
            if len(tables) > 1 and clip.groups == (row["file"],):  # "1.wav" of two folders is not one recording
                clip = replace(clip, groups=(nfc(os.path.relpath(clip.file, root)),))
            if split and "split" not in table.columns:
                clip = replace(clip, split=split)
            if clip.file in first_line:
                raise DatasetError(
                    f"{where}: {row['file']} is already listed in {first_line[clip.file]}; expected one line per "
                    f"clip, several labels of one clip separated by ';'.{_of_parts(table)}"
                )
            first_line[clip.file] = f"line {line}" if len(tables) == 1 else where
            clips.append(clip)
            if not clip.file.is_file():
                missing.append(clip.file)
    return _without(clips, missing, [table.file for table in tables], root, layout), several


def _clip(table: Table, row: dict[str, Cell], labels: tuple[str, ...], finder: _Finder, where: str) -> Clip:
    for kind in ("file", "split", "fold"):
        if kind in table.columns and not row[kind]:
            raise DatasetError(f"{where}: nothing in column {table.columns[kind]!r}; every clip needs a {kind}.")
        if not isinstance(row[kind], str):
            raise DatasetError(f"{where}: a list in column {table.columns[kind]!r}; expected one {kind}.")
    file, split, fold, group = (row[kind] for kind in ("file", "split", "fold", "group"))
    groups = group.split(SEPARATOR) if isinstance(group, str) else group
    return Clip(
        file=finder.find(str(file), str(fold), where),
        labels=labels,
        split=_split_name(str(split), where) if "split" in table.columns else "",
        fold=str(fold),
        groups=tuple(part.strip() for part in groups if part.strip()) or (str(file),),
    )


def _of_parts(table: Table) -> str:
    """What to say of a table that seems to label parts of files."""
    ends = [name for name in table.header if re.sub(r"[^a-z]", "", name.lower()) in _ENDS]
    if len(ends) < 2:
        return ""
    return f" Its columns {', '.join(ends[:2])} seem to say parts of the file: cut these into files of their own first."


def _split_name(cell: str, where: str) -> str:
    if cell.lower() not in SPLITS:
        raise DatasetError(f"{where}: unknown split {cell!r}; expected one of {', '.join(SPLITS)}.")
    return SPLITS[cell.lower()]


def _without(
    clips: Sequence[Clip], missing: Sequence[Path], tables: Sequence[Path], root: Path, layout: Layout
) -> list[Clip]:
    if missing and layout.on_error == "raise":
        first = ", ".join(str(file) for file in missing[:3]) + (", ..." if len(missing) > 3 else "")
        listing = tables[0].name if len(tables) == 1 else f"the tables {', '.join(file.name for file in tables)}"
        raise DatasetError(
            f"{root} is incomplete: {len(missing)} of the {amount(len(clips), 'audio file')} that {listing} "
            f"{verb(len(tables), 'list')} {verb(len(missing), 'are')} missing, the first: {first}. Put the audio "
            f"below {root} under the names in the table (download or unpack the dataset again), remove those lines, "
            'or pass on_error="skip" to read the others.'
        )
    layout.leave_out(root, missing, "are missing that its table lists", "Download or unpack the dataset again.")
    absent = set(missing)
    left = [clip for clip in clips if clip.file not in absent]
    if not left:
        raise DatasetError(
            f"{root}: all that its table lists is missing: {counted(missing, root)}. Unpack the dataset again."
        )
    return left


# -- labels -----------------------------------------------------------------------------------------------------------


class _Labels:
    """How the labels of one clip stand in a table's cells.

    Several are separated by the separator that the caller names, by ";" or "|" wherever one occurs, by "," if the
    column is called by a plural (`labels`: FSD50K, FSDKaggle2019), or by one of `ON_EVIDENCE` if every part of such
    cells is a label of other clips as well. A list of Python or JSON, `["dog", "cat"]`, holds several too.

    Attributes:
        several: whether a clip of the table has several labels.
    """

    def __init__(self, table: Table, layout: Layout):
        self.cells = [row["label"] for _, row in table.rows]
        self.texts = [cell for cell in self.cells if isinstance(cell, str) and _listed(cell) is None]
        self.allowed = layout.multilabel is not False
        self.empty_is_none = bool(layout.multilabel)
        self.separator = layout.label_separator or self._by_evidence(table.columns["label"], bool(layout.multilabel))
        self.several = layout.label_separator is not None or (
            self.allowed and any(len(self._parts(cell)) > 1 for cell in self.cells)
        )

    def of(self, cell: Cell, several: bool, where: str) -> tuple[str, ...]:
        """The labels of a cell. Raises DatasetError."""
        labels = tuple(self._parts(cell))
        if several:
            labels = tuple(dict.fromkeys(part for part in labels if part))
        elif len(labels) > 1:
            if not isinstance(cell, str):
                raise DatasetError(f"{where}: {len(labels)} labels ({', '.join(labels)}), but multilabel=False.")
            labels = (visible(cell),)
        if "NaN" in labels or "<NA>" in labels:
            raise DatasetError(f"{where}: the label {labels[0]!r}, which is what pandas writes where there is none.")
        if not all(labels) or (not labels and not self.empty_is_none):
            raise DatasetError(
                f"{where}: no label. Every clip needs one (or multilabel=True, where a clip may have none)."
            )
        return labels

    def _parts(self, cell: Cell) -> list[str]:
        listed = cell if isinstance(cell, tuple) else _listed(cell)
        if listed is not None:
            return list(map(visible, listed))
        assert isinstance(cell, str)
        return list(map(visible, cell.split(self.separator))) if self.separator else [visible(cell)]

    def _by_evidence(self, column: str, asked: bool) -> str | None:
        if not self.allowed:
            return None
        for separator in (";", "|"):
            if any(separator in cell for cell in self.texts):
                return separator
        if (asked or column.strip().lower() in PLURAL) and any("," in cell for cell in self.texts):
            return ","
        return next((separator for separator in ON_EVIDENCE if self._splits_into_labels(separator)), None)

    def _splits_into_labels(self, separator: str) -> bool:
        """Whether cells hold it, and each part of them is a label of other clips."""
        joined = [cell for cell in self.texts if separator in cell]
        alone = {cell for cell in self.texts if separator not in cell}
        return bool(joined) and {part.strip() for cell in joined for part in cell.split(separator)} <= alone


def _listed(cell: Cell) -> tuple[str, ...] | None:
    """The entries of a cell that is written as a list, tuple or set; None if it is not.

    `['dog', 'cat']` is how Python and JSON write a list, `['dog' 'cat']` how NumPy does, and `[dog, cat]` people.
    """
    if not isinstance(cell, str) or (cell[:1], cell[-1:]) not in {("[", "]"), ("(", ")"), ("{", "}")}:
        return None
    text = re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", cell)
    try:
        entries = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        bare = cell.startswith("[") and "," in cell and re.fullmatch(r"[^\[\]{}'\"]+", cell[1:-1])
        return tuple(cell[1:-1].split(",")) if bare else None
    several = isinstance(entries, (list, tuple, set))
    if not several or not all(isinstance(entry, (str, int)) for entry in entries):
        return None
    return tuple(str(entry) for entry in (sorted(entries, key=str) if isinstance(entries, set) else entries))


# -- files ------------------------------------------------------------------------------------------------------------


class _Finder:
    """Where the audio is that a table names.

    Looked through are, in this order: the dataset's folder, the table's own, `audio/` as in ESC-50 and UrbanSound8K,
    then every folder inside the dataset's, and, if the table stands in a folder without audio, those beside it (FSD50K,
    FSDKaggle2019). Names are compared in NFC, and may lack their ending.
    """

    def __init__(self, root: Path, beside: Path):
        self.root, self.beside = root, beside
        self.audio = (root / "audio", beside.parent / "audio")
        self._listed: dict[Path, dict[str, set[Path]]] = {}
        self._around: list[Path] | None = None

    def find(self, name: str, fold: str, where: str) -> Path:
        """The file, or where it should be. Raises DatasetError if several files fit."""
        relative = self._relative(name.replace("\\", "/"))
        near = (self.root, self.beside, *self.audio, *(folder / f"fold{fold}" for folder in self.audio if fold))
        for folder in near:
            if (folder / relative).is_file():
                return folder / relative
        for folder in near:
            if found := self._by_name(folder, relative):
                return _only(found, where, name)
        found = {file for folder in self._folders_around() for file in self._by_name(folder, relative)}
        return _only(found, where, name) if found else self.root / relative

    def _relative(self, name: str) -> Path:
        """A path below the dataset's folder: of one that is absolute on another machine, the longest end that is there.

        A file that is where the table says stays there.
        """
        drive = re.match(r"[A-Za-z]:/", name)
        if not (drive or name.startswith("/")) or (not drive and Path(name).is_file()):
            return Path(name)
        parts = Path(name[3:] if drive else name[1:]).parts
        ends = [Path(*parts[first:]) for first in range(len(parts))]
        places = (self.root, self.beside, *self.audio)
        return next((end for end in ends if any((place / end).is_file() for place in places)), Path(name))

    def _by_name(self, folder: Path, relative: Path) -> set[Path]:
        listed = self._listing(self._inside(folder, relative.parent))
        name = nfc(relative.name)
        return listed.get(name, set()) or (set() if _has_suffix(name) else listed.get(f"{name}.*", set()))

    def _inside(self, folder: Path, relative: Path) -> Path:
        """A folder in another, whose names may be written in another form of Unicode."""
        if not (folder / relative).is_dir():
            for part in relative.parts:
                same = (entry.name for entry in _entries(folder) if nfc(entry.name) == part)
                folder = folder / next(same, part)
            return folder
        return folder / relative

    def _listing(self, folder: Path) -> dict[str, set[Path]]:
        """{name in NFC, or without its ending and with ".*": the files}"""
        if folder not in self._listed:
            listed: dict[str, set[Path]] = {}
            for entry in _entries(folder):
                if is_audio(entry.name):
                    file = folder / entry.name
                    listed.setdefault(nfc(entry.name), set()).add(file)
                    listed.setdefault(f"{nfc(file.stem)}.*", set()).add(file)
            self._listed[folder] = listed
        return self._listed[folder]

    def _folders_around(self) -> list[Path]:
        if self._around is None:
            places = [self.root]
            inside = _entries(self.beside)
            if not any(entry.is_dir() or is_audio(entry.name) for entry in inside):
                places.append(self.beside.parent)
            self._around = [
                place / entry.name for place in dict.fromkeys(places) for entry in _entries(place) if entry.is_dir()
            ]
        return self._around


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:  # absent, or somebody else's
        return []


def _has_suffix(name: str) -> bool:
    return Path(name).suffix.lower() in READABLE_SUFFIXES


def _only(found: set[Path], where: str, name: str) -> Path:
    if len(found) > 1:
        raise DatasetError(
            f"{where}: {name!r} may be any of {', '.join(map(str, sorted(found)[:3]))}. Write the path below the "
            "dataset's folder, with its ending, into the table."
        )
    return next(iter(found))
