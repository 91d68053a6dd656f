"""The optimiser of a training: which parameters it changes, each at which rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.methods import parse
from adapterbank.numbers import is_real
from adapterbank.task.task import Task
from adapterbank.text import amount

FUSED = ("cpu", "cuda")  # where one kernel makes a step of AdamW for all tensors
OPTIMIZERS = ("adamw", "sgd")
OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def build(
    kind: str | OptimizerFactory, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """The optimiser of a training.

    Args:
        kind: "adamw"; "sgd", whose momentum is the first of `betas`; or a function that makes one of the groups.
        groups: as `parameter_groups` gives them.

    Raises:
        ConfigError: an own optimiser that does not hold exactly the parameters of the groups, or needs a closure.
    """
    if not isinstance(kind, str):
        return _own(kind, groups)
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=betas[0])
    # None leaves the choice to torch, which on other devices is a loop over tensors.
    fused = True if groups[0]["params"][0].device.type in FUSED else None
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=fused)


def parameter_groups(
    task: Task, lr: float, weight_decay: float, lr_groups: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Parameter groups as an optimiser of torch takes them: first what has the rate `lr`, then one group per part.

    Args:
        lr_groups: the rates of some parts of the task; see `parts_of`. Of two parts that hold the same parameters, such
            as "adapters" and "prompt", the smaller one decides.

    Raises:
        UnknownNameError: a part that the task does not have. ConfigError: one in which nothing is trained.
    """
    parts = parts_of(task)
    rate_of: dict[nn.Parameter, str] = {}
    # The parts of a composition come after "adapters", and so replace what it says of theirs.
    for name in sorted(lr_groups, key=lambda name: list(parts).index(name) if name in parts else -1):
        if name not in parts:
            raise UnknownNameError(f"part of {task.name!r} ({task.method}) in lr_groups", name, parts)
        trained = [parameter for parameter in parts[name].parameters() if parameter.requires_grad]
        if not trained:
            raise ConfigError(
                f"got lr_groups with {name!r}, in which the training of {task.name!r} changes nothing; expected a part "
                "with parameters that are trained."
            )
        rate_of.update(dict.fromkeys(trained, name))
    members: dict[str, list[nn.Parameter]] = {"": [], **{name: [] for name in lr_groups}}
    for parameter in task.parameters():
        if parameter.requires_grad:
            members[rate_of.get(parameter, "")].append(parameter)
    return [
        {"params": held, "lr": lr_groups.get(name, lr), "weight_decay": weight_decay}
        for name, held in members.items()
        if held
    ]


def parts_of(task: Task) -> dict[str, nn.Module]:
    """What may have a rate of its own: "head", "norm", "adapters", and each method of the task by its name."""
    methods = {part.name: task.part(part.name) for part in parse(task.method)}
    return {"head": task.head, "norm": task.norm, "adapters": task.adapters, **methods}


def check_optimizer(optimizer: Any, betas: Any, eps: Any, lr_groups: Any) -> None:
    """Refuses what no optimiser can be made of. Raises ConfigError, or UnknownNameError for an unknown name."""
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise UnknownNameError("optimizer", optimizer, OPTIMIZERS)
    elif not callable(optimizer):
        raise ConfigError(
            f"got optimizer={optimizer!r}, expected one of {', '.join(map(repr, OPTIMIZERS))}, or a function that "
            "makes one of parameter groups, such as torch.optim.SGD."
        )
    pair = isinstance(betas, (tuple, list)) and len(betas) == 2 and all(is_real(b) and 0 <= b < 1 for b in betas)
    if not pair:
        raise ConfigError(f"got betas={betas!r}, expected two numbers from 0 to below 1, such as (0.9, 0.999).")
    if not (is_real(eps) and eps > 0):
        raise ConfigError(f"got eps={eps!r}, expected a positive number such as 1e-8.")
    if lr_groups is None:
        return
    if not isinstance(lr_groups, Mapping) or not all(
        isinstance(name, str) and is_real(rate) and rate > 0 for name, rate in lr_groups.items()
    ):
        raise ConfigError(
            f"got lr_groups={lr_groups!r}, expected a positive rate for some parts of the task, such as "
            "{'head': 1e-2, 'adapters': 1e-3}, or None."
        )


def _own(factory: OptimizerFactory, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """An optimiser that the caller makes of the groups."""
    made = factory(groups)
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"optimizer={factory!r} gave {made!r}, expected a torch.optim.Optimizer.")
    wanted = {id(parameter) for group in groups for parameter in group["params"]}
    held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    if held != wanted:
        raise ConfigError(
            f"optimizer={factory!r} holds {amount(len(held), 'tensor')}, expected exactly the {len(wanted)} that the "
            "task trains: make it of all the groups that the function is given."
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"{type(made).__name__} evaluates the loss several times in a step, which a training does not do; choose "
            "an optimiser whose step() needs no closure."
        )
    return made
