"""A window of the long spectrogram is the spectrogram of its samples, and together windows hear everything once."""

import pytest
import torch

from adapterbank.audio.mel import log_mel
from adapterbank.errors import ConfigError
from adapterbank.scanning.windows import Cutter, Cutting, spectrogram

CPU = torch.device("cpu")


def cut(wave, window, hop=None, block=7000):
    cutter = Cutter(Cutting.of(window, hop))
    found = []
    for mel in spectrogram(wave.split(block), 128, CPU):
        found += cutter.push(mel)
    return [*found, *cutter.finish()]


@pytest.mark.parametrize("block", [100, 7000, 100_000])
@pytest.mark.parametrize(("window", "hop"), [(1.0, None), (1.0, 0.25), (0.5, 0.33), (0.37, 0.01), (0.5, 1.3)])
def test_a_window_is_the_spectrogram_of_its_samples(window, hop, block):
    wave = 0.1 * torch.randn(55_555)
    found = cut(wave, window, hop, block)
    assert len(found) > 1
    for start, mel in found:
        (expected,) = log_mel([wave[start * 160 : start * 160 + round(window * 16_000)]], 128)
        torch.testing.assert_close(mel, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [16_000, 80_000, 80_079, 80_161, 83_217, 95_999, 96_000])
@pytest.mark.parametrize("hop", [1.0, 0.4])
def test_windows_are_whole_regular_and_reach_the_end(samples, hop):
    found = cut(0.1 * torch.randn(samples), 1.0, hop)
    starts = [window.start for window in found]
    assert {len(window.mel) for window in found} == {98}
    assert starts[:-1] == [round(hop * 100) * number for number in range(len(starts) - 1)]
    end = starts[-1] * 160 + 16_000
    assert samples - 160 <= end <= samples + 80  # no frame is left, and none is made of samples that are not there
    assert len(starts) == len(set(starts))


@pytest.mark.parametrize("samples", [1, 300, 400, 9000, 15_900])
def test_a_recording_shorter_than_a_window_is_one_window(samples):
    wave = 0.1 * torch.randn(samples)
    ((start, mel),) = cut(wave, 1.0)
    assert start == 0
    torch.testing.assert_close(mel, log_mel([wave], 128)[0], rtol=0, atol=1e-5)


def test_with_gaps_between_windows_only_the_regular_ones_are_heard():
    assert [window.start for window in cut(torch.randn(16_000 * 7), 1.0, 2.5)] == [0, 250, 500]


@pytest.mark.parametrize("window", [0, -1, 0.05, 121, float("nan"), "5", True, None])
def test_an_impossible_window_is_refused(window):
    with pytest.raises(ConfigError, match="window="):
        Cutting.of(window, None)


@pytest.mark.parametrize("hop", [0, -1, 0.004, float("inf"), "1", False])
def test_an_impossible_hop_is_refused(hop):
    with pytest.raises(ConfigError, match="hop="):
        Cutting.of(1.0, hop)
