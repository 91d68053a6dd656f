"""Trees of folders as datasets: one folder per class, perhaps below one per split, perhaps with one per speaker inside.

root/dog/1.wav                   a class folder
root/train/dog/1.wav             below a folder of a split
root/dog/alice/1.wav             recursive: the folder inside the class is the clip's group
root/train/1.wav                 with root/train/metadata.csv: a table for each split
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapterbank.audio.kinds import holds_sound
from adapterbank.audio.suffixes import CONVERT_HINT
from adapterbank.data.clip import SPLITS, Clip, Layout, counted, is_audio, is_foreign_audio
from adapterbank.data.labelled import clips_of
from adapterbank.data.tables import names_clips, tables_in
from adapterbank.errors import DatasetError
from adapterbank.text import nfc, visible

# Folders that nobody means as classes: noise of Speech Commands, and what zip, NAS systems and Python leave behind.
NO_CLASSES = frozenset({"_background_noise_", "__macosx", "@eadir", "__pycache__"})

MISNAMED = "begin as audio does, or an archive of audio, under a name that does not end as those of audio do"
RENAME = "Give them the ending of their format, such as .wav, or unpack them."
PACKED = frozenset((".gz", ".bz2", ".xz", ".zst", ".zip"))
# What lies beside clips and need not be opened to know that it is none.
NO_SOUND = frozenset(
    ".txt .json .csv .tsv .xml .yaml .yml .md .lab .textgrid .png .jpg .jpeg .npy .npz .pt .pkl .mid .midi .py".split()
)


@dataclass(frozen=True)
class Content:
    """The audio of one folder.

    Attributes:
        direct: clips in the folder itself. nested: clips in folders inside it, at any depth.
        foreign: audio, at any depth, that libsndfile does not decode.
        misnamed: files, at any depth, that begin as audio does and do not end so by their names, or that are packed.
    """

    folder: Path
    direct: tuple[Path, ...]
    nested: tuple[Path, ...]
    foreign: tuple[Path, ...]
    misnamed: tuple[Path, ...]

    @property
    def clips(self) -> tuple[Path, ...]:
        return self.direct + self.nested

    def __bool__(self) -> bool:
        return bool(self.clips or self.foreign or self.misnamed)


def scan_tree(root: Path, layout: Layout) -> tuple[list[Clip], bool]:
    """The clips of a tree, sorted by path, and whether the labels are sets; no clip if the tree holds none.

    Raises:
        DatasetError: clips would be left out, or nothing says their class.
    """
    contents = [content for content in map(content_of, folders_of(root)) if content]
    if contents and all(content.folder.name.lower() in SPLITS for content in contents):
        if unlabelled := [c for c in contents if c.direct and not _table_of(c.folder)]:
            if others := tables_in(unlabelled[0].folder):
                clips_of([(others[0], "")], root, layout)  # raises: its error names the columns
            names = ", ".join(c.folder.name for c in unlabelled)
            raise DatasetError(
                f"{root}: {names} is the name of a split and holds clips that nothing labels, such as "
                f"{unlabelled[0].direct[0]}. Put them into class folders "
                f"({unlabelled[0].folder / 'dog' / unlabelled[0].direct[0].name}), or put a metadata.csv with the "
                f"columns filename,label into {unlabelled[0].folder}."
            )
        clips, several = _splits(contents, root, layout)
    else:
        clips, several = _classes(root, root, layout), bool(layout.multilabel)
        clips = _listed_splits(clips, root)
    if clips and len({label for clip in clips for label in clip.labels}) < 2 and not several:
        raise _one_class(root, clips[0].labels[0], [content for content in contents if content.clips])
    return clips, several


def _one_class(root: Path, label: str, contents: Sequence[Content]) -> DatasetError:
    only = contents[0]
    inside = sorted({file.relative_to(only.folder).parts[0] for file in only.nested})
    deeper = (
        f" Its folders ({', '.join(inside[:3])}) may be the classes: then pass {only.folder}."
        if len(contents) == 1 and len(inside) > 1
        else ""
    )
    return DatasetError(
        f"{root} has one class folder only ({label!r}); a task needs two or more.{deeper} Expected one folder "
        "per class, or metadata.csv with the columns filename,label."
    )


def _splits(contents: Sequence[Content], root: Path, layout: Layout) -> tuple[list[Clip], bool]:
    """Each split on its own terms: the table in its folder, or its class folders."""
    tables = {content.folder: table for content in contents if (table := _table_of(content.folder))}
    clips: list[Clip] = []
    several = bool(layout.multilabel)
    if tables:
        named = [(table, SPLITS[folder.name.lower()]) for folder, table in tables.items()]
        clips, several = clips_of(named, root, layout)
    for content in contents:
        if content.folder not in tables:
            found = _classes(content.folder, root, layout)
            clips += [replace(clip, split=SPLITS[content.folder.name.lower()]) for clip in found]
    return clips, several


def _table_of(folder: Path) -> Path | None:
    """The one table of a split's folder. Raises DatasetError if there are several."""
    found = [file for file in tables_in(folder) if names_clips(file)]
    named = [file for file in found if file.stem.lower() == "metadata"] or found
    if len(named) > 1:
        names = ", ".join(file.name for file in named)
        raise DatasetError(f"{folder} holds {len(named)} tables of clips ({names}); expected one. Remove the others.")
    return named[0] if named else None


