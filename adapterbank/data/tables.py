"""Tables as text: which characters, which separator, which columns. `labelled.py` makes clips of their rows.

A table is CSV with any of the usual separators, TSV, or JSON lines (one object per clip, `metadata.jsonl` of Hugging
Face).
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from adapterbank.errors import DatasetError
from adapterbank.text import amount, nfc

Cell: TypeAlias = str | tuple[str, ...]  # several where a row of JSON holds a list

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
DELIMITERS = (",", ";", "\t", "|")

# Column names of the packs, ESC-50, UrbanSound8K, FSD50K, Common Voice, Hugging Face and the usual home-made tables;
# the first that is present counts.
COLUMNS = {
    "file": (
        "filename",
        "file",
        "path",
        "slice_file_name",
        "file_name",
        "filepath",
        "fname",
        "file_path",
        "audio_file",
        "audio_path",
        "audio_filepath",
        "audio",
        "wav",
    ),
    "label": (
        "label",
        "labels",
        "category",
        "class",
        "class_name",
        "categories",
        "classes",
        "tags",
        "target",
        "class_label",
        "label_name",
        "class_id",
        "classid",
    ),
    "split": ("split", "subset"),
    "fold": ("fold",),
    # src_file, fsid: the recording that ESC-50, UrbanSound8K cut
    "group": ("group", "speaker", "src_file", "fsid", "speaker_id", "client_id", "recording_id"),
}
PLURAL = ("labels", "categories", "classes", "tags")  # such a column says that a clip may have several

_BOMS = {  # the longest first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NAMED = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "'|'"}


@dataclass(frozen=True)
class Table:
    """What a table says.

    Attributes:
        columns: what it tells (file, label, and perhaps split, fold, group), and the column that tells it.
        rows: (line number, cell of each kind, "" where the table has no such column).
        header: all its columns.
    """

    file: Path
    columns: dict[str, str]
    rows: list[tuple[int, dict[str, Cell]]]
    header: list[str]


def tables_in(folder: Path) -> list[Path]:
    """The files of a folder that may be tables, by name."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.name[0] != "." and f.is_file())


def columns_of(file: Path) -> list[str]:
    """The names of its columns. Raises DatasetError if it is no text."""
    return _header(file)


def names_clips(file: Path) -> bool:
    """Whether the table has a column of files and one of labels. Raises DatasetError if it is no text."""
    found = _found(_header(file))
    return "file" in found and "label" in found


def read_table(file: Path) -> Table:
    """All rows; empty lines are skipped.

    Raises:
        DatasetError: it is no table, has no rows, or has a row that does not fit its header.
    """
    columns = _columns(file)
    rows = list(_json_rows(file, columns) if _is_json(file) else _csv_rows(file, columns))
    if not rows:
        raise DatasetError(f"{file} lists no clips; expected one line per audio file below the header.")
    return Table(file, columns, _whole_numbers(rows), _header(file))


def _whole_numbers(rows: list[tuple[int, dict[str, Cell]]]) -> list[tuple[int, dict[str, Cell]]]:
    """Folds that pandas wrote as 3.0, because rows of the column were empty, as 3.

    Labels stay as they are, because banks that were trained with them know them by that name.
    """
    cells = [cell for _, row in rows if isinstance(cell := row["fold"], str) and cell]
    if cells and all(re.fullmatch(r"-?\d+(\.0+)?", cell, flags=re.ASCII) for cell in cells):
        for _, row in rows:
            if isinstance(cell := row["fold"], str):
                row["fold"] = cell.partition(".")[0]
    return rows


def _is_json(file: Path) -> bool:
    return file.suffix.lower() in (".jsonl", ".ndjson")


def _columns(file: Path) -> dict[str, str]:
    header = _header(file)
    found = _found(header)
    for kind in ("file", "label"):
        if kind not in found:
            told = "" if _is_json(file) else f" Its cells were read as separated by {_NAMED[_dialect(file)[1]]}."
            raise DatasetError(
                f"{file} has no {kind} column: its columns are {', '.join(header) or 'none'}; expected one of "
                f"{', '.join(COLUMNS[kind])}. Rename the column in its first line, or put such a line above the "
                f"others.{told}"
            )
    return found


def _found(header: Sequence[str]) -> dict[str, str]:
    # "File Name" and "file-name" are file_name. Reversed: of two equal names the first counts.
    by_name = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(header)}
    return {
        kind: next(by_name[name] for name in names if name in by_name)
        for kind, names in COLUMNS.items()
        if any(name in by_name for name in names)
    }


# -- characters -------------------------------------------------------------------------------------------------------


def _encoding(file: Path) -> str:
    """UTF-8, or what a byte order mark says. Text of ASCII letters in UTF-16 without one has a zero in every pair."""
    with file.open("rb") as handle:
        start = handle.read(512)
    for mark, encoding in _BOMS.items():
        if start.startswith(mark):
            return encoding
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) > len(start) / 8:
        return "utf-16-be" if even > odd else "utf-16-le"
    return "utf-8-sig"


