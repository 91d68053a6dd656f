"""Rows of methods and variants in one table with their costs, as a user makes it; a second start repeats nothing."""

import pytest
from matplotlib.image import imread


@pytest.mark.slow
def test_methods_and_variants_stand_in_one_table_with_gains_and_costs(packs, hf_folder, hf_model, tmp_path, run_recipe):
    arguments = [
        f"backbone={hf_folder(hf_model(frequency_stride=16, time_stride=16))}",
        f"data={packs / 'single'}",
        "test_fold=3",
        "val_fold=2",
        "methods=[linear,one]",
        "+variants.one={method:aat_m,top_layers:1}",
        "baseline=linear",
        "lrs.default=[0.001,0.01]",
        "+lrs.linear=0.01",
        "seeds=[0,1]",
        "fit.epochs=2",
        "fit.precision=fp32",
        "costs={pairs:1,clip_seconds:0.5,batch_size:2,precision:fp32}",
        "out=table",
    ]
    first = run_recipe("compare_methods", tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    files = [tmp_path / "table" / name for name in ("runs.jsonl", "costs.jsonl", "table.md")]
    before = [file.read_bytes() for file in files]
    assert len(before[0].splitlines()) == 5  # linear: two seeds; one: two rates and the second seed at the better
    lines = files[2].read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][5:] == ["above linear (95 %)", "step time / full", "memory / full"]
    assert [row[0] for row in cells[2:4]] == ["linear", "one"]
    assert cells[2][5] == "+0.0 (+0.0 to +0.0)"
    assert all(float(row[6]) > 0 and float(row[7]) > 0 for row in cells[2:4])
    assert imread(tmp_path / "table" / "convergence.png").ndim == 3

    again = run_recipe("compare_methods", tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    assert [file.read_bytes() for file in files] == before
