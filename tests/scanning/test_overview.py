"""The small spectrogram of a long recording is the mean of its frames, however long it is."""

import pytest
import torch

from adapterbank.scanning.overview import COLUMNS, Overview


@pytest.mark.parametrize("frames", [1, 500, 2 * COLUMNS, 2 * COLUMNS + 1, 13_579, 70_000])
@pytest.mark.parametrize("block", [1, 333, 5000, 80_000])
def test_columns_are_means_of_equally_many_frames(frames, block):
    if frames / block > 20_000:
        pytest.skip("20,000 blocks are enough")
    mel = torch.randn(frames, 4)
    overview = Overview()
    for part in mel.split(block):
        overview.push(part)
    found = overview.result()
    assert len(found) <= 2 * COLUMNS
    assert len(found) >= min(frames, COLUMNS)
    together = overview.frames
    expected = torch.stack([part.mean(dim=0) for part in mel.split(together)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
