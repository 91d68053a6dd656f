"""Audio files as people bring them: each is read in full, or refused with its reason."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from adapterbank import read_audio
from adapterbank.audio.mel import LOUDEST, log_mel
from adapterbank.audio.read import mono_blocks, open_checked
from adapterbank.data import load_folder
from adapterbank.errors import AudioFileError, ConfigError, UnknownNameError

RATE = 16_000
NOISE = (np.random.default_rng(0).standard_normal(RATE) * 0.1).astype("float32")


def written(file: Path, format: str, subtype: str | None = None, rate: int = RATE, samples: np.ndarray = NOISE) -> Path:
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file


def reference(file: Path) -> torch.Tensor:
    """What libsndfile itself makes of a file that nothing is wrong with."""
    with soundfile.SoundFile(file) as sound:
        return torch.from_numpy(sound.read(sound.frames, dtype="float32"))


def id3(size: int, footer: bool = False) -> bytes:
    """An ID3v2 tag of `size` bytes beside its header: one picture frame, as shops embed covers."""
    bits = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    body = (b"APIC" + bytes(6) + np.random.default_rng(1).bytes(size))[:size]
    if footer:
        return b"ID3\x04\x00\x10" + bits + body + b"3DI\x04\x00\x10" + bits
    return b"ID3\x04\x00\x00" + bits + body


def ape(size: int) -> bytes:
    return b"APETAGEX" + struct.pack("<IIII", 2000, size, 0, 0xA000_0000) + bytes(8) + bytes(size)


BEFORE = {
    "a tag of 20 kB": id3(20_000),
    "a tag of an odd size": id3(4_097),
    "a tag with a footer": id3(500, footer=True),
    "two tags": id3(300) + id3(77),
    "a tag that says too small a size": id3(200) + bytes(33),
    "an APE tag": ape(1_000),
    "a MacBinary header": b"\0\x08clip.wav" + bytes(118),
    "an empty line": b"\r\n",
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("format", ["WAV", "AIFF", "FLAC", "OGG", "RF64", "W64", "CAF", "AU", "NIST", "VOC"])
def test_all_samples_behind_a_tag_are_read_and_a_cut_file_behind_it_is_refused(tmp_path, format, before) -> None:
    file = written(tmp_path / "plain", format)
    expected, content = reference(file), file.read_bytes()
    tagged = tmp_path / "tagged.wav"
    tagged.write_bytes(BEFORE[before] + content)
    torch.testing.assert_close(read_audio(tagged), expected, rtol=0, atol=0)
    tagged.write_bytes(BEFORE[before] + content[: len(content) // 2])
    with pytest.raises(AudioFileError, match=r"tagged.wav (is cut|is damaged|cannot be decoded)"):
        read_audio(tagged)


def test_an_mp3_is_read_in_full_behind_any_tag(tmp_path: Path) -> None:
    content = written(tmp_path / "plain.mp3", "MP3").read_bytes()
    for before in BEFORE.keys() - {"a MacBinary header"}:  # an MP3 has no first bytes by which to find it in others
        (tmp_path / "x.mp3").write_bytes(BEFORE[before] + content)
        assert len(read_audio(tmp_path / "x.mp3")) == RATE


def test_a_file_that_ends_inside_its_tag_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(id3(20_000)[:9_000])
    with pytest.raises(AudioFileError, match="the tag before its sound ends at byte 20010, the file at byte 9000"):
        read_audio(tmp_path / "x.wav")


NOT_DONE = {"MPEG_LAYER_III", "DWVW_12", "DWVW_16", "DWVW_24"}  # in WAV libsndfile does not write it; nor read DWVW
# These write no length anywhere, or are no format for recordings (XI: an instrument; MAT: tables of Matlab).
NO_LENGTH = {"IRCAM", "PAF", "PVF", "XI", "MAT4", "MAT5"}
WITH_LENGTH = [
    (format, subtype)
    for format in sorted(soundfile.available_formats().keys() - NO_LENGTH - {"RAW", "SD2", "MP3"})
    for subtype in soundfile.available_subtypes(format)
    if subtype not in NOT_DONE
]


@pytest.mark.parametrize(("format", "subtype"), WITH_LENGTH)
def test_every_container_with_a_length_is_read_in_full_and_refused_when_cut(tmp_path, format, subtype) -> None:
    telephone = format == "WVE" or "G72" in subtype or subtype.startswith("NMS") or subtype == "GSM610"
    rate = 8_000 if telephone else RATE
    file = written(tmp_path / "x.bin", format, subtype, rate)
    rate = soundfile.info(file).samplerate  # VOC of 8 bits keeps it in one byte: 16,129 Hz for 16,000
    torch.testing.assert_close(read_audio(file, sample_rate=rate), reference(file), rtol=0, atol=0)
    content = file.read_bytes()
    # CAF keeps its sound behind 4 kB that are free for tags, and NIST behind 1 kB of text: what is cut is sound.
    for keep in (0.5, 0.9, -200):
        file.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
        with pytest.raises(AudioFileError, match=r"x.bin (is cut|is damaged|cannot be decoded)"):
            read_audio(file, sample_rate=rate)


def test_a_stereo_file_of_every_kind_is_counted_in_frames_of_two_samples(tmp_path: Path) -> None:
    both = np.stack([NOISE, NOISE], axis=1)
    for format in ("WAV", "AIFF", "AU", "AVR", "CAF", "RF64", "VOC", "W64", "NIST", "MPC2K"):
        file = written(tmp_path / "x.bin", format, rate=44_100 if format == "MPC2K" else RATE, samples=both)
        assert len(read_audio(file, sample_rate=44_100 if format == "MPC2K" else RATE)) == RATE
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(AudioFileError, match="is cut"):
            read_audio(file)


def test_a_table_of_matlab_is_refused_with_what_reads_it(tmp_path: Path) -> None:
    for format in ("MAT4", "MAT5"):
        with pytest.raises(AudioFileError, match="table of Matlab; expected audio. Load it with scipy.io.loadmat"):
            read_audio(written(tmp_path / "x.mat", format))


def header_of_a_dead_recorder(content: bytes, riff: int, data: int) -> bytes:
    """A WAV as it lies on the card when the power fails: sizes as they were first written, samples to the end."""
    at = content.index(b"data") + 4
    dead = bytearray(content)
    dead[4:8], dead[at : at + 4] = struct.pack("<I", riff), struct.pack("<I", data)
    return bytes(dead)


@pytest.mark.parametrize("silence", [0, 5_000])
@pytest.mark.parametrize("riff", [4_088, 36, 0, 0xFFFF_FFFF, 32_036])
def test_the_wav_of_a_recorder_that_died_is_read_to_its_end(tmp_path: Path, riff: int, silence: int) -> None:
    samples = NOISE.copy()
    samples[:silence] = 0
    file = written(tmp_path / "x.wav", "WAV", "PCM_16", samples=samples)
    expected = reference(file)
    file.write_bytes(header_of_a_dead_recorder(file.read_bytes(), riff, 0))
    torch.testing.assert_close(read_audio(file), expected, rtol=0, atol=0)
    tagged = id3(1_000) + file.read_bytes()
    file.write_bytes(tagged)
    torch.testing.assert_close(read_audio(file), expected, rtol=0, atol=0)


def test_other_containers_whose_length_was_left_open_are_read_to_their_end(tmp_path: Path) -> None:
    places = {  # where the size of the sound stands in what libsndfile writes, and how
        "AIFF": (b"SSND", 4, ">I", (0,)),
        "AU": (b".snd", 8, ">I", (0, 0xFFFF_FFFF)),
        "RF64": (b"ds64", 16, "<Q", (0,)),
        "W64": (b"data\xf3\xac", 16, "<Q", (0, 24)),
        "CAF": (b"data", 4, ">q", (0, -1)),
        "SVX": (b"BODY", 4, ">I", (0,)),
    }
    for format, (name, offset, form, values) in places.items():
        file = written(tmp_path / f"x.{format}", format, "PCM_16")
        expected, content = reference(file), file.read_bytes()
        at = content.index(name) + offset
        for value in values:
            size = struct.pack(form, value)
            file.write_bytes(content[:at] + size + content[at + len(size) :])
            torch.testing.assert_close(read_audio(file), expected, rtol=0, atol=0)


def test_a_proper_file_without_samples_stays_empty_also_with_tags_behind(tmp_path: Path) -> None:
    file = written(tmp_path / "x.wav", "WAV", samples=NOISE[:0])
    file.write_bytes(file.read_bytes() + b"LIST\x04\x00\x00\x00abcd")
    with pytest.raises(AudioFileError, match="holds no samples"):
        read_audio(file)


def test_a_recorder_that_died_between_two_lengths_is_refused_with_the_repair(tmp_path: Path) -> None:
    file = written(tmp_path / "x.wav", "WAV", "PCM_16")
    file.write_bytes(header_of_a_dead_recorder(file.read_bytes(), 4_088, 4_052))
    with pytest.raises(AudioFileError, match="holds 4052 bytes of sound, but 27948 bytes more.*ffmpeg -ignore_length"):
        read_audio(file)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "GSM610"), ("AIFF", "GSM610"), ("W64", "GSM610"), ("WAV", "G721_32"), ("AU", "G723_24")],
)
def test_a_codec_that_cannot_be_wound_back_is_read_in_blocks(tmp_path, format, subtype) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 8_000)).astype("float32")
    file = written(tmp_path / "x.bin", format, subtype, 8_000, tone)
    wave = read_audio(file, sample_rate=8_000)
    assert abs(len(wave) - 8_000) <= 320  # a GSM frame holds 160 samples, in WAV 320
    heard = np.abs(np.fft.rfft(wave.numpy()[:8_000])).argmax()
    assert heard == 440
    with open_checked(file) as sound:
        pieces = list(mono_blocks(file, sound, frames=1_000))
    assert {len(piece) for piece in pieces[:-1]} == {1_000}
    torch.testing.assert_close(torch.from_numpy(np.concatenate(pieces)), wave, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("format", "subtype"), [("WAV", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
)
def test_blocks_hold_the_same_samples_as_the_whole(tmp_path, format, subtype) -> None:
    file = written(tmp_path / "x.bin", format, subtype, samples=np.tile(NOISE, 3))
    with open_checked(file) as sound:
        pieces = list(mono_blocks(file, sound, frames=7_000))
    torch.testing.assert_close(torch.from_numpy(np.concatenate(pieces)), reference(file), rtol=0, atol=0)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2_000_000_000])
def test_a_header_with_a_sample_rate_that_cannot_be_is_refused(tmp_path: Path, rate: int) -> None:
    file = written(tmp_path / "x.wav", "WAV", "PCM_16")
    content = bytearray(file.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    file.write_bytes(content)
    with pytest.raises(AudioFileError, match=f"sample rate is {rate} Hz; expected 1000 to 768000"):
        read_audio(file)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_integers_stored_as_floats_are_refused_and_floats_that_clip_are_read(tmp_path: Path, subtype: str) -> None:
    for scale in (2**7, 2**15, 2**31, 1e20):
        with pytest.raises(AudioFileError, match=r"expected floating point in \[-1, 1\].*divide them by 32768"):
            read_audio(written(tmp_path / "x.wav", "WAV", subtype, samples=NOISE / np.abs(NOISE).max() * scale))
    loud = NOISE / np.abs(NOISE).max() * LOUDEST
    assert read_audio(written(tmp_path / "x.wav", "WAV", subtype, samples=loud)).abs().max() == LOUDEST


@pytest.mark.parametrize("rate", [44_101, 8_012, 1_000, 768_000])
def test_a_rate_that_no_device_has_is_read_as_the_same_tone(tmp_path: Path, rate: int) -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(rate) / rate).astype("float32")
    wave = read_audio(written(tmp_path / "x.wav", "WAV", "FLOAT", rate, tone))
    assert len(wave) == RATE
    assert int(torch.fft.rfft(wave).abs().argmax()) == 200


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, True, 16_000.0, None])
def test_a_rate_of_the_caller_outside_1_to_768_khz_is_refused(tmp_path: Path, rate: object) -> None:
    with pytest.raises(ConfigError, match="expected an int in Hz from 1000 to 768000"):
        log_mel([torch.zeros(800)], 128, rate)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected an int in Hz from 1000 to 768000"):
        read_audio(written(tmp_path / "x.wav", "WAV"), sample_rate=rate)  # type: ignore[arg-type]


def test_a_folder_is_resampled_as_it_is_asked_to_be(tmp_path: Path) -> None:
    for name in ("rain", "wind"):
        (tmp_path / name).mkdir()
        file = written(tmp_path / name / "x.wav", "WAV", "FLOAT", 44_100)
    for resampling in ("sox", "kaiser_best", "hann"):
        wave, _ = load_folder(tmp_path, resampling=resampling)[0]
        torch.testing.assert_close(wave, read_audio(file, resampling=resampling), rtol=0, atol=0)
    assert not torch.equal(read_audio(file, resampling="hann"), read_audio(file))
    with pytest.raises(UnknownNameError, match="unknown resampling 'soxr'. Did you mean 'sox'"):
        load_folder(tmp_path, resampling="soxr")


def test_a_name_that_no_file_can_have_is_refused_as_one() -> None:
    with pytest.raises(AudioFileError, match=r"cannot be the name of a file \(File name too long\)"):
        read_audio("a" * 5_000 + ".wav")


@pytest.mark.parametrize(
    "format", ["WAV", "AIFF", "W64", "NIST", "VOC", "SVX", "PVF", "PAF", "CAF", "AU", "FLAC", "OGG"]
)
@pytest.mark.parametrize("before", [b"", id3(300)])
def test_a_tag_behind_the_sound_is_not_heard(tmp_path: Path, format: str, before: bytes) -> None:
    file = written(tmp_path / "x", format)
    expected = reference(file)
    file.write_bytes(before + file.read_bytes() + b"TAG" + b"title".ljust(125, b" "))
    assert torch.equal(read_audio(file), expected)


@pytest.mark.parametrize("share", [0.55, 0.8])
def test_a_recorder_that_died_soon_after_a_length_is_refused_too(tmp_path: Path, share: float) -> None:
    file = written(tmp_path / "x.wav", "WAV", "PCM_16")
    size = int(share * RATE) * 2
    file.write_bytes(header_of_a_dead_recorder(file.read_bytes(), size + 36, size))
    with pytest.raises(AudioFileError, match=f"holds {size} bytes of sound, but {2 * RATE - size} bytes more"):
        read_audio(file)


def test_a_few_stray_bytes_behind_the_sound_cost_nothing(tmp_path: Path) -> None:
    file = written(tmp_path / "x.wav", "WAV", "PCM_16")
    expected = reference(file)
    file.write_bytes(file.read_bytes() + b"\xff\x01written by a plug-in")
    assert torch.equal(read_audio(file), expected)


def test_ogg_streams_one_after_another_are_refused_as_more_than_one(tmp_path: Path) -> None:
    file = written(tmp_path / "x.ogg", "OGG")
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(AudioFileError, match="one Ogg stream after another.*ffmpeg"):
        read_audio(file)


# -- what stands around the sound, in every container ---------------------------------------------------------------


TONE = (0.3 * np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE)).astype("float32")
EVERY = ["WAV", "WAVEX", "AIFF", "FLAC", "OGG", "MP3", "RF64", "W64", "CAF", "AU", "NIST", "VOC", "SVX", "AVR", "WVE"]


def of_kind(file: Path, format: str, samples: np.ndarray = NOISE) -> bytes:
    rate = 8_000 if format == "WVE" else RATE
    return written(file, format, rate=rate, samples=samples, subtype="ALAW" if format == "WVE" else None).read_bytes()


@pytest.mark.parametrize("between", [b"", b"TAG" + bytes(125)])
@pytest.mark.parametrize("format", EVERY)
def test_sound_files_joined_byte_by_byte_are_refused(tmp_path, format, between) -> None:
    """`cat a.flac b.flac > c.flac`: a decoder hears the first only, or the second's header as sound."""
    first, second = of_kind(tmp_path / "a", format), of_kind(tmp_path / "b", format, TONE)
    (tmp_path / "both").write_bytes(first + between + second)
    with pytest.raises(AudioFileError, match=r"one \S+( SPHERE)? stream after another|bytes more stand behind them"):
        read_audio(tmp_path / "both")


