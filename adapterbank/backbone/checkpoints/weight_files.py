"""Which files of a folder hold a checkpoint's weights: one, one of a variant such as fp16, or several shards.

`save_pretrained` writes `model.safetensors`; with `variant="fp16"` it writes `model.fp16.safetensors`, and above some
size it writes `model-00001-of-00002.safetensors` and so on, with an index that says which file holds which tensor.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from adapterbank.errors import BackboneError
from adapterbank.files import read_json, read_tensors
from adapterbank.text import amount

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# What is fetched from the hub beside config.json: the files above, their shards, and the variant that others save.
HUB_PATTERNS = (
    *WEIGHT_FILES,
    *("model.safetensors.index.json", "model-*-of-*.safetensors", "model.fp16.safetensors"),
    *("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)
_KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))  # in the order in which they are looked for


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint in a folder, by their names there.

    One file comes before shards, safetensors before PyTorch's format, and a variant is read where nothing else is.

    Raises:
        BackboneError: there are none, several variants of which nobody says which, a shard is absent, or damaged.
    """
    for stem, suffix in _KINDS:
        if (folder / f"{stem}.{suffix}").is_file():
            return read_tensors(folder / f"{stem}.{suffix}")
        if (folder / f"{stem}.{suffix}.index.json").is_file():
            return _shards(folder / f"{stem}.{suffix}.index.json")
    for stem, suffix in _KINDS:
        found = {
            path.name
            for path in folder.iterdir()
            if re.fullmatch(rf"{stem}\.(\w+\.{suffix}|{suffix}\.index\.\w+\.json)", path.name)
        }
        if len(found) > 1:
            raise BackboneError(
                f"{folder} holds several variants of its weights ({', '.join(sorted(found))}); keep the one that you "
                f"want, or name it {stem}.{suffix}."
            )
        for name in found:
            return _shards(folder / name) if name.endswith(".json") else read_tensors(folder / name)
    shards = sorted(path.name for path in folder.glob("*-of-*.safetensors"))
    hint = (
        f" Of the shards {', '.join(shards[:2])} the index model.safetensors.index.json is missing." if shards else ""
    )
    raise BackboneError(f"{folder} has no weights, expected {' or '.join(WEIGHT_FILES)} beside config.json.{hint}")


def _shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names."""
    places = read_json(index).get("weight_map")
    named = isinstance(places, dict) and all(isinstance(file, str) for file in places.values())
    if not named or not places or any(Path(file).name != file for file in places.values()):
        raise BackboneError(
            f"{index} names no weights, expected a weight_map from tensors to files beside it. Fetch the file again."
        )
    files = sorted(set(places.values()))
    if missing := [file for file in files if not (index.parent / file).is_file()]:
        raise BackboneError(
            f"{index.parent} lacks {len(missing)} of {amount(len(files), 'shard')}: {', '.join(missing[:3])}. Fetch "
            "them too."
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        shard = read_tensors(index.parent / file)
        if lost := sorted(name for name, place in places.items() if place == file and name not in shard):
            raise BackboneError(
                f"{index.parent / file} lacks {', '.join(lost[:3])}, which its index names; fetch it again."
            )
        tensors.update(shard)
    return tensors
