from __future__ import annotations

import csv
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from adapterbank.data import demo_tasks, read_audio
from adapterbank.errors import AudioFileError, ConfigError

RATE = 16_000
# One second of noise that no codec can shorten to nothing.
NOISE = (np.random.default_rng(0).standard_normal(RATE) * 0.1).astype("float32")


def written(file: Path, samples: np.ndarray = NOISE, rate: int = RATE, subtype: str | None = None) -> Path:
    soundfile.write(file, samples, rate, subtype=subtype)
    return file


def cut(file: Path, keep: int | float) -> Path:
    """The file's first bytes: a count (negative: all but so many), or a fraction."""
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    return file


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_lossless_files_are_read_sample_by_sample(tmp_path: Path, suffix: str) -> None:
    wave = read_audio(written(tmp_path / f"x.{suffix}", subtype="PCM_16"))
    assert wave.dtype == torch.float32
    torch.testing.assert_close(wave, torch.from_numpy(NOISE), rtol=0, atol=1 / 2**15)


@pytest.mark.parametrize(("suffix", "subtype"), [("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", None)])
def test_lossy_files_are_read_in_their_full_length(tmp_path: Path, suffix: str, subtype: str | None) -> None:
    assert read_audio(written(tmp_path / f"x.{suffix}", subtype=subtype)).shape == (RATE,)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([NOISE, 0.5 * NOISE], axis=1)
    wave = read_audio(written(tmp_path / "x.wav", stereo, subtype="FLOAT"))
    torch.testing.assert_close(wave, torch.from_numpy(0.75 * NOISE))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_other_sample_rates_become_the_same_tone(tmp_path: Path, rate: int) -> None:
    def tone(of: int) -> np.ndarray:
        return (0.5 * np.sin(2 * np.pi * 440 * np.arange(of) / of)).astype("float32")

    wave = read_audio(written(tmp_path / "x.wav", tone(rate), rate, subtype="FLOAT"))
    assert wave.shape == (RATE,)
    inner = slice(200, -200)  # the ends see the silence around the clip
    torch.testing.assert_close(wave[inner], torch.from_numpy(tone(RATE))[inner], rtol=0, atol=5e-3)


def test_demo_clips_have_the_length_that_their_table_says() -> None:
    for folder in demo_tasks().values():
        with (folder / "metadata.csv").open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        assert {row["filename"] for row in rows} == {file.name for file in folder.glob("*.ogg")}
        for row in rows[::10]:
            wave = read_audio(folder / row["filename"])
            assert wave.isfinite().all()
            assert len(wave) / RATE == pytest.approx(float(row["seconds"]), abs=1e-3)


def test_real_recordings_of_every_pack_are_accepted(shared_data: Path) -> None:
    for pack in sorted(folder for folder in shared_data.iterdir() if folder.is_dir()):
        for file in sorted(pack.rglob("*.ogg"))[::100]:
            assert read_audio(file).isfinite().all()


@pytest.mark.parametrize("keep", [0.5, 0.9, -1])
@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_16"), ("wav", "FLOAT"), ("aiff", "PCM_16"), ("flac", None), ("ogg", "VORBIS"), ("ogg", "OPUS")],
)
def test_a_cut_file_is_refused(tmp_path: Path, suffix: str, subtype: str, keep: float) -> None:
    file = cut(written(tmp_path / f"x.{suffix}", subtype=subtype), keep)
    with pytest.raises(AudioFileError, match=f"{file.name} (is cut|cannot be decoded)"):
        read_audio(file)


def test_an_mp3_with_fewer_samples_than_its_header_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match=f"is cut: it decodes to .* samples, its header says {RATE}"):
        read_audio(cut(written(tmp_path / "x.mp3"), 0.5))


def test_a_wav_says_how_many_bytes_are_missing(tmp_path: Path) -> None:
    file = cut(written(tmp_path / "x.wav", subtype="PCM_16"), -1000)
    with pytest.raises(AudioFileError, match="header claims 32000 bytes of sound, 31000 are there. Copy or download"):
        read_audio(file)


def test_a_wav_that_ends_before_its_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="ends before its sound begins"):
        read_audio(cut(written(tmp_path / "x.wav", subtype="PCM_16"), 36))


def test_an_ogg_cut_between_two_pages_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "x.ogg", np.tile(NOISE, 4), subtype="VORBIS")
    last_page = file.read_bytes().rfind(b"OggS")
    with pytest.raises(AudioFileError, match="last Ogg page.*ends no stream"):
        read_audio(cut(file, last_page))


@pytest.mark.parametrize("at", [10, 300, -10])
def test_a_demo_clip_cut_anywhere_is_refused(tmp_path: Path, at: int) -> None:
    source = min(demo_tasks()["instruments"].glob("*.ogg"))
    file = tmp_path / source.name
    file.write_bytes(source.read_bytes()[:at])
    with pytest.raises(AudioFileError, match="is cut"):
        read_audio(file)


def test_an_ogg_with_a_hole_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "x.ogg", np.tile(NOISE, 4), subtype="VORBIS")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + content[len(content) // 2 + 100 :])
    with pytest.raises(AudioFileError, match="is damaged: no Ogg page at byte"):
        read_audio(file)


@pytest.mark.parametrize("length", [0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000])
def test_a_streamed_wav_with_an_open_length_is_read_to_its_end(tmp_path: Path, length: int) -> None:
    file = written(tmp_path / "x.wav", subtype="PCM_16")
    content = bytearray(file.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = content[4:8] = struct.pack("<I", length)
    file.write_bytes(content)
    assert read_audio(file).shape == (RATE,)


def test_tags_behind_the_sound_are_no_damage(tmp_path: Path) -> None:
    for name in ("x.wav", "x.ogg"):
        file = written(tmp_path / name)
        file.write_bytes(file.read_bytes() + b"LIST\x04\x00\x00\x00abcd")
        assert read_audio(file).shape == (RATE,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused_with_their_place(tmp_path: Path, bad: float) -> None:
    samples = NOISE.copy()
    samples[RATE // 2] = bad
    with pytest.raises(AudioFileError, match=r"NaN or infinite samples \(the first at 0.500 s\)"):
        read_audio(written(tmp_path / "x.wav", samples, subtype="FLOAT"))


def test_what_is_no_audio_is_refused_with_its_name_and_what_to_do(tmp_path: Path) -> None:
    cases = {
        "absent.wav": (None, "does not exist; expected an audio file. Check the path"),
        "zero.wav": (b"", "is empty \\(0 bytes\\)"),
        "text.wav": (b"not a sound at all" * 10, "cannot be decoded"),
        "page.mp3": (b"<html>404 not found</html>" * 20, "cannot be decoded"),
        "headerless.raw": (bytes(100), "cannot be decoded"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioFileError, match=f"{name} {message}"):
            read_audio(tmp_path / name)
    with pytest.raises(AudioFileError, match="is a folder"):
        read_audio(tmp_path)


def test_a_proper_file_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="holds no samples"):
        read_audio(written(tmp_path / "x.wav", NOISE[:0]))


@pytest.mark.parametrize("rate", [0, -1, 16_000.0, True])
def test_a_sample_rate_that_cannot_be_is_refused(rate: object) -> None:
    with pytest.raises(ConfigError, match="expected an int in Hz from 1000 to 768000"):
        read_audio("x.wav", sample_rate=rate)  # type: ignore[arg-type]
