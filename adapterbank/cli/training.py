"""`train`: from a folder of clips to a task in a bank, tested on clips that it never saw."""

from __future__ import annotations

import ast
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterbank.cli import banks, options, report
from adapterbank.cli.folders import Folder
from adapterbank.errors import ConfigError, NameTakenError
from adapterbank.text import amount

if TYPE_CHECKING:
    from rich.table import Table

    from adapterbank.bank import AdapterBank
    from adapterbank.cli.folders import Splits
    from adapterbank.data.folder import FolderDataset
    from adapterbank.evaluation import Evaluation
    from adapterbank.training.tracked import TrackedTask

MODEL, TRAINING = (partial(typer.Option, rich_help_panel=panel) for panel in ("Model", "Training"))


def train(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the new task shall be called.")],
    data: options.Data,
    bank: options.Bank = options.DEFAULT_BANK,
    method: options.Method = "aat_ms",
    method_option: Annotated[
        list[str] | None,
        MODEL(metavar="KEY=VALUE", help="Of the method, such as ratio=0.5; prompt.tokens=24 for a part."),
    ] = None,
    backbone: Annotated[
        str | None, MODEL(help="Of a new bank: ast-mini-2, an AST of Hugging Face, or a file or folder.")
    ] = None,
    clip_seconds: Annotated[float | None, MODEL(help="Pad shorter clips to this length.")] = None,
    multilabel: options.Multilabel = None,
    test_fold: options.Fold = None,
    val_fold: options.Fold = None,
    label_separator: options.LabelSeparator = None,
    recursive: options.Recursive = None,
    on_error: options.OnError = "raise",
    epochs: Annotated[int | None, TRAINING(help="Passes over the clips.")] = None,
    steps: Annotated[int | None, TRAINING(help="At most so many steps.")] = None,
    lr: Annotated[float | None, TRAINING(help="Highest learning rate.")] = None,
    batch_size: Annotated[int | None, TRAINING(help="Clips per step.")] = None,
    seed: Annotated[int, TRAINING(help="Of the training. The split of the clips does not change with it.")] = 0,
    device: options.Device = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow/--no-mlflow", help="Log to MLflow (mlflow.db here, or MLFLOW_TRACKING_URI).")
    ] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Train a task anew that the bank has.")] = False,
    as_json: options.Json = False,
) -> None:
    """Trains a new task on a folder of clips and tests it.

    What is not said has good defaults. The clips are split into training, validation and test as the folder says, or
    70%, 15% and 15%. The bank is made if there is none. Ctrl-C leaves it as it was.
    """
    if name in banks.task_names(bank) and not replace:
        raise NameTakenError(f"{bank} has a task {name!r}; pass --replace to train it anew, or choose another name.")
    model = {"method": method, "clip_seconds": clip_seconds, "seed": seed, **options_of(method_option or [])}
    given = {"seed": seed, "epochs": epochs, "steps": steps, "lr": lr, "batch_size": batch_size}
    fit_options = {key: value for key, value in given.items() if value is not None}
    folder = Folder(data, multilabel, label_separator, recursive, on_error, test_fold, val_fold)
    opened = _checked(name, model, fit_options, folder, bank, backbone, device)
    splits = folder.splits()
    say: Callable[..., None] = _silent if as_json else report.console().print
    several, count = splits[0].multilabel, len(splits[0].labels)
    classes = f"{amount(count, 'label')}, several per clip" if several else amount(count, "class")
    say(f"{data}: {amount(sum(map(len, splits)), 'clip')}, {classes}", soft_wrap=True)
    say(_found(splits))
    task = opened.add_task(name, labels=splits[0].labels, multilabel=splits[0].multilabel, **model)
    say(
        f"{name}: {method} trains {task.trainable_parameters():,} numbers "
        f"({100 * task.trainable_parameters() / opened.backbone.num_parameters():.2f}% of {opened.backbone.source}) "
        f"on {opened.backbone.device}."
    )
    evaluation, link = _train_and_test(opened, name, splits, fit_options, mlflow=mlflow, progress=not as_json)
    banks.keep(opened, task, bank, replace=replace)
    _report(say, opened, name, bank, splits, evaluation, link)
    if as_json:
        sizes = dict(zip(("train", "val", "test"), map(len, splits), strict=True))
        found = {**evaluation.to_json(), "method": method, "bank": str(bank), "clips": sizes, "mlflow": link}
        report.print_json(found)


def _silent(*_: Any, **__: Any) -> None:
    """In place of printing, where only JSON may stand on stdout."""


