"""`check`, `evaluate`, `calibrate` and `compare`: how good the data and the tasks are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterbank.cli import banks, options, report
from adapterbank.cli.completion import complete_task
from adapterbank.cli.folders import Folder, checked_part
from adapterbank.errors import ConfigError
from adapterbank.text import amount

if TYPE_CHECKING:
    from adapterbank.bank import AdapterBank
    from adapterbank.data.check import Finding
    from adapterbank.data.folder import FolderDataset
    from adapterbank.evaluation import Evaluation
    from adapterbank.mislabels import Mislabel
    from adapterbank.task.task import Task

FOUND = ("kind", "problem", "file", "label", "split", "detail", "other")

Part = Annotated[
    str, typer.Option("--split", help="test, val or train, split as `train` does; all for every clip of the folder.")
]


def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `train` would be given as --data.")],
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", autocompletion=complete_task, help="Also list clips whose label it doubts."),
    ] = None,
    bank: options.Bank = options.DEFAULT_BANK,
    multilabel: options.Multilabel = None,
    label_separator: options.LabelSeparator = None,
    recursive: options.Recursive = None,
    on_error: options.OnError = "raise",
    device: options.Device = None,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
    output: options.Output = None,
) -> None:
    """What is wrong with a folder of clips, before a training finds it.

    Every clip is decoded once. Unreadable and silent clips, one sound under two labels or in two splits, and classes
    without a training clip are problems; copies, odd lengths and small classes are worth a look. Exit code 1: problems.
    Files that no option reads are an error; with --on-error skip they are named, and all others are checked.
    """
    form = report.Form.of(as_json, as_csv, output)
    name = None if task is None else banks.needed_task(bank, task)
    opened = None if name is None else banks.open_bank(bank, device)
    dataset = Folder(folder, multilabel, label_separator, recursive, on_error).listed()
    suspects: list[Mislabel] = []
    if opened is not None and name is not None:
        from adapterbank.mislabels import probable_mislabels

        readable = dataset.readable(progress=report.is_watched()) if on_error == "skip" else dataset
        suspects = probable_mislabels(opened, name, readable)
    found = dataset.check(suspects=suspects, progress=report.is_watched())
    if form.kind == "table":
        report.console().print(found)
    else:
        report.write((_found(row) for row in found.rows), form, FOUND)
    if not found.ok:
        raise typer.Exit(report.FAILED)


def _found(row: Finding) -> dict[str, Any]:
    texts = {"file": "" if row.file is None else str(row.file), "other": "" if row.other is None else str(row.other)}
    return {key: texts.get(key, getattr(row, key)) for key in FOUND}


def evaluate(
    data: options.Data,
    task: options.OneTask = None,
    bank: options.Bank = options.DEFAULT_BANK,
    split: Part = "test",
    test_fold: options.Fold = None,
    val_fold: options.Fold = None,
    label_separator: options.LabelSeparator = None,
    recursive: options.Recursive = None,
    on_error: options.OnError = "raise",
    device: options.Device = None,
    batch_size: options.BatchSize = 32,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
    output: options.Output = None,
) -> None:
    """Scores of a task on labelled clips.

    By default on the test clips that `adapterbank train` split off the same folder. The bank is not changed.
    """
    form = report.Form.of(as_json, as_csv, output)
    checked_part(split)
    name = banks.needed_task(bank, task)
    opened = banks.open_bank(bank, device)
    folder = Folder(data, None, label_separator, recursive, on_error, test_fold, val_fold)
    part = _part(folder, split, opened.task(name))
    evaluation = _evaluated(opened, name, part, batch_size)
    if form.kind == "table":
        report.print_table(evaluation.table(), f"{name} on {data} ({split})")
        return
    found = {"split": split, **evaluation.to_json()}
    low, high = found["interval"]
    columns = {"task": name, "split": split, "clips": found["clips"], **found["metrics"], "low": low, "high": high}
    report.write([found if form.kind == "json" else columns], form, list(columns))


def calibrate(
    data: options.Data,
    task: options.OneTask = None,
    bank: options.Bank = options.DEFAULT_BANK,
    split: Part = "val",
    test_fold: options.Fold = None,
    val_fold: options.Fold = None,
    label_separator: options.LabelSeparator = None,
    recursive: options.Recursive = None,
    on_error: options.OnError = "raise",
    batch_size: options.BatchSize = 32,
    as_json: options.Json = False,
) -> None:
    """Makes the probabilities of a task mean what they say, and stores that with the task.

    A temperature, and for a task of several labels per clip a threshold for each, are fitted on clips that the task was
    not trained on: the validation clips of `adapterbank train`, unless --split says otherwise.
    """
    checked_part(split)
    name = banks.needed_task(bank, task)
    folder = Folder(data, None, label_separator, recursive, on_error, test_fold, val_fold)
    with banks.changing(bank) as opened:
        part = _part(folder, split, opened.task(name))
        found = opened.calibrate(name, part, batch_size=batch_size)
    record = {"task": name, "clips": len(part), "split": split, **found.to_json()}
    if as_json:
        report.print_json(record)
        return
    text = f"{name}: temperature {found.temperature:.3f}, fitted on {amount(len(part), 'clip')} of {data} ({split})."
    if found.thresholds is not None:
        limits = zip(opened.task(name).labels, found.thresholds, strict=True)
        text += " Thresholds: " + ", ".join(f"{label} {value:.3f}" for label, value in limits) + "."
    report.console().print(text, soft_wrap=True)


def _part(folder: Folder, split: str, task: Task) -> FolderDataset:
    """Clips to test a task on; if it has several labels per clip, they are read so."""
    return replace(folder, multilabel=task.spec.multilabel or None).part(split)


def _evaluated(bank: AdapterBank, name: str, part: FolderDataset, batch_size: int) -> Evaluation:
    from adapterbank.evaluation import evaluate_task

    return evaluate_task(bank.backbone, bank.task(name), part, batch_size=batch_size)


def compare(
    first: options.NamedTask,
    second: Annotated[
        str, typer.Argument(metavar="OTHER", autocompletion=complete_task, help="The task to compare it with.")
    ],
    bank: options.Bank = options.DEFAULT_BANK,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Also test both on the same clips.")] = None,
    split: Part = "test",
    test_fold: options.Fold = None,
    val_fold: options.Fold = None,
    label_separator: options.LabelSeparator = None,
    recursive: options.Recursive = None,
    on_error: options.OnError = "raise",
    device: options.Device = None,
    batch_size: options.BatchSize = 32,
    as_json: options.Json = False,
) -> None:
    """Two tasks side by side, such as two methods on the same clips.

    With --data both are tested on the same clips, and the difference of their scores has a 95% interval: where it
    does not hold 0, the better one is better by more than chance.
    """
    checked_part(split)
    names = [banks.needed_task(bank, name) for name in (first, second)]
    opened = banks.open_bank(bank, device, resident=2)
    facts = [_facts(opened, name) for name in names]
    difference: Mapping[str, Any] | None = None
    if data is not None:
        folder = Folder(data, None, label_separator, recursive, on_error, test_fold, val_fold)
        difference = _tested(opened, names, facts, folder, split, batch_size)
    if as_json:
        report.print_json({"tasks": facts, "difference": difference})
        return
    made = report.table("", *names, right=names)
    for key in dict.fromkeys(key for fact in facts for key in fact if key != "task"):
        made.add_row(key.replace("_", " "), *(_text(fact.get(key)) for fact in facts))
    report.print_table(made)
    if difference is not None:
        text = "{metric}: {a} − {b} = {value:+.3f} (95% interval {low:+.3f} to {high:+.3f}, {heard} of {data})."
        heard = amount(difference["clips"], "clip")
        typer.echo(text.format(a=names[0], b=names[1], data=data, heard=heard, **difference))


def _facts(bank: AdapterBank, name: str) -> dict[str, Any]:
    task = bank.task(name)
    count = task.trainable_parameters()
    return {
        "task": name,
        "method": task.method,
        "options": ", ".join(f"{key}={value}" for key, value in task.spec.options.items()),
        "classes": len(task.labels),
        "parameters": count,
        "percent_of_base": round(100 * count / bank.backbone.num_parameters(), 3),
        "bytes": task.num_bytes(),
        **{metric: round(value, 4) for metric, value in task.metrics.items()},
    }


def _text(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _tested(
    bank: AdapterBank, names: list[str], facts: list[dict[str, Any]], folder: Folder, split: str, batch_size: int
) -> Mapping[str, Any]:
    """Puts what both score on the same clips into `facts`; the difference with its interval.

    Raises:
        ConfigError: the two have other labels, so that no clip can be right for both.
    """
    from adapterbank.evaluation import difference

    one, other = (bank.task(name) for name in names)
    if set(one.labels) != set(other.labels) or one.spec.multilabel != other.spec.multilabel:
        raise ConfigError(
            f"{names[0]!r} and {names[1]!r} have other classes, so no clips can test both. Leave --data out."
        )
    part = _part(folder, split, one)
    first, second = (_evaluated(bank, name, part, batch_size) for name in names)
    for fact, evaluation in zip(facts, (first, second), strict=True):
        fact |= {metric: round(value, 4) for metric, value in evaluation.metrics.items()}
    value, low, high = difference(first, second)
    return {"metric": one.primary_metric, "value": value, "low": low, "high": high, "clips": len(part)}
