"""Lists the clips of a dataset: which file has which labels, split, fold and group.

A dataset is a table beside its audio (`labelled.py`), or one folder of audio files per class (`trees.py`). Only the
table and the names of files are read here; no audio is opened. `folder.py` makes a torch dataset of the list.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from adapterbank.audio.suffixes import CONVERT_HINT
from adapterbank.data.clip import SPLITS, Clip, Layout, counted, is_audio, is_foreign_audio
from adapterbank.data.labelled import clips_of
from adapterbank.data.tables import SUFFIXES, columns_of, names_clips, tables_in
from adapterbank.data.trees import MISNAMED, RENAME, folders_of, is_misnamed, scan_tree
from adapterbank.errors import DatasetError, UnreadTableWarning, warn_outside
from adapterbank.text import amount, in_natural_order, nfc, verb

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
BINARY_TABLES = (".parquet", ".arrow", ".feather", ".tfrecord", ".h5", ".hdf5", ".npz", ".pkl")
KALDI = ("wav.scp", "utt2spk", "text", "segments")
READ = 65_536  # bytes of a table, when it is sought whether it lists clips
MOST_OPENED = 1_000  # of them, to see whether they begin as audio does
LOOKED_AT = 100_000  # files, when the reason is sought why a folder holds no clips


def scan(path: Path, layout: Layout) -> tuple[list[Clip], bool]:
    """Find the clips of a folder or of a table.

    Args:
        path: a table (.csv, .tsv, .jsonl), or a folder with one in it, in `meta/` or in `metadata/`, with one for each
            split, or with class folders.

    Returns:
        The clips in the table's order (class folders: sorted by name), and whether the labels are sets.

    Raises:
        DatasetError: no clips are found, clips would be left out, or the table is wrong.
    """
    if path.is_file():
        if path.suffix.lower() not in (*SUFFIXES, ".txt"):
            raise DatasetError(f"{path} is a file that is no table. {_reason(path.parent, [path])}")
        return clips_of([(path, "")], path.parent, layout)
    if not path.is_dir():
        raise DatasetError(
            f"there is no dataset at {path} (from {Path.cwd()}). Put a folder there that holds metadata.csv "
            "(columns filename,label[,split|fold,group]) beside its audio, or one folder of audio files per class."
        )
    tables = _tables(path)
    usable = [file for file in tables if names_clips(file)]
    chosen = _chosen(usable, path)
    if chosen:
        return _filled(clips_of(chosen, path, layout), path)
    if metadata := [file for file in tables if file.stem == "metadata"]:
        return clips_of([(metadata[0], "")], path, layout)  # raises: its error names the columns
    try:
        clips, several = scan_tree(path, layout)
    except DatasetError as error:
        if tables:
            raise DatasetError(f"{error} {_not_read(tables[0])}") from error
        raise
    if clips:
        _warn_of_unread(tables, clips)
        return _filled((clips, several), path)
    if tables:  # a table without the columns is the likelier mistake: its error names them
        return clips_of([(tables[0], "")], path, layout)
    raise DatasetError(
        f"no audio found in {path}; expected metadata.csv, or class folders such as {path / 'dog' / '1.wav'}. "
        f"{_reason(path, _files(path))}"
    )


def _tables(path: Path) -> list[Path]:
    """The dataset's tables. Folders of other names (FSD50K.ground_truth) are looked into if they hold no audio."""
    places = [place for place in (path, path / "meta", path / "metadata") if place.is_dir()]
    found = [file for place in places for file in tables_in(place)]
    if any(map(names_clips, found)):
        return found
    others = (folder for folder in folders_of(path) if folder not in places and folder.name.lower() not in SPLITS)
    return found + [
        file for folder in others if not any(is_audio(f) for f in os.listdir(folder)) for file in tables_in(folder)
    ]


def _chosen(usable: Sequence[Path], path: Path) -> list[tuple[Path, str]]:
    """The tables to read and the split that each name says: `metadata`, the only one, or one for each split.

    Raises:
        DatasetError: there are several, and nothing says which is meant.
    """
    named = [file for file in usable if file.stem == "metadata" and file.parent == path] or list(usable)
    if len(named) < 2:
        return [(file, "") for file in named]
    splits = [SPLITS.get(file.stem.lower(), "") for file in named]
    if all(splits) and len(set(splits)) == len(splits):
        return list(zip(named, splits, strict=True))
    names = ", ".join(file.relative_to(path).as_posix() for file in named)
    raise DatasetError(
        f"{path} holds {len(named)} tables of clips ({names}); expected one, or one for each split, called train.csv, "
        "val.csv and test.csv. Pass the one you mean."
    )


def _filled(found: tuple[list[Clip], bool], path: Path) -> tuple[list[Clip], bool]:
    """Refuses a dataset of empty files. Usually the first file has bytes, and only that is looked at."""
    if all(clip.file.exists() and not clip.file.stat().st_size for clip in found[0]):
        raise DatasetError(f"{path}: {_all_of(len(found[0]))} empty (0 bytes). Download or unpack the dataset again.")
    return found


