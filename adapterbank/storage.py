"""A bank on disk: `manifest.json` and one safetensors file per task. Atomic to write, verified to read.

A task file is named by its content (`tasks/<name>.<sha>.safetensors`) and never overwritten; the manifest, replaced
last in one step, decides which files count. A save that dies at any moment leaves the bank as it was before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from adapterbank import methods
from adapterbank.backbone.checkpoints import Backbone, load_backbone
from adapterbank.errors import AdapterBankError, BackboneError, BackboneMismatchError, StorageError, UnknownNameError
from adapterbank.task import Task, TaskSpec

FORMAT = "adapterbank"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_HEADER = "adapterbank"  # key of our JSON in a safetensors file's metadata
_WRITTEN = re.compile(r"[a-z0-9][a-z0-9._-]*\.[0-9a-f]{12}\.safetensors")  # a name of ours: never delete others' files
_FILE = re.compile(r"tasks/[a-z0-9][a-z0-9._-]*\.safetensors")


def save_bank(folder: Path, backbone: Backbone, tasks: Mapping[str, Task]) -> None:
    """Writes all tasks, then the manifest, then removes task files that no longer count.

    Raises:
        StorageError: the folder cannot be written, or holds something else than a bank.
    """
    try:
        (folder / "tasks").mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).exists():
            read_manifest(folder)  # never write over a file that is not ours
        entries = {name: _write_task(folder, task, backbone) for name, task in tasks.items()}
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "backbone": _described(backbone),
            "tasks": entries,
        }
        manifest["digest"] = _digest_of(manifest)
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
        current = {entry["file"] for entry in entries.values()}
        for file in (folder / "tasks").iterdir():
            if _WRITTEN.fullmatch(file.name) and f"tasks/{file.name}" not in current:
                file.unlink()
    except OSError as error:
        if isinstance(error, AdapterBankError):
            raise
        raise StorageError(f"cannot save the bank to {folder}: {error}. The bank there is as it was.") from error


def _described(backbone: Backbone) -> dict[str, Any]:
    """How to open the backbone again, and its fingerprint."""
    described: dict[str, Any] = {"source": backbone.source, "fingerprint": backbone.fingerprint}
    return described if backbone.stride is None else {**described, "stride": backbone.stride}


def open_backbone(folder: Path, manifest: Mapping[str, Any], name: str | Path | None = None) -> Backbone:
    """The backbone of a saved bank, at its stride.

    Args:
        name: where it is now, in place of where the manifest says.

    Raises:
        BackboneError: it cannot be opened.
    """
    source, stride = manifest["backbone"]["source"], manifest["backbone"].get("stride")
    try:
        return load_backbone(name or source, stride=stride)
    except BackboneError as error:
        if name is not None:
            raise
        raise BackboneError(
            f"the bank in {folder} was made on {_call(source, stride)}, which fails here: {error} "
            f"If it is elsewhere now, call AdapterBank.load({str(folder)!r}, backbone=<its path, or a Backbone>)."
        ) from error


def _call(source: str, stride: int | None) -> str:
    return f"load_backbone({source!r})" if stride is None else f"load_backbone({source!r}, stride={stride})"


def _write_task(folder: Path, task: Task, backbone: Backbone) -> dict[str, Any]:
    content = task_bytes(task, backbone)
    digest = hashlib.sha256(content).hexdigest()
    file = f"tasks/{task.name}.{digest[:12]}.safetensors"
    path = folder / file
    if not path.exists() or path.stat().st_size != len(content) or _sha256(path) != digest:
        write_atomically(path, content)
    return {
        "file": file,
        "bytes": len(content),
        "sha256": digest,
        "parameters": task.trainable_parameters(),
        "spec": task.spec.to_json(),
        "metrics": task.metrics,
    }


def task_bytes(task: Task, backbone: Backbone) -> bytes:
    """One task as the content of a safetensors file that describes itself."""
    return tensor_bytes(task.state_dict(), task, backbone)


def tensor_bytes(tensors: Mapping[str, Tensor], task: Task, backbone: Backbone) -> bytes:
    """Tensors of a task, under whatever names, and its description as the content of a safetensors file."""
    header = {
        "format_version": FORMAT_VERSION,
        "fingerprint": backbone.fingerprint,
        "mean_std": [backbone.mean, backbone.std],  # what normalize="backbone" meant when the task was trained
        "spec": task.spec.to_json(),
        "metrics": task.metrics,
    }
    if task.registered_by:
        header["registered_by"] = task.registered_by  # whoever opens the task without it is told what to import
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return to_safetensors(here, metadata={_HEADER: json.dumps(header, sort_keys=True)})


def write_atomically(path: Path, content: bytes) -> None:
    """Readers see the old file or the whole new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The verified manifest of a saved bank.

    Raises:
        StorageError: absent, damaged, changed by hand, or of a newer format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(
            f"there is no bank at {folder}: {MANIFEST} is missing. Save one with bank.save()."
        ) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}. Restore the file from a copy.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
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


