"""LoRA tasks as the folders of peft: `adapter_config.json` and `adapter_model.safetensors`.

peft's LoRA on transformers' AST and the method `lora` are one formula, so tensors go over bit for bit; so does AST's
classifier, which is our head "ln_linear" on "cls_dist", and the final LayerNorm. `peft_read.py` is the way back.

peft does not translate between transformers' two naming schemes of AST (before 5.9, and since). Reading takes either;
a folder is written by the names of the installed transformers, or by those asked for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterbank import methods
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints.huggingface import extractor_config
from adapterbank.backbone.checkpoints.names import CLASSIFIER, NORM, PREFIX, module_at
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.exchange.peft_format import CONFIG, EXTRACTOR, MODEL, PARTS, TENSORS
from adapterbank.files import json_bytes, write_folder_atomically
from adapterbank.methods.lora import SCALE, LoRA
from adapterbank.storage import task_file
from adapterbank.task.task import Task

NAMES = ("old", "new")  # of modules: transformers to 5.8, and from 5.9


def write(task: Task, backbone: Backbone, folder: Path, *, head: bool = True, names: str | None = None) -> None:
    """Writes a LoRA task as a folder that `peft.PeftModel.from_pretrained(ASTForAudioClassification, folder)` opens.

    Logits are equal for clips of the model's own length, the only one that transformers' AST has. A trained final
    LayerNorm goes along; normalisation goes into `preprocessor_config.json`, for ASTFeatureExtractor; labels, clip
    length and the rest that peft has no place for go into README.md and the tensor file's metadata, from where
    `import_task` takes them.

    Args:
        folder: new or empty; it appears complete or not at all.
        head: False leaves the head out, which allows those that AST's classifier cannot be ("linear", "mean").
        names: of modules, "old" (transformers to 5.8) or "new"; None: those of the installed transformers.

    Raises:
        UnknownNameError: another naming. StorageError: the folder is in use, or cannot be written.
        ConfigError: a method other than `lora`, or a head that AST's classifier cannot be.
    """
    names = _installed_names() if names is None else names
    if names not in NAMES:
        raise UnknownNameError("naming", names, NAMES)
    adapters = _exportable(task, head)
    tensors, modules = _lora_tensors(adapters, backbone.geometry, names)
    own = task.state_dict()
    saved = []
    if head:
        tensors |= {MODEL + theirs: own[f"head.{ours}"] for theirs, ours in CLASSIFIER.items()}
        saved.append("classifier")
    if len(task.norm):
        tensors |= {MODEL + PREFIX + theirs: own[ours] for theirs, ours in NORM.items()}
        saved.append(f"{PREFIX}layernorm")
    files = {
        TENSORS: task_file.tensor_bytes(tensors, task, backbone),
        CONFIG: json_bytes(_config(task, backbone, modules, saved)),
        EXTRACTOR: json_bytes(extractor_config(backbone.geometry, *task.mean_std)),
        "README.md": _card(task, backbone, names, head).encode(),
    }
    write_folder_atomically(folder.expanduser().resolve(), files)


def _exportable(task: Task, head: bool) -> LoRA:
    if not isinstance(task.adapters, LoRA):
        raise ConfigError(
            f"the task {task.name!r} has the method {task.method!r}; of ours, peft's AST can express 'lora' alone. "
            "Save it with bank.save(folder): import_task() reads the file that it gets there."
        )
    spec = task.spec
    if head and (spec.head, spec.pooling) != ("ln_linear", "cls_dist"):
        raise ConfigError(
            f"the task {task.name!r} has head={spec.head!r} and pooling={spec.pooling!r}; transformers' AST has only "
            "'ln_linear' on 'cls_dist'. Export the adapters without it: export(..., head=False)."
        )
    return task.adapters


def _lora_tensors(adapters: LoRA, geometry: Geometry, names: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by peft's names, and the names of the modules that they belong to."""
    tensors: dict[str, Tensor] = {}
    modules = []
    for layer in range(geometry.layers):
        for linear, (hook,) in adapters.sites(layer).linear.items():
            module = module_at(layer, linear, names)
            modules.append(module.removeprefix(PREFIX))  # the end of a name selects: ASTModel alone has no prefix
            for theirs, ours in PARTS.items():
                if (tensor := getattr(hook, ours)) is not None:
                    tensors[f"{MODEL}{module}.{theirs}"] = tensor
    return tensors, modules


def _config(task: Task, backbone: Backbone, modules: list[str], saved: list[str]) -> dict[str, Any]:
    options = {**methods.get("lora").options, **methods.options_of("lora", task.spec.options)["lora"]}
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", backbone.source)
    # Named only where transformers finds this very base: an original .pth, or another stride, it cannot open.
    named = (hub or Path(backbone.source).is_dir()) and backbone.stride is None
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": backbone.source if named else None,
        "inference_mode": True,
        "r": options["rank"],
        "lora_alpha": SCALE * options["rank"] if options["alpha"] is None else options["alpha"],
        "lora_dropout": options["dropout"],
        "use_rslora": options["rslora"],
        "use_dora": options["dora"],
        "target_modules": modules,
        "modules_to_save": saved or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def _card(task: Task, backbone: Backbone, names: str, head: bool) -> str:
    seconds = task.spec.clip_seconds
    versions = "before 5.9" if names == "old" else "5.9 or later"
    kind = "multi-label (sigmoid)" if task.spec.multilabel else "one of all (softmax)"
    labels = "\n".join(f"{index}. {label}" for index, label in enumerate(task.labels))
    return f"""---
library_name: peft
tags: [lora, audio-classification, audio-spectrogram-transformer, adapterbank]
---

# {task.name}

A task of adapterbank for the backbone `{backbone.source}` (fingerprint `{backbone.fingerprint}`).
Module names are those of transformers {versions}.

```python
base = ASTForAudioClassification.from_pretrained(backbone, num_labels={len(task.labels)}, ignore_mismatched_sizes=True)
model = PeftModel.from_pretrained(base, folder)
extractor = ASTFeatureExtractor.from_pretrained(folder)
```

- Head: {"in this folder, as `classifier`" if head else "not in this folder"}; {kind}.
- Clips: {"each at its own length" if seconds is None else f"{seconds} s"} in adapterbank; transformers pads or cuts to
  {backbone.geometry.max_frames} frames, and the logits are equal for clips of that length.

Classes, in the order of the logits:

{labels}
"""


def _installed_names() -> str:
    """The naming scheme of the transformers that is installed, as its model shows it."""
    from transformers import ASTConfig, ASTModel

    with torch.device("meta"):
        model = ASTModel(ASTConfig(num_hidden_layers=1))
    return "new" if module_at(0, "q", "new").removeprefix(PREFIX) in dict(model.named_modules()) else "old"