def _listed_splits(clips: list[Clip], root: Path) -> list[Clip]:
    """Speech Commands lists the files of its splits."""
    lists = {"val": root / "validation_list.txt", "test": root / "testing_list.txt"}
    if not all(file.is_file() for file in lists.values()):
        return clips
    listed = {name: split for split, file in lists.items() for name in file.read_text("utf-8").split()}
    return [replace(c, split=listed.get(c.file.relative_to(root).as_posix(), "train")) for c in clips]


def _classes(parent: Path, root: Path, layout: Layout) -> list[Clip]:
    """One class per folder in `parent`. Folders of the same name in NFC are one class."""
    contents = [content_of(folder) for folder in folders_of(parent)]
    if not any(content.clips for content in contents):
        return []  # the caller says why
    _refuse_empty(contents, parent)
    deep = layout.recursive is True
    nested = [file for content in contents for file in content.nested]
    if not deep and nested:
        if not any(content.direct for content in contents) and layout.recursive is None:
            raise _too_deep(parent, [content for content in contents if content.nested])
        layout.leave_out(
            parent,
            nested,
            "lie in folders inside a class folder",
            "recursive=True reads them, as clips of that class.",
            chosen=layout.recursive is False,
        )
    loose = [parent / entry.name for entry in _entries(parent) if is_audio(entry.name)]
    layout.leave_out(
        parent,
        loose,
        "lie beside the class folders, where nothing says of which class",
        "Move what lies there into one.",
    )
    foreign = [file for content in contents for file in content.foreign]
    layout.leave_out(parent, foreign, "are audio that libsndfile does not decode", CONVERT_HINT)
    misnamed = [file for content in contents for file in content.misnamed]
    layout.leave_out(parent, misnamed, MISNAMED, RENAME)
    groups = _groups(contents) if deep else {}
    return [
        Clip(file, (_label(content.folder),), split="", fold="", groups=(groups.get(file) or _own(file, root),))
        for content in contents
        for file in sorted(content.clips if deep else content.direct)
    ]


def _label(folder: Path) -> str:
    """What a reader sees of the folder's name; all of it, if a reader sees nothing."""
    return visible(folder.name) or nfc(folder.name)


def _own(file: Path, root: Path) -> str:
    """The group of a clip that belongs to no other."""
    return nfc(file.relative_to(root).as_posix())


def _groups(contents: Sequence[Content]) -> dict[Path, str]:
    """The first folder inside the class folder, such as the speaker; the same name in two classes is one speaker.

    If all nested clips lie in folders of one name (`dog/wav/1.wav`), the folder says nothing.
    """
    groups = {file: nfc(file.relative_to(c.folder).parts[0]) for c in contents for file in c.nested}
    return groups if len(set(groups.values())) > 1 else {}


