"""Options that several commands have, so that each has one name, one help text and one completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterbank.cli import banks
from adapterbank.cli.completion import complete_method, complete_task

DEFAULT_BANK = banks.DEFAULT

Bank = Annotated[Path, typer.Option("--bank", "-b", envvar="ADAPTERBANK_BANK", help="The folder of the bank.")]
Clips = Annotated[list[str], typer.Argument(metavar="CLIPS...", help="Files, folders (with all below) and patterns.")]
Data = Annotated[Path, typer.Option("--data", "-d", help="A folder with one folder per class, or a CSV table.")]
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
