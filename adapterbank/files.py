"""Files that others wrote: JSON and tensors, never pickled objects."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapterbank.errors import AdapterBankError, BackboneError

_GLOBAL = re.compile(r"Unsupported global: GLOBAL (\S+)")  # in torch's refusal: what the pickle wanted to build


def read_json(
    path: Path, kind: type[AdapterBankError] = BackboneError, advice: str = "Fetch the file again."
) -> dict[str, Any]:
    """The object in a JSON file. Raises an error of this kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise kind(f"cannot read {path}: {error}. {advice}") from error
    if not isinstance(content, dict):
        raise kind(f"{path} holds a {type(content).__name__}, expected a JSON object. {advice}")
    return content


def check_digest(path: Path, expected: str) -> None:
    """Raises BackboneError unless the file's SHA-256 is `expected`."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BackboneError(f"cannot read {path}: {error}. Reinstall adapterbank.") from error
    if found != expected:
        raise BackboneError(f"{path} has SHA-256 {found}, expected {expected}. Reinstall adapterbank.")


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


def write_atomically(path: Path, content: bytes) -> None:
    """Readers see the old file or the whole new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
