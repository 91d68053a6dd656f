"""The tasks of a bank: those in memory only, and those of a saved bank that are opened when they are asked for.

A task that was added, imported, renamed or changed is in memory only, and it stays there. Every other task is
unchanged since loading, so that its file says all of it. Such a task is opened when somebody asks for it. The
`resident` of them that were used last stay in memory. When one more is opened, the least recently used goes back to
its file: it is forgotten, and opened again when it is asked for. Two kinds do not go back:

- A task that code outside still holds, whole or in part. It is lent: it stays in memory, so that one name always gives
  one object, and is looked at again when later tasks are opened.
- A task that was changed since it was handed out (trained, given metrics, moved to other tensors). No file has what
  it is now, so from then on it is in memory only.

The bank itself only reads tasks while it answers (`use`). Tasks never handed out cannot have changed and go back
without a check.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import ConfigError, NameTakenError, UnknownNameError
from adapterbank.storage.manifest import save_bank
from adapterbank.storage.marks import is_held, mark
from adapterbank.storage.skeleton import Skeletons
from adapterbank.storage.task_file import SavedTask
from adapterbank.task.spec import Facts, check_name
from adapterbank.task.task import Task
from adapterbank.text import amount

_LOOKS = 4  # lent tasks that are looked at whenever one is opened: many that are held must not make opening slow


class _Opened:
    """A task of a saved bank that is in memory.

    Attributes:
        mark: what it was like when it was handed out; None: it never was.
    """

    def __init__(self, task: Task):
        self.task = task
        self.mark: bytes | None = None

    def was_changed(self) -> bool:
        """Whether it was changed since it was handed out. A task that never was cannot have changed."""
        return self.mark is not None and mark(self.task) != self.mark

    def mark_again(self) -> None:
        """To be called after the bank itself changed the task, which is no reason to keep it in memory."""
        self.mark = self.mark and mark(self.task)


class Shelf(MutableMapping[str, Task]):
    """Tasks by name, in their order. Threads may share it: opening and putting back is one step.

    Reading a task, also by `values()` or `items()`, opens it. It may go back to its file once nobody holds it, unless
    it was changed. Reading names opens no task.

    Args:
        backbone: that tasks are opened for.
        resident: how many unchanged tasks of a saved bank stay in memory; None opens all now, and all stay.

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
        self._opened: OrderedDict[str, _Opened] = OrderedDict()  # the least recently used first
        self._lent: OrderedDict[str, _Opened] = OrderedDict()  # the one that was looked at first comes first
        self._kinds = Skeletons()
        self._lock = threading.RLock()
        if resident is None:
            for name in list(self._tasks):
                self._keep(name)

    def known(self, name: str) -> str:
        """The name itself. Raises UnknownNameError."""
        if not isinstance(name, str) or name not in self._tasks:
            raise UnknownNameError("task", name, self._tasks, "Add it with bank.add_task(name, ...).")
        return name

    def free(self, name: str, advice: str = "choose another name.") -> str:
        """The name itself, which a new task can have. Raises NameTakenError, InvalidNameError."""
        if check_name(name) in self._tasks:
            raise NameTakenError(f"a task {name!r} exists; {advice}")
        return name

    def use(self, name: str) -> Task:
        """The task, to be read and neither changed nor given away. Raises UnknownNameError, StorageError."""
        with self._lock:
            task = self._tasks[self.known(name)]
            return self._open(name, task).task if isinstance(task, SavedTask) else task

    def by_row(self, names: str | Iterable[str], rows: int) -> list[Task]:
        """The task of each row, to be read only: one name for all of them, or one per row; each is looked up once.

        Raises:
            ConfigError: another number of names. UnknownNameError, StorageError.
        """
        if isinstance(names, str) or not isinstance(names, Iterable):
            return [self.use(names)] * rows
        known = [self.known(name) for name in names]
        if len(known) != rows:
            raise ConfigError(
                f"got {amount(len(known), 'task name')} for {amount(rows, 'clip')}, expected one name, or one per clip."
            )
        used = {name: self.use(name) for name in dict.fromkeys(known)}  # once each, as they may go back to their files
        return [used[name] for name in known]

    def __getitem__(self, name: str) -> Task:
        """The task, for the caller to do with as they like. Raises KeyError, StorageError."""
        with self._lock:
            task = self._tasks[name]
            if isinstance(task, Task):
                return task
            opened = self._open(name, task)
            if opened.mark is None:
                opened.mark = mark(opened.task)
            return opened.task if opened.mark else self._keep(name)  # without a mark, a change could get lost

    def _open(self, name: str, file: SavedTask) -> _Opened:
        """The task in memory, now the most recently used; to be called with the lock."""
        if name in self._opened:
            self._opened.move_to_end(name)
            return self._opened[name]
        opened = self._lent.pop(name, None) or _Opened(file.open(self._backbone, self._kinds))
        for lent in list(islice(self._lent, _LOOKS)):
            self._put_back(lent, self._lent.pop(lent))
        self._opened[name] = opened
        while self._limit is not None and len(self._opened) > self._limit:
            self._put_back(*self._opened.popitem(last=False))
        return opened

    def _put_back(self, name: str, opened: _Opened) -> None:
        """Lets a task that was taken off both lists go back to its file, unless that would lose something."""
        if opened.mark is None:
            return
        if is_held(opened):
            self._lent[name] = opened
        elif opened.was_changed():
            self._tasks[name] = opened.task

    def _keep(self, name: str) -> Task:
        """From now on the task is in memory only; returns it."""
        task = self._tasks[name]
        if isinstance(task, SavedTask):
            opened = self._in_memory(name)
            self[name] = task = opened.task if opened else task.open(self._backbone, self._kinds)
        return task

    def _in_memory(self, name: str) -> _Opened | None:
        return self._opened.get(name) or self._lent.get(name)

    def _keep_changed(self) -> None:
        """From now on every task that was changed is in memory only, whether somebody holds it or not."""
        for name, opened in [*self._opened.items(), *self._lent.items()]:
            if opened.was_changed():
                self._keep(name)

    def __setitem__(self, name: str, task: Task) -> None:
        with self._lock:
            self._forget(name)
            self._tasks[name] = task

    def __delitem__(self, name: str) -> None:
        with self._lock:
            self._forget(name)
            del self._tasks[name]

    def _forget(self, name: str) -> None:
        self._opened.pop(name, None)
        self._lent.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._tasks))  # another thread may add or remove one meanwhile

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"Shelf({list(self._tasks)})"

    def copy(self) -> dict[str, Task]:
        """All tasks as a dict of its own, which holds them."""
        return dict(self.items())

    def rename(self, name: str, new_name: str) -> None:
        """Gives a task another name; its place stays. Raises UnknownNameError, NameTakenError, InvalidNameError."""
        with self._lock:
            self.known(name)
            self.free(new_name)
            task = self._keep(name)
            task.rename(new_name)
            self._tasks = {new_name if key == name else key: value for key, value in self._tasks.items()}

    def relabel(self, name: str, new_names: Mapping[str, str]) -> None:
        """Gives classes of a task other names. Raises UnknownNameError, LabelsError; the task is then as it was."""
        with self._lock:
            self.facts(name).spec.relabelled(new_names)  # refused before the task stays in memory for it
            self._keep(name).relabel(new_names)

    def record(self, name: str, metrics: Mapping[str, float]) -> None:
        """Notes metrics of a task, also if it goes back to its file meanwhile; ignored if it was removed."""
        with self._lock:
            if name not in self._tasks:
                return
            opened = self._in_memory(name)
            if opened and opened.was_changed():
                self._keep(name)
            task = self._tasks[name]
            if isinstance(task, Task):
                task.record(metrics)
                return
            self._tasks[name] = replace(task, metrics=dict(metrics))
            if opened:
                opened.task.record(metrics)
                opened.mark_again()

    def facts(self, name: str) -> Facts:
        """What is known of a task without opening it. Raises UnknownNameError, StorageError."""
        with self._lock:  # a save in another thread replaces the files, then removes the old ones
            task, opened = self._tasks[self.known(name)], self._in_memory(name)
            return (opened.task if opened and opened.mark else task).facts()  # handed out: it may have changed

    def all_facts(self) -> list[Facts]:
        """`facts` of every task, as they are at one moment. Raises StorageError."""
        with self._lock:
            return [self.facts(name) for name in self]

    def to(self, backbone: Backbone) -> None:
        """Moves all tasks in memory to a backbone's device, and opens the others for it from now on."""
        with self._lock:
            self._backbone = backbone
            self._keep_changed()
            for task in self._tasks.values():
                if isinstance(task, Task):
                    task.to(backbone.device)
            for opened in (*self._opened.values(), *self._lent.values()):
                opened.task.to(backbone.device)
                opened.mark_again()

    def save(self, folder: Path) -> None:
        """Writes a bank, as `save_bank` says. The file of a task that is unchanged since loading is copied."""
        with self._lock:
            self._keep_changed()
            tasks = dict(self._tasks)

        def on_written(files: Mapping[str, SavedTask]) -> None:
            """The files of this very bank may be others now, and the old ones are about to be removed."""
            with self._lock:
                for name, file in files.items():
                    was, now = tasks[name], self._tasks.get(name)
                    if isinstance(was, SavedTask) and isinstance(now, SavedTask) and was.folder.samefile(file.folder):
                        since = None if now.metrics is was.metrics else now.metrics
                        self._tasks[name] = replace(file, metrics=since)

        save_bank(folder.absolute(), self._backbone, tasks, on_written)

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are spawned. Locks cannot be sent, and what can be opened there need not be; a task that
        was changed or is held goes along, so that whoever is sent with it still has the bank's own task there."""
        with self._lock:
            sent = dict(self._tasks)
            for name, opened in (*self._opened.items(), *self._lent.items()):
                if opened.mark is not None and (is_held(opened) or opened.was_changed()):
                    sent[name] = opened.task
            state = {**self.__dict__, "_tasks": sent}
        return {key: value for key, value in state.items() if key not in ("_lock", "_opened", "_lent")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock(), _opened=OrderedDict(), _lent=OrderedDict())
