"""The tasks of a bank: those in memory, and those of a saved bank that are opened when they are asked for.

The bank itself only reads a task while it answers (`use`): such tasks are as their files are, so at most `resident` of
them stay in memory, and the one that was not used for longest is put back. A task that was handed out (`shelf[name]`)
or put in may be trained, changed or held by anybody, in ways that nothing can see from outside: it is the one task of
its name from then on and is never put back.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import ConfigError, NameTakenError, UnknownNameError
from adapterbank.storage import manifest as storage
from adapterbank.storage.skeleton import Skeletons
from adapterbank.storage.task_file import SavedTask
from adapterbank.task.task import Facts, Task, check_name


class Shelf(MutableMapping[str, Task]):
    """Tasks by name, in their order. Threads may share it: opening and putting back is one step.

    `values()`, `items()` and `copy()` hand out every task, and so open all and keep them; names alone open none.

    Args:
        backbone: that tasks are opened for.
        resident: how many tasks that were opened for the bank's own use stay in memory; None opens all now.

    Raises:
        ConfigError: `resident` is no positive integer.
        StorageError: a file is not what its bank's manifest says; raised when the task is opened.
    """

    def __init__(self, backbone: Backbone, tasks: Mapping[str, Task | SavedTask], resident: int | None = None):
        if resident is not None and (type(resident) is not int or resident < 1):
            raise ConfigError(f"got resident={resident!r}, expected None, or how many tasks stay in memory.")
        self._backbone = backbone
        self._tasks: dict[str, Task | SavedTask] = dict(tasks)
        self._limit = resident
        self._opened: OrderedDict[str, Task] = OrderedDict()  # for `use` only; the least recently used first
        self._kinds = Skeletons()
        self._lock = threading.RLock()
        if resident is None:
            for name in self._tasks:
                self[name]

    def known(self, name: str) -> str:
        """The name itself. Raises UnknownNameError."""
        if not isinstance(name, str) or name not in self._tasks:
            raise UnknownNameError("task", name, self._tasks, "Add it with bank.add_task(name, ...).")
        return name

    def use(self, name: str) -> Task:
        """The task, to be read and neither changed nor given away. Raises UnknownNameError, StorageError."""
        with self._lock:
            task = self._tasks[self.known(name)]
            if isinstance(task, Task):
                return task
            if name in self._opened:
                self._opened.move_to_end(name)
            else:
                self._opened[name] = task.open(self._backbone, self._kinds)
                while self._limit is not None and len(self._opened) > self._limit:
                    self._opened.popitem(last=False)
            return self._opened[name]

    def by_row(self, names: str | Iterable[str], rows: int) -> list[Task]:
        """The task of each row, to be read only: one name for all of them, or one per row; each is looked up once.

        Raises:
            ConfigError: another number of names. UnknownNameError, StorageError.
        """
        if isinstance(names, str) or not isinstance(names, Iterable):
            return [self.use(names)] * rows
        known = [self.known(name) for name in names]
        if len(known) != rows:
            raise ConfigError(f"got {len(known)} task names for {rows} clips, expected one name, or one per clip.")
        used = {name: self.use(name) for name in dict.fromkeys(known)}  # once each, as they may be put back
        return [used[name] for name in known]

    def __getitem__(self, name: str) -> Task:
        """The task for good. Raises KeyError, StorageError."""
        with self._lock:
            task = self._tasks[name]
            if isinstance(task, SavedTask):
                known = self._opened.pop(name, None)
                task = self._tasks[name] = task.open(self._backbone, self._kinds) if known is None else known
            return task

    def __setitem__(self, name: str, task: Task) -> None:
        with self._lock:
            self._opened.pop(name, None)
            self._tasks[name] = task

    def __delitem__(self, name: str) -> None:
        with self._lock:
            self._opened.pop(name, None)
            del self._tasks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"Shelf({list(self._tasks)})"

    def copy(self) -> dict[str, Task]:
        """All tasks as a dict of its own."""
        return dict(self.items())

    def rename(self, name: str, new_name: str) -> None:
        """Gives a task another name; its place stays. Raises UnknownNameError, NameTakenError, InvalidNameError."""
        with self._lock:
            self.known(name)
            if check_name(new_name) in self._tasks:
                raise NameTakenError(f"a task {new_name!r} exists; choose another name.")
            task = self[name]
            task.spec = task.spec.renamed(new_name)
            self._tasks = {new_name if key == name else key: value for key, value in self._tasks.items()}

    def record(self, name: str, metrics: dict[str, float]) -> None:
        """Notes metrics of a task, also if it is put back meanwhile; ignored if it is gone."""
        with self._lock:
            task = self._tasks.get(name)
            if isinstance(task, SavedTask):
                self._tasks[name] = replace(task, metrics=metrics)
                task = self._opened.get(name)
            if task is not None:
                task.metrics = metrics

    def facts(self, name: str) -> Facts:
        """What is known of a task without opening it. Raises UnknownNameError, StorageError."""
        with self._lock:  # a save in another thread replaces the files, then removes the old ones
            return self._tasks[self.known(name)].facts()

    def to(self, backbone: Backbone) -> None:
        """Moves all tasks in memory to a backbone's device, and opens the others for it from now on."""
        with self._lock:
            self._backbone = backbone
            for task in (*self._tasks.values(), *self._opened.values()):
                if isinstance(task, Task):
                    task.to(backbone.device)

    def save(self, folder: Path) -> None:
        """Writes a bank, as `storage.save_bank` says. What is not in memory is copied from where it is."""
        with self._lock:
            tasks = dict(self._tasks)

        def written(files: Mapping[str, SavedTask]) -> None:
            """The files of this very bank may be others now, and the old ones are about to be removed."""
            with self._lock:
                for name, file in files.items():
                    was, now = tasks[name], self._tasks.get(name)
                    if isinstance(was, SavedTask) and isinstance(now, SavedTask) and was.folder.samefile(file.folder):
                        since = None if now.metrics is was.metrics else now.metrics
                        self._tasks[name] = replace(file, metrics=since)

        storage.save_bank(folder.absolute(), self._backbone, tasks, written)

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are spawned: locks cannot be sent, and what can be opened there need not be."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock(), _opened=OrderedDict())
