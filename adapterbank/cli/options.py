"""Options that several commands have, so that each has one name, one help text and one completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterbank.cli import banks
from adapterbank.cli.completion import complete_method, complete_task
from adapterbank.errors import ConfigError

DEFAULT_BANK = banks.DEFAULT

Bank = Annotated[Path, typer.Option("--bank", "-b", envvar="ADAPTERBANK_BANK", help="The folder of the bank.")]
Clips = Annotated[list[str], typer.Argument(metavar="CLIPS...", help="Files, folders (with all below) and patterns.")]
Data = Annotated[Path, typer.Option("--data", "-d", help="A folder with one folder per class, or a CSV table.")]
OnError = Annotated[
    str,
    typer.Option(
        help="raise, or skip: leave out clips that cannot be read, name them, and end with exit code 1.",
        rich_help_panel="Data",
    ),
]
Multilabel = Annotated[
    bool | None,
    typer.Option(
        "--multilabel/--single-label",
        help="Several labels per clip; else as the data says.",
        rich_help_panel="Data",
    ),
]
Recursive = Annotated[
    bool | None,
    typer.Option(
        "--recursive/--no-recursive",
        help="Whether clips in folders inside a class folder, one per speaker or recording, belong to the class.",
        rich_help_panel="Data",
    ),
]
LabelSeparator = Annotated[
    str | None,
    typer.Option(help="Between several labels of a clip in a table, if not ; or |.", rich_help_panel="Data"),
]
Fold = Annotated[str | None, typer.Option(help="Of data with folds.", rich_help_panel="Data")]
Threshold = Annotated[
    str | None,
    typer.Option(
        metavar="P|own",
        help=(
            "Only labels that the clip has: those more probable than P, of a task with one label per clip the most "
            "likely one; or own, which takes the task's thresholds, calibrated or 0.5. A clip may then have none."
        ),
    ),
]
OWN = "own"  # as a threshold: what Python's `threshold=None` means
OneTask = Annotated[
    str | None,
    typer.Option("--task", "-t", autocompletion=complete_task, help="Which task; not needed if there is only one."),
]
ManyTasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", autocompletion=complete_task, help="Only this task; may be given several times."),
]
NamedTask = Annotated[str, typer.Argument(metavar="TASK", autocompletion=complete_task, help="The name of a task.")]
Method = Annotated[
    str, typer.Option(autocompletion=complete_method, help="How to fine-tune; `adapterbank methods` lists them all.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the accelerator if there is one.")]
Precision = Annotated[
    str, typer.Option(help="Of the frozen linears: fp32; bf16, faster where the processor computes in it; int8.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="How many clips are computed together.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to this file; .json and .csv say in which format.")
]


def threshold_of(text: str | None) -> float | None:
    """`--threshold` as `bank.predict` takes it: a probability; None for the task's own, and if none was given.

    Raises:
        ConfigError: neither a number from 0 to 1 nor "own".
    """
    if text is None or text == OWN:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"got --threshold {text}, expected a probability from 0 to 1, or {OWN}.")
    return value
