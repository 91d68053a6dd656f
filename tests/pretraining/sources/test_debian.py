"""Sound files of Debian packages, from a package that is made here."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from adapterbank.errors import ConfigError
from adapterbank.pretraining import sources
from adapterbank.pretraining.sources.debian import Debian

pytestmark = pytest.mark.skipif(not (shutil.which("dpkg-deb") and shutil.which("apt-get")), reason="not on Debian")


def wav(seconds: float, level: float, rate: int = 22_050) -> bytes:
    content = io.BytesIO()
    times = np.arange(round(seconds * rate)) / rate
    tone = level * np.sin(2 * np.pi * (440 + 5 * times) * times)
    soundfile.write(content, np.stack([tone, tone], axis=1), rate, format="WAV")
    return content.getvalue()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    sounds = root / "usr" / "share" / "games" / "thing"
    (sounds / "music").mkdir(parents=True)
    files = {"bang.wav": (0.5, 0.5), "copy.wav": (0.5, 0.5), "long.wav": (25, 0.3), "short.wav": (0.05, 0.5)}
    files |= {"silent.wav": (1, 0.0), "music/theme.wav": (30, 0.4), "music/jingle.wav": (3, 0.4)}
    for name, of in files.items():
        (sounds / name).write_bytes(wav(*of))
    (sounds / "broken.ogg").write_bytes(b"no sound")
    with zipfile.ZipFile(sounds / "data.pk3", "w") as archive:
        archive.writestr("sounds/door.wav", wav(0.8, 0.2))
        archive.writestr("readme.txt", "words")
    (root / "DEBIAN").mkdir()
    control = "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: x\n"
    (root / "DEBIAN" / "control").write_text(control)
    subprocess.run(["dpkg-deb", "-Znone", "-b", root, tmp_path / "thing.deb"], check=True, capture_output=True)
    return tmp_path / "thing.deb"


def test_a_package_gives_its_effects_and_nothing_long_silent_or_twice(package: Path) -> None:
    source = sources.build("debian", packages=str(package))
    assert source.parts == 1
    heard = sorted((len(s.samples), round(float(np.abs(s.samples).max()), 1)) for s in source.part(0))
    assert heard == [(8_000, 0.5), (12_800, 0.2), (48_000, 0.4), (160_000, 0.3), (160_000, 0.3)]
    assert {s.said for s in source.part(0)} == {""}
    for mine, again in zip(source.part(0), source.part(0), strict=True):
        assert np.array_equal(mine.samples, again.samples)


def test_few_of_many_files_are_drawn_by_the_seed(package: Path) -> None:
    drawn = [[len(s.samples) for s in Debian([str(package)], most=2, seed=seed).part(0)] for seed in range(8)]
    assert len({tuple(lengths) for lengths in drawn}) > 1
    assert drawn[3] == [len(s.samples) for s in Debian([str(package)], most=2, seed=3).part(0)]


def test_a_package_without_sound_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "mute" / "DEBIAN").mkdir(parents=True)
    (tmp_path / "mute" / "usr").mkdir()
    (tmp_path / "mute" / "usr" / "broken.ogg").write_bytes(b"no sound")
    control = "Package: mute\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: x\n"
    (tmp_path / "mute" / "DEBIAN" / "control").write_text(control)
    command = ["dpkg-deb", "-Znone", "-b", tmp_path / "mute", tmp_path / "mute.deb"]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.warns(UserWarning, match=r"mute.deb gave no sound, of 1 sound file in it"):
        assert list(Debian(tmp_path / "mute.deb").part(0)) == []


def test_packages_that_the_archive_does_not_know_are_named_and_left_out(package: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"# effects\n{package}  # here\nno-such-package-at-all\n")
    with pytest.warns(UserWarning, match="1 package of 2 left out.*no-such-package-at-all"):
        source = Debian(listed)
    assert source.packages == [str(package)]
    with pytest.warns(UserWarning, match="1 package of 1"), pytest.raises(ConfigError, match="apt knows none of"):
        Debian(["no-such-package-at-all"])
    with pytest.raises(ConfigError, match="no list of packages at nowhere.txt"):
        Debian("nowhere.txt")
