"""`predict`, `ask` and `embed`: answers about files of any number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterbank.cli import banks, options, report
from adapterbank.errors import UnknownNameError
from adapterbank.text import amount

if TYPE_CHECKING:
    from rich.table import Table

    from adapterbank.serving.files import FileAnswer
    from adapterbank.task.task import Prediction

NONE = "none"  # what a table shows of a clip that has no label by the threshold
DIGITS = 4  # of a probability
BAR = 20  # characters of a bar that stands for a probability of 1

Top = Annotated[int, typer.Option(min=1, help="How many classes of each clip.")]


def predict(
    clips: options.Clips,
    task: options.OneTask = None,
    bank: options.Bank = options.DEFAULT_BANK,
    top: Top = 3,
    threshold: options.Threshold = None,
    device: options.Device = None,
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 16,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
    output: options.Output = None,
) -> None:
    """What one task says of files: its most probable classes, or with --threshold the labels that a clip has.

    adapterbank predict dog.wav
    adapterbank predict recordings/ --task birds --csv > birds.csv

    A clip that has no label by the threshold is "none" in a table, and empty in CSV and JSON.
    """
    form = report.Form.of(as_json, as_csv, output)
    name = banks.needed_task(bank, task)
    _answer(clips, [name], bank, top, threshold, device, precision, batch_size, form)


def ask(
    clips: options.Clips,
    task: options.ManyTasks = None,
    bank: options.Bank = options.DEFAULT_BANK,
    top: Top = 3,
    threshold: options.Threshold = None,
    device: options.Device = None,
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 16,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
    output: options.Output = None,
) -> None:
    """What all tasks of the bank say of files, at once.

    What the tasks have in common is computed once. CSV and JSON have one entry for each file and task.
    """
    form = report.Form.of(as_json, as_csv, output)
    names = [banks.needed_task(bank, one) for one in task or banks.task_names(banks.needed(bank))]
    _answer(clips, list(dict.fromkeys(names)), bank, top, threshold, device, precision, batch_size, form)


def _answer(
    clips: Sequence[str],
    names: Sequence[str],
    folder: Path,
    top: int,
    threshold: str | None,
    device: str | None,
    precision: str,
    batch_size: int,
    form: report.Form,
) -> None:
    from adapterbank.serving.files import answer_files, find_audio

    limit, only_present = options.threshold_of(threshold), threshold is not None
    files = find_audio(clips)
    bank = banks.open_bank(folder, device, precision=precision, resident=len(names))
    tasks = [bank.task(name) for name in names]
    failures = report.Failures()
    answered_files = answer_files(bank.backbone, tasks, files, threshold=limit, batch_size=batch_size)
    answers = report.progress(answered_files, len(files), "answering")
    watched = failures.watch(answers)
    if form.kind == "table":
        answered = [answer for answer in watched if answer.error is None]
        one = str(answered[0].file) if len(answered) == 1 else None
        report.print_table(_table(answered, names, top, only_present), one)
    else:
        report.write(_records(watched, top, only_present), form, _columns(top))
    failures.exit()


def _records(answers: Iterable[FileAnswer], top: int, only_present: bool) -> Iterator[dict[str, Any]]:
    """One per file and task; one for a file that failed."""
    for answer in answers:
        if answer.error is not None:
            yield {"file": str(answer.file), "error": report.message(answer)}
        for name, prediction in answer.predictions.items():
            ranked = _ranked(prediction, top, only_present)
            record: dict[str, Any] = {"file": str(answer.file), "task": name}
            for place, (label, probability) in enumerate(ranked or [("", "")], 1):
                record |= {_numbered("label", place): label, _numbered("probability", place): probability}
            yield record


def _numbered(column: str, place: int) -> str:
    return column if place == 1 else f"{column}_{place}"


def _columns(top: int) -> list[str]:
    ranks = [_numbered(column, place) for place in range(1, top + 1) for column in ("label", "probability")]
    return ["file", "task", *ranks, "error"]


def _ranked(prediction: Prediction, top: int, only_present: bool) -> list[tuple[str, float]]:
    """The most probable classes first.

    Args:
        only_present: only those that the clip has, as `bank.predict` with the same threshold says.
    """
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    shown = [(label, round(value, DIGITS)) for label, value in pairs if not only_present or label in prediction.present]
    return shown[:top]


def _table(answers: Sequence[FileAnswer], names: Sequence[str], top: int, only_present: bool) -> Table:
    if len(answers) == 1:
        return _one_file(answers[0], top, only_present)
    if len(names) > 1:
        return _many_tasks(answers, names, only_present)
    made = report.table("file", "label", "probability", *(["next"] if top > 1 else []), right=["probability"])
    for answer in answers:
        ranked = _ranked(answer.predictions[names[0]], top, only_present)
        first = (ranked[0][0], f"{ranked[0][1]:.3f}") if ranked else (NONE, "")
        others = ", ".join(f"{label} {value:.3f}" for label, value in ranked[1:])
        made.add_row(str(answer.file), *first, *([others] if top > 1 else []))
    return made


def _one_file(answer: FileAnswer, top: int, only_present: bool) -> Table:
    made = report.table("task", "label", "probability", "", right=["probability"])
    for name, prediction in answer.predictions.items():
        shown = name
        ranked = _ranked(prediction, top, only_present)
        for label, value in ranked:
            made.add_row(shown, label, f"{value:.3f}", "█" * round(BAR * value))
            shown = ""
        if not ranked:
            made.add_row(name, NONE)
    return made


def _many_tasks(answers: Sequence[FileAnswer], names: Sequence[str], only_present: bool) -> Table:
    made = report.table("file", *names)
    for answer in answers:
        best = [_ranked(answer.predictions[name], 1, only_present) for name in names]
        made.add_row(str(answer.file), *(f"{one[0][0]} {one[0][1]:.3f}" if one else NONE for one in best))
    return made


def embed(
    clips: options.Clips,
    bank: options.Bank = options.DEFAULT_BANK,
    backbone: Annotated[str | None, typer.Option(help="Another backbone than the bank's; no bank is needed.")] = None,
    pooling: Annotated[str, typer.Option(help="cls_dist, or mean over all tokens.")] = "cls_dist",
    device: options.Device = None,
    batch_size: options.BatchSize = 16,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file .npz, .csv or .json.")] = None,
) -> None:
    """Features of the frozen backbone, one vector per file, with no task.

    Without a bank they are those of ast-mini-2, which comes with the package.
    An .npz has the arrays `files` and `features`, (B,) and (B, D).
    """
    from adapterbank.bank import AdapterBank
    from adapterbank.serving.files import find_audio, over_files
    from adapterbank.task.head import POOLINGS

    form = report.Form.of(as_json, as_csv, output, [".npz"])
    if pooling not in POOLINGS:
        raise UnknownNameError("pooling", pooling, POOLINGS)
    files = find_audio(clips)
    if backbone is None and banks.there_is_a_bank(bank):
        opened = banks.open_bank(bank, device)
    else:
        opened = AdapterBank.from_pretrained(backbone or "ast-mini-2", device=banks.device_named(device))
    failures = report.Failures()
    outcomes = over_files(files, lambda waves: opened.embed(waves, pooling=pooling).tolist(), batch_size=batch_size)
    watched = failures.watch(report.progress(outcomes, len(files), "embedding"))
    records = ({"file": str(o.file), "error": o.error and report.message(o), "features": o.result} for o in watched)
    if form.kind == "npz":
        _write_npz(records, form.file)
    elif form.kind == "table":
        report.print_table(_sizes(records))
    elif form.kind == "json":
        report.write(({k: v for k, v in record.items() if v is not None} for record in records), form, [])
    else:
        width = opened.backbone.geometry.width
        columns = [f"f{i}" for i in range(width)]
        flat = ({**record, **dict(zip(columns, record["features"] or [], strict=False))} for record in records)
        report.write(flat, form, ["file", *columns, "error"])
    failures.exit()


def _write_npz(records: Iterable[dict[str, Any]], file: Path | None) -> None:
    import io

    import numpy as np

    from adapterbank.files import write_atomically

    assert file is not None  # "npz" is known by the name of the file
    answered = [record for record in records if record["features"] is not None]
    content = io.BytesIO()
    features = np.array([record["features"] for record in answered], dtype=np.float32)
    np.savez(content, files=np.array([record["file"] for record in answered]), features=features)
    write_atomically(file.expanduser(), content.getvalue())
    typer.echo(
        f"{amount(len(answered), 'vector')} of {amount(features.shape[-1], 'number')} written to {file}", err=True
    )


def _sizes(records: Iterable[dict[str, Any]]) -> Table:
    made = report.table("file", "numbers", "first three", right=["numbers"])
    for record in records:
        if (found := record["features"]) is not None:
            made.add_row(record["file"], str(len(found)), ", ".join(f"{value:.3f}" for value in found[:3]))
    made.caption = "--output features.npz, --csv or --json give all numbers"
    return made
