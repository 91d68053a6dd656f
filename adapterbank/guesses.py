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


def no_such_attribute(owner: object, name: str) -> NoSuchAttributeError:
    """The error for an attribute that a bank does not have: it says what to call in its place, or the nearest name."""
    kind = type(owner).__name__
    if advice := ADVICE.get(name):
        return NoSuchAttributeError(f"{kind} has no {name!r}: {advice}.")
    public = [known for known in dir(type(owner)) if not known.startswith("_")]
    near = difflib.get_close_matches(name, public, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return NoSuchAttributeError(f"{kind} has no {name!r}.{guess} Known: {', '.join(public)}.")
