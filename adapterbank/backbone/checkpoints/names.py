"""Hugging Face's names of an AST's tensors, in files (to 5.8) and of modules (from 5.9), and ours.

Ours are those of `ASTWeights.named`; theirs are meant after the model prefix `PREFIX`, except those of the classifier.
"""

from __future__ import annotations

import re

PREFIX = "audio_spectrogram_transformer."
_LAYER = re.compile(r"^(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)$")

_IN_LAYER = {  # the names in files first
    "layernorm_before": "ln1",
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.output.dense": "proj",
    "layernorm_after": "ln2",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
    "attention.o_proj": "proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}

NORM = {"layernorm.weight": "norm.weight", "layernorm.bias": "norm.bias"}

_OUTSIDE = {
    "embeddings.cls_token": "embed.cls",
    "embeddings.distillation_token": "embed.dist",
    "embeddings.position_embeddings": "embed.positions",
    "embeddings.patch_embeddings.projection.weight": "embed.patch_weight",
    "embeddings.patch_embeddings.projection.bias": "embed.patch_bias",
    **NORM,
}

CLASSIFIER = {
    "classifier.layernorm.weight": "norm.weight",
    "classifier.layernorm.bias": "norm.bias",
    "classifier.dense.weight": "linear.weight",
    "classifier.dense.bias": "linear.bias",
}


def canonical(name: str) -> str | None:
    """Our name of a tensor of the body that Hugging Face calls `name`, in either scheme; None for others."""
    name = name.removeprefix(PREFIX)
    found = _LAYER.match(name)
    if found and found[2] in _IN_LAYER:
        return f"blocks.{found[1]}.{_IN_LAYER[found[2]]}_{found[3]}"
    return _OUTSIDE.get(name)


def on_disk(name: str) -> str:
    """What files (to 5.8) call our tensor `name`, after the model prefix: `canonical` in the other direction."""
    outside = {ours: theirs for theirs, ours in _OUTSIDE.items()}
    if name in outside:
        return outside[name]
    _, layer, field = name.split(".")
    part, kind = field.rsplit("_", 1)
    old = next(theirs for theirs, ours in _IN_LAYER.items() if ours == part)
    return f"encoder.layer.{layer}.{old}.{kind}"


def linear_at(module: str) -> tuple[int, str] | None:
    """Block and our name of the linear that Hugging Face calls `module`, in either scheme; None for other modules."""
    found = _LAYER.match(f"{module.removeprefix(PREFIX)}.weight")
    name = _IN_LAYER.get(found[2], "ln") if found else "ln"
    return None if found is None or name.startswith("ln") else (int(found[1]), name)


def module_at(layer: int, linear: str, names: str) -> str:
    """Hugging Face's name of a linear: "old", to 5.8, or "new"."""
    old, new = (theirs for theirs, ours in _IN_LAYER.items() if ours == linear)
    return f"{PREFIX}encoder.layer.{layer}.{old}" if names == "old" else f"{PREFIX}layers.{layer}.{new}"