def _refuse_empty(contents: Sequence[Content], parent: Path) -> None:
    empty = [content for content in contents if not content.clips]
    if not empty:
        return
    names = ", ".join(content.folder.name for content in empty[:5])
    foreign = [file for content in empty for file in content.foreign]
    if foreign:
        raise DatasetError(
            f"{parent} has class folders without a clip that can be read: {names}. They hold "
            f"{counted(foreign, parent)}, which libsndfile does not decode. {CONVERT_HINT}"
        )
    if misnamed := [file for content in empty for file in content.misnamed]:
        raise DatasetError(
            f"{parent} has class folders without a clip that can be read: {names}. "
            f"{counted(misnamed, parent, MISNAMED)}. {RENAME}"
        )
    raise DatasetError(
        f"{parent} has class folders without a clip: {names}. Put audio files (.wav, .flac, .ogg, .mp3, ...) directly "
        f"into {empty[0].folder}, or remove the folder."
    )


def _too_deep(parent: Path, contents: Sequence[Content]) -> DatasetError:
    """Why class folders without a clip of their own are not read: the clips lie one level deeper."""
    inside = contents[0].nested[0].relative_to(parent)
    splits = [content.folder.name for content in contents if content.folder.name.lower() in SPLITS]
    others = [content.folder.name for content in contents if content.folder.name.lower() not in SPLITS]
    told = f"{parent}: no audio found directly in its folders, but deeper, such as {inside}."
    if splits:
        return DatasetError(
            f"{told} {', '.join(splits)} are names of splits, {', '.join(others[:5])} not: folders are read as splits "
            "only if all of them are. Move or remove the others."
        )
    if len(contents) == 1:
        return DatasetError(
            f"{told} The classes seem to lie one level deeper: pass {contents[0].folder}. If {contents[0].folder.name} "
            "is a class, pass recursive=True."
        )
    return DatasetError(
        f"{told} If {inside.parts[0]} is a class and {inside.parts[1]} a speaker or a recording, pass recursive=True: "
        f"all clips below {inside.parts[0]} then get that class, and {inside.parts[1]} as their group. If "
        f"{inside.parts[1]} is the class, move the folders, or write a metadata.csv with the columns "
        "filename,label,group."
    )


# -- folders ----------------------------------------------------------------------------------------------------------


def folders_of(root: Path) -> list[Path]:
    """Sub-folders by name, without hidden ones and those that are no classes."""
    return [
        root / entry.name
        for entry in _entries(root)
        if entry.is_dir() and entry.name[0] != "." and entry.name.lower() not in NO_CLASSES
    ]


def content_of(folder: Path) -> Content:
    """The audio of a folder and of all folders inside it; links to folders beside it, which are other classes', are not
    followed."""
    direct: list[Path] = []
    nested: list[Path] = []
    foreign: list[Path] = []
    misnamed: list[Path] = []
    own = os.path.realpath(folder)
    beside = {os.path.realpath(entry) for entry in _entries(folder.parent) if entry.is_dir()}
    seen = {own, *(place for place in beside if not place.startswith(os.path.join(own, "")))}
    for place, inside, names in os.walk(folder, followlinks=True):
        inside[:] = sorted(name for name in inside if name[0] != "." and name.lower() not in NO_CLASSES)
        inside[:] = [name for name in inside if _is_new(os.path.join(place, name), seen)]
        here = direct if place == str(folder) else nested
        for name in sorted(names):
            if is_audio(name):
                here.append(Path(place, name))
            elif is_foreign_audio(name):
                foreign.append(Path(place, name))
            elif is_misnamed(Path(place, name)):
                misnamed.append(Path(place, name))
    return Content(folder, tuple(direct), tuple(nested), tuple(foreign), tuple(misnamed))


def _is_new(folder: str, seen: set[str]) -> bool:
    """Whether a folder, or what a link to one leads to, neither was walked before nor holds the link itself."""
    place = os.path.realpath(folder)
    if place in seen or any(other.startswith(os.path.join(place, "")) for other in seen):
        return False
    seen.add(place)
    return True


def is_misnamed(file: Path) -> bool:
    """Whether a file that is no audio by its name begins as audio does, or is audio in an archive (`1.wav.gz`)."""
    if file.name[0] == "." or file.suffix.lower() in NO_SOUND:
        return False
    return is_audio(file.stem) if file.suffix.lower() in PACKED else holds_sound(file)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