def load_tasks(folder: Path, manifest: Mapping[str, Any], backbone: Backbone) -> dict[str, Task]:
    """All tasks of a manifest, verified by size and SHA-256.

    Raises:
        StorageError: a file is missing, cut or tampered with.
        BackboneMismatchError: the bank belongs to another backbone.
        UnknownNameError: a task's method comes from outside the package and was not imported.
    """
    made_on = _call(manifest["backbone"]["source"], manifest["backbone"].get("stride"))
    check_fingerprint(manifest["backbone"]["fingerprint"], backbone, f"the bank in {folder}, saved on {made_on},")
    tasks = {}
    for name, entry in manifest["tasks"].items():
        if not _FILE.fullmatch(entry["file"]):
            raise StorageError(f"the manifest in {folder} names the file {entry['file']!r}, expected one in tasks/.")
        path = folder / entry["file"]
        if not path.is_file():
            raise StorageError(f"task {name!r}: {path} is missing. Restore it from a copy of the bank.")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise StorageError(f"task {name!r}: {path} has {size} bytes, expected {entry['bytes']}; it was cut.")
        if _sha256(path) != entry["sha256"]:
            raise StorageError(f"task {name!r}: the content of {path} was changed; its SHA-256 does not fit.")
        tasks[name] = load_task(path, backbone)
        if tasks[name].name != name:
            raise StorageError(f"{path} holds the task {tasks[name].name!r}, the manifest says {name!r}.")
    return tasks


def load_task(path: Path, backbone: Backbone) -> Task:
    """One task from its file.

    Raises:
        StorageError: the file is damaged, or is no task.
        BackboneMismatchError: it was trained on another backbone.
        UnknownNameError: its method comes from outside the package and was not imported.
    """
    header, tensors = read_tensors(path)
    spec = None if header is None else described(header, backbone, path)
    if header is None or spec is None:
        raise StorageError(f"{path} is no task of format version {FORMAT_VERSION}; save it with this library first.")
    return filled(spec, tensors, backbone, path, header.get("metrics"))


def read_tensors(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """What a safetensors file says of the task in it, if anything, and its tensors.

    Raises:
        StorageError: absent, cut, or something else.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            header = json.loads((handle.metadata() or {}).get(_HEADER, "null"))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError as error:
        raise StorageError(f"there is no task file {path}.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}. It is cut, or no safetensors file.") from error
    return header if isinstance(header, dict) else None, tensors


def described(header: Mapping[str, Any], backbone: Backbone, path: Path) -> TaskSpec | None:
    """The task that a file describes; None if it is of another format version.

    Raises:
        StorageError: the description is damaged.
        BackboneMismatchError: the task was trained on another backbone.
    """
    if header.get("format_version") != FORMAT_VERSION:
        return None
    check_fingerprint(header.get("fingerprint"), backbone, str(path))
    _check_methods(header, path)
    spec = TaskSpec.from_json(header.get("spec"))
    here = [backbone.mean, backbone.std]
    if spec.normalize == "backbone" and header.get("mean_std", here) != here:
        raise BackboneMismatchError(
            f"{path} was trained on log-mels with (mean, std) {header['mean_std']}, this backbone has {here}: "
            "its preprocessor_config.json is missing or another one. Put the right one beside config.json."
        )
    return spec


def filled(spec: TaskSpec, tensors: Mapping[str, Tensor], backbone: Backbone, path: Path, metrics: Any = None) -> Task:
    """A task with these tensors.

    Raises:
        StorageError: they are not those of its method, or not finite.
    """
    try:
        task = Task(spec, backbone)
    except TypeError as error:
        raise StorageError(f"{path}: the options {dict(spec.options)} do not fit {spec.method!r}: {error}.") from error
    expected = task.state_dict()
    wrong = sorted(expected.keys() ^ tensors.keys()) or sorted(
        name for name, t in tensors.items() if t.shape != expected[name].shape or t.dtype != expected[name].dtype
    )
    if wrong:
        raise StorageError(f"{path} does not fit {spec.method!r}: tensors {', '.join(wrong[:3])} are not as expected.")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise StorageError(f"{path}: the tensor {name} holds NaN or Inf. Restore the file from a copy.")
    task.load_state_dict(tensors)
    if isinstance(metrics, dict):
        task.metrics = {str(k): float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
    return task


def _check_methods(header: Mapping[str, Any], path: Path) -> None:
    """Says which file to import, if a task's method comes from outside the package and nobody registered it."""
    try:
        methods.parse(header["spec"]["method"])
    except UnknownNameError as error:
        registered_by = header.get("registered_by")
        module = registered_by.get(error.name) if isinstance(registered_by, dict) else None
        where = f", the module {module!r} when it was saved," if isinstance(module, str) else ""
        hint = f"{path} was trained with it: import what registers it{where} and open the file again."
        raise UnknownNameError("method", error.name, methods.names(), hint) from error
    except (KeyError, TypeError):
        return  # no description of a task: `TaskSpec.from_json` says so


def check_fingerprint(got: Any, backbone: Backbone, what: str) -> None:
    if got != backbone.fingerprint:
        raise BackboneMismatchError(
            f"{what} was made for the backbone {str(got)[:12]}…, this one is {backbone.fingerprint[:12]}… "
            f"({_call(backbone.source, backbone.stride)}). Open it with the backbone it was trained on."
        )


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        digest = hashlib.sha256()
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
