"""What people who know PyTorch, peft or transformers call on a bank first, and what to call in its place."""

from __future__ import annotations

import difflib

from adapterbank.errors import NoSuchAttributeError

_NO_MODULE = "a bank is no nn.Module, so that nothing reaches all of its tasks at once"
_TRAIN = f"{_NO_MODULE}. Call fit(bank, name, train_data), or train bank.task_module(name) in a loop of your own"
_FOLDER = "bank.save(folder) writes all tasks, and AdapterBank.load(folder) opens them"
_STATE = f"{_FOLDER}; bank.task(name).state_dict() has the tensors of one task"
_PARAMETERS = f"{_NO_MODULE}. bank.task_module(name).parameters() are those of one task"
_DTYPE = "bank.to(base_dtype=torch.bfloat16) stores the frozen linears so; what is trained stays fp32"
_NAMED = "a bank has no active task: each call names its own, bank(clips, name), or one name per clip"
_MODULES = "bank.task(name) is the nn.Module of one task, and bank.backbone.weights has the frozen tensors"
_ADD = "bank.add_task(name, method) adds a new task"
_IMPORT = "bank.import_task(path) adds a task from a file of a saved bank, or from a LoRA folder of peft"

ADVICE = {
    **dict.fromkeys(("train", "fit", "finetune", "requires_grad_", "zero_grad"), _TRAIN),
    "eval": f"{_NO_MODULE}. Calling it always answers in evaluation mode; bank.evaluate(name, data) gives metrics",
    **dict.fromkeys(("forward", "infer", "generate"), "call the bank itself: bank(clips, name), or bank.predict"),
    "cuda": 'bank.to("cuda") moves it',
    "cpu": 'bank.to("cpu") moves it',
    "device": "bank.backbone.device says where it is, and bank.to(device) moves it",
    **dict.fromkeys(("half", "bfloat16", "float", "dtype"), _DTYPE),
    **dict.fromkeys(("parameters", "named_parameters"), _PARAMETERS),
    **dict.fromkeys(("num_parameters", "numel"), "bank.trainable_parameters(name) counts those of a task"),
    **dict.fromkeys(("state_dict", "load_state_dict"), _STATE),
    **dict.fromkeys(("modules", "named_modules", "children", "buffers", "model"), _MODULES),
    **dict.fromkeys(("save_pretrained", "push_to_hub"), f'{_FOLDER}; bank.export(name, "peft", folder) is for peft'),
    **dict.fromkeys(("load_adapter", "import_peft", "load_task"), _IMPORT),
    **dict.fromkeys(("set_adapter", "active_adapter", "set_active_adapters", "disable_adapter"), _NAMED),
    **dict.fromkeys(("add_adapter", "new_task"), _ADD),
    **dict.fromkeys(("delete_adapter", "delete_task"), "bank.remove_task(name) forgets a task"),
    "merge_and_unload": "bank.compile_task(name) is one task as a module for serving",
}

# Options by their names in transformers, peft, timm and other places, for `fit` and for `add_task`.
WORDS = {
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr"), "That is lr, an option of fit."),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "max_epochs", "n_epochs"), "That is epochs, an option of fit."),
    **dict.fromkeys(("max_steps", "num_steps", "total_steps"), "That is steps, an option of fit."),
    **dict.fromkeys(
        ("batch", "bs", "per_device_train_batch_size", "train_batch_size"), "That is batch_size, an option of fit."
    ),
    **dict.fromkeys(("wd", "decay"), "That is weight_decay, an option of fit."),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), "That is schedule, an option of fit."),
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "That is warmup, a share of all steps, an option of fit."),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "gradient_clip_val"), "That is clip_grad, an option of fit."),
    "gradient_accumulation_steps": "That is accumulate, an option of fit.",
    **dict.fromkeys(("num_workers", "dataloader_num_workers"), "That is workers, an option of fit."),
    **dict.fromkeys(("fp16", "bf16", "amp", "dtype"), "That is precision='fp16' or 'bf16', an option of fit."),
    **dict.fromkeys(("r", "lora_r"), "That is rank, an option of the method lora."),
    **dict.fromkeys(("lora_alpha", "scaling"), "That is alpha, an option of the method lora."),
    **dict.fromkeys(("target_modules", "modules"), "That is targets, an option of the method lora."),
    "query": "That is 'q' here.",
    "key": "That is 'k' here.",
    "value": "That is 'v' here.",
    **dict.fromkeys(("sampling_rate", "sr", "fs"), "That is sample_rate; a task hears everything at 16 kHz."),
    **dict.fromkeys(("num_labels", "n_classes"), "That is num_classes, an argument of add_task."),
    **dict.fromkeys(("classes", "id2label", "label2id"), "That is labels, an argument of add_task."),
    "lr": "That is an option of fit.",
    "epochs": "That is an option of fit.",
    "batch_size": "That is an option of fit.",
}


def hint_of(word: object) -> str:
    """What a name from elsewhere is called here, for the end of a message; nothing for a name that nobody uses."""
    return WORDS.get(word, "") if isinstance(word, str) else ""


def no_such_attribute(owner: object, name: str) -> NoSuchAttributeError:
    """The error for an attribute that a bank does not have: it says what to call in its place, or the nearest name."""
    kind = type(owner).__name__
    if advice := ADVICE.get(name):
        return NoSuchAttributeError(f"{kind} has no {name!r}: {advice}.")
    public = [known for known in dir(type(owner)) if not known.startswith("_")]
    near = difflib.get_close_matches(name, public, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return NoSuchAttributeError(f"{kind} has no {name!r}.{guess} Known: {', '.join(public)}.")
