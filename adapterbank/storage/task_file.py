"""One task as a safetensors file that describes itself: written from its tensors, verified before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from adapterbank import methods
from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import BackboneMismatchError, StorageError, UnknownNameError
from adapterbank.files import sha256
from adapterbank.numbers import is_real
from adapterbank.storage.skeleton import Built, Skeletons
from adapterbank.task.calibration import Calibration
from adapterbank.task.spec import Facts, TaskSpec
from adapterbank.task.task import Task

FORMAT_VERSION = 1
_HEADER = "adapterbank"  # key of our JSON in a safetensors file's metadata


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
    if task.calibration is not None:
        header["calibration"] = task.calibration.to_json()
    if task.trained_clip_seconds is not None:
        header["trained_clip_seconds"] = task.trained_clip_seconds
    if task.registered_by:
        header["registered_by"] = task.registered_by  # whoever opens the task without it is told what to import
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return to_safetensors(here, metadata={_HEADER: json.dumps(header, sort_keys=True)})


@dataclass(frozen=True)
class SavedTask:
    """A task in a file of a saved bank.

    Attributes:
        entry: what the manifest says of it.
        metrics: recorded since the bank was opened, in place of those in the file.
    """

    folder: Path
    name: str
    entry: Mapping[str, Any]
    metrics: Mapping[str, float] | None = None

    @property
    def path(self) -> Path:
        return self.folder / self.entry["file"]

    def check(self) -> None:
        """Raises StorageError if the file is missing or has another size."""
        with _reading(self.path):
            size = self.path.stat().st_size if self.path.is_file() else None
        if size is None:
            raise StorageError(
                f"task {self.name!r}: {self.path} is missing. Restore it from a copy of the bank; if another program "
                "has saved the bank since it was opened here, open it again."
            )
        if size != self.entry["bytes"]:
            raise StorageError(
                f"task {self.name!r}: {self.path} has {size} bytes, expected {self.entry['bytes']}; it was cut."
            )

    def content(self) -> bytes:
        """The file, verified by size and SHA-256. Raises StorageError."""
        self.check()
        content = read_bytes(self.path)
        if sha256(content) != self.entry["sha256"]:
            raise StorageError(f"task {self.name!r}: the content of {self.path} was changed; its SHA-256 does not fit.")
        return content

    @torch.inference_mode(False)  # it outlives the call, and tensors made in inference mode can never be trained
    def open(self, backbone: Backbone, kinds: Skeletons) -> Task:
        """The task. Raises what `load_task` does, also if the file is not what the manifest says."""
        task = _task_of(*_tensors_in(self.content(), self.path), backbone, self.path, kinds)
        if task.name != self.name:
            raise StorageError(f"{self.path} holds the task {task.name!r}, the manifest says {self.name!r}.")
        if self.metrics is not None:
            task.record(self.metrics)
        return task

    def facts(self) -> Facts:
        """What the manifest says; the bytes of its tensors are those after the file's header. Raises StorageError."""
        self.check()
        spec, parameters = TaskSpec.from_json(self.entry.get("spec")), self.entry.get("parameters")
        if spec.name != self.name or not isinstance(parameters, int):
            raise StorageError(f"the manifest in {self.folder} describes the task {self.name!r} as another, or not.")
        with _reading(self.path), open(self.path, "rb") as handle:
            size = self.entry["bytes"] - 8 - int.from_bytes(handle.read(8), "little")
        metrics = self.entry.get("metrics") if self.metrics is None else self.metrics
        return Facts(spec, parameters, size, _numbers(metrics))


def load_task(path: Path, backbone: Backbone) -> Task:
    """One task from its file.

    Raises:
        StorageError: the file is damaged, or is no task.
        BackboneMismatchError: it was trained on another backbone.
        UnknownNameError: its method comes from outside the package and was not imported.
    """
    return _task_of(*read_tensors(path), backbone, path)


