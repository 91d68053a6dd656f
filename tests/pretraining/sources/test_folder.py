"""A folder of recordings as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from adapterbank.pretraining.sources.folder import Folder


# 11,127 and 44,101 Hz share no divisor with 16,000: games have such files
@pytest.mark.parametrize("rate", [8_000, 11_127, 16_000, 22_050, 44_101, 96_000])
def test_a_recording_of_any_rate_is_heard_at_its_own_pitch_and_length(tmp_path: Path, rate: int) -> None:
    def tone(at: int) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(2 * at) / at)

    soundfile.write(tmp_path / "tone.wav", np.stack([tone(rate), tone(rate)], axis=1), rate, subtype="FLOAT")
    (sound,) = Folder(tmp_path).part(0)
    assert len(sound.samples) == 32_000
    inside = slice(200, -200)  # at either end the filter reaches beyond the recording
    np.testing.assert_allclose(sound.samples[inside], tone(16_000)[inside], atol=2e-3)
