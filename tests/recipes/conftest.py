"""How a recipe is started: a process of its own, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
