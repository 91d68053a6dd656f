"""`check`, `evaluate`, `calibrate` and `compare`: how good the data and the tasks are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterbank.cli import banks, options, report
from adapterbank.cli.completion import complete_task
from adapterbank.errors import ConfigError

if TYPE_CHECKING:
    from adapterbank.bank import AdapterBank
    from adapterbank.data.check import Finding
    from adapterbank.data.folder import FolderDataset
    from adapterbank.evaluation import Evaluation
    from adapterbank.mislabels import Mislabel

PARTS = ("test", "val", "train", "all")
FOUND = ("kind", "problem", "file", "label", "split", "detail", "other")

Part = Annotated[
    str, typer.Option("--split", help="test, val or train, split as `train` does; all for every clip of the folder.")
]


def part_of(data: Path, split: str, multilabel: bool) -> FolderDataset:
    """One part of a folder, as `adapterbank train` splits it, or all of it."""
    from adapterbank.data import load_folder, standard_splits

    if split not in PARTS:
        raise ConfigError(f"got --split {split}, expected one of {', '.join(PARTS)}.")
    dataset = load_folder(data, multilabel=multilabel or None)
    return (
        dataset if split == "all" else dict(zip(("train", "val", "test"), standard_splits(dataset), strict=True))[split]
    )


def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `train` would be given as --data.")],
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", autocompletion=complete_task, help="Also list clips whose label it doubts."),
    ] = None,
    bank: options.Bank = options.DEFAULT_BANK,
    device: options.Device = None,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
    output: options.Output = None,
) -> None:
    """What is wrong with a folder of clips, before a training finds it.

    Every clip is decoded once. Unreadable and silent clips, one sound under two labels or in two splits, and classes
    without a training clip are problems; copies, odd lengths and small classes are worth a look. Exit code 1: problems.
    """
    from adapterbank.data import load_folder

    form = report.Form.of(as_json, as_csv, output)
    dataset = load_folder(folder)
    suspects: list[Mislabel] = []
    if task is not None:
        from adapterbank.mislabels import probable_mislabels

        suspects = probable_mislabels(banks.open_bank(bank, device), banks.needed_task(bank, task), dataset)
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
    name = banks.needed_task(bank, task)
    opened = banks.open_bank(bank, device)
    part = part_of(data, split, opened.task(name).spec.multilabel)
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
    batch_size: options.BatchSize = 32,
    as_json: options.Json = False,
) -> None:
    """Makes the probabilities of a task mean what they say, and stores that with the task.

    A temperature, and for a task of several labels per clip a threshold for each, are fitted on clips that the task was
    not trained on: the validation clips of `adapterbank train`, unless --split says otherwise.
    """
    name = banks.needed_task(bank, task)
    with banks.changing(bank) as opened:
        part = part_of(data, split, opened.task(name).spec.multilabel)
        found = opened.calibrate(name, part, batch_size=batch_size)
    record = {"task": name, "clips": len(part), "split": split, **found.to_json()}
    if as_json:
        report.print_json(record)
        return
    text = f"{name}: temperature {found.temperature:.3f}, fitted on {len(part)} clips of {data} ({split})."
    if found.thresholds is not None:
        limits = zip(opened.task(name).labels, found.thresholds, strict=True)
        text += " Thresholds: " + ", ".join(f"{label} {value:.3f}" for label, value in limits) + "."
    report.console().print(text, soft_wrap=True)


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
    device: options.Device = None,
    batch_size: options.BatchSize = 32,
    as_json: options.Json = False,
) -> None:
    """Two tasks side by side, such as two methods on the same clips.

    With --data both are tested on the same clips, and the difference of their scores has a 95% interval: where it
    does not hold 0, the better one is better by more than chance.
    """
    names = [banks.needed_task(bank, name) for name in (first, second)]
    opened = banks.open_bank(bank, device, resident=2)
    facts = [_facts(opened, name) for name in names]
    difference = None if data is None else _tested(opened, names, facts, data, split, batch_size)
    if as_json:
        report.print_json({"tasks": facts, "difference": difference})
        return
    made = report.table("", *names, right=names)
    for key in dict.fromkeys(key for fact in facts for key in fact if key != "task"):
        made.add_row(key.replace("_", " "), *(_text(fact.get(key)) for fact in facts))
    report.print_table(made)
    if difference is not None:
        text = "{metric}: {a} − {b} = {value:+.3f} (95% interval {low:+.3f} to {high:+.3f}, {clips} clips of {data})."
        typer.echo(text.format(a=names[0], b=names[1], data=data, **difference))


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
    bank: AdapterBank, names: list[str], facts: list[dict[str, Any]], data: Path, split: str, batch_size: int
) -> Mapping[str, Any]:
    """Puts what both score on the same clips into `facts`; the difference with its interval.

    Raises:
        ConfigError: the two have other labels, so that no clip can be right for both.
    """
    import numpy as np

    one, other = (bank.task(name) for name in names)
    if set(one.labels) != set(other.labels) or one.spec.multilabel != other.spec.multilabel:
        raise ConfigError(
            f"{names[0]!r} and {names[1]!r} have other classes, so no clips can test both. Leave --data out."
        )
    part = part_of(data, split, one.spec.multilabel)
    found = [_evaluated(bank, name, part, batch_size) for name in names]
    for fact, evaluation in zip(facts, found, strict=True):
        fact |= {metric: round(value, 4) for metric, value in evaluation.metrics.items()}
    first, second = found
    draws = np.random.default_rng(0).integers(len(part), size=(1000, len(part)))
    differences = [_score(first, draw) - _score(second, draw) for draw in draws]
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    whole = np.arange(len(part))
    value = _score(first, whole) - _score(second, whole)
    metric = one.primary_metric
    return {"metric": metric, "value": value, "low": float(low), "high": float(high), "clips": len(part)}


def _score(evaluation: Evaluation, rows: Any) -> float:
    """The metric by which tasks are compared, on some of the clips."""
    from adapterbank.evaluation import accuracy, mean_average_precision

    logits, targets = evaluation.logits[rows], evaluation.targets[rows]
    if targets.ndim == 2:
        return float(mean_average_precision(logits.sigmoid(), targets.long()))
    return float(accuracy(logits, targets))
