"""Tasks from LoRA folders of peft: `adapter_config.json` and `adapter_model.safetensors`, by either naming scheme.

`peft_write.py` is the way back.

What a folder holds is read from its tensors, never from the patterns in its configuration: those select modules, the
tensors are what was trained. Whatever else the configuration says that would change the formula is refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints.extractor import normalisation
from adapterbank.backbone.checkpoints.names import CLASSIFIER, NORM, PREFIX, linear_at
from adapterbank.backbone.weights import LINEAR_NAMES, Geometry
from adapterbank.errors import BackboneError, BackboneMismatchError, ConfigError, LabelsError, StorageError
from adapterbank.exchange.peft_format import CONFIG, MODEL, PARTS, TENSORS
from adapterbank.files import read_json
from adapterbank.numbers import is_real
from adapterbank.storage import manifest, task_file
from adapterbank.task.spec import NAME, TaskSpec, check_name
from adapterbank.task.task import Task
from adapterbank.text import amount

PICKLE = "adapter_model.bin"
RANK = ALPHA = 8  # what peft takes where its configuration does not say
_TENSOR = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)(?:\.weight)?")

# Keys of adapter_config.json that we act upon, and those that leave the saved tensors' logits as they are. Any other
# key that is set changes the formula, also one that peft has yet to invent.
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"}

_WITHOUT_EFFECT = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),  # see tensors
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "inference_mode", "peft_version"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # of an initialisation, see _INITS
    *("megatron_core", "qalora_group_size", "ensure_weight_tying", "runtime_config"),
}

_INITS = (True, False, "gaussian", "orthogonal", "eva")  # the others of peft change the base's own weights
Loras = dict[tuple[int, str], dict[str, Tensor]]  # (block, linear) -> "down", "up", "magnitude"


def reads(path: Path) -> bool:
    """Every folder: what is wrong with one that holds no adapter is said when it is read."""
    return path.is_dir()


def read(
    folder: Path,
    backbone: Backbone,
    *,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    num_classes: int | None = None,
    multilabel: bool | None = None,
    clip_seconds: float | None = None,
) -> Task:
    """A task from a LoRA folder that `PeftModel.save_pretrained` or `bank.export` wrote; pickle is refused.

    Args:
        name: of the task; None: the folder's, in lower case, with "-" for what a task name cannot have.
        labels: class names; None: those in the folder (of `bank.export`, or a config.json), else "0", "1", ...
            A folder without a head needs them, or `num_classes`; its task gets a new, untrained head.
        num_classes: in place of labels.
        multilabel: None: what `bank.export` wrote, else False.
        clip_seconds: None: what `bank.export` wrote, else the model's own length, to which transformers pads.

    Raises:
        StorageError: the folder is incomplete or damaged, or has pickled tensors only.
        ConfigError: it was trained in a way that the method `lora` cannot express; the message names it.
        BackboneMismatchError: made for a backbone of other sizes, or, if `bank.export` wrote it, for another one.
        LabelsError, InvalidNameError.
    """
    name = check_name(_name_of(folder) if name is None else name)
    config = _read_config(folder)
    path = folder / TENSORS
    header, raw = task_file.read_tensors(path)
    loras, rest = _sorted_out(raw, path)
    _check_fit(loras, backbone, path)
    ours = None if header is None else task_file.described(header, backbone, path)
    if header is not None and ours is None:
        raise StorageError(f"{path} was exported by another version of this library; export it with this one.")
    classes = _classes(rest, path)
    inside = None if classes is None else _labels_in(folder) if ours is None else ours.labels
    chosen = _labels(labels, num_classes, classes, inside, folder)
    spec = _foreign_spec(name, chosen, folder, backbone) if ours is None else replace(ours, name=name, labels=chosen)
    spec = replace(
        spec,
        method="lora",
        options=_options(loras, config, backbone.geometry, folder / CONFIG) | _alpha(config, raw, folder / CONFIG),
        frozen=(),
        multilabel=spec.multilabel if multilabel is None else multilabel,
        clip_seconds=spec.clip_seconds if clip_seconds is None else clip_seconds,
        train_final_norm="norm.weight" in rest,
    )
    for (layer, linear), parts in loras.items():
        rest |= {f"adapters.changes.{layer}.{linear}.{part}": tensor for part, tensor in parts.items()}
    if classes is None:
        rest |= {f"head.{key}": tensor for key, tensor in Task(spec, backbone).head.state_dict().items()}
    metrics = None if classes is None or header is None else header.get("metrics")
    task = task_file.filled(spec, rest, backbone, path, metrics)
    if header is not None and ours is not None and classes is not None and ours.multilabel == spec.multilabel:
        task.calibration = task_file.calibration_in(header, spec, path)
    if header is not None and ours is not None:
        task.trained_clip_seconds = task_file.trained_clip_seconds_in(header, path)
    return task


def _classes(rest: Mapping[str, Tensor], path: Path) -> int | None:
    """How many classes the head in the folder has; None without a head."""
    found = {key for key in rest if key.startswith("head.")}
    if not found:
        return None
    if missing := sorted({f"head.{ours}" for ours in CLASSIFIER.values()} - found):
        raise StorageError(f"{path} holds a head without {', '.join(missing)}. Save the adapter again.")
    return rest["head.linear.bias"].numel()


def _foreign_spec(name: str, labels: tuple[str, ...], folder: Path, backbone: Backbone) -> TaskSpec:
    """How a model of transformers hears: padded to its own length, normalised as the folder's extractor says."""
    pair = normalisation(folder)
    same = pair is None or pair == (backbone.mean, backbone.std)
    return TaskSpec(
        name, "lora", labels, clip_seconds=backbone.clip_seconds, normalize="backbone" if same or pair is None else pair
    )