def _all_of(files: int) -> str:
    return "its only audio file is" if files == 1 else f"all {amount(files, 'audio file')} are"


def _not_read(table: Path) -> str:
    columns = ", ".join(map(repr, columns_of(table))) or "none"
    return (
        f"{table.name} is not read, because no column of its first line is known as one of files and one of labels: "
        f"its columns are {columns}. If it says the labels, call them filename and label, in a first line."
    )


def _warn_of_unread(tables: Sequence[Path], clips: Sequence[Clip]) -> None:
    """Warns of a table that says something in words of clips in class folders: it may have been meant to label them."""
    names = {clip.file.name for clip in clips}
    labels = {label for clip in clips for label in clip.labels}
    for table in tables:
        with table.open("rb") as handle:
            content = handle.read(READ).decode("utf-8", "replace")
        _, _, below = content.partition("\n")
        cells = {nfc(cell) for cell in re.split(r"[\s,;|\"'/\\]+", below) if cell}
        words = {cell for cell in cells - names - labels if not re.fullmatch(r"[-+\d.:e]+", cell)}
        if words and not names.isdisjoint(cells):
            folders = ", ".join(in_natural_order(labels)[:5])
            warn_outside(
                f"the labels are the names of the folders ({folders}). The table beside them lists clips too, but "
                f"{_not_read(table)}",
                UnreadTableWarning,
            )


# -- why nothing was found --------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    files: list[Path] = []
    for place, folders, names in os.walk(path):
        folders.sort()
        files += [Path(place, name) for name in sorted(names) if name[0] != "."]
        if len(files) > LOOKED_AT:
            break
    return files


def _reason(path: Path, files: Sequence[Path]) -> str:
    """What the folder holds instead of clips in class folders, and what to do about it."""

    def ending(*suffixes: str) -> list[Path]:
        return [file for file in files if file.suffix.lower() in suffixes]

    if foreign := [file for file in files if is_foreign_audio(file.name)]:
        return f"It holds {counted(foreign, path)}, which libsndfile does not decode. {CONVERT_HINT}"
    if audio := [file for file in files if is_audio(file.name)]:
        return (
            f"{counted(audio, path, 'lie there')}, but nothing says of which class: make one folder per class, "
            "or write a metadata.csv with the columns filename,label. "
            f"{_other_tables(path, files) or _texts(path, files)}".rstrip()
        )
    if misnamed := [file for file in files[:MOST_OPENED] if is_misnamed(file)]:
        return f"{counted(misnamed, path, MISNAMED)}. {RENAME}"
    if archives := ending(*ARCHIVES):
        return f"It holds {counted(archives, path)}: unpack that first, and pass the folder that comes out."
    if told := _other_tables(path, files):
        return told
    if not files:
        return "It is empty."
    kinds = ", ".join(f"{count} {suffix or 'without ending'}" for suffix, count in _kinds(files).most_common(5))
    return f"Its {amount(len(files), 'file')} {verb(len(files), 'are')} no audio by name ({kinds})."


def _other_tables(path: Path, files: Sequence[Path]) -> str:
    """What is there that may say the classes, but is not read."""
    sheets = [file for file in files if file.suffix.lower() in SPREADSHEETS]
    if sheets:
        return f"It holds {counted(sheets, path)}, a spreadsheet: save it as CSV in UTF-8."
    if json := [file for file in files if file.suffix.lower() == ".json"]:
        return f"It holds {counted(json, path)}, which load_folder does not read: write one object per line (.jsonl)."
    if kaldi := [file for file in files if file.name in KALDI]:
        return (
            f"It holds {counted(kaldi, path)} of Kaldi, which load_folder does not read: write the paths of wav.scp "
            "and the labels, such as those of utt2spk, into a metadata.csv with the columns filename,label."
        )
    if binary := [file for file in files if file.suffix.lower() in BINARY_TABLES]:
        return (
            f"It holds {counted(binary, path)}, which load_folder does not read: write its audio into files, or "
            "read it with the library that made it, and pass (waveform, label) pairs."
        )
    return ""


def _texts(path: Path, files: Sequence[Path]) -> str:
    """Texts beside clips, which may say what is in them."""
    texts = [file for file in files if file.suffix.lower() in (".txt", ".lab", ".textgrid", ".yaml", ".yml")]
    if not texts:
        return ""
    return (
        f"It holds {counted(texts, path)}, which load_folder does not look into. If one of them is a table of clips "
        "and labels, rename it to end in .csv or .tsv; labels of parts of a recording are none of a clip."
    )


def _kinds(files: Sequence[Path]) -> Counter[str]:
    return Counter(file.suffix.lower() for file in files)