def _no_text(file: Path, error: Exception) -> DatasetError:
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1 if isinstance(error.object, bytes) else 1
        cause = (
            f"it is written in another encoding, such as Latin-1 or Windows-1252: byte "
            f"{error.object[error.start]:#04x}, first near line {line}, is no UTF-8"
        )
    else:
        cause = str(error)
    return DatasetError(
        f"{file} is no UTF-8 CSV file ({cause}). Save it as UTF-8, separated by commas; spreadsheets call that "
        "'CSV UTF-8'."
    )


# -- CSV --------------------------------------------------------------------------------------------------------------


def _dialect(file: Path) -> tuple[int, str]:
    """How many lines stand before the header, empty or with a "#" at their beginning, and what separates cells.

    The separator is the one with which the header has columns that we know. Excel may write it into a line of its own,
    `sep=;`.
    """
    skipped = 0
    with file.open(encoding=_encoding(file), newline=None) as handle:
        for line in handle:
            text = line.strip("\r\n\ufeff")
            if told := re.fullmatch(r'"?sep=(.)"?', text):
                return skipped + 1, told[1]
            if text.strip() and not (text.startswith("#") and not _names_columns(text)):
                break
            skipped += 1
        else:
            return 0, ","

    def known(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([text], delimiter=delimiter), [])
        return len(_found(cells).keys() & {"file", "label"}), len(cells)

    return skipped, max(DELIMITERS, key=known)  # of equals the first: the comma


def _names_columns(line: str) -> bool:
    """Whether a line that begins with "#" is a header: of a table whose first column is "#", or "#filename"."""
    cells = [next(csv.reader([line.removeprefix("#").lstrip()], delimiter=one), []) for one in DELIMITERS]
    return any({"file", "label"} <= _found(names).keys() for names in cells)


def _header(file: Path) -> list[str]:
    try:
        if _is_json(file):
            return list(dict.fromkeys(key for _, row in _objects(file) for key in row))
        skipped, delimiter = _dialect(file)
        with file.open(newline="", encoding=_encoding(file)) as handle:
            reader = csv.reader(handle, delimiter=delimiter)
            return next((row for number, row in enumerate(reader) if number >= skipped), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_text(file, error) from error


def _csv_rows(file: Path, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, Cell]]]:
    header = _header(file)
    places = {kind: header.index(column) for kind, column in columns.items()}
    skipped, delimiter = _dialect(file)
    with file.open(newline="", encoding=_encoding(file)) as handle:
        reader = csv.reader(handle, delimiter=delimiter)
        try:
            for number, row in enumerate(reader):
                if number <= skipped or not any(cell.strip() for cell in row):
                    continue
                if len(row) == 1 and row[0].lstrip().startswith("#"):  # a comment: a clip has two cells or more
                    continue
                if len(row) != len(header):
                    raise DatasetError(
                        f"{file}, line {reader.line_num}: {amount(len(row), 'cell')}, expected {len(header)} "
                        f"({', '.join(header)}). Put cells that contain {_NAMED.get(delimiter, repr(delimiter))} "
                        "between double quotes."
                    )
                cells: dict[str, Cell] = {kind: _text(row[places[kind]]) if kind in places else "" for kind in COLUMNS}
                if any("\n" in cell for cell in cells.values()):
                    raise DatasetError(
                        f"{file}: a cell that ends in line {reader.line_num} goes over several lines, "
                        f"{row[-1][:40]!r}; expected one line per clip. A double quote before it is not closed."
                    )
                yield reader.line_num, cells
        except (UnicodeDecodeError, csv.Error) as error:
            raise _no_text(file, error) from error


# -- JSON lines -------------------------------------------------------------------------------------------------------


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding=_encoding(file)) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DatasetError(
                    f"{file}, line {number}: no JSON ({error}). Expected one object per line, such as "
                    '{"file_name": "1.wav", "label": "dog"}.'
                ) from error
            if not isinstance(row, dict):
                raise DatasetError(f"{file}, line {number}: a {type(row).__name__}, expected a JSON object per line.")
            yield number, row


def _json_rows(file: Path, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, Cell]]]:
    for number, row in _objects(file):
        yield number, {kind: _cell(row.get(columns.get(kind, "")), f"{file}, line {number}") for kind in COLUMNS}


def _cell(value: Any, where: str) -> Cell:
    if isinstance(value, list) and not any(isinstance(entry, list) for entry in value):
        return tuple(str(_cell(entry, where)) for entry in value)
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():  # pandas writes 3 as 3.0 where other rows have none
        value = int(value)
    if isinstance(value, (str, int, float)):
        return _text(str(value))
    raise DatasetError(f"{where}: got {value!r} in a cell, expected text, a number, or a list of them.")


def _text(cell: str) -> str:
    return nfc(cell.strip())
