"""The bank that a command is about: found and looked into without torch, opened and changed with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterbank.errors import ConfigError, StorageError, UnknownNameError
from adapterbank.text import amount

if TYPE_CHECKING:
    from adapterbank.bank import AdapterBank
    from adapterbank.task.task import Task

DEFAULT = Path("my_bank")
PRECISIONS = ("fp32", "bf16", "int8")
_MANIFEST = "manifest.json"  # as `storage.manifest` calls it, which imports torch


def there_is_a_bank(folder: Path) -> bool:
    """Whether somebody saved a bank in this folder."""
    return folder.expanduser().joinpath(_MANIFEST).is_file()


def task_names(folder: Path) -> list[str]:
    """The names of a bank's tasks; none where there is no bank, or none that can be read. Opening it says why."""
    try:
        content = json.loads(folder.expanduser().joinpath(_MANIFEST).read_text(encoding="utf-8"))
        return [str(name) for name in content["tasks"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def needed(folder: Path) -> Path:
    """The folder itself. Raises StorageError if there is no bank."""
    if not there_is_a_bank(folder):
        raise StorageError(
            f"there is no bank at {folder}. Make one with `adapterbank train NAME --data FOLDER"
            f"{'' if folder == DEFAULT else f' --bank {folder}'}`, or say where yours is with --bank."
        )
    return folder


def check_place(folder: Path) -> None:
    """Whether a bank can be saved here. Raises StorageError: better now than after a training."""
    place = folder.expanduser().absolute()
    there = next(parent for parent in (place, *place.parents) if parent.exists())
    if not there.is_dir():
        raise StorageError(f"got --bank {folder}, but {there} is a file; expected a folder, new or of a bank.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"got --bank {folder}, but nothing can be written in {there}; name another folder.")


def needed_task(folder: Path, name: str | None) -> str:
    """The name of a task that the bank has; without a name that of its only task.

    Raises:
        StorageError: no bank. UnknownNameError: no such task. ConfigError: no name, and not exactly one task.
    """
    names = task_names(needed(folder))
    if name is None:
        if not names:
            raise ConfigError(f"{folder} has no task. Train one with `adapterbank train NAME --data FOLDER`.")
        if len(names) != 1:
            raise ConfigError(f"{folder} has {amount(len(names), 'task')}; say which with --task: {', '.join(names)}.")
        return names[0]
    if names and name not in names:  # without names, opening the bank says what is wrong with it
        raise UnknownNameError("task", name, names, f"`adapterbank tasks --bank {folder}` lists them.")
    return name


def open_bank(folder: Path, device: str | None = None, *, precision: str = "fp32", resident: int = 1) -> AdapterBank:
    """A saved bank, with `resident` of its tasks in memory at a time: the others are opened when they are asked for.

    Args:
        precision: in which the frozen linears are stored and computed: fp32, bf16 or int8.
    """
    from adapterbank.backbone.precision import dtype_of
    from adapterbank.bank import AdapterBank

    dtype = dtype_of(precision, PRECISIONS)
    return AdapterBank.from_pretrained(
        needed(folder), device=device_named(device), base_dtype=dtype, resident=max(1, resident)
    )


def device_named(name: str | None) -> str | None:
    """The name itself. Raises ConfigError for what torch does not know, or does not have here."""
    import torch

    if name is not None:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ConfigError(
                f"got --device {name}, which cannot be used here: {reason}. Leave it out, or cpu."
            ) from error
    return name


@contextmanager
def changing(folder: Path) -> Iterator[AdapterBank]:
    """A saved bank to be changed: saved again after the block, unless it raises. Others who change it wait."""
    from adapterbank.files import lock

    with lock(needed(folder).expanduser() / "bank"):
        bank = open_bank(folder, "cpu")
        yield bank
        bank.save(folder)


def keep(bank: AdapterBank, task: Task, folder: Path, *, replace: bool) -> None:
    """Saves one task of a bank into its folder, beside what others saved there since the bank was opened.

    Raises:
        NameTakenError: another program has saved a task of this name meanwhile, and `replace` is false.
    """
    from adapterbank.bank import AdapterBank
    from adapterbank.errors import NameTakenError
    from adapterbank.files import lock
    from adapterbank.storage.manifest import read_manifest, saved_tasks

    folder = folder.expanduser()
    with lock(folder / "bank"):
        if not there_is_a_bank(folder):
            bank.save(folder)
            return
        tasks: dict[str, Any] = dict(saved_tasks(folder, read_manifest(folder), bank.backbone))
        if task.name in tasks and not replace:
            raise NameTakenError(
                f"{folder} got a task {task.name!r} from another program; use --replace, or another name."
            )
        AdapterBank(bank.backbone, {**tasks, task.name: task}, resident=1).save(folder)
