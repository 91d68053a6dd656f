"""Which formats of other libraries tasks come from and go to: one entry for each, which names the file that does it.

A writer is a function `write(task, backbone, path, **options)`; `WRITERS` has one under the name of each format. A
reader is a module with two functions: `reads(path)` says whether what lies there is of its format, and
`read(path, backbone, *, name, **options)` makes a task of it; `READERS` has the modules. A new format is a new file
beside this one, and its entry there.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import NameTakenError, UnknownNameError
from adapterbank.exchange import own_file, peft_read, peft_write
from adapterbank.task.task import Task

# By the name that `bank.export` takes.
WRITERS: dict[str, Callable[..., None]] = {"peft": peft_write.write, "safetensors": own_file.write}

# Tried in this order: the first whose `reads(path)` is true reads the path. The last takes every file.
READERS = (peft_read, own_file)


def write(task: Task, backbone: Backbone, format: str, path: str | Path, **options: Any) -> None:
    """Writes a task in the format of another library.

    Args:
        options: of the format, see its file.

    Raises:
        UnknownNameError: no such format. ConfigError: the format cannot express the task. StorageError.
    """
    if format not in WRITERS:
        raise UnknownNameError("format", format, WRITERS)
    WRITERS[format](task, backbone, Path(path), **options)


def read(path: Path, backbone: Backbone, taken: Container[str], *, name: str | None = None, **options: Any) -> Task:
    """A task from a file of a saved bank, or from a file or folder of another library.

    Args:
        taken: names that the task cannot have.
        name: in place of the one inside.
        options: of the format, see its file.

    Raises:
        StorageError: it is damaged, or no task. BackboneMismatchError: made for another backbone.
        NameTakenError. Of some formats also ConfigError, LabelsError, InvalidNameError.
    """
    reader = next(reader for reader in READERS if reader.reads(path))
    task = reader.read(path, backbone, name=name, **options)
    if task.name in taken:
        raise NameTakenError(
            f"{path} holds the task {task.name!r}, which exists; rename_task() the one here first, or pass name=..."
        )
    return task
