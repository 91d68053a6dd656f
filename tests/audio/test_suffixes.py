from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from adapterbank.audio.suffixes import FORMATS, READABLE_SUFFIXES, UNREADABLE_SUFFIXES
from adapterbank.data import read_audio

NOT_WRITTEN = {".mp2"}  # libsndfile reads MPEG layer II and does not write it


def test_every_format_that_is_listed_is_one_of_libsndfiles_and_no_suffix_is_in_both_lists() -> None:
    assert set(FORMATS.values()) <= soundfile.available_formats().keys()
    assert not READABLE_SUFFIXES & UNREADABLE_SUFFIXES
    every = READABLE_SUFFIXES | UNREADABLE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in every)


@pytest.mark.parametrize("suffix", sorted(READABLE_SUFFIXES - NOT_WRITTEN))
def test_a_file_of_every_readable_suffix_is_read_in_its_full_length(tmp_path: Path, suffix: str) -> None:
    noise = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype("float32")
    rate = 8_000 if FORMATS[suffix] == "WVE" else 16_000
    soundfile.write(tmp_path / f"x{suffix}", noise, rate, format=FORMATS[suffix])
    assert len(read_audio(tmp_path / f"x{suffix}", sample_rate=rate)) == len(noise)