def options_of(given: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` as keywords of `add_task`; `PART.KEY=VALUE` for one part of a composition.

    Values are read as Python writes them: 0.5, True, [0, 1]. Everything else is text.

    Raises:
        ConfigError: no "=", or a key twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"got --method-option {text}, expected KEY=VALUE, such as ratio=0.5.")
        part, dot, own = key.rpartition(".")
        place = found.setdefault(part, {}) if dot else found
        if not isinstance(place, dict) or own in place:
            raise ConfigError(f"got --method-option {key} twice; give it once.")
        place[own] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _checked(
    name: str,
    model: Mapping[str, Any],
    fit_options: Mapping[str, Any],
    folder: Folder,
    bank: Path,
    backbone: str | None,
    device: str | None,
) -> AdapterBank:
    """The bank, without a task of this name, once all that can be checked before clips are read has been checked.

    Args:
        model: arguments of `add_task`. fit_options: of `fit`.

    Raises:
        AdapterBankError: of any kind. Nothing was read of the clips, and nothing was written.
    """
    from adapterbank.task.spec import check_name
    from adapterbank.training.fit import options_of_fit

    check_name(name)
    options_of_fit(fit_options)
    folder.check()
    banks.check_place(bank)
    opened = _opened(bank, backbone, device)
    if name in opened.tasks:
        opened.remove_task(name)
    opened.add_task(name, labels=("one", "other"), **model)  # a trial: the classes are not known yet
    opened.remove_task(name)
    return opened


def _found(splits: Splits) -> Table:
    """Which classes, and how many clips of each in which part."""
    counts = [Counter(_labels(part)) for part in splits]
    labels = splits[0].labels
    made = report.table(
        "class", "train", "val", "test", right=["train", "val", "test"],
    )  # fmt: skip
    for label in labels:
        made.add_row(label, *(str(count[label]) for count in counts))
    made.add_section()
    made.add_row("all", *(str(len(part)) for part in splits))
    return made


def _labels(part: FolderDataset) -> list[str]:
    return [label for target in part.targets for label in ((target,) if isinstance(target, str) else target)]


def _opened(folder: Path, backbone: str | None, device: str | None) -> AdapterBank:
    """The bank of this folder, or a new one. Raises ConfigError if it is on another backbone than was asked for."""
    from adapterbank.bank import AdapterBank

    device = banks.device_named(device)
    if not banks.there_is_a_bank(folder):
        return AdapterBank.from_pretrained(backbone or "ast-mini-2", device=device)
    opened = AdapterBank.from_pretrained(folder, device=device, resident=1)
    if backbone is not None and backbone != opened.backbone.source:
        raise ConfigError(
            f"{folder} is a bank on {opened.backbone.source}, not on {backbone}; all tasks of a bank share its "
            "backbone. Leave --backbone out, or name another --bank."
        )
    return opened


def _train_and_test(
    bank: AdapterBank, name: str, splits: Splits, fit_options: Mapping[str, Any], *, mlflow: bool, progress: bool
) -> tuple[Evaluation, str | None]:
    """Trains, tests and tracks; the evaluation on the test clips, and where MLflow shows the run."""
    from adapterbank.evaluation import evaluate_task
    from adapterbank.training.fit import fit

    train, val, test = splits
    with tracked(bank, name, splits, on=mlflow) as (run, link):
        callbacks = [] if run is None else [run]
        fit(bank, name, train, val, progress=progress, callbacks=callbacks, **fit_options)
        evaluation = evaluate_task(bank.backbone, bank.task(name), test)
        bank.task(name).record(evaluation.metrics)
        if run is not None:
            run.log_test(evaluation)
    return evaluation, link


@contextmanager
def tracked(
    bank: AdapterBank, name: str, splits: Splits, *, on: bool
) -> Iterator[tuple[TrackedTask | None, str | None]]:
    """The run of this training in MLflow and how to look at it; None and None if MLflow is off or fails."""
    tracker = None
    if on:
        try:
            from adapterbank.tracking.mlflow import Tracker

            tracker = Tracker()
        except Exception as error:  # whatever kind MLflow raises: a lost log must not cost a training
            text = f"MLflow failed: {error!r}. The training goes on without it."
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    if tracker is None:
        yield None, None
        return
    data = dict(zip(("train", "val", "test"), splits, strict=True))
    tags = {"strategy": "adapterbank train"}
    with tracker.task(bank, name, data=data, tags=tags, show_link=False) as run:
        yield run, tracker.how_to_open()


def _report(
    say: Callable[..., None],
    bank: AdapterBank,
    name: str,
    folder: Path,
    splits: Splits,
    evaluation: Evaluation,
    link: str | None,
) -> None:
    """The score on clips that the task never saw, and the next command to type."""
    task = bank.task(name)
    low, high = evaluation.interval
    score = evaluation.metrics[task.primary_metric]
    say(
        f"test: {task.primary_metric} {score:.3f} (95% interval {low:.3f} to {high:.3f}, "
        f"{amount(len(splits[2]), 'clip')})."
    )
    say(f"saved: task {name!r} in {folder}.")
    if link is not None:
        say(f"MLflow: {link}", soft_wrap=True)
    where = [] if folder == options.DEFAULT_BANK else ["--bank", str(folder)]
    command = shlex.join(["adapterbank", "predict", str(splits[2].files[0]), "--task", name, *where])
    say(f"next: {command}", soft_wrap=True)
