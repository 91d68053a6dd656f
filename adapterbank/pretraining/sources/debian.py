"""A source of sound effects: the sound files of Debian packages, which apt fetches and nobody has to install."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.resampling import resample_clip
from adapterbank.audio.suffixes import READABLE_SUFFIXES
from adapterbank.errors import ConfigError
from adapterbank.pretraining.sources import Sound, register
from adapterbank.text import amount

ARCHIVES = (".zip", ".pk3", ".pk4", ".jar", ".rwp")  # of games; all are zip files
MUSIC = re.compile(r"music|soundtrack|bgm|songs?\b", re.IGNORECASE)  # in a path; short jingles are kept all the same
VOICES = re.compile(r"voice|speech|lang|alphabet|words|letters", re.IGNORECASE)
MOST_VOICES = 60  # of a package: there are better sources of speech
SHORTEST, LONGEST, JINGLE = 0.15, 10.0, 20.0  # seconds
SILENT = 1e-4  # the RMS about the mean
Found = tuple[str, Callable[[], bytes]]  # the path of a sound file inside a package, and its content


@register("debian")
class Debian:
    """Sound files of Debian packages, unpacked without being installed; a part is a package.

    Of a recording of more than 10 s the first 10 are taken, of more than 20 s also 10 from its middle. Music of more
    than 20 s, files that libsndfile cannot read and those that are silent are left out; so are copies in a package. A
    package that gives nothing is warned of.

    Args:
        packages: a file with a name a line (`#` begins a comment), or the names; a path that ends in .deb is read as it
            is. Names that the archive does not know, here or at this release of Debian, are warned of.
        most: sound files of a package, drawn evenly.
        seed: of the drawing.

    Raises:
        ConfigError: no list, nothing in it that the archive knows, or no apt and dpkg here.
    """

    def __init__(self, packages: str | Path | Sequence[str], most: int = 700, seed: int = 0):
        names = _listed(Path(packages)) if isinstance(packages, (str, Path)) else list(packages)
        self.versions = _versions(names)
        if absent := [name for name in names if name not in self.versions]:
            warnings.warn(
                f"{amount(len(absent), 'package')} of {len(names)} left out, which apt does not know: "
                f"{', '.join(absent)}.",
                stacklevel=2,
            )
        if not self.versions:
            raise ConfigError(f"apt knows none of {names}; run apt-get update, or pass other names.")
        self.packages, self.most, self.seed = list(self.versions), most, seed
        self.parts = len(self.packages)

    def describe(self) -> dict[str, Any]:
        return {"packages": self.versions, "most": self.most, "seed": self.seed}

    def part(self, number: int) -> Iterator[Sound]:
        rng, heard = np.random.default_rng((self.seed, number)), set[bytes]()
        with tempfile.TemporaryDirectory() as folder:
            found = sorted(_sound_files(_unpacked(self.packages[number], Path(folder))), key=lambda each: each[0])
            voices = [each for each in found if VOICES.search(each[0])]
            others = [each for each in found if not VOICES.search(each[0])]
            for path, content in [*_some(others, self.most, rng), *_some(voices, MOST_VOICES, rng)]:
                for samples in _pieces(path, content()):
                    digest = hashlib.sha256(samples.tobytes()).digest()
                    if digest not in heard:
                        heard.add(digest)
                        yield Sound(samples)
        if not heard:
            warnings.warn(
                f"{self.packages[number]} gave no sound, of {amount(len(found), 'sound file')} in it; take it off the "
                "list.",
                stacklevel=2,
            )


def _listed(file: Path) -> list[str]:
    if file.suffix == ".deb":
        return [str(file)]
    if not file.is_file():
        raise ConfigError(f"no list of packages at {file}; expected a file with the name of a package a line.")
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def _versions(names: Sequence[str]) -> dict[str, str]:
    """{name: version} of those that can be had, in their order; of a file its size."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"the source debian needs {program}, which Debian and its kin have; leave the source out."
            )
    asked = [name for name in names if not name.endswith(".deb")]
    command = ["apt-cache", "show", "--no-all-versions", *asked]
    shown = subprocess.run(command, capture_output=True, text=True).stdout if asked else ""
    known, name = dict[str, str](), ""
    for line in shown.splitlines():
        key, _, value = line.partition(": ")
        name = value if key == "Package" else name
        if key == "Version":
            known[name] = value
    known |= {name: str(Path(name).stat().st_size) for name in names if name.endswith(".deb") and Path(name).is_file()}
    return {name: known[name] for name in names if name in known}


def _unpacked(package: str, folder: Path) -> Path:
    """Where the files of a package are, below `folder`."""
    if not package.endswith(".deb"):
        _run(["apt-get", "download", "-qq", package], folder)
        (file,) = folder.glob("*.deb")
    else:
        file = Path(package).resolve()
    _run(["dpkg-deb", "-x", str(file), "unpacked"], folder)
    return folder / "unpacked"


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(
            f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}. Start again when the archive can "
            "be reached, or take the package off the list."
        )


def _sound_files(folder: Path) -> Iterator[Found]:
    """The sound files of a folder, and those inside the archives in it."""
    for file in folder.rglob("*"):
        if file.is_symlink() or not file.is_file():
            continue
        path = str(file.relative_to(folder))
        if file.suffix.lower() in READABLE_SUFFIXES:
            yield path, file.read_bytes
        elif file.suffix.lower() in ARCHIVES and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                members = [name for name in archive.namelist() if Path(name).suffix.lower() in READABLE_SUFFIXES]
            for name in members:
                yield f"{path}/{name}", partial(_member, file, name)


def _member(file: Path, name: str) -> bytes:
    with zipfile.ZipFile(file) as archive:
        return archive.read(name)


def _some(found: list[Found], most: int, rng: np.random.Generator) -> list[Found]:
    if len(found) <= most:
        return found
    return [found[index] for index in sorted(rng.choice(len(found), most, replace=False))]


def _pieces(path: str, content: bytes) -> Iterator[np.ndarray]:
    """What is taken of one sound file, each (T,) float32 at 16 kHz in [-1, 1]."""
    try:
        audio, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, TypeError):  # a file that only has such a name
        return
    mono = audio.mean(1)
    seconds = len(mono) / rate
    if seconds > JINGLE and MUSIC.search(path):
        return
    first = round(LONGEST * rate)
    middle = [mono[len(mono) // 2 :][:first]] if seconds > 2 * LONGEST else []
    for piece in [mono[:first], *middle]:
        samples = resample_clip(torch.from_numpy(np.ascontiguousarray(piece)), rate, SAMPLE_RATE).numpy()
        if len(samples) >= SHORTEST * SAMPLE_RATE and samples.std() > SILENT:
            yield (samples / max(1.0, float(np.abs(samples).max()))).astype(np.float32)
