"""`tasks`, `info`, `methods`, `export`, `import` and `remove`: what is in a bank, and what goes in and out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterbank.cli import banks, options, report
from adapterbank.cli.completion import complete_task
from adapterbank.errors import ConfigError
from adapterbank.text import amount


def tasks(
    bank: options.Bank = options.DEFAULT_BANK,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
    output: options.Output = None,
) -> None:
    """The tasks of a bank: method, classes, size, and the score of the last test."""
    from adapterbank.task.overview import overview

    form = report.Form.of(as_json, as_csv, output)
    opened = banks.open_bank(bank, "cpu")
    summary = overview(opened.backbone, (opened.task(name).facts() for name in opened.tasks))
    if form.kind == "table":
        report.print_table(summary.table())
        return
    rows = [row._asdict() for row in summary]
    # A score that was never measured is no number: JSON has no NaN.
    records = [{**row, "value": None if row["value"] != row["value"] else row["value"]} for row in rows]
    columns = "task method classes parameters percent_of_base bytes metric value".split()
    report.write(records, form, columns)


def info(
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", autocompletion=complete_task, help="Without: the bank.")
    ] = None,
    bank: options.Bank = options.DEFAULT_BANK,
    as_json: options.Json = False,
) -> None:
    """All that is known of one task, or of the bank."""
    if task is not None:
        banks.needed_task(bank, task)
    opened = banks.open_bank(bank, "cpu")
    record = _of_bank(opened, bank) if task is None else _of_task(opened, task)
    if as_json:
        report.print_json(record)
        return
    made = report.table("", "")
    made.show_header = False
    for key, value in record.items():
        made.add_row(key.replace("_", " "), _text(value))
    report.print_table(made, f"bank {bank}" if task is None else f"task {task} in {bank}")


def _of_bank(bank: Any, folder: Path) -> dict[str, Any]:
    import torch

    from adapterbank._version import __version__
    from adapterbank.backbone.backbone import default_device

    backbone = bank.backbone
    sizes = backbone.geometry
    return {
        "folder": str(folder.expanduser().resolve()),
        "tasks": list(bank.tasks),
        "backbone": backbone.source,
        "layers": sizes.layers,
        "width": sizes.width,
        "frozen_parameters": backbone.num_parameters(),
        "fingerprint": backbone.fingerprint,
        "device": str(default_device()),
        "adapterbank": __version__,
        "torch": torch.__version__,
    }


def _of_task(bank: Any, name: str) -> dict[str, Any]:
    task = bank.task(name)
    count = task.trainable_parameters()
    described = {key: value for key, value in task.spec.to_json().items() if value not in (None, [], {})}
    return {
        **described,
        **({} if task.trained_clip_seconds is None else {"trained_clip_seconds": task.trained_clip_seconds}),
        "parameters": count,
        "percent_of_base": round(100 * count / bank.backbone.num_parameters(), 3),
        "bytes": task.num_bytes(),
        "metrics": {metric: round(value, 4) for metric, value in task.metrics.items()},
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def methods(as_json: options.Json = False, as_csv: options.Csv = False, output: options.Output = None) -> None:
    """The methods of fine-tuning: how many numbers each trains, its options, its paper."""
    from adapterbank import methods as all_methods

    form = report.Form.of(as_json, as_csv, output)
    overview = all_methods.overview()
    if form.kind == "table":
        typer.echo(repr(overview))
        return
    records = [
        {
            "method": row.name,
            "on_ast_base": all_methods.count(row.name),
            "trains": row.summary,
            "formula": row.parameters,
            "paper": row.paper,
            "options": {key: str(value) for key, value in row.options.items()},
        }
        for row in overview
    ]
    report.write(records, form, ["method", "on_ast_base", "trains", "formula", "paper"])


def export(
    task: options.NamedTask,
    to: Annotated[Path, typer.Argument(metavar="TO", help="A new folder (peft) or file (safetensors).")],
    bank: options.Bank = options.DEFAULT_BANK,
    format: Annotated[
        str, typer.Option(help="safetensors: one file that `adapterbank import` reads; peft: a LoRA task as a folder.")
    ] = "safetensors",
    head: Annotated[
        bool, typer.Option("--head/--no-head", help="Of peft: without the head, which transformers may not have.")
    ] = True,
) -> None:
    """Writes one task as a file of its own, or for another library."""
    if not head and format != "peft":
        raise ConfigError(f"got --no-head with --format {format}; only --format peft can leave the head out.")
    banks.needed_task(bank, task)
    opened = banks.open_bank(bank, "cpu")
    opened.export(task, format, to, **({} if head else {"head": False}))
    typer.echo(f"{task} written to {to}")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FROM", help="A file of a bank, or a LoRA folder of peft.")],
    name: Annotated[str | None, typer.Option(help="In place of the one in the file.")] = None,
    bank: options.Bank = options.DEFAULT_BANK,
) -> None:
    """Adds a task from a file, made on the same backbone, to a bank."""
    with banks.changing(bank) as opened:
        task = opened.import_task(file, name=name)
        typer.echo(f"{task.name} ({task.method}, {amount(len(task.labels), 'class')}) added to {bank}")


def remove(
    task: options.NamedTask,
    bank: options.Bank = options.DEFAULT_BANK,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Removes a task from a bank for good."""
    banks.needed_task(bank, task)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"removing {task!r} from {bank} cannot be undone; pass --yes where nobody can be asked.")
        typer.confirm(f"Remove {task!r} from {bank} for good?", abort=True)
    with banks.changing(bank) as opened:
        opened.remove_task(task)
    typer.echo(f"{task} removed from {bank}")
