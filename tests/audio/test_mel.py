"""The front end equals Kaldi's fbank (torchaudio) and transformers' ASTFeatureExtractor."""

from __future__ import annotations

import pytest
import torch
from torchaudio.compliance.kaldi import fbank

from adapterbank.audio.mel import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    CHUNK,
    frame_count,
    log_mel,
    normalise,
    pad_frames,
)
from adapterbank.errors import ConfigError


def kaldi(waveform, mel_bins=128):
    # In fp64: in fp32, bands without sound are off by up to 4e-3, which is its rounding and not ours.
    mel = fbank(
        waveform[None].cpu().double(),
        sample_frequency=16_000,
        window_type="hanning",
        num_mel_bins=mel_bins,
        frame_shift=10,
        dither=0.0,
        htk_compat=True,
        use_energy=False,
    )
    return mel.float()


@pytest.mark.parametrize("mel_bins", [64, 128])
def test_mixed_lengths_equal_kaldi(clips, device, mel_bins):
    mels = log_mel([clip.to(device) for clip in clips], mel_bins)
    assert len({len(mel) for mel in mels}) > 3
    for mel, clip in zip(mels, clips, strict=True):
        assert mel.dtype == torch.float32
        torch.testing.assert_close(mel.cpu(), kaldi(clip, mel_bins), rtol=0, atol=1e-3)


def test_loud_noise_and_silence_equal_kaldi():
    waves = [torch.rand(4000) * 2 - 1, torch.zeros(1234), torch.full((900,), 0.5), torch.eye(1, 3000)[0]]
    for mel, wave in zip(log_mel(waves, 128), waves, strict=True):
        torch.testing.assert_close(mel, kaldi(wave), rtol=0, atol=1e-3)


def test_a_clip_in_a_batch_is_what_it_is_alone(clips):
    clips = [*clips, clips[0].repeat(9)] * 3  # some lie across the borders of chunks, some chunks in one clip
    together = log_mel(clips, 128)
    assert sum(map(len, together)) > 3 * CHUNK
    for mel, clip in zip(together, clips, strict=True):
        torch.testing.assert_close(mel, log_mel([clip], 128)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_other_sample_rates_equal_kaldi_after_torchaudios_resampling(rate, clips, at_16_khz):
    # 1e-2: fp32 rounds what is left above the filter's edge, 100 dB under the rest.
    resampled = at_16_khz(clips[0], rate)
    torch.testing.assert_close(log_mel(clips[:1], 128, rate)[0], kaldi(resampled), rtol=0, atol=1e-2)


def test_each_clip_may_have_its_own_rate(clips, at_16_khz):
    mels = log_mel(clips[:2], 128, [16_000, 8000])
    torch.testing.assert_close(mels[0], kaldi(clips[0]), rtol=0, atol=1e-3)
    resampled = at_16_khz(clips[1], 8000)
    torch.testing.assert_close(mels[1], kaldi(resampled), rtol=0, atol=1e-2)


@pytest.mark.parametrize("seconds", [0.3, 10.24, 11.0])
def test_padded_and_normalised_it_equals_transformers_extractor(seconds, clips):
    from transformers import ASTFeatureExtractor

    clip = torch.cat([clips[-1]] * 14)[: round(seconds * 16_000)]
    expected = ASTFeatureExtractor()(clip.numpy(), sampling_rate=16_000, return_tensors="pt").input_values[0]
    ours = normalise(pad_frames(log_mel([clip], 128)[0][:1024], 1024), AUDIOSET_MEAN, AUDIOSET_STD)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


def test_padding_is_zero_in_log_mel_before_normalisation():
    padded = normalise(pad_frames(torch.ones(3, 4), 5), mean=-4.0, std=2.0)
    assert padded.shape == (5, 4)
    assert torch.equal(padded[3:], torch.full((2, 4), (0 + 4) / 4.0))


@pytest.mark.parametrize("samples", [1, 160, 399])
def test_a_clip_shorter_than_a_window_is_padded_to_one(samples, clips):
    clip = clips[0][2000 : 2000 + samples]
    mel = log_mel([clip], 128)[0]
    whole = torch.cat((clip, torch.zeros(400 - samples)))
    assert mel.shape == (1, 128)
    torch.testing.assert_close(mel, kaldi(whole), rtol=0, atol=1e-3)


@pytest.mark.parametrize("samples", [1, 400, 559, 560, 16_000, 163_840])
def test_frame_count_is_what_comes_out(samples):
    assert len(log_mel([torch.randn(samples)], 128)[0]) == frame_count(samples)


@pytest.mark.parametrize("rate", [0, -16_000, 44_100.0, None, [16_000], [16_000, "8000"]])
def test_a_bad_sample_rate_is_refused(rate):
    with pytest.raises(ConfigError, match="sample rate|sample_rate"):
        log_mel([torch.zeros(500)] * 2, 128, rate)