def _labels(
    labels: Sequence[str] | None, count: int | None, classes: int | None, inside: tuple[str, ...] | None, folder: Path
) -> tuple[str, ...]:
    """Given ones, those in the folder, or numbers; as many as its head has classes."""
    if labels is None:
        count = classes if count is None else count
        if count is None:
            raise LabelsError(f"{folder} holds no head; pass labels=[...] or num_classes=... of a new one.")
        if type(count) is not int or count < 1:
            raise LabelsError(f"got num_classes={count!r}, expected a positive integer.")
        labels = inside if inside is not None and len(inside) == count else tuple(str(i) for i in range(count))
    elif isinstance(labels, str) or not isinstance(labels, Sequence):
        raise LabelsError(f"got {labels!r} as labels, expected a list of class names.")
    for expected in (count, classes):
        if expected is not None and len(labels) != expected:
            raise LabelsError(
                f"got {amount(len(labels), 'label')} for {folder}, expected {expected}, one per class of its head."
            )
    return tuple(labels)


def _labels_in(folder: Path) -> tuple[str, ...] | None:
    """The class names of a config.json beside the adapter, as Trainer and some users leave it there."""
    try:
        names = read_json(folder / "config.json")["id2label"]
        return tuple(str(names[str(index)]) for index in range(len(names)))
    except (BackboneError, KeyError, TypeError):
        return None


def _name_of(folder: Path) -> str:
    plain = re.sub(r"[^a-z0-9._-]+", "-", Path(os.path.abspath(folder)).name.lower()).lstrip("._-")[:64]
    return plain if NAME.fullmatch(plain) else folder.name


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        inside = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))
        hint = f"its folders {', '.join(inside)} have one: import one of them." if inside else "peft writes it."
        if (folder / manifest.MANIFEST).is_file():
            hint = "it is a saved bank: import one of the files in its tasks/, or AdapterBank.load it."
        raise StorageError(f"cannot read {folder} as an adapter of peft: {CONFIG} is missing; {hint}")
    config = read_json(path, StorageError, "Save the adapter again.")
    if not (folder / TENSORS).is_file():
        if (folder / PICKLE).is_file():
            raise StorageError(
                f"{folder / PICKLE} is not read: it is a pickle, which can run code. Where you trust it, open it with "
                f"peft and save_pretrained() it again; that writes {TENSORS}."
            )
        raise StorageError(f"{folder} has no {TENSORS} beside {CONFIG}. Restore it from a copy.")
    _check_config(config, path)
    return config


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuses whatever the method `lora` cannot express, by name."""
    if (kind := config.get("peft_type")) != "LORA":
        raise ConfigError(f"{path} is of peft_type {kind!r}, expected 'LORA', the only one that can be imported.")
    if (bias := config.get("bias", "none")) != "none":
        raise ConfigError(f"{path} has bias={bias!r}: it trained biases of the base too. Expected bias='none'.")
    if (start := config.get("init_lora_weights", True)) not in _INITS:
        raise ConfigError(
            f"{path} has init_lora_weights={start!r}, which changes the base's own weights. Save it as plain LoRA: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    known = _READ | _WITHOUT_EFFECT | {"bias", "init_lora_weights"}
    for key, value in config.items():
        if key not in known and value not in (None, False, "", [], {}):
            raise ConfigError(
                f"{path} has {key}={value!r}, which the method 'lora' cannot express. "
                f"Known: {', '.join(sorted(_READ))}."
            )
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key, False), bool):
            raise StorageError(f"{path} has {key}={config[key]!r}, expected true or false.")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or not all(map(is_real, pattern.values())):
            raise StorageError(f"{path} has {key}={pattern!r}, expected an object of numbers.")
    if not is_real(config.get("lora_alpha", ALPHA)):
        raise StorageError(f"{path} has lora_alpha={config['lora_alpha']!r}, expected a number.")


def _sorted_out(raw: Mapping[str, Tensor], path: Path) -> tuple[Loras, dict[str, Tensor]]:
    """LoRA's tensors by block and linear, and head and final norm by the names of our task; all in fp32."""
    loras: Loras = {}
    rest: dict[str, Tensor] = {}
    for full, tensor in raw.items():
        if not tensor.is_floating_point():
            raise StorageError(f"{path}: {full} is of type {tensor.dtype}, expected floating point.")
        key = full.removeprefix(MODEL)
        plain = key.removeprefix(PREFIX)
        if lora := _TENSOR.fullmatch(key):
            if (place := linear_at(lora[1])) is None:
                raise ConfigError(
                    f"{path} adapts {lora[1]!r}; the method 'lora' has only {', '.join(LINEAR_NAMES)} of the blocks. "
                    "Train with target_modules of the blocks and modules_to_save=['classifier']."
                )
            target, name = loras.setdefault(place, {}), PARTS[lora[2]]
        elif key in CLASSIFIER:
            target, name = rest, f"head.{CLASSIFIER[key]}"
        elif plain in NORM:
            target, name = rest, NORM[plain]
        else:
            raise ConfigError(
                f"{path} holds {full!r}, which the method 'lora' cannot take. Expected lora_A, lora_B and "
                "lora_magnitude_vector, and of modules_to_save 'classifier' and the final 'layernorm'."
            )
        if name in target:
            raise StorageError(f"{path} holds {full} twice, under two names. Save the adapter again.")
        target[name] = tensor.float()
    if not loras:
        raise StorageError(f"{path} holds no lora_A and lora_B. Save the adapter again.")
    return loras, rest


