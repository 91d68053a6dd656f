"""Whatever touches a disk: atomic writes, locks, digests, and reading JSON and tensors that others wrote.

Files that others wrote are read with limits and never unpickled: a pickle can run code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapterbank.errors import AdapterBankError, BackboneError, StorageError

MiB = 2**20
JSON_LIMIT = 64 * MiB  # of one file: configurations have a few KiB, and parsing takes many times the size in memory

_GLOBAL = re.compile(r"Unsupported global: GLOBAL (\S+)")  # in torch's refusal: what the pickle wanted to build

# -- reading ----------------------------------------------------------------------------------------------------------


def read_json(
    path: Path,
    kind: type[AdapterBankError] = BackboneError,
    advice: str = "Fetch the file again.",
    limit: int = JSON_LIMIT,
) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        kind: of the error that is raised.
        advice: what to do about it; ends the message.
        limit: in bytes; a larger file is not read.

    Raises:
        kind: the file is absent, larger than the limit, no JSON, or no object.
    """
    try:
        size = path.stat().st_size
        content = json.loads(path.read_text(encoding="utf-8")) if size <= limit else None
    except (OSError, ValueError, RecursionError) as error:
        raise kind(f"cannot read {path}: {error}. {advice}") from error
    if size > limit:
        raise kind(f"{path} has {size:,} bytes, expected JSON of at most {limit:,}. {advice}")
    if not isinstance(content, dict):
        raise kind(f"{path} holds a {type(content).__name__}, expected a JSON object. {advice}")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or a PyTorch file. Raises BackboneError for everything else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(entry, Tensor) for name, entry in content.items()
        ):
            raise TypeError("it is no dict of names and tensors")
        return content
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        raise BackboneError(f"cannot read {path}: {error}. It may be cut; fetch it again.") from error
    except Exception as error:  # pickle.UnpicklingError: weights_only refuses everything but tensors
        # torch's own message tells how to load it all the same, which would run code from the file.
        found = _GLOBAL.search(str(error))
        what = f"it holds {found[1]}" if found else str(error).splitlines()[0].rstrip(".")
        raise BackboneError(
            f"{path} holds more than tensors and is not read: {what}. Expected a state dict, as "
            "torch.save(model.state_dict(), path) writes it; save that where you trust the file."
        ) from error


def sha256(content: bytes) -> str:
    """In hexadecimal, as every file of ours names it."""
    return hashlib.sha256(content).hexdigest()


def check_digest(path: Path, expected: str) -> None:
    """Raises BackboneError unless the file's SHA-256 is `expected`; for files that come with the package."""
    try:
        found = sha256(path.read_bytes())
    except OSError as error:
        raise BackboneError(f"cannot read {path}: {error}. Reinstall adapterbank.") from error
    if found != expected:
        raise BackboneError(f"{path} has SHA-256 {found}, expected {expected}. Reinstall adapterbank.")


# -- writing ----------------------------------------------------------------------------------------------------------


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON file of two-space indents, as transformers and peft write theirs."""
    return (json.dumps(content, indent=2) + "\n").encode()


def write_atomically(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Readers see the old file or the whole new one, also after a power cut.

    Args:
        sync: False where several files are written to one folder and `sync_folder` is called after the last: until
            then a power cut may bring the old file back.

    Raises:
        OSError.
    """
    with open_atomically(path, sync=sync) as handle:
        handle.write(content)


@contextmanager
def open_atomically(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write to piece by piece; for what is too large to be in memory at once.

    It takes its place at `path` when the block ends. After an error in the block the old file is still there.

    Args:
        sync: as in `write_atomically`.

    Raises:
        OSError.
    """
    temporary = _beside(path)
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        sync_folder(path.parent)


def write_folder_atomically(folder: Path, files: Mapping[str, bytes]) -> None:
    """All files or no folder: they are written beside it, then put in its place in one step.

    Args:
        folder: new or empty.

    Raises:
        StorageError: it is in use, or cannot be written.
    """
    temporary = _beside(folder)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StorageError(f"{folder} exists and is no empty folder; name a new one, or remove it first.")
        temporary.mkdir(parents=True)
        for name, content in files.items():
            write_atomically(temporary / name, content, sync=False)
        sync_folder(temporary)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write {folder}: {error}. Nothing was left there.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: syncing a file alone does not say under which name it is found.

    Some systems (Windows, some network file systems) cannot do that; there nothing happens. Raises OSError.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def lock(path: Path) -> AbstractContextManager[Any]:
    """Lets one process at a time work on what is at `path`: a context that waits for the others.

    The lock is a file `<path>.lock`, which stays; its folder is made if it is absent.
    """
    from filelock import FileLock  # here, so that reading a task does not import it

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")


def _beside(path: Path) -> Path:
    """A name in the same folder that nobody else uses: only there can it be put in place in one step."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
