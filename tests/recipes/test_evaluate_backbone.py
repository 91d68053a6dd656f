"""Probes, teachers and methods in one table, as a user makes it; a second start repeats nothing."""

import json

import pytest
from matplotlib.image import imread


@pytest.mark.slow
def test_every_row_is_measured_once_and_stands_in_the_table(packs, hf_folder, hf_model, tmp_path, run_recipe):
    backbone = hf_folder(hf_model(frequency_stride=16, time_stride=16))
    arguments = [
        f"backbone={backbone}",
        "name=tiny",
        f"data={packs}",
        "packs=[single,sets]",
        "teachers=null",
        "methods=[head,aat_m]",
        "fit.epochs=1",
        "fit.precision=fp32",
        "out=table",
    ]
    first = run_recipe("evaluate_backbone", tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    assert "budget: 2 trainings on each of 2 packs" in first.stdout
    files = [tmp_path / "table" / name for name in ("probes.jsonl", "runs.jsonl", "table.md", "scores.png")]
    before = [file.read_bytes() for file in files[:3]]
    assert len(before[0].splitlines()) == 6
    assert len(before[1].splitlines()) == 4
    table = files[2].read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:7]] == [
        "ridge: mean log-mel",
        "probe: untrained tiny",
        "probe: tiny",
        "tiny: head",
        "tiny: aat_m",
    ]
    runs = [json.loads(line) for line in before[1].splitlines()]
    assert {(run["pack"], run["metric"]) for run in runs} == {("single", "accuracy"), ("sets", "map")}
    assert f"{runs[0]['test']:.3f}" in table[5]
    assert imread(files[3]).ndim == 3

    again = run_recipe("evaluate_backbone", tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    assert [file.read_bytes() for file in files[:3]] == before
    other = run_recipe("evaluate_backbone", tmp_path, *arguments, "fit.epochs=2")
    assert other.returncode == 1
    assert "ConfigError" in other.stderr
    assert "Traceback" not in other.stderr
