"""A task as one safetensors file, as a saved bank holds it: written for another bank, and read from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import ConfigError, StorageError
from adapterbank.files import write_atomically
from adapterbank.storage.task_file import load_task, task_bytes
from adapterbank.task.task import Task


def write(task: Task, backbone: Backbone, file: Path) -> None:
    """Writes a task of any method as one file, which `bank.import_task` reads on the same backbone.

    Raises:
        StorageError: the file exists, or cannot be written.
    """
    if file.exists():
        raise StorageError(f"{file} exists; name a new file, or remove it first.")
    try:
        write_atomically(file, task_bytes(task, backbone))
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error}. Nothing was left there.") from error


def reads(path: Path) -> bool:
    """Every file: what is wrong with one that holds no task is said when it is read."""
    return True


def read(path: Path, backbone: Backbone, *, name: str | None = None, **options: Any) -> Task:
    """The task in a file.

    Raises:
        ConfigError: got options, of which a task file needs none. Others as `load_task`.
    """
    if options:
        raise ConfigError(f"got {', '.join(options)} for {path}: that is for folders of peft, a task file has its own.")
    task = load_task(path, backbone)
    if name is not None:
        task.rename(name)
    return task
