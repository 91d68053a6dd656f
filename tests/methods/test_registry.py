"""Methods by name, compositions, options, exact trainable counts; an untrained method changes nothing."""

from __future__ import annotations

import pytest
import torch

from adapterbank import methods
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.weights import ASTWeights, Geometry, expected_shapes
from adapterbank.bank import AdapterBank
from adapterbank.errors import AdapterBankError, CompositionError, ConfigError, UnknownNameError
from adapterbank.methods.base import Adapters
from adapterbank.task.task import seeded

METHODS = ("aat_m", "aat_ms", "aat_s", "full", "head", "partial", "prompt")
BARE = {"head": "linear", "pooling": "mean"}  # 768 x classes + classes


def test_the_methods_of_the_paper_are_registered():
    assert set(METHODS) <= set(methods.names())
    assert "joint" in methods.names()
    assert all(methods.get(name).paper for name in METHODS)


@pytest.mark.parametrize(
    ("method", "classes", "expected"),
    [
        ("head", 50, 39_986),
        ("prompt", 20, 127_508),
        ("aat_m", 20, 3_567_380),
        ("aat_s", 20, 3_567_380),
        ("aat_ms", 20, 7_117_844),
        ("partial", 20, 42_544_148),
        ("joint", 30, 7_236_126),
        ("full", 50, 86_227_250),
        ("linear", 50, 38_450),
    ],
)
def test_trainable_counts_on_ast_base_are_exact(method, classes, expected, ast_base):
    bank = AdapterBank(ast_base)
    task = bank.add_task("task", method, num_classes=classes)
    assert bank.trainable_parameters("task") == expected
    assert sum(p.numel() for p in bank.task_module("task").parameters()) == expected
    assert task.num_bytes() == 4 * expected


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("shallow_prompt", {}, 230_400),
        ("prompt", {}, 110_592),
        ("prompt", {"mode": "petl"}, 110_592),
        ("prompt", {"mode": "overwrite"}, 110_592),
        ("prefix", {}, 221_184),
        ("lora", {}, 221_184),
        ("lora", {"dora": True}, 221_184 + 12 * 2 * 768),
        ("lora", {"targets": ["q", "k", "v", "proj", "fc1", "fc2"], "rank": 2}, 12 * 2 * (4 * 1536 + 2 * 3840)),
        ("bitfit", {}, 102_144),
        ("ln_tuning", {}, 38_400),
        ("bottleneck", {}, 230_544),
        ("bottleneck", {"placement": "houlsby"}, 2 * 230_544),
        ("bottleneck", {"form": "sequential", "activation": "relu"}, 230_544),
        ("bottleneck", {"gate": "scalar"}, 230_544 + 12),
        ("bottleneck", {"gate": "signal"}, 230_544 + 12 * 769),
        ("bottleneck", {"layers": [9, 10, 11]}, 230_544 // 4),
        ("conformer", {}, 231_648),
        ("conformer", {"kernel": 31}, 233_856),
        ("conformer", {"train_block_norms": True}, 250_080),
        ("conformer", {"kernel": 31, "train_block_norms": True}, 252_288),
        ("conformer", {"kernel": 31, "train_block_norms": True, "inner_norm": True}, 270_720),
        ("moa", {}, 12 * (768 * 4 + 4 * 19_212)),
        ("moa", {"kind": "dense"}, 12 * (768 * 4 + 4 * 19_212)),
        ("lora+prompt", {}, 221_184 + 110_592),
        ("conformer+lora", {}, 231_648 + 221_184),
    ],
)
def test_counts_without_head_on_ast_base_are_exact(method, options, expected, ast_base):
    bank = AdapterBank(ast_base)
    bank.add_task("task", method, num_classes=50, **BARE, **options)
    assert bank.trainable_parameters("task") - 38_450 == expected


@pytest.fixture(scope="module")
def ast_base():
    """AST-base at 1024 frames, without values."""
    geometry = Geometry()
    shapes = expected_shapes(geometry)
    weights = ASTWeights.from_named({n: torch.empty(s, device="meta") for n, s in shapes.items()}, geometry.layers)
    return Backbone(geometry, weights, "ast-base", "0")


