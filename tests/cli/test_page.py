"""docs/command_line.md: what it shows are commands that run, and what they print.

python tests/cli/test_page.py        # runs all commands in an empty folder and writes their output into the page
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.main import get_command

from adapterbank.cli.app import app
from adapterbank.data import demo_tasks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "command_line.md"
BLOCK = re.compile(r"```console\n\$ (.*?)\n(.*?)```", re.DOTALL)


def commands() -> list[tuple[list[str], int, str]]:
    """The arguments of each `adapterbank ...` of the page, the exit code that it states, and what it printed."""
    found = []
    for line, printed in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        command, _, comment = line.partition("  # ")
        if command.startswith("adapterbank "):
            found.append((shlex.split(command)[1:], int(comment.rpartition(" ")[2]) if comment else 0, printed))
    return found


@pytest.mark.slow
def test_every_command_of_the_page_runs(run, tmp_path):
    """With fewer steps of training, so that its numbers are others; what stands around them is the same."""
    shutil.copytree(demo_tasks()["instruments"], tmp_path / "clips")
    for arguments, code, printed in commands():
        quick = ["--steps", "2"] if arguments[0] == "train" else []
        shown = run(*arguments, *quick, code=code).stdout
        first = next((line for line in printed.splitlines() if line.strip()), "")
        if first and not re.search(r"\d", first) and not first.startswith(("failed", "written")):
            assert first.split() == next(line for line in shown.splitlines() if line.strip()).split(), arguments


def test_the_page_shows_every_command():
    assert {arguments[0] for arguments, _, _ in commands()} == set(get_command(app).commands)


def written(page: str, folder: str) -> str:
    """The page with the output of its commands of now."""
    python = f"exec {shlex.quote(sys.executable)}"
    shell = f'adapterbank() {{ ( {python} -m adapterbank "$@" ); }}; python() {{ ( {python} "$@" ); }}\n'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def answered(match: re.Match[str]) -> str:
        line = match[1]
        done = subprocess.run(
            ["bash", "-c", shell + line], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        text = "\n".join(part.rstrip() for part in (done.stdout + done.stderr).strip("\n").splitlines())
        return f"```console\n$ {line}\n{text}\n```" if text else f"```console\n$ {line}\n```"

    return BLOCK.sub(answered, page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), scratch), encoding="utf-8")
