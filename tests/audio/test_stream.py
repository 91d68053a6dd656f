"""Blocks of a recording are the recording: any format, any rate, any size of block, in constant memory."""

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional

from adapterbank.audio.read import read_audio
from adapterbank.audio.stream import open_recording
from adapterbank.errors import AdapterBankError, AudioFileError, ConfigError, WaveformError


def tone(seconds, rate, channels=1):
    """A sweep with noise: resampled at a wrong phase it would be another one."""
    times = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.05, (len(times), channels))
    return (0.5 * np.sin(2 * np.pi * (50 * times + 4 * times**2))[:, None] + noise).astype(np.float32)


def heard(source, *rate):
    return torch.cat(list(open_recording(source, *rate)))


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_resampling_in_blocks_equals_resampling_the_whole(rate, at_16_khz):
    wave = torch.from_numpy(tone(23.4567, rate)[:, 0])
    whole = at_16_khz(wave, rate)
    torch.testing.assert_close(heard((wave, rate)), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [[1], [4095, 17, 30_000], [500_000]])
def test_the_size_of_a_streams_blocks_changes_no_sample(sizes, at_16_khz):
    wave = torch.from_numpy(tone(0.9 if sizes == [1] else 9.3, 44_100)[:, 0])

    def blocks():
        place = number = 0
        while place < len(wave):
            size = sizes[number % len(sizes)]
            yield wave[place : place + size].numpy()
            place, number = place + size, number + 1

    whole = at_16_khz(wave, 44_100)
    torch.testing.assert_close(heard(blocks(), 44_100), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3", "aiff", "au", "w64", "caf"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_in_blocks_is_what_read_audio_reads(format, channels, tmp_path):
    file = tmp_path / f"long.{format}"
    soundfile.write(file, tone(21.3, 22_050, channels), 22_050)
    recording = open_recording(file)
    torch.testing.assert_close(torch.cat(list(recording)), read_audio(file), rtol=0, atol=1e-5)
    assert recording.seconds == pytest.approx(21.3, abs=0.1)
    torch.testing.assert_close(torch.cat(list(recording)), torch.cat(list(recording)), rtol=0, atol=0)


def test_every_way_to_say_the_same_samples_gives_the_same(tmp_path):
    samples = tone(1.0, 22_050, 2)
    file = tmp_path / "one.wav"
    soundfile.write(file, samples, 22_050, subtype="FLOAT")
    left_right = torch.from_numpy(samples.T.copy())
    expected = heard(str(file))
    for source in (
        (left_right, 22_050),
        (samples.T, 22_050),
        (samples.mean(axis=1), 22_050),
        {"array": samples.mean(axis=1).tolist(), "sampling_rate": 22_050},
        {"audio": {"path": str(file), "array": None}},
        {"path": file},
        file.read_bytes(),
    ):
        torch.testing.assert_close(heard(source), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(heard(left_right, 22_050), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere.wav", AudioFileError, "does not exist"),
        (".", AudioFileError, "is a folder"),
        (7, WaveformError, "got int"),
        (["a.wav", "b.wav"], WaveformError, "once for each"),
        (torch.zeros(2, 3, 4), WaveformError, "shape"),
        (torch.zeros(0), WaveformError, "without samples"),
        (np.zeros(9, dtype=np.int16), WaveformError, "divide by 32768"),
        (np.array(["a"]), WaveformError, "floating point"),
        ((torch.zeros(9), 500), ConfigError, "sample_rate"),
        ((torch.zeros(9), 0), ConfigError, "sample_rate"),
        ({"text": 1}, WaveformError, "'array'"),
        (b"", AudioFileError, "0 bytes"),
    ],
)
def test_what_is_no_recording_is_refused_when_it_is_opened(source, error, message):
    with pytest.raises(error, match=message):
        open_recording(source)


def test_a_file_that_is_no_audio_is_refused_when_it_is_opened(tmp_path):
    (tmp_path / "song.wav").write_bytes(b"certainly no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    for file in tmp_path.iterdir():
        with pytest.raises(AudioFileError, match="cannot be decoded|is empty"):
            open_recording(file)


@pytest.mark.parametrize("format", ["wav", "ogg", "flac", "mp3"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_of_a_cut_file_all_that_is_there_is_given_before_the_error(format, rate, tmp_path):
    file = tmp_path / f"cut.{format}"
    samples = tone(40.0, rate)
    soundfile.write(file, samples, rate)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 6 // 10])
    found = []
    with pytest.raises(AdapterBankError, match=r"at \d+\.\d s|beyond \d+\.\d s"):
        found.extend(open_recording(file))
    got = torch.cat(found)
    assert len(got) / 16_000 > 12
    expected = torchaudio.functional.resample(torch.from_numpy(samples[:, 0]), rate, 16_000)
    sure = len(got) - 4000  # the end of what is there meets silence, not the samples that were cut off
    error = (got[:sure] - expected[:sure]).square().mean() / expected.square().mean()
    assert error < 0.05
