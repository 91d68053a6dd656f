"""The command as a shell starts it: quick help without torch, completion, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from adapterbank import methods
from adapterbank._version import __version__
from adapterbank.cli.app import app
from adapterbank.cli.completion import complete_method, method_names

COMMANDS = sorted(get_command(app).commands)
HEAVY = ("torch", "numpy", "mlflow", "matplotlib", "transformers", "soundfile")


def shell(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adapterbank", *map(str, arguments)]
    root = str(Path(__file__).resolve().parents[2])
    everything = {**os.environ, "PYTHONPATH": root, "COLUMNS": "100", **environment}
    return subprocess.run(
        command,
        cwd=cwd,
        env=everything,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def loaded_by(*arguments: str) -> set[str]:
    """The heavy modules that are loaded when the command ends."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        f"sys.argv = ['adapterbank', *{list(arguments)!r}]\n"
        "from adapterbank.cli.app import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    loaded = done.stdout.rpartition("LOADED")[2].split()
    assert "typer" in loaded
    return set(loaded) & set(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("train", "--help"), ("--version",), ("predict", "x.wav", "--bank", "nix"), ("predict",), ("nix",)],
    ids=" ".join,
)
def test_help_and_wrong_usage_import_nothing_heavy(arguments):
    assert loaded_by(*arguments) == set()


def test_help_and_completion_take_less_than_half_a_second(tmp_path):
    """Of processor time, which other programs on the machine lengthen less than the wall clock's."""

    def seconds(*arguments, **environment):
        before = os.times()
        shell(*arguments, cwd=tmp_path, **environment)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds("--help") for _ in range(3)) < 0.5
    words = {"COMP_WORDS": "adapterbank train x --method a", "COMP_CWORD": "4"}
    assert min(seconds(_ADAPTERBANK_COMPLETE="complete_bash", **words) for _ in range(3)) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(run, command):
    shown = run(command, "--help").stdout
    assert "Usage" in shown
    assert all(parameter.help for parameter in get_command(app).commands[command].params if parameter.name != "help")


def completed(words: str, cwd: Path) -> list[str]:
    environment = {"_ADAPTERBANK_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return shell(cwd=cwd, **environment).stdout.split()


def test_the_shell_completes_tasks_and_methods(bank_folder, tmp_path):
    assert completed("adapterbank predict x.wav --task ", tmp_path) == ["notes", "lora_notes", "tags"]
    assert completed("adapterbank info n", tmp_path) == ["notes"]
    assert completed("adapterbank train x --method aat_", tmp_path) == ["aat_m", "aat_ms", "aat_s"]
    bank_folder.rename(tmp_path / "other")
    assert completed("adapterbank predict x.wav --bank other --task t", tmp_path) == ["tags"]
    assert completed("adapterbank predict x.wav --task ", tmp_path) == []


def test_the_methods_that_the_shell_completes_are_those_of_the_library():
    assert set(method_names()) == set(methods.names())
    assert "aat_ms+prompt" in complete_method("aat_ms+pro")


def test_python_m_is_the_command_and_answers_from_a_real_shell(bank_folder, clips, tmp_path):
    assert shell("--version").stdout.strip() == __version__
    (clips / "broken.wav").write_text("?")
    done = shell("predict", "clips/", "-t", "notes", "--csv", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith("file,task,label,probability")
    assert "broken.wav" in done.stderr
    assert shell("predict", "clips/", "-t", "nix", cwd=tmp_path).returncode == 2


def test_ctrl_c_in_a_training_ends_it_and_leaves_the_bank_as_it_was(bank_folder, recordings, tmp_path):
    before = (bank_folder / "manifest.json").read_bytes()
    arguments = ["train", "more", "--data", str(recordings), "--epochs", "100000", "--no-mlflow"]
    process = subprocess.Popen(
        [sys.executable, "-m", "adapterbank", *arguments],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # What a shell starts with "&" ignores Ctrl-C, and so would this process if the tests were started so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        while "trains" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert (bank_folder / "manifest.json").read_bytes() == before
