"""Tasks put together from a skeleton are those that constructors build."""

from __future__ import annotations

import pytest
import torch

from adapterbank import methods
from adapterbank.bank import AdapterBank
from adapterbank.methods import registry
from adapterbank.methods.base import Adapters
from adapterbank.storage.skeleton import Built, Skeleton, Skeletons
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task

OWN = [name for name in methods.names() if not methods.foreign(name)]


def spec_of(method, name="new", labels=("a", "b", "c"), **fields):
    parts = methods.parse(method)
    options = {"reduction": 8} if any("reduction" in part.options for part in parts) else {}
    return TaskSpec(name, method, labels, options=options, **fields)


@pytest.fixture
def tensors_of(small_backbone, randomise):
    """Values of a task, as if trained."""

    def make(spec):
        task = Task(spec, small_backbone)
        randomise(task)
        return {name: tensor.clone() for name, tensor in task.state_dict().items()}

    return make


@pytest.fixture
def foreign():
    """A method from outside the package that keeps numbers it draws where no file has them."""

    @methods.register("hidden_draw", paper="-", parameters="0")
    def hidden_draw(geometry, base, generator):
        """Nothing, beside a number that depends on the seed."""
        adapters = Adapters()
        adapters.register_buffer("drawn", torch.rand(2, generator=generator), persistent=False)
        return adapters

    yield "hidden_draw"
    methods.unregister("hidden_draw")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", OWN)
def test_a_task_from_a_skeleton_is_the_built_one(method, frozen, small_backbone, tensors_of, clips):
    parts = tuple(part.name for part in methods.parse(method)) if frozen else ()
    first = spec_of(method, "first", frozen=parts, train_final_norm=frozen)
    hears = {"clip_seconds": 1.0, "normalize": (0.0, 3.0), "pooling": "mean", "multilabel": True}  # and answers
    second = spec_of(method, "second", ("x", "y", "z"), frozen=parts, train_final_norm=frozen, seed=5, **hears)
    kinds, tensors = Skeletons(), tensors_of(second)
    assert isinstance(kinds.of(first, small_backbone), Skeleton)
    task = kinds.of(second, small_backbone).task(second, small_backbone, tensors)
    built = Built(Task(second, small_backbone)).task(second, small_backbone, tensors)
    assert (task.spec, task.name, task.labels, task.metrics) == (second, "second", ("x", "y", "z"), {})
    assert task.mean_std == built.mean_std
    assert {n: type(m) for n, m in task.named_modules()} == {n: type(m) for n, m in built.named_modules()}
    assert not any(module.training for module in task.modules())
    flags = {name: (type(p), p.requires_grad, p.is_leaf) for name, p in built.named_parameters()}
    assert {name: (type(p), p.requires_grad, p.is_leaf) for name, p in task.named_parameters()} == flags
    state = task.state_dict()
    assert list(state) == list(built.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    banks = [AdapterBank(small_backbone, {"second": owner}) for owner in (task, built)]
    assert torch.equal(*(bank(clips, "second") for bank in banks))
    one, other = (bank.predict(clips[:2], "second") for bank in banks)
    assert one == other


def test_tasks_of_one_skeleton_share_nothing(small_backbone, tensors_of):
    spec = spec_of("joint")
    kinds, tensors = Skeletons(), tensors_of(spec)
    one, other = (kinds.of(spec, small_backbone).task(spec, small_backbone, tensors) for _ in range(2))
    places = [{tensor.data_ptr() for tensor in owner.values()} for owner in (one.state_dict(), tensors)]
    assert not {tensor.data_ptr() for tensor in other.state_dict().values()} & set.union(*places)
    assert not {id(module) for module in one.modules()} & {id(module) for module in other.modules()}
    one.train()
    one.head.register_forward_hook(print)
    one.metrics["accuracy"] = 1.0
    assert not other.training
    assert not other.head._forward_hooks
    assert not other.metrics


def test_another_number_of_classes_or_another_option_is_another_kind(small_backbone):
    kinds = Skeletons()
    specs = [
        TaskSpec("t", "lora", labels, options=options, head=head, train_final_norm=norm)
        for labels in (("a",), ("a", "b"))
        for options in ({}, {"rank": 2})
        for head in ("ln_linear", "linear")
        for norm in (False, True)
    ]
    found = [kinds.of(spec, small_backbone) for spec in specs]
    assert len({id(kind) for kind in found}) == len(specs)
    for spec, kind in zip(specs, found, strict=True):
        assert kind.shapes == Built(Task(spec, small_backbone)).shapes


@pytest.mark.parametrize("trusted", [False, True])
def test_what_a_method_draws_and_does_not_save_is_drawn_for_each_task(trusted, foreign, small_backbone, monkeypatch):
    if trusted:  # as if it were one of the package: the pickle finds the tensor that no file has
        monkeypatch.setattr(methods, "foreign", lambda expression: {})
    kinds = Skeletons()
    for seed in (0, 1):
        spec = spec_of(foreign, seed=seed)
        kind = kinds.of(spec, small_backbone)
        assert isinstance(kind, Built)
        expected = Task(spec, small_backbone)
        task = kind.task(spec, small_backbone, expected.state_dict())
        assert torch.equal(task.adapters.drawn, expected.adapters.drawn)


def test_a_name_of_ours_that_was_registered_anew_is_not_what_it_was(small_backbone, monkeypatch):
    kinds, spec = Skeletons(), spec_of("lora")
    assert isinstance(kinds.of(spec, small_backbone), Skeleton)
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))  # a copy, so that "lora" comes back afterwards
    methods.unregister("lora")

    @methods.register("lora", paper="-", parameters="0")
    def lora(geometry, base, generator):
        """Somebody else's."""
        return Adapters()

    kind = kinds.of(spec, small_backbone)
    assert isinstance(kind, Built)
    assert not [name for name in kind.shapes if name.startswith("adapters")]
