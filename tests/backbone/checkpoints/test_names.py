"""Our names and Hugging Face's, one for one."""

from __future__ import annotations

from adapterbank.backbone.checkpoints.names import PREFIX, canonical, linear_at, module_at, on_disk
from adapterbank.backbone.weights import LINEAR_NAMES, Geometry, expected_shapes


def test_every_tensor_comes_back_from_its_name_on_disk():
    names = list(expected_shapes(Geometry()))
    assert [canonical(PREFIX + on_disk(name)) for name in names] == names
    assert len({on_disk(name) for name in names}) == len(names)


def test_both_schemes_name_the_same_linears_and_nothing_else_is_one():
    for name in LINEAR_NAMES:
        for scheme in ("old", "new"):
            assert linear_at(module_at(3, name, scheme)) == (3, name)
            assert canonical(f"{module_at(3, name, scheme)}.bias") == f"blocks.3.{name}_bias"
    assert linear_at("encoder.layer.3.layernorm_before") is None
    assert canonical("decoder.weight") is None
