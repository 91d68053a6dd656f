"""A bank on disk: `manifest.json` and one safetensors file per task. Atomic to write, verified to read.

A task file is named by its content (`tasks/<name>.<sha>.safetensors`). One that has the right content is never written
again; a damaged one is replaced. The manifest is replaced last, in one step, and decides which files count. So a save
that dies at any moment leaves the old bank or the whole new one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints import another_stride, at_its_stride, load_backbone
from adapterbank.errors import AdapterBankError, BackboneError, StorageError
from adapterbank.files import MiB, read_json, sha256, sync_folder, write_atomically
from adapterbank.storage.skeleton import Skeletons
from adapterbank.storage.task_file import FORMAT_VERSION, SavedTask, call_of, check_fingerprint, read_bytes, task_bytes
from adapterbank.task.spec import check_name
from adapterbank.task.task import Task

FORMAT = "adapterbank"
MANIFEST = "manifest.json"
_LIMIT = 1024 * MiB  # of the manifest; a task takes about 1 KiB of it, and 10 with the 527 labels of AudioSet

_WRITTEN = re.compile(r"[a-z0-9][a-z0-9._-]*\.[0-9a-f]{12}\.safetensors")  # a name of ours: never delete others' files
_FILE = re.compile(r"tasks/[a-z0-9][a-z0-9._-]*\.safetensors")


def save_bank(
    folder: Path,
    backbone: Backbone,
    tasks: Mapping[str, Task | SavedTask],
    on_written: Callable[[Mapping[str, SavedTask]], None] = lambda _: None,
) -> None:
    """Writes all tasks, then the manifest, then removes task files that no longer count.

    Args:
        tasks: a saved one is verified and copied byte for byte; if it stays where it is, only its size is checked.
        on_written: is told what the folder holds now, before files are removed.

    Raises:
        StorageError: the folder cannot be written, or holds something else than a bank; a saved task is missing, cut or
            tampered with.
    """
    which = "as it was"
    try:
        (folder / "tasks").mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).exists():
            read_manifest(folder)  # never write over a file that is not ours
        kinds = Skeletons()
        entries = {name: _write(folder, task, backbone, kinds) for name, task in tasks.items()}
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "backbone": _described(backbone),
            "tasks": entries,
        }
        manifest["digest"] = _digest_of(manifest)
        sync_folder(folder / "tasks")  # the manifest must not be there before the files that it names
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode(), sync=False)
        which = "the new one"
        sync_folder(folder)  # and the files that the old one names must be there until the new one is
        on_written({name: SavedTask(folder, name, entry) for name, entry in entries.items()})
        current = {entry["file"] for entry in entries.values()}
        for file in (folder / "tasks").iterdir():
            if _WRITTEN.fullmatch(file.name) and f"tasks/{file.name}" not in current:
                file.unlink()
    except OSError as error:
        if isinstance(error, AdapterBankError):
            raise
        raise StorageError(f"cannot save the bank to {folder}: {error}. The bank there is {which}.") from error


def _described(backbone: Backbone) -> dict[str, Any]:
    """How to open the backbone again, and its fingerprint."""
    described: dict[str, Any] = {"source": backbone.source, "fingerprint": backbone.fingerprint}
    return described if backbone.stride is None else {**described, "stride": backbone.stride}


def open_backbone(
    folder: Path, manifest: Mapping[str, Any], name: str | Path | None = None, *, stride: int | None = None
) -> Backbone:
    """The backbone of a saved bank, at the stride that it was saved with.

    Args:
        name: where it is now, in place of where the manifest says.
        stride: what the caller expects; None: whatever it is. Where the manifest says another, nothing is opened.

    Raises:
        BackboneError: it cannot be opened. ConfigError: it has another stride.
    """
    source, saved = manifest["backbone"]["source"], manifest["backbone"].get("stride")
    if None not in (stride, saved) and stride != saved:
        raise another_stride(stride, source, saved)
    try:
        backbone = load_backbone(name or source, stride=saved)
    except BackboneError as error:
        if name is not None:
            raise
        raise BackboneError(
            f"the bank in {folder} was made on {call_of(source, saved)}, which fails here: {error} "
            f"If it is elsewhere now, call AdapterBank.load({str(folder)!r}, backbone=<its path, or a Backbone>)."
        ) from error
    return at_its_stride(backbone, stride)


def _write(folder: Path, task: Task | SavedTask, backbone: Backbone, kinds: Skeletons) -> dict[str, Any]:
    """Makes sure that a task is in the folder; its entry in the manifest."""
    if isinstance(task, SavedTask) and task.metrics is not None:
        task = task.open(backbone, kinds)  # they stand in the file, too
    if isinstance(task, SavedTask):
        task.check()
        digest = task.entry["sha256"]
        file = _file(task.name, digest)
        if not ((folder / file).exists() and (folder / file).samefile(task.path)):
            _put(folder / file, task.content(), digest)
        return {**task.entry, "file": file}
    content = task_bytes(task, backbone)
    digest = sha256(content)
    file = _file(task.name, digest)
    _put(folder / file, content, digest)
    return {
        "file": file,
        "bytes": len(content),
        "sha256": digest,
        "parameters": task.trainable_parameters(),
        "spec": task.spec.to_json(),
        "metrics": task.metrics,
    }


def _file(name: str, digest: str) -> str:
    return f"tasks/{name}.{digest[:12]}.safetensors"


def _put(path: Path, content: bytes, digest: str) -> None:
    """Writes a file unless it is there with this content."""
    same_size = path.exists() and path.stat().st_size == len(content)
    if not same_size or sha256(read_bytes(path)) != digest:
        write_atomically(path, content, sync=False)  # the folder is synced after the last


def read_manifest(folder: Path) -> dict[str, Any]:
    """The verified manifest of a saved bank.

    Raises:
        StorageError: absent, damaged, changed by hand, or of a newer format.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path, StorageError, "Restore the file from a copy.", _LIMIT)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise StorageError(
            f"there is no bank at {folder}: {MANIFEST} is missing. Save one with bank.save()."
        ) from error
    if manifest.get("format") != FORMAT:
        raise StorageError(f"{path} is no manifest of a bank (its 'format' is not {FORMAT!r}).")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise StorageError(f"{path} has format version {version!r}, this release reads {FORMAT_VERSION}; upgrade.")
    if manifest.pop("digest", None) != _digest_of(manifest):
        raise StorageError(f"{path} was changed or damaged after it was saved: its digest does not fit.")
    try:  # a digest can be computed anew by whoever edits the file
        complete = (
            all(isinstance(manifest["backbone"][key], str) for key in ("source", "fingerprint"))
            and isinstance(manifest["backbone"].get("stride"), int | None)
            and all(
                isinstance(entry["file"], str) and {"bytes", "sha256"} <= entry.keys()
                for entry in manifest["tasks"].values()
            )
        )
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise StorageError(f"{path} lacks the backbone, or a task's file, bytes or sha256. Restore it from a copy.")
    return manifest


def saved_tasks(folder: Path, manifest: Mapping[str, Any], backbone: Backbone) -> dict[str, SavedTask]:
    """All tasks of a manifest, none of them opened: their files are there and have the right sizes.

    Raises:
        StorageError: a file is missing or cut.
        BackboneMismatchError: the bank belongs to another backbone.
    """
    made_on = call_of(manifest["backbone"]["source"], manifest["backbone"].get("stride"))
    check_fingerprint(manifest["backbone"]["fingerprint"], backbone, f"the bank in {folder}, saved on {made_on},")
    tasks = {}
    folder = folder.absolute()  # opened later, when the working directory may be another
    for name, entry in manifest["tasks"].items():
        if not _FILE.fullmatch(entry["file"]):
            raise StorageError(f"the manifest in {folder} names the file {entry['file']!r}, expected one in tasks/.")
        tasks[check_name(name)] = SavedTask(folder, name, entry)
        tasks[name].check()
    return tasks


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return sha256(json.dumps(manifest, sort_keys=True).encode())