def _task_of(
    header: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
    backbone: Backbone,
    path: Path,
    kinds: Skeletons | None = None,
) -> Task:
    spec = None if header is None else described(header, backbone, path)
    if header is None or spec is None:
        raise StorageError(f"{path} is no task of format version {FORMAT_VERSION}; save it with this library first.")
    task = filled(spec, tensors, backbone, path, header.get("metrics"), kinds)
    task.calibration = calibration_in(header, spec, path)
    task.trained_clip_seconds = trained_clip_seconds_in(header, path)
    return task


def calibration_in(header: Mapping[str, Any], spec: TaskSpec, path: Path) -> Calibration | None:
    """What a file says of a task's calibration; None if it has none, as before there was one. Raises StorageError."""
    try:
        return Calibration.from_json(header.get("calibration"), len(spec.labels), spec.multilabel)
    except StorageError as error:
        raise StorageError(f"{path}: {error} Restore the file from a copy.") from error


def trained_clip_seconds_in(header: Mapping[str, Any], path: Path) -> float | None:
    """How long the clips of a task's training were; None in files of before this was stored. Raises StorageError."""
    found = header.get("trained_clip_seconds")
    if found is not None and not (is_real(found) and found > 0):
        raise StorageError(
            f"{path} says trained_clip_seconds={found!r}, expected a positive number. Restore the file from a copy."
        )
    return found


def read_tensors(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """What a safetensors file says of the task in it, if anything, and its tensors.

    Raises:
        StorageError: absent, cut, or something else.
    """
    return _tensors_in(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """A task file as it is. Raises StorageError."""
    with _reading(path):
        return path.read_bytes()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what the file system raises into StorageError."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"there is no task file {path}.") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}. Restore it from a copy of the bank.") from error


def _tensors_in(content: bytes, path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """As `read_tensors`, of a file that was read: what is verified is what is used."""
    try:
        tensors = from_safetensors(content)
        size = int.from_bytes(content[:8], "little")  # the format: 8 bytes, JSON of that many bytes, tensors
        about = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        header = json.loads(about.get(_HEADER, "null"))
    except (SafetensorError, ValueError, KeyError) as error:
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


def filled(
    spec: TaskSpec,
    tensors: Mapping[str, Tensor],
    backbone: Backbone,
    path: Path,
    metrics: Any = None,
    kinds: Skeletons | None = None,
) -> Task:
    """A task with these tensors.

    Args:
        kinds: where many tasks are opened: those of a known kind are not built again.

    Raises:
        StorageError: they are not those of its method, or not finite.
    """
    try:
        kind = Built(Task(spec, backbone)) if kinds is None else kinds.of(spec, backbone)
    except TypeError as error:
        raise StorageError(f"{path}: the options {dict(spec.options)} do not fit {spec.method!r}: {error}.") from error
    wrong = sorted(kind.shapes.keys() ^ tensors.keys()) or sorted(
        name for name, t in tensors.items() if (t.shape, t.dtype) != kind.shapes[name]
    )
    if wrong:
        raise StorageError(f"{path} does not fit {spec.method!r}: tensors {', '.join(wrong[:3])} are not as expected.")
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise StorageError(f"{path}: the tensor {name} holds NaN or Inf. Restore the file from a copy.")
    task = kind.task(spec, backbone, tensors)
    task.record(_numbers(metrics))
    return task


def _is_finite(tensor: Tensor) -> bool:
    """One pass; NaN wins against every number."""
    return not tensor.numel() or all(math.isfinite(end.item()) for end in torch.aminmax(tensor))


def _numbers(metrics: Any) -> dict[str, float]:
    """Those of a file, which anybody may have written."""
    known = metrics if isinstance(metrics, dict) else {}
    return {str(k): float(v) for k, v in known.items() if isinstance(v, (int, float))}


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
            f"({call_of(backbone.source, backbone.stride)}). Open it with the backbone it was trained on."
        )


def call_of(source: str, stride: int | None) -> str:
    """How a backbone is opened, for messages."""
    return f"load_backbone({source!r})" if stride is None else f"load_backbone({source!r}, stride={stride})"
