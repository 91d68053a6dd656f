"""The main job as a user starts it: a process of its own, on a few clips and a two-layer backbone."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from omegaconf import OmegaConf

from adapterbank import methods
from adapterbank.bank import AdapterBank
from adapterbank.data import demo_tasks
from adapterbank.methods.registry import ALIASES

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted((ROOT / "recipes" / "conf").glob("*.yaml"))


@pytest.fixture
def few_clips(tmp_path):
    """Two of the demo tasks with a few clips of two classes, as folders of one's own."""
    for name, count in (("instruments", 6), ("mandarin_tones", 4)):
        source, target = demo_tasks()[name], tmp_path / "data" / name
        target.mkdir(parents=True)
        with (source / "metadata.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        chosen = [
            row
            for label in sorted({row["label"] for row in rows})[:2]
            for split in ("train", "val", "test")
            for row in [r for r in rows if (r["label"], r["split"]) == (label, split)][:count]
        ]
        with (target / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, chosen[0].keys())
            writer.writeheader()
            writer.writerows(chosen)
        for row in chosen:
            shutil.copy(source / row["filename"], target)
    return tmp_path / "data"


@pytest.mark.slow
def test_the_main_job_runs_resumes_and_refuses_to_overwrite(few_clips, hf_folder, hf_model, tmp_path, run_recipe):
    work = tmp_path / "work"
    work.mkdir()
    backbone = hf_folder(hf_model(frequency_stride=16, time_stride=16))
    arguments = [
        f"backbone={backbone}",
        f"data_dir={few_clips}",
        "fit.epochs=1",
        "fits.mandarin_tones.epochs=1",
        "methods.mandarin_tones=prompt",
        "out=outputs/mine",
    ]
    first = run_recipe("sequential_tasks", work, *arguments, "tasks=[instruments]", "strategy=bank")
    assert first.returncode == 0, first.stderr
    again = run_recipe("sequential_tasks", work, *arguments, "tasks=[instruments,mandarin_tones]")
    assert again.returncode == 1
    assert "resume=true" in again.stderr
    assert "Traceback" not in again.stderr
    second = run_recipe("sequential_tasks", work, *arguments, "tasks=[instruments,mandarin_tones]", "resume=true")
    assert second.returncode == 0, second.stderr
    assert "instruments (aat_ms)" not in second.stdout  # no second training, so no progress bar of one
    assert "R[j,j]" in second.stdout

    results = json.loads((work / "outputs" / "mine" / "results.json").read_text())["results"]
    assert [result["strategy"] for result in results] == ["bank", "naive"]
    assert results[0]["matrix"][0][1] is None
    assert results[0]["bwt"] == 0
    bank = AdapterBank.load(work / "outputs" / "mine" / "bank")
    assert {name: task.method for name, task in bank.tasks.items() if name != "audioset"} == {
        "instruments": "aat_ms",
        "mandarin_tones": "prompt",
    }
    assert {entry.name for entry in work.iterdir()} == {"outputs", "mlflow.db", "mlflow.db.lock", "mlartifacts"}
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("sequential_tasks").experiment_id])
    assert sorted(run.info.run_name for run in runs if run.data.tags["kind"] == "task") == [
        "bank: instruments (aat_ms)",  # once: the second start continued the run of the first
        "bank: mandarin_tones (prompt)",
        "naive: instruments (full)",
        "naive: mandarin_tones (full)",
    ]


@pytest.mark.slow
def test_an_unknown_task_ends_with_one_clear_line(tmp_path, run_recipe):
    result = run_recipe("sequential_tasks", tmp_path, "tasks=[instrumets]")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("ConfigError: no recordings of 'instrumets'")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_parses_and_belongs_to_a_recipe(path):
    content = OmegaConf.load(path)
    recipe = next((entry for entry in content.defaults if isinstance(entry, str) and entry != "_self_"), path.stem)
    assert (ROOT / "recipes" / f"{recipe}.py").is_file()
    with initialize_config_dir(str(path.parent), version_base=None):
        assert compose(path.stem)


def test_the_comparison_of_all_methods_leaves_none_out():
    compared = OmegaConf.load(ROOT / "recipes" / "conf" / "all_methods.yaml").methods
    assert {part.name for name in compared for part in methods.parse(name)} >= set(methods.names()) - set(ALIASES)


def test_nothing_imports_a_recipe():
    sources = [file for folder in ("adapterbank", "tests") for file in (ROOT / folder).rglob("*.py")]
    assert not [file for file in sources if "import recipes" in file.read_text() and file != Path(__file__)]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_a_recipe_fits_its_page(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