def _check_fit(loras: Loras, backbone: Backbone, path: Path) -> None:
    """Every pair has the sizes of the linear that it changes."""
    blocks = backbone.weights.blocks
    for (layer, linear), parts in sorted(loras.items()):
        if layer >= len(blocks):
            raise BackboneMismatchError(
                f"{path} adapts block {layer}, {backbone.source} has blocks 0 to {len(blocks) - 1}."
            )
        if not {"down", "up"} <= parts.keys():
            raise StorageError(f"{path} has only one of lora_A and lora_B for {linear!r} of block {layer}.")
        outputs, inputs = getattr(blocks[layer], f"{linear}_weight").shape
        down, up = tuple(parts["down"].shape), tuple(parts["up"].shape)
        if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
            raise StorageError(f"{path}: lora_A {down} and lora_B {up} of {linear!r} in block {layer} do not fit.")
        if (up[0], down[1]) != (outputs, inputs):
            raise BackboneMismatchError(
                f"{path} changes a linear of {(up[0], down[1])} at {linear!r} of block {layer}, that of "
                f"{backbone.source} is {(outputs, inputs)}. Open a bank on the backbone that it was trained on."
            )


def _options(loras: Loras, config: Mapping[str, Any], geometry: Geometry, path: Path) -> dict[str, Any]:
    """The options of `lora` that give these tensors their meaning."""
    layers = sorted({layer for layer, _ in loras})
    targets = [linear for linear in LINEAR_NAMES if any(place[1] == linear for place in loras)]
    if len(loras) != len(layers) * len(targets):
        raise ConfigError(
            f"{path} adapts other linears in some blocks than in others, the method 'lora' the same in all."
        )
    ranks = {parts["down"].shape[0] for parts in loras.values()}
    if len(ranks) > 1:
        raise ConfigError(f"{path} has the ranks {sorted(ranks)} (rank_pattern), the method 'lora' has one for all.")
    (rank,) = ranks
    if rank != config.get("r", RANK) and not config.get("rank_pattern"):
        raise StorageError(
            f"{path} says r={config.get('r', RANK)!r}, its tensors have rank {rank}. Save the adapter again."
        )
    dora = config.get("use_dora", False)
    if any(("magnitude" in parts) != dora for parts in loras.values()):
        raise StorageError(f"{path} says use_dora={dora}, its lora_magnitude_vector tensors do not. Save it again.")
    return {
        "targets": targets,
        "rank": rank,
        "rslora": config.get("use_rslora", False),
        "dora": dora,
        "dropout": config.get("lora_dropout", 0.0),
        "layers": "all" if len(layers) == geometry.layers else layers,
    }


def _alpha(config: Mapping[str, Any], raw: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The one alpha of all modules. An alpha_pattern may give it only by plain names: a foreign regex is never run."""
    default, pattern = config.get("lora_alpha", ALPHA), config.get("alpha_pattern") or {}
    modules = {found[1] for key in raw if (found := _TENSOR.fullmatch(key.removeprefix(MODEL)))}
    alphas = {
        next((alpha for key, alpha in pattern.items() if f".{module}".endswith(f".{key}")), default)
        for module in modules
    }
    unread = [key for key, alpha in pattern.items() if alpha != default and not re.fullmatch(r"[\w.]+", key)]
    if len(alphas) > 1 or unread:
        raise ConfigError(f"{path} has alpha_pattern={pattern}, the method 'lora' has one alpha for all modules.")
    return {"alpha": alphas.pop()}