APE_AND_ID3V1 = ape(300) + b"TAG" + b"x" * 125


@pytest.mark.parametrize("behind", [bytes(200_000), APE_AND_ID3V1, id3(400), bytes(3) + b"TAG" + bytes(125)])
@pytest.mark.parametrize("format", [kind for kind in EVERY if kind != "MP3"])
def test_zeros_and_tags_behind_the_sound_are_not_heard(tmp_path: Path, format: str, behind: bytes) -> None:
    content = of_kind(tmp_path / "plain", format)
    expected = read_audio(tmp_path / "plain")
    (tmp_path / "more").write_bytes(content + behind)
    torch.testing.assert_close(read_audio(tmp_path / "more"), expected, rtol=0, atol=0)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_damaged_page_of_an_ogg_is_no_shorter_clip(tmp_path: Path, subtype: str) -> None:
    content = bytearray(written(tmp_path / "x.ogg", "OGG", subtype).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "x.ogg").write_bytes(content)
    with pytest.raises(AudioFileError, match="is damaged: the Ogg page at byte .* fails its checksum"):
        read_audio(tmp_path / "x.ogg")


@pytest.mark.parametrize(("format", "field"), [("AU", 8), ("NIST", None)])
def test_a_header_that_counts_half_of_the_sound_is_refused(tmp_path: Path, format: str, field: int | None) -> None:
    content = of_kind(tmp_path / "x", format)
    if field is None:
        content = content.replace(b"sample_count -i 16000", b"sample_count -i 08000")
    else:
        content = content[:field] + struct.pack(">I", RATE) + content[field + 4 :]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(AudioFileError, match="says that it holds 16000 bytes of sound, but 16000 bytes more"):
        read_audio(tmp_path / "x")


