"""Tasks from the safetensors files of a saved bank, for another bank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import ConfigError
from adapterbank.storage.task_file import load_task
from adapterbank.task.task import Task


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
