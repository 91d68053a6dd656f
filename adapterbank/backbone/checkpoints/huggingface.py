"""Checkpoints as transformers saves them, from the hub, a folder, or inside this package: config.json and tensors.

Tensors may have the names of either scheme (see `names.py`). preprocessor_config.json says how the model's log-mels
were normalised; a classifier in the file comes along.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterbank.audio.mel import AUDIOSET_MEAN, AUDIOSET_STD, SAMPLE_RATE
from adapterbank.backbone.backbone import Backbone, Classifier
from adapterbank.backbone.checkpoints.assemble import assemble
from adapterbank.backbone.checkpoints.embedded import EMBEDDED, EMBEDDED_SHA256, RETIRED, where_it_went
from adapterbank.backbone.checkpoints.extractor import EXTRACTOR, normalisation
from adapterbank.backbone.checkpoints.names import CLASSIFIER, PREFIX, canonical
from adapterbank.backbone.checkpoints.weight_files import HUB_PATTERNS, WEIGHT_FILES, read_weights
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import BackboneError
from adapterbank.files import check_digest, read_json
from adapterbank.text import amount

AUDIOSET_CLASSES = 527
# Checkpoints of the AST paper on the hub, which a mistyped name is compared with.
PUBLISHED = tuple(
    f"MIT/ast-finetuned-{name}"
    for name in (
        *("audioset-10-10-0.4593", "audioset-10-10-0.450", "audioset-10-10-0.448", "audioset-12-12-0.447"),
        *("audioset-14-14-0.443", "audioset-16-16-0.442", "speech-commands-v2"),
    )
)
_PROBLEMS = ("single_label_classification", "multi_label_classification")
MODEL_TYPE = "audio-spectrogram-transformer"


def from_folder(name: str) -> Backbone:
    """A backbone inside this package, or a Hugging Face AST by folder or hub id. Raises BackboneError."""
    folder = _find(name)
    if name in EMBEDDED:
        check_digest(folder / WEIGHT_FILES[0], EMBEDDED_SHA256[name])
    config = read_json(folder / "config.json")
    geometry = _geometry(config, folder)
    body, head = _canonical(read_weights(folder), folder)
    qkv_bias = bool(config.get("qkv_bias", True))
    mean, std = normalisation(folder, geometry) or (AUDIOSET_MEAN, AUDIOSET_STD)
    backbone = assemble(geometry, body, folder, mean, std, sizes_from="its config.json", qkv_bias=qkv_bias)
    return replace(backbone, classifier=classifier_of(head, config, geometry, folder))


def _find(name: str) -> Path:
    if name in EMBEDDED:
        return EMBEDDED[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BackboneError(
                f"{folder} has neither config.json (a backbone) nor manifest.json (a bank). "
                f"Put config.json and {WEIGHT_FILES[0]} there, as save_pretrained writes them."
            )
        return folder
    if name in RETIRED:
        raise BackboneError(where_it_went(name))
    from huggingface_hub import snapshot_download  # here: most backbones are on disk, and it is slow to import
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", EXTRACTOR, *HUB_PATTERNS]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BackboneError(
            f"no backbone {name!r}:{_nearest(name)} not embedded ({', '.join(EMBEDDED)}), no such folder, and the "
            f"Hugging Face hub gave {type(error).__name__}. Without internet, put config.json, "
            f"preprocessor_config.json and {WEIGHT_FILES[0]} of that model into a folder and pass its path."
        ) from error


def _nearest(name: str) -> str:
    """The known name, or the folder beside, that somebody may have meant."""
    path = Path(name).expanduser()
    beside = {str(path.with_name(other.name)): other.name for other in _folders(path.parent)}
    known = {**{known.lower(): known for known in (*EMBEDDED, *PUBLISHED)}, **{key.lower(): key for key in beside}}
    # A hub id may be mistyped in its second part only, or come without the first.
    known |= {full.lower().rpartition("/")[2]: full for full in PUBLISHED}
    found = difflib.get_close_matches(name.lower(), known, n=1)
    return f" did you mean {known[found[0]]!r}? It is" if found else ""


def _folders(parent: Path) -> list[Path]:
    try:
        return [folder for folder in parent.iterdir() if (folder / "config.json").is_file()]
    except OSError:
        return []


def _geometry(config: Mapping[str, Any], folder: Path) -> Geometry:
    if config.get("model_type") != MODEL_TYPE:
        raise BackboneError(f"{folder} is a {config.get('model_type')!r} model, expected {MODEL_TYPE!r}.")
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise BackboneError(f"{folder} has the activation {activation!r}, expected 'gelu' as in every published AST.")
    patch = config.get("patch_size", 16)
    if isinstance(patch, list):
        if len(set(patch)) != 1:
            raise BackboneError(f"{folder} has patches of {patch}, expected square ones.")
        patch = patch[0]
    default = Geometry()
    return Geometry(
        layers=config.get("num_hidden_layers", default.layers),
        width=config.get("hidden_size", default.width),
        heads=config.get("num_attention_heads", default.heads),
        mlp_width=config.get("intermediate_size", default.mlp_width),
        mel_bins=config.get("num_mel_bins", default.mel_bins),
        max_frames=config.get("max_length", default.max_frames),
        patch=patch,
        frequency_stride=config.get("frequency_stride", default.frequency_stride),
        time_stride=config.get("time_stride", default.time_stride),
        eps=config.get("layer_norm_eps", default.eps),
    )


def _canonical(tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    body: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    unknown = []
    for original, tensor in tensors.items():
        known = canonical(original) is not None or original.removeprefix(PREFIX) in CLASSIFIER
        if known and (not tensor.is_floating_point() or tensor.itemsize == 1):  # of 8 bits: float8
            found = str(tensor.dtype).removeprefix("torch.")
            raise BackboneError(
                f"{folder} has {original} in {found}, expected fp16, bf16, fp32 or fp64: it "
                "was quantized, and its scales are not read. Take the weights from before that; with "
                "from_pretrained(..., base_dtype=torch.int8) they are as small."
            )
        if (name := canonical(original)) is not None:
            body[name] = tensor.to(torch.float32)
        elif (name := original.removeprefix(PREFIX)) in CLASSIFIER:
            head[CLASSIFIER[name]] = tensor.to(torch.float32)
        else:
            unknown.append(original)
    if unknown:
        raise BackboneError(f"{folder} has tensors that no AST has: {', '.join(unknown[:5])}.")
    return body, head


def extractor_config(geometry: Geometry, mean: float, std: float) -> dict[str, Any]:
    """The preprocessor_config.json with which transformers' `ASTFeatureExtractor` makes the same spectrograms as we.

    Args:
        mean, std: of log-mels, by which they are normalised.
    """
    return {
        "do_normalize": True,
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "max_length": geometry.max_frames,
        "mean": mean,
        "num_mel_bins": geometry.mel_bins,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": SAMPLE_RATE,
        "std": std,
    }


def _names(config: Mapping[str, Any], classes: int, folder: Path) -> dict[int, Any]:
    """The names that id2label, or else label2id, gives to classes. Raises BackboneError: it is none, or of others."""
    given = config.get("id2label")
    if not given and isinstance(config.get("label2id"), dict):
        given = {index: name for name, index in config["label2id"].items()}
    if isinstance(given, list):
        given = dict(enumerate(given))
    try:
        names = {int(index): name for index, name in dict(given or {}).items()}
    except (TypeError, ValueError) as error:
        raise BackboneError(
            f"{folder / 'config.json'} has id2label {str(given)[:60]!r}, expected {{'0': 'name', '1': ...}}."
        ) from error
    if others := [index for index in names if not 0 <= index < classes]:
        raise BackboneError(
            f"{folder / 'config.json'} names class {others[0]} ({names[others[0]]!r}), but its classifier has "
            f"{amount(classes, 'class')}. Correct id2label there, or fetch the files that belong together."
        )
    return names


def classifier_of(
    head: Mapping[str, Tensor], config: Mapping[str, Any], geometry: Geometry, folder: Path
) -> Classifier | None:
    """The classifier of a checkpoint, or None.

    Args:
        head: its tensors by the names of our `Head`; empty where there is none.
        config: of transformers; `id2label` and `problem_type` are read. An original file has none: {}.

    Raises:
        BackboneError: a tensor is missing, of another shape, or not finite.
    """
    if not head:
        return None
    missing = sorted(set(CLASSIFIER.values()) - head.keys())
    if missing:
        raise BackboneError(f"{folder} has an incomplete classifier: missing {', '.join(missing)}.")
    classes = head["linear.bias"].numel()
    expected = {
        "norm.weight": (geometry.width,),
        "norm.bias": (geometry.width,),
        "linear.weight": (classes, geometry.width),
        "linear.bias": (classes,),
    }
    for name, shape in expected.items():
        if (got := tuple(head[name].shape)) != shape:
            raise BackboneError(f"{folder}: {name} of the classifier has shape {got}, expected {shape}.")
        if not torch.isfinite(head[name]).all():
            raise BackboneError(f"{folder}: {name} of the classifier holds NaN or Inf. Fetch the file again.")
    names = _names(config, classes, folder)
    labels = tuple(str(names.get(i) or i) for i in range(classes))
    if len(set(labels)) != classes:
        labels = tuple(f"{i}:{label}" for i, label in enumerate(labels))
    problem = config.get("problem_type")
    if problem not in (None, *_PROBLEMS):
        raise BackboneError(
            f"{folder} has the problem_type {problem!r}, expected one of {', '.join(_PROBLEMS)}, or none."
        )
    multilabel = classes == AUDIOSET_CLASSES if problem is None else problem == _PROBLEMS[1]  # AudioSet's has none
    own = {name: tensor.clone() for name, tensor in head.items()}  # views would keep the whole mapped file in memory
    return Classifier(own, labels, multilabel)
