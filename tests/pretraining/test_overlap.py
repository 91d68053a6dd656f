"""Copies of a recording agree by log-mels and by waveforms, wherever they begin; other recordings do not."""

import pytest
import torch

from adapterbank.data import demo_tasks, load_folder
from adapterbank.pretraining.overlap import STEP_SECONDS, likeness, low_band, sketch, wave_correlation


@pytest.fixture(scope="module")
def notes():
    return load_folder(demo_tasks()["instruments"])


def test_a_copy_in_noise_is_found_where_it_begins(notes):
    copy = notes[75][0]
    other = 0.002 * torch.randn(3 * 16_000, generator=torch.Generator().manual_seed(0))
    other[16_208:] += 0.3 * copy[: len(other) - 16_208]
    value, start, place, size = likeness(sketch(copy), sketch(other))
    assert value > 0.9
    assert size == 25
    assert (place - start) * STEP_SECONDS == pytest.approx(1.013, abs=0.05)
    assert wave_correlation(low_band(copy), low_band(other)) > 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_a_part_of_a_clip_agrees_with_it_in_either_order_and_polarity(sign, notes):
    whole = low_band(notes[100][0])
    part = sign * low_band(notes[100][0][3_200:9_600])
    assert wave_correlation(whole, part) == pytest.approx(1, abs=1e-3)
    assert wave_correlation(part, whole) == pytest.approx(1, abs=1e-3)


def test_waveforms_are_compared_as_the_formula_says(notes):
    """The normalised product of what overlaps, by hand at every offset."""
    generator = torch.Generator().manual_seed(1)
    wave, other = (torch.randn(count, generator=generator) for count in (4_000, 5_000))
    best = 0.0
    for lag in range(-3_999, 5_000):
        a, b = wave[max(0, -lag) : 5_000 - lag], other[max(0, lag) : lag + 4_000]
        if len(a) >= 1_600 and (
            len(a) >= 2_000 or (a.norm() ** 2 >= 0.1 * wave.norm() ** 2 and b.norm() ** 2 >= 0.1 * other.norm() ** 2)
        ):
            best = max(best, abs(float(a @ b / (a.norm() * b.norm()))))
    assert wave_correlation(wave, other) == pytest.approx(best, abs=1e-4)


def test_other_notes_do_not_agree_by_both(notes):
    first, second = notes[0][0], notes[60][0]
    assert likeness(sketch(first), sketch(second))[0] * wave_correlation(low_band(first), low_band(second)) < 0.7


def test_a_pool_clip_too_short_to_compare_counts_as_unlike(notes):
    assert likeness(sketch(notes[0][0]), sketch(torch.ones(1_600)))[0] == 0.0
    assert wave_correlation(low_band(notes[0][0]), torch.zeros(100)) == 0.0
