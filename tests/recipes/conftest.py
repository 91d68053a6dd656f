"""How a recipe is started: a process of its own, as a user does."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapterbank.data import demo_tasks

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def launch():
    """Starts `recipes/<name>.py` in a folder with arguments; gives the process, its output readable when it ends."""
    processes = []

    def start(name, folder, *arguments):
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        process = subprocess.Popen(
            [sys.executable, ROOT / "recipes" / f"{name}.py", *arguments],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def run_recipe(launch):
    """`launch`, waited for: the exit code, stdout and stderr."""

    def run(name, folder, *arguments):
        process = launch(name, folder, *arguments)
        stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture
def packs(tmp_path):
    """Clips of two classes in three folds, and the same clips with sets of labels."""
    source = demo_tasks()["instruments"]
    with (source / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})[:2]
    chosen = [row for label in classes for row in [r for r in rows if r["label"] == label][:9]]
    for pack, several in (("single", False), ("sets", True)):
        folder = tmp_path / "data" / pack
        folder.mkdir(parents=True)
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["filename", "label", "fold", "group"])
            for place, row in enumerate(chosen):
                label = ";".join(classes) if several and place % 9 == 0 else row["label"]
                writer.writerow([row["filename"], label, 1 + place % 3, f"g{place}"])
                shutil.copy(source / row["filename"], folder)
    return tmp_path / "data"