@pytest.mark.parametrize("method", ["aat_m", "aat_s", "aat_ms", "full", "partial", "partial+aat_ms", "aat_m+aat_s"])
@pytest.mark.parametrize("head", [{}, {"pooling": "mean", "head": "linear", "train_final_norm": True}])
def test_an_untrained_method_changes_no_logit(method, head, small_backbone, clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("reference", "head", num_classes=3, **head)
    bank.add_task("new", method, num_classes=3, **head)
    bank.task("new").head.load_state_dict(bank.task("reference").head.state_dict())
    assert (bank(clips, "new") - bank(clips, "reference")).abs().max() <= 1e-6


def test_joint_is_aat_ms_and_prompt(small_bank):
    assert [part.name for part in methods.parse("joint")] == ["aat_ms", "prompt"]
    assert [part.name for part in methods.parse(" aat_ms + prompt ")] == ["aat_ms", "prompt"]
    shapes = [
        {name: t.shape for name, t in small_bank.add_task(name, method, num_classes=2).state_dict().items()}
        for name, method in (("a", "joint"), ("b", "aat_ms+prompt"))
    ]
    assert shapes[0] == shapes[1]


def test_aat_m_and_aat_s_compose_to_aat_ms(small_backbone, randomise, clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("parts", "aat_m+aat_s", num_classes=2)
    bank.add_task("whole", "aat_ms", num_classes=2)
    whole, parts = bank.task("whole"), bank.task("parts")
    randomise(whole)
    parts.adapters.parts["aat_m"].mlp.load_state_dict(whole.adapters.mlp.state_dict())
    parts.adapters.parts["aat_s"].spatial.load_state_dict(whole.adapters.spatial.state_dict())
    parts.head.load_state_dict(whole.head.state_dict())
    torch.testing.assert_close(bank(clips, "parts"), bank(clips, "whole"), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("expression", "error", "message"),
    [
        ("lora9", UnknownNameError, "unknown method 'lora9'.*Known: aat_m, .*joint.*Compose several with '\\+'"),
        ("aat_mss", UnknownNameError, "Did you mean 'aat_ms'"),
        ("aat_ms+promt", UnknownNameError, "unknown method 'promt'"),
        ("joint+head", UnknownNameError, "unknown method 'joint'"),
        ("aat_ms+", CompositionError, "cannot read the composition 'aat_ms\\+'"),
        ("+", CompositionError, "cannot read"),
        ("", CompositionError, "cannot read the composition ''"),
        ("prompt+prompt", CompositionError, "names a method twice"),
        ("aat_s+aat_ms", CompositionError, "'aat_s' and 'aat_ms' both fill the site after_attention"),
        (None, ConfigError, "got None as a method"),
        (["head"], ConfigError, r"got \['head'\] as a method"),
    ],
)
def test_an_unknown_method_or_composition_leaves_the_bank_as_it_was(expression, error, message, small_bank):
    before = dict(small_bank.tasks)
    with pytest.raises(error, match=message) as raised:
        small_bank.add_task("new", expression, num_classes=3)
    assert isinstance(raised.value, AdapterBankError)
    assert dict(small_bank.tasks) == before


def test_an_option_reaches_every_part_that_has_it_or_one_part_by_name(small_bank):
    task = small_bank.add_task("a", "aat_m+aat_s+prompt", num_classes=2, ratio=0.5, tokens=3, aat_s={"ratio": 0.125})
    parts = task.adapters.parts
    assert parts["aat_m"].mlp[0].down.weight.shape == (24, 48)
    assert parts["aat_s"].spatial[0].down.weight.shape == (6, 48)
    assert parts["prompt"].prompts[0].shape == (3, 48)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("aat_ms", {"ration": 0.5}, "unknown option of aat_ms 'ration'. Did you mean 'ratio'"),
        ("head", {"ratio": 0.5}, "unknown option of head 'ratio'. Known: none yet"),
        ("joint", {"rank": 4}, r"unknown option of aat_ms\+prompt 'rank'.*Known: .*ratio, tokens"),
        ("joint", {"prompt": {"ratio": 2}}, "unknown option of prompt 'ratio'.*Known: .*tokens"),
        ("joint", {"partial": {"blocks": 2}}, "unknown option .* 'partial'"),
    ],
)
def test_an_unknown_option_names_the_known_ones(method, options, message, small_bank):
    with pytest.raises(UnknownNameError, match=message):
        small_bank.add_task("new", method, num_classes=3, **options)
    assert "new" not in small_bank.tasks


@pytest.mark.parametrize(("name", "message"), [("head", "registered already"), ("joint", "already"), ("a+b", "'\\+'")])
def test_a_name_that_is_taken_or_cannot_be_composed_is_not_registered(name, message):
    before = methods.names()
    with pytest.raises(ConfigError, match=message):
        methods.register(name, paper="none", parameters="0")(lambda geometry, base, generator: Adapters())
    assert methods.names() == before


@pytest.mark.parametrize("method", [*METHODS, "joint"])
def test_building_is_seeded_and_never_touches_the_global_random_state(method, small_backbone):
    def build(*names: object) -> list[torch.Tensor]:
        generator = seeded(*names)
        made = methods.build(method, small_backbone.geometry, small_backbone.weights, generator)
        return list(made.state_dict().values())

    state = torch.get_rng_state()
    first, again, other = build(0, "a"), build(0, "a"), build(0, "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    if method not in ("head", "full", "partial"):  # these have nothing random
        assert not all(torch.equal(x, y) for x, y in zip(first, other, strict=True))
