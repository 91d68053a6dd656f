"""The command `adapterbank`: which commands there are, and how each of them ends.

Exit codes: 0 all is done; 1 it is done, but some clips failed, each of which is named; 2 nothing was done, because the
command or what it was given is wrong; 130 it was interrupted.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from adapterbank._version import __version__
from adapterbank.cli import answers, judging, managing, recordings, report, training
from adapterbank.cli.words import in_words_of
from adapterbank.errors import AdapterBankError, SkippedClipsWarning

USAGE, INTERRUPTED = 2, 130


class Commands(TyperGroup):
    """The group of commands. An error of ours ends in its message and exit code 2, without a traceback.

    What the library says of its keywords is said of the options of the command. A command that left out clips ends
    with exit code 1, because the library warns of every clip that it leaves out.
    """

    def invoke(self, ctx: Any) -> Any:
        left_out: list[str] = []

        def said(message: object) -> str:
            return in_words_of(self.commands.get(ctx.invoked_subcommand or ""), str(message))

        def show(message: Warning | str, kind: type[Warning], *_: Any) -> None:
            """A line for the person at the terminal, who has no use for the line of code that warns."""
            text = said(message)
            left_out.extend([text] * issubclass(kind, SkippedClipsWarning))
            typer.echo(f"adapterbank: warning: {text}", err=True)

        with warnings.catch_warnings():  # which also brings the way of showing them back
            warnings.simplefilter("always", SkippedClipsWarning)  # the exit code must not depend on a filter
            warnings.showwarning = show  # type: ignore[assignment] # it takes them all
            try:
                answer = super().invoke(ctx)
            except AdapterBankError as error:
                typer.echo(f"adapterbank: {said(error)}", err=True)
                raise typer.Exit(USAGE) from error
            except KeyboardInterrupt as error:
                typer.echo("\nadapterbank: interrupted; the bank on disk is as it was.", err=True)
                raise typer.Exit(INTERRUPTED) from error
        if left_out:
            raise typer.Exit(report.FAILED)
        return answer


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


app = typer.Typer(
    name="adapterbank",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One frozen Audio Spectrogram Transformer, many trained tasks.

    adapterbank train my_task --data clips/      one folder per class in clips/

    adapterbank predict new/ --task my_task      what is in these files?

    Exit codes: 0 done; 1 done, but some clips failed or were left out; 2 wrong usage, nothing was done.
    """


PANELS = {
    "From clips to answers": (training.train, answers.predict, answers.ask, recordings.scan, answers.embed),
    "How good is it?": (judging.check, judging.evaluate, judging.calibrate, judging.compare),
    "What is in a bank": (
        managing.tasks,
        managing.info,
        managing.methods,
        managing.export,
        managing.import_,
        managing.remove,
    ),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(command.__name__.strip("_"), rich_help_panel=panel)(command)


def main() -> None:
    """The entry point of `adapterbank` and `python -m adapterbank`."""
    app(prog_name="adapterbank")
