"""`scan`: what happens when in a long recording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterbank.cli import banks, options, report
from adapterbank.errors import ConfigError
from adapterbank.text import amount

if TYPE_CHECKING:
    from adapterbank.scanning.result import Scan

COLUMNS = ("task", "label", "onset", "offset", "score")
WRITES = (".csv", ".json", ".txt", ".png")


def scan(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="An audio file of any length.")],
    task: options.ManyTasks = None,
    bank: options.Bank = options.DEFAULT_BANK,
    window: Annotated[float | None, typer.Option(help="Seconds; else the longest clip length of the tasks.")] = None,
    hop: Annotated[float | None, typer.Option(help="Seconds from window to window; else side by side.")] = None,
    threshold: Annotated[
        str,
        typer.Option(
            metavar="P|own",
            help=(
                "Only labels more probable than P; own: of a task with several labels per clip its thresholds, "
                "calibrated or 0.5, and of any other the most likely label, however improbable."
            ),
        ),
    ] = options.OWN,
    min_seconds: Annotated[float, typer.Option(min=0.0, help="Leave out shorter events.")] = 0.0,
    merge_gap: Annotated[float, typer.Option(min=0.0, help="Seconds between events of one label that are one.")] = 0.0,
    device: options.Device = None,
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 32,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output", "-o", help="A file .csv, .json, .txt (labels of Audacity) or .png; may be given several times."
        ),
    ] = None,
) -> None:
    """What all tasks hear when in a recording, in windows.

    Hours of audio need no more memory than a minute. Windows of one label that touch or overlap are one event. Where a
    file breaks, the answer ends there, the reason is told, and the exit code is 1.

    adapterbank scan night.flac --task birds -o night.csv -o night.txt -o night.png
    """
    form = report.Form.of(as_json, as_csv)
    files = output or []
    for file in files:
        if file.suffix.lower() not in WRITES:
            raise ConfigError(f"got --output {file}, expected a name that ends in {', '.join(WRITES)}.")
        if not file.expanduser().parent.is_dir():
            raise ConfigError(f"the folder of --output {file} does not exist; make it first.")
    limit = options.threshold_of(threshold)
    if recording.expanduser().is_dir():
        raise ConfigError(
            f"got the folder {recording}, expected one recording. Scan its files one by one, such as with "
            f'`for f in {recording}/*.wav; do adapterbank scan "$f"; done`; `predict` answers for folders of clips.'
        )
    names = [banks.needed_task(bank, one) for one in task or banks.task_names(banks.needed(bank))]
    opened = banks.open_bank(bank, device, precision=precision, resident=len(names))
    found = opened.scan(
        recording.expanduser(),
        names,
        window=window,
        hop=hop,
        on_error="skip",
        batch_size=batch_size,
        progress=report.is_watched(),
    )
    _report(found, form, files, {"threshold": limit, "min_seconds": min_seconds, "merge_gap": merge_gap})


def _report(found: Scan, form: report.Form, files: list[Path], how: dict[str, Any]) -> None:
    events: list[dict[str, Any]] = [
        {
            **event._asdict(),
            "onset": round(event.onset, 3),
            "offset": round(event.offset, 3),
            "score": round(event.score, 4),
        }
        for event in found.events(**how)
    ]
    for file in files:
        _write(found, file.expanduser(), events, how)
    if form.kind != "table":
        report.write(events, form, COLUMNS)
    elif not files:
        made = report.table(*COLUMNS, right=COLUMNS[2:])
        for event in events:
            times = (f"{event[key]:.2f}" for key in ("onset", "offset"))
            made.add_row(event["task"], event["label"], *times, f"{event['score']:.3f}")
        title = f"{found.recording}: {found.seconds:.1f} s in {amount(len(found), 'window')} of {found.window:g} s"
        report.print_table(made, title)


def _write(found: Scan, file: Path, events: list[dict[str, Any]], how: dict[str, Any]) -> None:
    suffix = file.suffix.lower()
    if suffix == ".txt":
        found.to_audacity(file, **how)
        typer.echo(f"written to {file}", err=True)
    elif suffix == ".png":
        try:
            found.plot(**how).savefig(file)
        except OSError as error:
            raise ConfigError(f"cannot write --output {file}: {error.strerror or error}.") from error
        typer.echo(f"written to {file}", err=True)
    else:
        report.write(events, report.Form(suffix.lstrip("."), file), COLUMNS)
