"""The contract of the backbone: whatever is done for speed computes what `plain.py` computes, and so do its gradients.

`plain.py` itself equals transformers' AST here, and a block written out by hand in `test_sites.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from adapterbank import methods
from adapterbank.backbone import plain
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.backbone.encode import encode
from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.kernels import HALF, SWITCHES, forced, plain_kernels
from adapterbank.bank import AdapterBank
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task

SMALL = {"reduction": 8}
# Options that make sense at width 48; a method that does not stand here is tested with its defaults.
OPTIONS = {
    "bottleneck": SMALL,
    "conformer": {**SMALL, "train_block_norms": True},
    "moa": SMALL,
    "shallow_prompt": {"tokens": 5, "pooling": "mean"},
    "lora": {"rank": 2, "targets": ["q", "k", "v", "proj", "fc1", "fc2"]},
}
CASES = {name: (name, OPTIONS.get(name, {})) for name in methods.names()} | {
    "upper": ("aat_ms", {"layers": [1]}),
    "rslora": ("lora", {"rank": 2, "rslora": True, "dropout": 0.1}),
    "dora": ("lora", {"rank": 2, "dora": True, "targets": ["k", "v", "fc2"]}),
    "prompt_petl": ("prompt", {"mode": "petl", "tokens": 3, "pooling": "mean"}),
    "prompt_overwrite": ("prompt", {"mode": "overwrite", "tokens": 3}),
    "signal_gate": ("aat_ms", {"gate": "signal", "dropout": 0.1}),
    "houlsby": ("bottleneck", {**SMALL, "placement": "houlsby", "form": "sequential", "activation": "relu"}),
    "conformer_group": ("conformer", {**SMALL, "norm": "group", "gate": "signal", "placement": "houlsby"}),
    "conformer_layer": ("conformer", {**SMALL, "norm": "layer", "inner_norm": True, "form": "sequential"}),
    "moa_dense": ("moa", {**SMALL, "kind": "dense", "gate": "signal", "gate_level": "token"}),
    "many": ("lora+bitfit+prompt+prefix+aat_ms", {"lora": {"rank": 2, "targets": ["q", "k", "v", "fc1"]}}),
    "own_norm": ("aat_ms", {"train_final_norm": True}),
}
# What other machines do, or this one in another situation; "here" is what this one chooses.
MACHINES = {
    torch.float32: {"here": {}, "oneDNN multiplies fp32": {"onednn": (torch.float32,)}},
    torch.bfloat16: {
        "here": {},
        "attention written out": {"attention": HALF},
        "torch's products and attention": {"onednn": (), "attention": (), "recompute": False},
    },
    torch.int8: {"here": {}},
}
NEAR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.int8: 2e-2}
onednn = torch.backends.mkldnn.is_available()

Row = tuple[Tensor, Task]  # spectrograms (R, F, M) of one task


@pytest.fixture(scope="module")
def bases(small_backbone: Backbone) -> dict[torch.dtype, Backbone]:
    return {dtype: small_backbone.to(dtype=dtype) for dtype in NEAR}


@pytest.fixture(scope="module")
def trained(randomise: Callable[..., None]) -> Callable[[str, Backbone], Task]:
    """A task of a case, as if trained."""

    def make(case: str, backbone: Backbone) -> Task:
        method, options = CASES[case]
        own = {key: value for key, value in options.items() if key in ("train_final_norm", "pooling")}
        rest = {key: value for key, value in options.items() if key not in own}
        task = Task(TaskSpec(f"t-{case}", method, ("x", "y", "z"), rest, **own), backbone)
        randomise(task, seed=len(case), scale=0.05)
        return task

    return make


@pytest.fixture
def mixed(trained: Callable[[str, Backbone], Task]) -> Callable[[Task, Backbone], list[Row]]:
    """Rows of a task at two lengths between those of four others; one clip is asked by three of them."""

    def make(task: Task, base: Backbone) -> list[Row]:
        probe, upper, prompt, owner = (trained(case, base) for case in ("head", "upper", "many", "full"))
        clip = torch.randn(2, 64, 128)
        return [
            (torch.randn(1, 64, 128), owner),
            (torch.randn(2, 64, 128), task),
            (clip, probe),
            (clip, task),
            (clip, upper),
            (torch.randn(1, 64, 128), prompt),
            (torch.randn(1, 112, 128), task),
            (torch.randn(2, 112, 128), upper),
        ]

    return make


def fast(rows: Sequence[Row], base: Backbone) -> list[Tensor]:
    """What heads read, (R, D) per row of the batch, as the library computes it."""
    segments = [task.segment(base.weights) for _, task in rows]
    outputs = encode([mel for mel, _ in rows], segments, base.geometry)
    return [task.pooled(out) for (_, task), out in zip(rows, outputs, strict=True)]


def formula(rows: Sequence[Row], base: Backbone) -> list[Tensor]:
    """The same by `plain.encode`, row by row; in bf16 on the dequantised matrices of an int8 base."""
    wide = base.weights.map(lambda _, tensor: tensor.wide() if isinstance(tensor, Int8Matrix) else tensor)
    found = []
    for mel, task in rows:
        segment = task.segment(wide)
        found.append(task.pooled(plain.encode(mel, segment.weights, base.geometry, segment.sites)))
    return found


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], near: float) -> None:
    """Off by no more than `near`, relative to the size of what is expected of each."""
    for one, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(one, reference, rtol=0, atol=near * max(1.0, float(reference.detach().abs().max())))


def gradients(outputs: Sequence[Tensor], task: Task) -> dict[str, Tensor]:
    """Of the parameters that the task trains, from a loss over all rows of the batch."""
    generator = torch.Generator().manual_seed(2)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
    named = {name: p for name, p in task.named_parameters() if p.requires_grad and not name.startswith("head.")}
    if not named:
        return {}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


PATHS = [
    pytest.param(dtype, decisions, id=f"{str(dtype).removeprefix('torch.')}, {name}")
    for dtype, machines in MACHINES.items()
    for name, decisions in machines.items()
    if onednn or not decisions.get("onednn")
]


@pytest.mark.parametrize(("dtype", "decisions"), PATHS)
@pytest.mark.parametrize("case", CASES)
def test_every_method_answers_as_the_formula_alone_and_in_a_mixed_batch(case, dtype, decisions, bases, trained, mixed):
    base = bases[dtype]
    rows = mixed(trained(case, base), base)
    with torch.no_grad():
        expected = formula(rows, base)
        with forced(**decisions):
            assert_near(fast(rows, base), expected, NEAR[dtype])
            assert_near(fast(rows[1:2], base), expected[1:2], NEAR[dtype])


@pytest.mark.parametrize(("dtype", "decisions"), PATHS)
@pytest.mark.parametrize("case", CASES)
def test_every_method_learns_as_by_the_formula_from_a_mixed_batch(case, dtype, decisions, bases, trained, mixed):
    base, near = bases[dtype], NEAR[dtype]
    task = trained(case, base)
    rows = mixed(task, base)
    expected = gradients(formula(rows, base), task)
    with forced(**decisions):
        found = gradients(fast(rows, base), task)
    assert found.keys() == expected.keys()
    whole = torch.stack([reference.norm() for reference in expected.values()]).norm() if expected else 0
    for name, reference in expected.items():
        # A bias of keys changes no softmax, so that its gradient is nothing but rounding: hence a share of the whole.
        assert (found[name] - reference).norm() <= near * (reference.norm() + 5e-2 * whole), name


@pytest.mark.parametrize("case", ["aat_ms", "bottleneck", "dora", "many", "conformer", "full"])
@pytest.mark.parametrize("autocast", HALF)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF, torch.int8])
def test_under_autocast_a_task_answers_and_learns_as_by_the_formula_without(
    dtype, autocast, case, small_backbone, trained, mixed
):
    base = small_backbone.to(dtype=dtype)
    task = trained(case, base)
    rows = mixed(task, base)
    expected = formula(rows, base)
    with torch.autocast("cpu", autocast):
        found = fast(rows, base)
        with torch.no_grad():
            answers = fast(rows, base)
    assert_near(found, expected, 4e-2)
    assert_near(answers, expected, 4e-2)
    ours, reference = (torch.cat([g.flatten() for g in gradients(y, task).values()]) for y in (found, expected))
    assert (ours - reference).norm() <= 4e-2 * reference.norm()


@pytest.mark.parametrize("case", ["bitfit", "lora", "dora", "prompt", "many", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_a_base_without_biases_of_queries_keys_and_values_answers_and_learns_as_the_formula(
    dtype, case, random_backbone, small_geometry, trained, mixed
):
    base = random_backbone(small_geometry, qkv_bias=False).to(dtype=dtype)
    task = trained(case, base)
    rows = mixed(task, base)
    found, expected = fast(rows, base), formula(rows, base)
    near = 1e-5 if dtype == torch.float32 else 2e-2
    assert_near(found, expected, near)
    ours, reference = (torch.cat([g.flatten() for g in gradients(y, task).values()]) for y in (found, expected))
    assert (ours - reference).norm() <= near * reference.norm()
    with torch.no_grad():
        assert_near(fast(rows, base), expected, near)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("switches", [(), *((name,) for name in SWITCHES)], ids=lambda s: s[0] if s else "all")
def test_with_plain_kernels_answers_and_gradients_are_the_same(switches, dtype, bases, trained, mixed):
    base, near = bases[dtype], NEAR[dtype]
    task = trained("bottleneck", base)
    rows = mixed(task, base)
    found = []
    for context in (nullcontext(), plain_kernels(*switches)):
        with context:
            with torch.no_grad():
                outputs = fast(rows, base)
            found.append((outputs, gradients(fast(rows, base), task)))
    assert_near(found[1][0], found[0][0], near)
    assert_near(list(found[1][1].values()), list(found[0][1].values()), near)


@pytest.mark.parametrize(
    "sizes", [{}, {"frequency_stride": 16, "time_stride": 16, "qkv_bias": False}, {"layer_norm_eps": 1e-3}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_is_transformers_ast(sizes, dtype, hf_model, hf_folder):
    model = hf_model(**sizes)
    base = load_backbone(hf_folder(model)).to(dtype=dtype)
    mel = torch.randn(2, 128, 128)
    with torch.no_grad():
        theirs = model.audio_spectrogram_transformer(mel).last_hidden_state
        ours = plain.encode(mel, base.weights, base.geometry)
    near = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=near * float(theirs.abs().max()))


def test_the_formula_is_read_from_any_block_on(small_backbone):
    mel = torch.randn(2, 64, 128)
    weights, geometry = small_backbone.weights, small_backbone.geometry
    x = plain.embed(mel, weights.embed, geometry)
    first = plain.block(x, weights.blocks[0], geometry)
    rest = plain.blocks(first, weights._replace(blocks=weights.blocks[1:]), geometry)
    assert torch.equal(rest, plain.encode(mel, weights, geometry))


def test_with_every_switch_off_tasks_run_through_the_formula_itself(small_bank, small_backbone):
    mels = [torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    tasks = [small_bank.task("mix"), small_bank.task("own")]
    segments = [task.segment(small_backbone.weights) for task in tasks]
    with torch.no_grad(), plain_kernels():
        found = encode(mels, segments, small_backbone.geometry)
    for out, mel, segment in zip(found, mels, segments, strict=True):
        with torch.no_grad():
            expected = plain.encode(mel, segment.weights, small_backbone.geometry, segment.sites)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("autocast", HALF)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_the_formula_joins_prefixes_under_autocast_of_any_half_precision(dtype, autocast, small_backbone, clips):
    bank = AdapterBank(small_backbone.to(dtype=dtype))
    bank.add_task("p", "prefix", num_classes=2)
    expected = bank(clips, "p")
    with torch.autocast("cpu", dtype=autocast), plain_kernels():
        found = bank(clips, "p")
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=5e-2)