def streamed_flac(file: Path) -> bytes:
    """With 0 as the number of its samples, as an encoder leaves it that writes to a pipe."""
    content = bytearray(of_kind(file, "FLAC"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


def test_a_flac_without_a_length_is_read_to_its_end_and_refused_when_cut(tmp_path: Path) -> None:
    content = streamed_flac(tmp_path / "x.flac")
    expected = read_audio(tmp_path / "x.flac")
    (tmp_path / "x.flac").write_bytes(content)
    torch.testing.assert_close(read_audio(tmp_path / "x.flac"), expected, rtol=0, atol=0)
    (tmp_path / "x.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioFileError, match="cannot be decoded"):
        read_audio(tmp_path / "x.flac")


def test_the_recording_of_an_mp3_stream_begins_with_its_first_whole_frame(tmp_path: Path) -> None:
    content = written(tmp_path / "x.mp3", "MP3", samples=np.tile(NOISE, 4)).read_bytes()
    (tmp_path / "x.mp3").write_bytes(content[2_000:])
    assert 2 * RATE < len(read_audio(tmp_path / "x.mp3")) < 4 * RATE


def test_two_chunks_of_sound_in_one_wav_are_named(tmp_path: Path) -> None:
    content = of_kind(tmp_path / "x.wav", "WAV")
    (tmp_path / "x.wav").write_bytes(content + b"data" + struct.pack("<I", 32_000) + content[-32_000:])
    with pytest.raises(AudioFileError, match="two chunks of sound, one of 32000 bytes and one of 32000"):
        read_audio(tmp_path / "x.wav")


NO_SOUND = {
    b"<!DOCTYPE html>\n<html><body>404</body></html>": "a web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n": "git lfs pull",
    b'{"error": "rate limit exceeded"}': "JSON",
    b"\0\0\0\x20ftypM4A " + bytes(600): r"MP4 \(M4A.*ffmpeg",
    b"\x1aE\xdf\xa3" + bytes(600): "WebM.*ffmpeg",
    b"#!AMR\n" + bytes(600): "AMR.*ffmpeg",
    b"\x1f\x8b\x08" + bytes(600): "archive.*Unpack",
    b"PK\x03\x04" + bytes(600): "ZIP.*Unpack",
    b"\x93NUMPY\x01\0" + bytes(600): "np.load",
    b"MThd\0\0\0\x06" + bytes(600): "MIDI",
    b"UklGRiR9AABXQVZF" * 50: "Base64",
    bytes(40_000): "it is zeros",
    b"the sound of a dog\n" * 40: "it is text",
}


@pytest.mark.parametrize("content", NO_SOUND, ids=list(NO_SOUND.values()))
@pytest.mark.parametrize("name", ["x.wav", "x.mp3"])
def test_what_is_no_sound_is_named_by_its_first_bytes(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioFileError, match=NO_SOUND[content]) as error:
        read_audio(tmp_path / name)
    assert not re.search("object at 0x|BufferedReader", str(error.value))
