"""How commands answer: a table for a person, JSON or CSV for a program; and which clips failed."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO, TypeVar, cast

import typer

from adapterbank.errors import ConfigError
from adapterbank.text import amount

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Record = Mapping[str, Any]
FAILED = 1  # exit code where some clips failed
WIDTH = 120  # of tables that go to a file or another program, which has no width


class Outcome(Protocol):
    """A file and, if it failed, why."""

    @property
    def file(self) -> Path: ...
    @property
    def error(self) -> Exception | None: ...


Answer = TypeVar("Answer", bound=Outcome)


@dataclass(frozen=True)
class Form:
    """Where to and how: `kind` is "table", "json" or "csv"; without a file it is printed."""

    kind: str
    file: Path | None = None

    @classmethod
    def of(cls, as_json: bool, as_csv: bool, output: Path | None = None, others: Sequence[str] = ()) -> Form:
        """From the options of a command.

        Args:
            others: suffixes of files that this command writes beside .json and .csv.

        Raises:
            ConfigError: two formats at once, or a file whose name says none.
        """
        if as_json and as_csv:
            raise ConfigError("got --json and --csv; choose one.")
        if as_json or as_csv:
            return cls("json" if as_json else "csv", output)
        if output is None:
            return cls("table")
        if not output.expanduser().parent.is_dir():
            raise ConfigError(f"the folder of --output {output} does not exist; make it first.")
        known = (".json", ".csv", *others)
        if output.suffix.lower() not in known:
            raise ConfigError(f"got --output {output}, expected a name that ends in {', '.join(known)}.")
        return cls(output.suffix.lower().lstrip("."), output)


def console() -> Console:
    """For tables: as wide as the terminal. What it prints stays as it is: "[red]" may be the name of a class."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; what does not fit a column is folded, because a name that is cut is no name."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return made


def print_table(made: Table, title: str | None = None) -> None:
    """A table under a line that says what it shows."""
    out = console()
    if title is not None:
        out.print(title, soft_wrap=True)
    out.print(made)


def write(records: Iterable[Record], form: Form, columns: Sequence[str]) -> None:
    """JSON or CSV, record by record: nothing is kept.

    Args:
        columns: of the CSV. What else a record has is for JSON only.
    """
    with _opened(form.file) as out:
        if form.kind == "json":
            _write_json(records, out)
        else:
            writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            for record in records:
                writer.writerow(record)
    if form.file is not None:
        typer.echo(f"written to {form.file}", err=True)


def _write_json(records: Iterable[Record], out: TextIO) -> None:
    before = "[\n"
    for record in records:
        out.write(before + json.dumps(record, ensure_ascii=False))
        before = ",\n"
    out.write("[]\n" if before == "[\n" else "\n]\n")


@contextmanager
def _opened(file: Path | None) -> Iterator[TextIO]:
    if file is None:
        yield sys.stdout
        return
    from adapterbank.files import open_atomically

    try:
        with open_atomically(file.expanduser()) as handle:
            text = io.TextIOWrapper(cast("IO[bytes]", handle), encoding="utf-8", newline="")
            yield text
            text.flush()
            text.detach()
    except OSError as error:
        raise ConfigError(f"cannot write --output {file}: {error.strerror or error}.") from error


def print_json(record: Any) -> None:
    """One object."""
    typer.echo(json.dumps(record, ensure_ascii=False, indent=2))


class Failures:
    """Counts clips that failed, and names each when it does. `exit()` ends the command if there were any."""

    def __init__(self) -> None:
        self.failed = self.total = 0

    def watch(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """The answers as they are."""
        for answer in answers:
            self.total += 1
            if answer.error is not None:
                self.failed += 1
                typer.echo(f"failed: {message(answer)}", err=True)
            yield answer

    def exit(self) -> None:
        """Raises typer.Exit(1) if a clip failed."""
        if self.failed:
            others = "; the others are answered" if self.failed < self.total else ""
            typer.echo(f"{self.failed} of {amount(self.total, 'clip')} failed{others}.", err=True)
            raise typer.Exit(FAILED)


def message(answer: Outcome) -> str:
    """Why a file failed; it begins with the file."""
    said = str(answer.error)
    return said if str(answer.file) in said else f"{answer.file}: {said}"


def is_watched() -> bool:
    """Whether somebody looks at stderr, where progress is shown."""
    return sys.stderr.isatty()


def progress(items: Iterable[Answer], total: int, what: str, at_least: int = 32) -> Iterator[Answer]:
    """Shows on a terminal how far a command is, on stderr, so that the answers can go to a file."""
    if total < at_least or not is_watched():
        yield from items
        return
    from adapterbank.data.threads import shown

    yield from shown(items, total, what, True)
