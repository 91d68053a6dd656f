from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional

from adapterbank.audio.mel import log_mel
from adapterbank.audio.read import read_audio
from adapterbank.audio.resampling import KERNELS, resample_clip
from adapterbank.errors import UnknownNameError

RATE = 16_000
AWKWARD = [44_101, 16_001, 15_999, 22_255, 767_999, 1_009]  # no large divisor is common to them and 16,000
USUAL = [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 768_000]
OF_TORCHAUDIO = {
    "hann": {},
    "kaiser_best": {
        "lowpass_filter_width": 64,
        "rolloff": 0.9475937167399596,
        "resampling_method": "sinc_interp_kaiser",
        "beta": 14.769656459379492,
    },
}


def noise(samples: int) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(0)) * 0.1


def tone(hz: float, rate: int, seconds: float = 1.0) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hz * torch.arange(round(rate * seconds), dtype=torch.float64) / rate).float()


@pytest.mark.parametrize("name", OF_TORCHAUDIO)
@pytest.mark.parametrize(
    ("rate", "new_rate"), [(44_100, RATE), (48_000, RATE), (22_050, RATE), (8_000, RATE), (RATE, 44_100)]
)
def test_published_kernels_give_what_torchaudio_gives(name: str, rate: int, new_rate: int) -> None:
    wave = noise(rate)
    expected = torchaudio.functional.resample(wave, rate, new_rate, **OF_TORCHAUDIO[name])
    found = resample_clip(wave, rate, new_rate, name)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)  # torchaudio rounds the weights to fp32 on the way


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_the_default_hears_what_sox_hears(tmp_path: Path, rate: int) -> None:
    if shutil.which("sox") is None:
        pytest.skip("sox is not installed")
    wave = noise(2 * rate)
    soundfile.write(tmp_path / "in.wav", wave.numpy(), rate, subtype="FLOAT")
    subprocess.run(["sox", "-V1", tmp_path / "in.wav", "-r", str(RATE), tmp_path / "out.wav"], check=True)
    theirs = log_mel([read_audio(tmp_path / "out.wav")], 128)[0]
    ours = log_mel([read_audio(tmp_path / "in.wav")], 128)[0]
    apart = (ours - theirs).abs().mean(dim=0)
    assert apart[:120].max() < 0.03  # from 8 kHz, bin 96 lies at the edge of the filter, where little is left
    assert apart.max() < 0.1  # torchaudio's own default: 3.8, and 14 from 8 kHz


def test_without_sox_the_default_is_known_by_what_it_lets_through() -> None:
    """Down by 3 dB at 0.95 of half the rate, which is sox's bandwidth; see `man sox`, effect rate."""
    levels = {hz: resample_clip(tone(hz, 48_000), 48_000, RATE)[4_000:12_000].std() * 2**0.5 for hz in (7_400, 7_600)}
    assert levels[7_400] == pytest.approx(1, abs=3e-3)
    assert 20 * levels[7_600].log10() == pytest.approx(-3, abs=0.1)


@pytest.mark.parametrize("rate", [32_000, 48_000, 96_000, 768_000, 44_100, 44_101, 767_999])
@pytest.mark.parametrize("name", KERNELS)
def test_what_lies_above_half_the_rate_is_gone_and_does_not_come_back_below_it(name: str, rate: int) -> None:
    heard = resample_clip(tone(9_500, rate), rate, RATE, name)[2_000:-2_000]
    assert 20 * heard.abs().max().log10() < (-25 if name == "hann" else -100)  # six crossings end early


@pytest.mark.parametrize("rate", AWKWARD + USUAL)
@pytest.mark.parametrize("name", KERNELS)
def test_a_tone_stays_the_same_tone_at_any_rate(name: str, rate: int) -> None:
    found = resample_clip(tone(300, rate), rate, RATE, name)
    assert len(found) == RATE
    inner = slice(3_000, -3_000)  # the ends see the silence around the clip
    atol = 6e-3 if name == "hann" else 1e-5
    torch.testing.assert_close(found[inner], tone(300, RATE)[inner], rtol=0, atol=atol)


@pytest.mark.parametrize("rate", [16_001, 22_255])
def test_nothing_drifts_in_a_long_recording(rate: int) -> None:
    seconds = 40
    found = resample_clip(tone(1_000, rate, seconds), rate, RATE)
    last = slice((seconds - 1) * RATE, seconds * RATE - 500)
    torch.testing.assert_close(found[last], tone(1_000, RATE, seconds)[last], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [44_101, 8_000, 48_000])
def test_clips_of_any_length_become_their_length_at_the_new_rate_rounded_up(rate: int) -> None:
    for samples in (1, 2, 159, 441, 1_000):
        assert len(resample_clip(noise(samples), rate, RATE)) == -(-samples * RATE // rate)


def test_any_rate_costs_bounded_memory() -> None:
    """One second at each; the weights of 44,101 Hz alone took 2.8 GB once."""
    program = (
        "import resource, torch\n"
        "from adapterbank.audio.resampling import resample_clip\n"
        "resample_clip(torch.zeros(48_000), 48_000, 16_000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"for rate in {[44_101, 767_999, 768_000, 16_001, 1_009]}:\n"
        "    resample_clip(torch.zeros(rate), rate, 16_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    grown = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout) * unit
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    assert grown < 200 * 2**20


def test_gradients_reach_a_waveform_also_after_a_first_call_without_them() -> None:
    with torch.inference_mode():
        resample_clip(noise(3_700), 3_700, RATE)
    wave = noise(3_700).requires_grad_()
    resample_clip(wave, 3_700, RATE).sum().backward()
    assert wave.grad is not None


def test_torchs_default_dtype_changes_nothing() -> None:
    expected = resample_clip(noise(6_300), 6_300, RATE)
    torch.set_default_dtype(torch.float64)
    try:
        wave = noise(6_301).float()
        assert resample_clip(wave, 6_301, RATE).dtype == torch.float32
        assert resample_clip(wave, 6_302, RATE).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(resample_clip(noise(6_300), 6_300, RATE), expected, rtol=0, atol=0)


def test_a_kernel_that_nobody_knows_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(800), RATE)
    with pytest.raises(UnknownNameError, match="unknown resampling 'kaiser'.*Known: hann, kaiser_best, sox"):
        read_audio(tmp_path / "x.wav", resampling="kaiser")
