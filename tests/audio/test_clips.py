"""What is a clip, and what is none: every form gives the same waveform, and what cannot be used says why."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from adapterbank.audio.clips import LONGEST_SECONDS, as_waveforms, read_clips, windows
from adapterbank.audio.mel import LOUDEST
from adapterbank.errors import AdapterBankError, AudioFileError, ConfigError, SkippedClipsWarning, WaveformError

RATE = 44_100


@pytest.fixture(scope="module")
def wave():
    """One second at 44.1 kHz, in steps of 16 bits, so that a file holds it exactly."""
    noise = torch.randn(RATE, generator=torch.Generator().manual_seed(1)).clamp(-4, 4) / 5
    return (noise * 32768).round() / 32768


@pytest.fixture(scope="module")
def file(wave, tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "one.wav"
    soundfile.write(path, wave.numpy(), RATE, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def expected(wave, at_16_khz):
    return at_16_khz(wave, RATE)


class Decoder:
    """As torchcodec's AudioDecoder, of two channels."""

    def __init__(self, wave):
        self.wave = wave

    def get_all_samples(self):
        return SimpleNamespace(data=torch.stack((1.5 * self.wave, 0.5 * self.wave)), sample_rate=RATE)


FORMS = {
    "path": lambda wave, file: file,
    "text": lambda wave, file: str(file),
    "tensor and rate": lambda wave, file: (wave, RATE),
    "double precision and a rate of NumPy": lambda wave, file: (wave.double().numpy(), np.int64(RATE)),
    "rate of torch": lambda wave, file: (wave, torch.tensor(RATE)),
    "one channel of torchaudio": lambda wave, file: (wave[None], RATE),
    "two channels of torchaudio": lambda wave, file: (torch.stack((1.5 * wave, 0.5 * wave)), RATE),
    "two channels of soundfile": lambda wave, file: (np.stack((1.5 * wave.numpy(), 0.5 * wave.numpy()), 1), RATE),
    "scipy's order": lambda wave, file: (RATE, wave.numpy()),
    "an item of torchaudio": lambda wave, file: (wave[None], RATE, "yes", "speaker", 0),
    "a label as a number": lambda wave, file: (wave, RATE, 0),
    "array": lambda wave, file: {"array": wave.numpy(), "sampling_rate": RATE, "path": None},
    "list as array": lambda wave, file: {"array": wave.tolist(), "sampling_rate": RATE},
    "dict with path": lambda wave, file: {"path": str(file), "bytes": None},
    "dict with bytes": lambda wave, file: {"bytes": file.read_bytes(), "path": "gone.wav"},
    "row": lambda wave, file: {"audio": {"array": wave.numpy(), "sampling_rate": RATE}, "label": 3},
    "row with a decoder": lambda wave, file: {"audio": Decoder(wave), "label": 3},
    "bytes": lambda wave, file: file.read_bytes(),
    "an open file": lambda wave, file: io.BytesIO(file.read_bytes()),
    "decoder": lambda wave, file: Decoder(wave),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_a_clip_is_the_same_clip_alone_and_in_a_list(form, wave, file, expected):
    given = form(wave, file)
    (alone,) = as_waveforms(given)
    torch.testing.assert_close(alone, expected, rtol=0, atol=2e-6)
    several = as_waveforms([torch.zeros(1600), form(wave, file)], sample_rate=16_000)
    assert len(several) == 2
    assert torch.equal(several[1], alone)


def test_clips_without_a_rate_have_that_of_the_call(wave, expected):
    for given in (wave, wave[None], [wave], wave.numpy(), [wave.numpy()], {"array": wave}, {"audio": wave.numpy()}):
        (found,) = as_waveforms(given, sample_rate=RATE)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_each_clip_may_have_its_own_rate(wave, expected):
    one, two = as_waveforms([wave, wave[:16_000]], sample_rate=[RATE, 16_000])
    assert torch.equal(two, wave[:16_000])
    torch.testing.assert_close(one, expected, rtol=0, atol=2e-6)
    with pytest.raises(ConfigError, match="got 3 sample rates for 2 clips"):
        as_waveforms([wave, wave], sample_rate=[16_000] * 3)
    with pytest.raises(ConfigError, match="got 2 sample rates for 3 clips"):
        as_waveforms([wave] * 3, sample_rate=[16_000] * 2)


class Pairs(Dataset):
    def __init__(self, clips, label="a"):
        self.clips, self.label = clips, label

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        return self.clips[index], self.label


def several(wave, file):
    """Three clips: the file, and its first and second half."""
    first, second = wave[:20_000], wave[20_000:40_000]
    halves = torch.stack((first, second))
    yield "rows", halves, [first, second]
    yield "rows of NumPy", halves.numpy(), [first, second]
    yield "rows of one channel", halves[:, None], [first, second]
    yield "list of mixed forms", [file, (first, RATE), second.numpy()], [wave, first, second]
    yield "tuple of tensors", (first, second, wave), [first, second, wave]
    yield "column of paths", np.array([str(file), str(file)]), [wave, wave]
    yield "generator", (clip for clip in (first, file)), [first, wave]
    yield "data set", Pairs([first, (second, RATE)]), [first, second]
    yield "data set of labels as numbers", Pairs([first, second], 7), [first, second]
    yield "data set of rates", Pairs([first[None], second[None]], RATE), [first, second]
    yield "tensor data set", TensorDataset(halves, torch.tensor([0, 1])), [first, second]
    yield "tensor data set without labels", TensorDataset(halves), [first, second]
    yield "loader", DataLoader(TensorDataset(halves, torch.tensor([0, 1])), batch_size=2), [first, second]
    yield "loader without labels", DataLoader(Pairs([first, second, wave[:20_000]]), 2), [first, second, first]
    yield (
        "columns",
        {"audio": [{"array": first, "sampling_rate": RATE}, {"path": file}], "label": [0, 1]},
        [first, wave],
    )


def test_every_form_of_several_clips_gives_each_in_order(wave, file, at_16_khz):
    for name, given, clips in several(wave, file):
        found = as_waveforms(given, sample_rate=RATE)
        assert len(found) == len(clips), name
        for one, clip in zip(found, clips, strict=True):
            torch.testing.assert_close(one, at_16_khz(clip, RATE), rtol=0, atol=2e-6, msg=name)


BAD = {
    "int16": (torch.zeros(1, 1600, dtype=torch.int16), "clip 0: got samples of type int16, .*divide by 32768"),
    "int16 array": (np.zeros(1600, dtype=np.int16), "^got samples of type int16, expected floating point"),
    "int32": ((torch.zeros(1600, dtype=torch.int32), 16_000), "divide by 2147483648"),
    "objects": ([np.array([None, 1.0])], "clip 0: got samples of type object"),
    "empty": ([torch.ones(1600), torch.zeros(0)], "clip 1: got an empty clip"),
    "no samples": (torch.zeros(2, 0), "clip 0: got an empty clip"),
    "no clips": ([], "got no waveform"),
    "no rows": (torch.zeros(0, 1600), "got no waveform"),
    "a number": (torch.tensor(1.0), r"shape \(\)"),
    "NaN": ([torch.tensor([0.0, float("nan")] * 300)], "clip 0: got a clip that holds NaN or Inf"),
    "Inf": (torch.tensor([[0.0, float("inf")] * 300]), "clip 0: got a clip that holds NaN or Inf"),
    "16 bits as floats": (
        torch.randn(1, 1600) * 3000,
        r"clip 0: got samples up to .*expected them in \[-1, 1\].*32768",
    ),
    "1e20": ([torch.ones(1600), torch.ones(1600) * 1e20], r"clip 1: got samples up to 1e\+20"),
    "spectrogram": ([torch.zeros(1024, 128)], r"shape \(1024, 128\), expected \(T,\), or \(channels, T\)"),
    "6 ms": (torch.zeros(96), r"a clip of 96 samples at 16000 Hz, 6 ms; expected at least one window of 25 ms"),
    "stereo of soundfile without its rate": (np.zeros((16_000, 2)), "clip 0: got a clip of 2 samples"),
    "floats": ([[0.0, 0.1]], "clip 0: got a?n? ?.*expected"),
    "nothing": (None, "got NoneType as a clip, expected a path, a 1-D float array"),
    "a dict of something else": ({"a": torch.zeros(1600)}, "got a dict with 'a', expected 'array' and 'samp"),
    "a clip with its label": (
        [(torch.zeros(1600), "dog")],
        "clip 0: got .Tensor, str. as a clip.*evaluate takes pairs",
    ),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_what_is_no_clip_is_refused(bad, message):
    with pytest.raises(WaveformError, match=message) as error:
        as_waveforms(bad)
    assert isinstance(error.value, AdapterBankError)


def test_a_clip_that_is_loud_but_possible_is_taken():
    assert len(as_waveforms(torch.full((1600,), LOUDEST))) == 1


def test_a_label_is_no_sample_rate():
    with pytest.raises(ConfigError, match="clip 1: got sample_rate=0.*If it is a label, pass the clip alone"):
        as_waveforms([torch.zeros(1600), (torch.zeros(1600), 0)])


def test_a_file_that_is_absent_is_named_with_its_place(file):
    with pytest.raises(AudioFileError, match=r"clip 1: .*gone.wav does not exist"):
        as_waveforms([file, "gone.wav"])
    with pytest.raises(AudioFileError, match="a file of 3 bytes in memory cannot be decoded"):
        as_waveforms(b"abc")


@pytest.mark.parametrize("rate", [0, -16_000, 44_100.0, None, [16_000], [16_000, "8000"], True])
def test_a_bad_sample_rate_is_refused(rate):
    with pytest.raises(ConfigError, match="sample rate|sample_rate"):
        as_waveforms([torch.zeros(500)] * 2, rate)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_floating_type_becomes_fp32(dtype):
    (wave,) = as_waveforms(torch.full((1, 500), 0.25, dtype=dtype, requires_grad=True))
    assert wave.dtype == torch.float32
    assert not wave.requires_grad
    assert torch.equal(wave, torch.full((500,), 0.25))


def test_reversed_byte_swapped_and_read_only_arrays_are_taken():
    expected = torch.linspace(0, 1, 500)
    array = expected.numpy()
    read_only = array.copy()
    read_only.flags.writeable = False
    for given in (array[::-1].copy()[::-1], array.astype(">f4"), read_only, array.astype(np.float64)):
        assert torch.equal(as_waveforms([given])[0], expected)


def test_one_bad_clip_does_not_lose_the_others(file):
    good = torch.full((1600,), 0.1)
    given = [good, "gone.wav", torch.zeros(96), Path(file), torch.full((1600,), float("nan"))]
    with pytest.warns(SkippedClipsWarning, match="3 of 5 clips were left out. clip 1: gone.wav .*; clip 2: .*; clip 4"):
        found = as_waveforms(given, on_error="skip")
    assert [wave is None for wave in found] == [False, True, True, False, True]
    assert torch.equal(found[0], good)


def test_the_warning_points_at_the_line_that_asked():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        as_waveforms(["gone.wav"], on_error="skip")
    assert [warning.filename for warning in caught] == [__file__]


def test_a_data_set_that_fails_at_an_item_loses_that_item_only():
    class Broken(Pairs):
        def __getitem__(self, index):
            if index == 1:
                raise RuntimeError("disk")
            return super().__getitem__(index)

    data = Broken([torch.zeros(1600)] * 3)
    with pytest.warns(SkippedClipsWarning, match="1 of 3 clips was left out. clip 1: disk"):
        found = as_waveforms(data, on_error="skip")
    assert [wave is None for wave in found] == [False, True, False]
    with pytest.raises(RuntimeError, match="disk"):
        as_waveforms(data)


def test_on_error_has_two_values():
    with pytest.raises(ConfigError, match="got on_error='ignore', expected 'raise' or 'skip'"):
        as_waveforms(torch.zeros(1600), on_error="ignore")


def test_windows_cover_a_long_clip_side_by_side():
    rate = 1000
    long = torch.arange(int(2.5 * LONGEST_SECONDS * rate))
    pieces = windows(long, rate)
    assert torch.equal(torch.cat(pieces), long)
    assert max(map(len, pieces)) <= LONGEST_SECONDS * rate
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    assert len(windows(long[: int(LONGEST_SECONDS * rate)], rate)) == 1


def test_a_tensor_is_not_copied(wave):
    assert read_clips(wave[None], 44_100).waveforms[0].data_ptr() == wave.data_ptr()
