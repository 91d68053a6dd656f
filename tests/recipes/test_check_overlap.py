"""A copy of a test recording in the pretraining audio is found, however it was changed on the way."""

import csv

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from adapterbank.data import demo_tasks, load_folder


@pytest.mark.slow
def test_a_planted_copy_stands_at_the_top(tmp_path, run_recipe):
    instruments, tones = (load_folder(demo_tasks()[name]) for name in ("instruments", "mandarin_tones"))
    rng = np.random.default_rng(0)
    pool, data = tmp_path / "pool", tmp_path / "data" / "mine"
    pool.mkdir()
    for label in ("even", "odd"):
        (data / label).mkdir(parents=True)
    for number in range(6):
        soundfile.write(pool / f"{number}.wav", tones[9 * number][0].numpy(), 16_000)
        soundfile.write(
            data / ("even", "odd")[number % 2] / f"{number}.wav", instruments[25 * number][0].numpy(), 16_000
        )
    copy = instruments[75][0].numpy()  # test clip 3, in the middle of noise, softer, and 13 ms off the grid
    short = instruments[100][0].numpy()[3200:9_600]  # of test clip 4: shorter than what is compared, begun later
    soundfile.write(pool / "8.wav", short, 16_000)
    noise = 0.002 * rng.normal(size=3 * 16_000)
    noise[16_208 : 16_208 + len(copy)] += 0.3 * copy[: len(noise) - 16_208]
    soundfile.write(pool / "9.wav", noise, 16_000)
    arguments = [f"pool={pool}", f"data={tmp_path / 'data'}", "demo=false", "cache=cache", "out=found", "pairs=3"]
    result = run_recipe("check_overlap", tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "found" / "closest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    found = {row["test_clip"]: row for row in rows}
    whole, part = found["mine/3.wav"], found["mine/4.wav"]
    assert rows.index(whole) < 2
    assert rows.index(part) < 2
    assert (whole["pool_clip"], part["pool_clip"]) == ("7", "6")
    assert float(whole["mel_correlation"]) > 0.9
    assert min(float(row["wave_correlation"]) for row in (whole, part)) > 0.9
    assert float(whole["pool_second"]) - float(whole["test_second"]) == pytest.approx(1.013, abs=0.05)
    assert float(part["pool_second"]) - float(part["test_second"]) == pytest.approx(-0.2, abs=0.05)
    assert float(rows[2]["wave_correlation"]) < 0.8  # other notes: some of one pitch
    without = run_recipe("check_overlap", tmp_path, *arguments[:-2], "out=without", "exclude=[6,7]")
    assert without.returncode == 0, without.stderr
    with (tmp_path / "without" / "closest.csv").open(newline="") as file:
        assert not {row["pool_clip"] for row in csv.DictReader(file)} & {"6", "7"}
    again = run_recipe("check_overlap", tmp_path, f"pool={data}", *arguments[1:])
    assert again.returncode == 1
    assert "DatasetError: cache holds the audio of another source" in again.stderr
    assert imread(tmp_path / "found" / "closest.png").ndim == 3
